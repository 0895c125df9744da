"""The kernels that a layer says it ran stand in the record of a run, layer by layer, in a hybrid too."""

import json
import os
import subprocess
import sys

PLUGIN = """
    class Told(Good):
        operator = None

        def forward(self, x):
            self.operator = "fastF + fastB" if torch.is_grad_enabled() else "fastF"
            return super().forward(x)

    class Inside(torch.nn.Module):
        def __init__(self, d):
            super().__init__()
            self.inner = Told(d)

        def forward(self, x):
            return self.inner(x)

    @hookimpl
    def harness_mixers():
        yield spec("plain", lambda config: Good(config.d_model))
        yield spec("inside", lambda config: Inside(config.d_model))
        yield MixerSpec(
            name="told", summary="s", source="here", build=lambda config: Told(config.d_model),
            reference=lambda config: Good(config.d_model), expected_failures={"listing": "torch is imported above"},
        )
"""


def check(tiny, mixer):
    """Makes the report without which no time is measured."""
    words = ["check", mixer, "--plugin", str(tiny.plugin), "--runs", str(tiny.runs), "--device", "cpu"]
    environment = {**os.environ, "HARNESS_PLUGINS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "harness", *words], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout


def test_the_record_of_a_hybrid_names_the_kernels_of_each_layer(tiny):
    tiny.write_plugin(PLUGIN)
    check(tiny, "told")
    done = tiny.run("--mixer", "told", "--layers", "plain,MIXER,inside,attention")
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tiny.runs.glob("*/record.json")]
    ran = [record for record in records if record["kind"] in ("train", "time")]
    assert {record["kind"] for record in ran} == {"train", "time"}
    for record in ran:
        assert record["facts"]["layers"] == "plain/torch,told/torch,inside/torch,attention/torch"
        assert record["facts"]["operators_by_layer"] == [None, "fastF + fastB", "fastF + fastB", None]
