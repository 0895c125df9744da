import io

import pytest
from rich.console import Console

from harness.plugins import load_registry
from harness.spec import Measure
from harness.store import Store
from harness.sweep import estimate, settings
from harness.sweep.local import why_it_ended
from harness.sweep.plan import Planner, entrants, plan
from harness.sweep.progress import LiveDisplay, PlainDisplay, Tally
from harness.sweep.trial import failed, first_record


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture
def trials(registry, tmp_path):
    suite = settings.with_layers(settings.complete(registry.suite("smoke"), registry), "MIXER")
    planner = Planner(registry, suite, "smoke", "cpu", lambda kind, *_: 10.0)
    mixers, _ = entrants(registry, ["attention"], "cpu")
    return tuple(t for t in plan(planner, mixers, ["mqar"], Store(tmp_path)).trials if t.kind != "check")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_finished_trial_is_one_plain_line_with_its_score_and_time(trials, registry, tmp_path, capsys):
    import dataclasses

    measures = {"accuracy": Measure(value=0.1412, unit="fraction", n=4)}
    record = dataclasses.replace(first_record(trials[0], registry), measures=measures, seconds=41.2)
    stored = Store(tmp_path).write(record, {})
    PlainDisplay(Tally(trials, 12, 2, Clock()), registry).done(trials[0], stored)
    assert capsys.readouterr().err == "[10/12] mqar attention/torch lr=0.01 seed=0: accuracy 0.141, 41 s\n"


def test_a_failed_trial_says_why_and_where_its_log_is(trials, registry, tmp_path, capsys):
    stored = Store(tmp_path).write(failed(first_record(trials[0], registry), "boom\n bang", 1.0), {}, log="x")
    PlainDisplay(Tally(trials, 3, 2, Clock()), registry).done(trials[0], stored)
    assert f"FAILED: boom bang; log: {stored.path / 'log.txt'}" in capsys.readouterr().err


@pytest.mark.parametrize("colour", [True, False])
def test_the_live_display_shows_running_trials_and_colours_only_failures_and_only_if_wanted(
    trials, registry, tmp_path, colour
):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", no_color=not colour, width=120)
    stored = Store(tmp_path).write(failed(first_record(trials[0], registry), "[red]boom", 1.0), {}, log="x")
    with LiveDisplay(Tally(trials, 3, 2, Clock()), registry, console) as display:
        display.start(trials[0])
        display.progress(trials[0], 50, 100, "loss 2.1")
        display.bars.refresh()
        display.done(trials[0], stored)
        display.note("warning: a hook")
    shown = out.getvalue()
    assert "mqar attention/torch lr=0.01 seed=0" in shown
    assert "50/100 loss 2.1" in shown
    assert "1/3 trials" in shown
    assert "[red]boom" in shown  # a reason is no markup
    assert ("\x1b[31m" in shown) == colour


def test_the_remaining_time_follows_the_pace(trials):
    clock = Clock()
    tally = Tally(trials, 3, 1, clock)
    assert tally.remaining_s == 30
    clock.now = 20.0  # the first trial took twice its estimate
    tally.finish(trials[0])
    assert 20 < tally.remaining_s < 40
    for trial in trials[1:]:
        tally.finish(trial)
    assert tally.remaining_s == 0


def test_the_wall_time_packs_training_and_adds_up_time_trials(trials):
    assert estimate.wall_seconds(trials, workers=2) == 10 + 10
    assert estimate.wall_seconds([], workers=2) == 0


def test_an_earlier_record_of_this_machine_gives_the_estimate(registry, trials, tmp_path):
    import dataclasses

    from harness.timing.device import device_facts

    record = dataclasses.replace(first_record(trials[0], registry), seconds=77.0, environment=device_facts("cpu"))
    Store(tmp_path).write(record, {})
    estimator = estimate.Estimator(Store(tmp_path), "cpu")
    config = trials[0].run_config(registry)
    assert estimator("train", config, (), "attention/torch") == 77.0
    assert estimator("train", config, (), "other/torch") != 77.0


def test_more_work_is_estimated_to_take_longer(registry):
    smoke, quick = (settings.complete(registry.suite(name), registry) for name in ("smoke", "quick"))
    for small, large in zip(smoke.runs, quick.runs, strict=True):
        assert estimate.counted_seconds("train", small, [None] * 2, 1e11) < estimate.counted_seconds(
            "train", large, [None] * 2, 1e11
        )


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (44, "44 s"), (540, "9 min"), (9000, "2.5 h")])
def test_an_estimate_is_in_words(seconds, words):
    assert estimate.in_words(seconds) == f"about {words}"


def test_an_exit_without_a_record_names_the_signal():
    assert why_it_ended(-11) == "the process was killed by SIGSEGV"
    assert "out of memory" in why_it_ended(-9)
    assert "exit code 3" in why_it_ended(3)
