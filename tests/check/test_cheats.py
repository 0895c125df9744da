"""Liars are caught: each planted cheat by the promise it breaks, and an honest mixer by none."""

import json
import os
import subprocess
import sys
import threading

import pytest
from cheats import HONEST, KIT
from process_cheats import FATAL, PROCESS

from harness.check.kit import PROMISES, run_kit
from harness.check.subject import Subject
from harness.plugins import load_registry

PLAIN = "\ndef build(config):\n    return honest()[0](config)\n"


def write(folder, source, name="cheat.py"):
    path = folder / name
    path.write_text(source)
    return path


def subject(path):
    registry = load_registry([str(path)])
    assert not registry.problems
    return Subject(registry, registry.mixer("cheat"))


def check(path, *args):
    """Returns `harness check FILE --json` of a process of its own."""
    command = [
        sys.executable,
        "-m",
        "harness",
        "check",
        str(path),
        "--json",
        "--device",
        "cpu",
        "--runs",
        str(path.parent / "runs"),
        *args,
    ]
    environment = {**os.environ, "HARNESS_PLUGINS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)["checks"]


def test_an_honest_mixer_keeps_every_promise(tmp_path):
    report = run_kit(subject(write(tmp_path, HONEST + PLAIN)))
    assert [f for f in report.findings if f.verdict == "broken"] == []
    assert report.green
    assert len(report.findings) == len(PROMISES)


@pytest.mark.parametrize("cheat", KIT, ids=lambda cheat: cheat.name)
def test_a_cheat_breaks_the_promise_it_should(cheat, tmp_path):
    report = run_kit(subject(write(tmp_path, cheat.source)), [cheat.caught_by])
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    broken = {finding.promise: finding.detail for finding in report.broken}
    assert cheat.caught_by in broken
    assert not report.green
    assert "\n" not in broken[cheat.caught_by]


@pytest.mark.parametrize("cheat", PROCESS, ids=lambda cheat: cheat.name)
def test_a_cheat_that_changes_the_process_is_caught_in_its_own(cheat, tmp_path):
    code, (found,) = check(write(tmp_path, cheat.source), "--promise", cheat.caught_by)
    assert code == 1
    if found["status"] == "ok":
        assert [f["promise"] for f in found["findings"] if f["verdict"] == "broken"] == [cheat.caught_by]
    else:  # what was patched stays patched, and the runner sees it as well
        assert "replaced" in found["reason"]


@pytest.mark.parametrize("cheat", FATAL, ids=lambda cheat: cheat.name)
def test_a_cheat_that_ends_its_process_is_a_failed_check_with_its_reason(cheat, tmp_path):
    minutes = "0.3" if cheat.name == "hangs" else "4"  # the others end by themselves, on a busy machine later
    limits = ("--minutes", minutes, "--memory-gib", "1")
    code, (found,) = check(write(tmp_path, cheat.source), "--promise", "shape", *limits)
    assert code == 1
    reasons = [found["reason"] or "", *(f["detail"] for f in found["findings"] if f["verdict"] == "broken")]
    assert any(cheat.caught_by in reason for reason in reasons), reasons


def test_one_that_kills_its_process_does_not_stop_the_others(tmp_path):
    dies = write(tmp_path, FATAL[1].source.replace('name="cheat"', 'name="dies"'), "dies.py")
    lives = write(tmp_path, HONEST + PLAIN)
    code, found = check(dies, str(lives), "--promise", "shape", "--promise", "causality")
    assert code == 1
    assert {one["mixer"]: one["green"] for one in found} == {"dies/torch": False, "cheat/torch": True}
