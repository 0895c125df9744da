"""The kit over a mixer that computes in half precision only, as a kernel that takes no float32 does."""

import pytest
from cheats import HONEST
from click.testing import CliRunner
from test_cheats import check, subject, write

from harness.check.kit import PROMISES, run_kit
from harness.check.promise import KEPT, NOT_APPLICABLE
from harness.check.subject import Subject
from harness.cli.check import check as check_command
from harness.cli.compare import compare
from harness.cli.run import run
from harness.cli.time import time
from harness.errors import InputError
from harness.plugins import load_registry
from harness.sweep.plan import entrants

HALF = '''
def build(config, kernel=lambda x: x):
    import torch

    class Half(honest()[0]):
        """Its kernel refuses float32; under autocast, and with half weights, its projection gives it a half type."""

        def __init__(self, config):
            super().__init__(config)
            self.in_proj = torch.nn.Linear(config.d_model, config.d_model)

        def mix(self, x):
            if x.dtype not in (torch.bfloat16, torch.float16):
                raise RuntimeError(f"no kernel for {x.dtype}")
            return super().mix(x)

        def forward(self, x):
            return self.out_proj(kernel(self.mix(self.in_proj(x))))

        def step(self, x_t, state):
            u_t = self.in_proj(x_t)
            state = state + torch.cat((u_t, torch.ones_like(u_t[:, :1])), dim=1)
            return self.out_proj(state[:, :-1] / state[:, -1:]), state

    return Half(config)

def reference(config):
    import torch

    class Reference(honest()[1]):
        def __init__(self, config):
            super().__init__(config)
            self.in_proj = torch.nn.Linear(config.d_model, config.d_model)

        def forward(self, x):
            return super().forward(self.in_proj(x))

    return Reference(config)
'''
BOTH, ONE = ("bfloat16", "float16"), ("bfloat16",)
ERRORS = {"bfloat16": 3e-2, "float16": 5e-3}


def half(tmp_path, dtypes=BOTH, kernel=None):
    errors = {dtype: ERRORS[dtype] for dtype in dtypes}
    source = HONEST.replace('max_error={"float32": 1e-5}', f"dtypes={dtypes!r}, max_error={errors!r}") + HALF
    return write(tmp_path, source if kernel is None else source.replace("kernel=lambda x: x", f"kernel={kernel}"))


@pytest.mark.parametrize(("dtypes", "widest"), [(BOTH, "float16"), (ONE, "bfloat16")])
def test_an_honest_one_keeps_every_promise_in_the_widest_dtype_it_declares(dtypes, widest, tmp_path):
    report = run_kit(subject(half(tmp_path, dtypes)))
    assert [f for f in report.findings if f.verdict not in (KEPT, NOT_APPLICABLE)] == []
    assert {f.promise for f in report.findings if f.verdict == NOT_APPLICABLE} == {
        "slope",
        "implementations",
        "forward_at",
    }
    assert len(report.findings) == len(PROMISES)
    assert report.dtype == report.to_facts()["dtype"] == widest
    (reference,) = [f.detail for f in report.findings if f.promise == "reference"]
    assert reference.startswith(f"{widest} ")
    assert f"(allowed {ERRORS[widest]:.1g} in {widest})" in reference


FAULTS = {
    "computes something else": ("lambda y: 1.1 * y", "reference"),
    "rounds to fewer bits": ("lambda y: (2 * y).round() / 2", "reference"),
    "passes twice the gradient back": ("lambda y: y + (y - y.detach())", "reference"),
    "looks at the future": ("lambda y: y + 0.1 * y.mean(1, keepdim=True)", "causality"),
    "passes a gradient back from the future": ("lambda y: y + (y.sum(1, True) - y.sum(1, True).detach())", "causality"),
    "depends on its neighbours": ("lambda y: y + 0.1 * y.mean(0, keepdim=True)", "batch"),
    "is not deterministic": ("lambda y: y * (1 + 0.1 * y.new_empty(y.shape).uniform_())", "determinism"),
    "loses the gradient": ("lambda y: y.detach()", "gradients"),
    "steps in another way": ("lambda y: 1.1 * y", "step"),
}


