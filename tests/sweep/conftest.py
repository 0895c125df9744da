import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

GOOD = """
    import torch
    from harness import MixerSpec, hookimpl

    class Good(torch.nn.Module):
        def __init__(self, d):
            super().__init__()
            self.linear = torch.nn.Linear(d, d)

        def forward(self, x):  # running mean: causal
            steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
            return self.linear(x.cumsum(1) / steps[:, None])

    def spec(name, build):
        return MixerSpec(name=name, summary="s", source="here", build=build)
"""
TINY = (
    ("model.d_model", "16"),
    ("mqar.options.vocab_size", "32"),
    ("mqar.options.train_cells", "((16, 2, 640),)"),
    ("mqar.options.validation_cells", "((16, 2, 40),)"),
    ("mqar.options.test_cells", "((16, 2, 40),)"),
    ("training.steps", "6"),
    ("training.batch_size", "16"),
    ("training.eval_every", "6"),
    ("timing.T", "16"),
    ("timing.batch_size", "4"),
    ("timing.samples", "3"),
)


def hear_ctrl_c():
    """A shell that runs the tests in the background has them ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Harness:
    """`harness run` in a process of its own, on a tiny task, with a plugin file."""

    def __init__(self, folder):
        self.folder, self.runs, self.plugin = folder, folder / "runs", folder / "mine.py"

    def write_plugin(self, source):
        self.plugin.write_text(textwrap.dedent(GOOD) + textwrap.dedent(source))

    def command(self, *args, runs=None):
        tiny = [word for key, value in TINY for word in ("--set", f"{key}={value}")]
        common = ["--preset", "smoke", "--task", "mqar", "--layers", "MIXER", "--device", "cpu", "--no-check", *tiny]
        plugin = ["--plugin", str(self.plugin)] if self.plugin.exists() else []
        return [
            *(sys.executable, "-m", "harness", "run", *common, *plugin),
            *("--runs", str(runs or self.runs), *args),
        ]

    def start(self, *args, runs=None, **popen):
        environment = {**os.environ, "HARNESS_PLUGINS": ""}  # the core and our file only
        return subprocess.Popen(
            self.command(*args, runs=runs),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **{"preexec_fn": hear_ctrl_c, **popen},
        )

    def run(self, *args, runs=None, **popen):
        process = self.start(*args, runs=runs, **popen)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def plan(self, *args):
        done = self.run("--dry-run", "--json", *args)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["plan"]


@pytest.fixture
def tiny(tmp_path):
    return Harness(tmp_path)


@pytest.fixture(scope="module")
def tiny_module(tmp_path_factory):
    return Harness(tmp_path_factory.mktemp("sweep"))
