import json

import pytest
from made_reports import checked

from harness.plugins import load_registry
from harness.store import Store

FAULTY = """
    import ctypes, os, sys, time
    import numpy as np

    def raises_in_build(config):
        raise ValueError("no such width\\nsecond line")

    class Faulty(Good):
        calls = 0

        def __init__(self, d, fault):
            super().__init__(d)
            self.fault = fault

        def forward(self, x):
            self.calls += 1
            if self.calls == 3:
                self.fault()
            return super().forward(x)

    def boom():
        raise RuntimeError("step three")

    def eat():
        hoard = []
        while len(hoard) < 200:
            hoard.append(np.ones(2**22))
            time.sleep(0.02)

    class Chatty(Good):
        def forward(self, x):
            print('{"event": "unwritten", "reason": "not from the harness"}', flush=True)
            return super().forward(x)

    class NotANumber(Good):
        def forward(self, x):
            return super().forward(x) * float("nan")

    FAULTS = {
        "forward_raises": boom,
        "exits": lambda: os._exit(7),
        "calls_exit": lambda: sys.exit("enough"),
        "segfaults": lambda: ctypes.string_at(0),
        "eats": eat,
    }

    @hookimpl
    def harness_mixers():
        yield spec("hangs", lambda config: Faulty(config.d_model, lambda: time.sleep(3600)))
        yield spec("build_raises", raises_in_build)
        for name, fault in FAULTS.items():
            yield spec(name, lambda config, fault=fault: Faulty(config.d_model, fault))
        yield spec("diverges", lambda config: NotANumber(config.d_model))
        yield spec("good", lambda config: Chatty(config.d_model))

    @hookimpl
    def harness_record(record):
        print("told of", record["mixer"])
        if record["mixer"] == "good/torch" and record["kind"] == "test":
            raise KeyError("tracker is down")
"""
LIMITS = ("--set", "limits.trial_minutes=0.5", "--set", "limits.memory_gib=0.9")
REASONS = {
    "build_raises": "ValueError: no such width second line",
    "forward_raises": "RuntimeError: step three",
    "hangs": "stopped after 0.5 minutes, its time limit (limits.trial_minutes)",
    "exits": "the process ended with exit code 7",
    "calls_exit": "SystemExit: enough",
    "segfaults": "the process was killed by SIGSEGV",
    "eats": "over its limit of 0.9 GiB (limits.memory_gib)",
    "diverges": "diverged: loss is not finite at step 6",
}


@pytest.fixture(scope="module")
def ran(tiny_module):
    tiny_module.write_plugin(FAULTY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_PLUGINS", "")
        registry = load_registry([str(tiny_module.plugin)])
    for mixer in ("good", "attention", "exits", "diverges"):  # the others have no report: they are not timed
        checked(Store(tiny_module.runs), registry, mixer)
    done = tiny_module.run("--all", "--json", *LIMITS)
    stored = Store(tiny_module.runs).records()
    return done, {(s.record.mixer.partition("/")[0], s.record.kind): s for s in stored}


@pytest.mark.parametrize(("mixer", "reason"), REASONS.items())
def test_a_mixer_that_fails_is_a_failed_record_with_its_reason(ran, mixer, reason):
    record = ran[1][mixer, "train"].record
    assert record.status == "failed"
    assert reason in record.reason
    assert "\n" not in record.reason
    assert record.plugin["distribution"] == "mine.py"


@pytest.mark.parametrize("mixer", REASONS)
def test_its_test_fails_too_and_says_which_training_trial_is_to_blame(ran, mixer):
    reason = ran[1][mixer, "test"].record.reason
    assert reason.startswith("no learning rate finished on every seed: lr=0.01 seed=0: ")
    assert REASONS[mixer] in reason


@pytest.mark.parametrize("kind", ["train", "test", "time"])
@pytest.mark.parametrize("mixer", ["good", "attention"])
def test_the_others_in_the_same_run_finish(ran, mixer, kind):
    record = ran[1][mixer, kind].record
    assert record.status == "ok"
    assert record.measures
    assert record.environment["device"] == "cpu"


def test_a_mixer_that_crashes_in_training_is_not_timed_but_one_that_diverges_is(ran):
    assert ran[1]["exits", "time"].record.reason.startswith("not timed, as its training failed")
    assert ran[1]["diverges", "time"].record.status == "ok"
    assert ("hangs", "time") not in ran[1]


def test_a_time_names_the_check_it_rests_on_and_which_process_it_was(ran):
    record = ran[1]["good", "time"].record
    assert record.process == 0
    (gate,) = record.facts["gates"]
    assert (gate["mixer"], gate["check"]) == ("good/torch", ran[1]["good", "check"].record.key)


def test_the_exit_code_is_1_and_every_failure_is_named_with_its_log(ran):
    done, stored = ran
    assert done.returncode == 1
    for mixer, reason in REASONS.items():
        assert f"failed: mqar {mixer}/torch lr=0.01 seed=0: " in done.stderr
        assert reason in done.stderr
        assert f"log: {stored[mixer, 'train'].path / 'log.txt'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_log_holds_the_traceback_or_the_dying_words(ran):
    assert "RuntimeError: step three" in ran[1]["forward_raises", "train"].log
    assert "Traceback" in ran[1]["forward_raises", "train"].log
    assert "Segmentation fault" in ran[1]["segfaults", "train"].log


def test_what_a_mixer_prints_goes_to_its_log_and_nowhere_else(ran):
    done, stored = ran
    assert "not from the harness" in stored["good", "train"].log
    assert "not from the harness" not in done.stderr + done.stdout


def test_stdout_is_one_json_object_with_the_tables_and_failures(ran):
    found = json.loads(ran[0].stdout)
    (table,) = found["tables"]
    assert {row["mixer"] for row in table["rows"]} >= {"good/torch", "attention/torch", "exits/torch"}
    failed = {(failure["mixer"], failure["kind"]) for failure in found["failures"]}
    assert ("exits/torch", "train") in failed
    assert not any(mixer == "good/torch" for mixer, _ in failed)


def test_a_failing_record_hook_is_one_warning_line(ran):
    (line,) = [line for line in ran[0].stderr.splitlines() if "harness_record raised" in line]
    assert line.startswith("warning: mine.py: harness_record raised KeyError: 'tracker is down' (mine.py:")