@pytest.mark.parametrize("dtypes", [BOTH, ONE], ids=lambda dtypes: dtypes[-1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault, dtypes, tmp_path):
    kernel, caught_by = FAULTS[fault]
    report = run_kit(subject(half(tmp_path, dtypes, kernel)), [caught_by])
    assert [f.promise for f in report.broken] == [caught_by]


def test_the_bytes_of_a_state_are_declared_as_in_float32(tmp_path):
    path = half(tmp_path)
    path.write_text(path.read_text().replace("4 * (config.d_model + 1)", "2 * (config.d_model + 1)"))
    (broken,) = run_kit(subject(path), ["state_bytes"]).broken
    assert "declares 130 bytes per sequence at T = 1, the real state holds 260" in broken.detail


@pytest.mark.parametrize(("times", "broken"), [("1.0", []), ("1.1", ["implementations"])])
def test_two_implementations_are_compared_in_a_dtype_that_both_declare(times, broken, tmp_path):
    wide = HONEST.replace('name="cheat"', 'name="cheat", implementation="wide"') + HALF
    wide = wide.replace('"float32": 1e-5}', '"float32": 1e-5, "bfloat16": 3e-2}, dtypes=("float32", "bfloat16")')
    wide = wide.replace("x.dtype not in (torch.bfloat16, torch.float16)", "False").replace("x: x)", f"x: {times} * x)")
    registry = load_registry([str(half(tmp_path)), str(write(tmp_path, wide, "wide.py"))])
    for name in ("cheat/torch", "cheat/wide"):
        report = run_kit(Subject(registry, registry.mixer(name)), ["implementations"])
        assert [f.promise for f in report.broken] == broken
        assert "in bfloat16" in report.findings[0].detail


def test_the_report_on_disk_and_its_table_name_the_dtype(tmp_path):
    path = half(tmp_path, ONE)
    code, (found,) = check(path, "--promise", "shape")
    assert (code, found["green"], found["dtype"]) == (0, True, "bfloat16")
    shown = CliRunner().invoke(check_command, [str(path), "--promise", "shape", "--device", "cpu"])
    assert shown.stdout.splitlines()[0].endswith(" · bfloat16")


REFUSED = "cheat/torch is unavailable here: it computes in bfloat16 and float16, not in float32; say "
REFUSED += "--set training.dtype=bfloat16 (harness run) or --dtype bfloat16 (harness time and compare)"


@pytest.mark.parametrize(
    ("command", "args"),
    [
        (run, ("--preset", "smoke", "--mixer", "cheat", "--layers", "MIXER", "--dry-run")),
        (run, ("--preset", "smoke", "--mixer", "attention", "--layers", "cheat,MIXER", "--dry-run")),
        (time, ("cheat",)),
        (time, ("attention", "cheat", "--T", "16")),
        (compare, ("attention", "cheat")),
    ],
    ids=["run", "a layer of a run", "time", "time two", "compare"],
)
def test_a_run_in_float32_is_refused_before_anything_starts(command, args, tmp_path):
    runs = tmp_path / "runs"
    words = (*args, "--device", "cpu", "--plugin", str(half(tmp_path)), "--runs", str(runs))
    result = CliRunner().invoke(command, words, standalone_mode=False)
    assert isinstance(result.exception, InputError), result.exception
    assert str(result.exception) == REFUSED
    assert not runs.exists()


def test_a_run_in_a_declared_dtype_is_planned(tmp_path):
    words = ("--preset", "smoke", "--mixer", "cheat", "--layers", "MIXER", "--set", "training.dtype=bfloat16")
    where = ("--dry-run", "--device", "cpu", "--plugin", str(half(tmp_path)), "--runs", str(tmp_path / "runs"))
    result = CliRunner().invoke(run, (*words, *where), standalone_mode=False)
    assert result.exception is None
    assert "cheat/torch" in result.output


def test_of_all_mixers_the_one_that_cannot_run_in_float32_is_left_out_with_its_reason(tmp_path):
    registry = load_registry([str(half(tmp_path))])
    assert dict(entrants(registry, (), "cpu", ("float32",))[1])["cheat/torch"].startswith("it computes in bfloat16 and")
    chosen, missing = entrants(registry, (), "cpu", ("bfloat16",))
    assert "cheat/torch" in [str(one.choice) for one in chosen]
    assert "cheat/torch" not in dict(missing)
