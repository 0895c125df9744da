import re
import resource
import shutil
import signal
import time

import numpy as np
import psutil
import pytest

from harness.store import Store

SLOW = """
    import time

    class Slow(Good):
        def forward(self, x):
            time.sleep(0.1)
            return super().forward(x)

    @hookimpl
    def harness_mixers():
        yield spec("slow", lambda config: Slow(config.d_model))
"""
GRID = ("--mixer", "slow", "--set", "training.lrs=(1e-3, 1e-2)", "--set", "training.seeds=(0, 1)")


def until_finished(process, count):
    """Reads stderr until that many trials have finished."""
    for line in process.stderr:
        if line.startswith(f"[{count}/"):
            return
    raise AssertionError(f"it ended with {process.wait()}")


def written(runs):
    return {s.path.name: (s.path / "record.json").stat().st_mtime_ns for s in Store(runs).records()}


def gone(processes, seconds=20):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


@pytest.fixture(scope="module")
def story(tiny_module):
    """Interrupted, then killed, then left to finish: what was on disk after each, and how it went."""
    tiny, told = tiny_module, {}
    tiny.write_plugin(SLOW)
    process = tiny.start(*GRID)
    until_finished(process, 1)
    process.send_signal(signal.SIGINT)
    _, told["interrupted_stderr"] = process.communicate(timeout=60)
    told["interrupted_code"], told["interrupted"] = process.returncode, written(tiny.runs)

    process = tiny.start(*GRID)
    until_finished(process, len(told["interrupted"]) + 1)
    deadline = time.monotonic() + 20
    workers = []
    while not workers and time.monotonic() < deadline:
        workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    told["workers"], told["workers_gone"] = len(workers), gone(workers)
    process.communicate(timeout=60)
    told["killed"] = written(tiny.runs)

    told["last"] = tiny.run(*GRID)
    told["finished"] = written(tiny.runs)
    return told


def test_ctrl_c_says_what_is_on_disk_and_how_to_go_on(story):
    assert story["interrupted_code"] == 130
    last = story["interrupted_stderr"].splitlines()[-1]
    assert re.search(r"\d of 5 trials are on disk; run the same command again to continue", last)


def test_after_an_interruption_and_a_kill_the_next_run_finishes_the_rest(story):
    assert story["last"].returncode == 0, story["last"].stderr
    assert len(story["finished"]) == 5
    assert 1 <= len(story["interrupted"]) < len(story["killed"]) < 5


def test_a_finished_trial_is_not_run_again(story):
    for before in (story["interrupted"], story["killed"]):
        assert before.items() <= story["finished"].items()


def test_killing_the_run_leaves_no_worker_behind(story):
    assert story["workers"] >= 1
    assert story["workers_gone"]


def test_the_test_trial_holds_every_seed_of_the_chosen_learning_rate(story, tiny_module):
    stored = {s.record.kind: s for s in Store(tiny_module.runs).records()}
    test = stored["test"]
    assert test.record.facts["lr"] in (1e-3, 1e-2)
    assert test.record.facts["lrs"] == [1e-3, 1e-2]
    assert test.record.facts["tuning_trials"] == 4
    assert test.raw()["predicted"].shape == (2, 80)
    assert test.raw()["seeds"].tolist() == [0, 1]
    assert "seeds" not in stored["train"].raw()


def test_the_same_config_gives_the_same_bits_again(story, tiny_module, tmp_path):
    again = tiny_module.run(*GRID[:2], "--set", "training.lrs=1e-2", "--set", "training.seeds=1", runs=tmp_path)
    assert again.returncode == 0, again.stderr
    (second,) = [s for s in Store(tmp_path).records() if s.record.kind == "train"]
    first = Store(tiny_module.runs).find(second.record.key)  # a smaller grid: the same trial
    assert first is not None
    assert first.record.raw_sha256 == second.record.raw_sha256
    for name, array in first.raw().items():
        assert np.array_equal(array, second.raw()[name])


def test_editing_the_plugin_makes_its_trials_new_and_no_others(story, tiny_module):
    both = (*GRID, "--mixer", "attention")
    assert tiny_module.plan(*GRID)["to_run"] == 0
    source = tiny_module.plugin.read_text()
    tiny_module.plugin.write_text(source.replace("x.cumsum(1)", "2 * x.cumsum(1)"))
    try:
        plan = tiny_module.plan(*both)
        assert {t["mixer"] for t in plan["plan"] if t["state"] == "new"} == {"slow/torch", "attention/torch"}
        assert plan["on_disk"] == 0
    finally:
        tiny_module.plugin.write_text(source)
    assert tiny_module.plan(*GRID)["to_run"] == 0


def test_rerun_failed_runs_the_failed_trials_and_the_tests_that_depend_on_them(story, tiny_module, tmp_path):
    shutil.copytree(tiny_module.runs, tmp_path / "runs")
    store = Store(tmp_path / "runs")
    train = next(s for s in store.records() if s.record.kind == "train")
    import dataclasses

    store.remove(train.record.key)
    broken = dataclasses.replace(train.record, status="failed", reason="power cut", measures={})
    store.write(broken, {})
    runs = ("--runs", str(tmp_path / "runs"))
    plan = tiny_module.plan(*GRID, *runs)
    assert (plan["to_run"], plan["failed_before"]) == (0, 1)
    plan = tiny_module.plan(*GRID, "--rerun", "failed", *runs)
    assert sorted(t["kind"] for t in plan["plan"] if t["state"] == "new") == ["test", "train"]


def test_a_full_disk_stops_the_run_with_one_clear_error(tiny):
    tiny.write_plugin(SLOW)

    def small_files_only():  # as good as a full disk: writing the weights fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))

    done = tiny.run("--mixer", "slow", "--set", "model.d_model=1024", preexec_fn=small_files_only)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write records to {tiny.runs}")
    assert Store(tiny.runs).records() == []
    assert "Traceback" not in done.stderr
