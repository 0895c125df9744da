"""Options that do not fit the model are found before anything runs."""

from pathlib import Path

import pytest

from harness import InputError
from harness.pattern import parse_mixer
from harness.plugins import Registry, load_registry
from harness.sweep.command import RunRequest, Sweep
from harness.sweep.duels import CompareRequest, run_compare
from harness.sweep.fit import require_fit
from harness.sweep.gated import Place
from harness.sweep.times import TimeRequest, run_times

PLUGIN = """
from harness import InputError, MixerSpec, hookimpl

def wrong(config, T):
    raise {error}

@hookimpl
def harness_mixers():
    yield MixerSpec(name="mine", summary="s", source="here", build=lambda config: None, {declares}=wrong)
"""


def with_plugin(folder: Path, error: str, declares: str) -> Registry:
    file = folder / "mine.py"
    file.write_text(PLUGIN.format(error=error, declares=declares))
    return load_registry((str(file),))


@pytest.mark.parametrize("declares", ["state_bytes", "flops"])
def test_what_a_spec_refuses_is_refused(tmp_path: Path, declares: str) -> None:
    registry = with_plugin(tmp_path, "InputError('mine: too wide')", declares)
    with pytest.raises(InputError, match="mine: too wide"):
        require_fit([parse_mixer("mine/torch")], 64, 32, registry)


def test_a_spec_that_is_broken_stops_nothing(tmp_path: Path) -> None:
    registry = with_plugin(tmp_path, "ZeroDivisionError", "flops")
    require_fit([parse_mixer("mine/torch"), parse_mixer("attention/torch")], 64, 32, registry)


def sweep(runs: Path, **typed: object) -> Sweep:
    request = RunRequest(preset="smoke", tasks=("mqar",), device="cpu", runs=runs, **typed)
    return Sweep(request, load_registry())


@pytest.mark.parametrize(
    "typed",
    [
        {"mixers": ("sliding_window(window=33)",)},
        {"layers": "MIXER,sliding_window(window=33)"},
    ],
)
def test_a_window_beyond_the_sequences_of_the_task_ends_the_run_before_it_began(tmp_path: Path, typed: dict) -> None:
    with pytest.raises(InputError, match=r"window = 33; it takes 1 to max_len = 32"):
        sweep(tmp_path / "runs", **typed).execute()
    assert not list((tmp_path / "runs").glob("*/record.json"))


def test_a_registered_mixer_that_does_not_fit_ends_no_run_of_all(tmp_path: Path) -> None:
    every = sweep(tmp_path / "runs")
    (run,) = [run for run in every.suite.runs if run.task == "mqar"]
    assert [str(layer) for layer in every._typed(run)] == ["short_conv/torch"]


def test_a_length_shorter_than_the_window_is_neither_timed_nor_compared(tmp_path: Path) -> None:
    pytest.importorskip("harness_zoo")
    mixer, place = "sliding_window(window=65)", Place(runs=tmp_path, device="cpu")
    message = r"window = 65; it takes 1 to max_len = 64"
    with pytest.raises(InputError, match=message):
        run_times(TimeRequest(mixers=(mixer,), lengths=(128, 64), place=place), load_registry())
    with pytest.raises(InputError, match=message):
        run_compare(CompareRequest(a="attention", b=mixer, lengths=(64,), place=place), load_registry())
    assert not list(tmp_path.glob("*/record.json"))
