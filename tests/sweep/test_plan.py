import dataclasses
import textwrap
from collections import Counter

import pytest

from harness.config import RunConfig
from harness.errors import HarnessError, InputError
from harness.plugins import load_registry
from harness.record import Record
from harness.spec import Measure
from harness.store import Store
from harness.sweep import settings
from harness.sweep.local import LocalExecutor, Slot
from harness.sweep.plan import Planner, check_data, choose, entrants, plan, plan_json, suite_key
from harness.sweep.trial import Job, failed, first_record, job_from_text, job_to_text

PLUGIN = """
    from harness import MixerSpec, hookimpl

    def spec(name, implementation="torch", **more):
        return MixerSpec(name=name, implementation=implementation, summary="s", source="here",
                         build=lambda config: None, **more)

    @hookimpl
    def harness_mixers():
        yield spec("plain")
        yield spec("two", "slow")
        yield spec("two", "fast", preference=5)
        yield spec("two", "gpu", preference=9, devices=("cuda",))
        yield spec("never", unavailable=lambda: "no such chip; buy one")
"""


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_PLUGINS", "")
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(PLUGIN))
    return load_registry([str(file)])


@pytest.fixture
def suite(registry):
    smoke = settings.complete(registry.suite("smoke"), registry)
    return settings.with_settings(settings.with_layers(smoke, "plain,MIXER"), ["training.lrs=(1e-3, 1e-2)"])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@dataclasses.dataclass(eq=False)
class Worker:
    """A process that runs."""

    slot: Slot


def no_estimate(kind, config, layers, mixer):
    return 1.0


def make(registry, suite, store, *names, tasks=("mqar",), **more):
    mixers, missing = entrants(registry, names, "cpu")
    planner = Planner(registry, suite, suite.name, "cpu", no_estimate)
    return plan(planner, mixers, list(tasks), store, missing=missing, **more)


def keys(plan, *kinds):
    return [trial.key for trial in plan.trials if trial.kind in kinds]


def record(trial, registry, **changes):
    accuracy = {"accuracy": Measure(value=0.5, unit="fraction", n=4)}
    if trial.kind == "time":
        code = registry.origin(registry.spec(registry.mixer(trial.mixer))).code_sha256()
        green = {"mixer": trial.mixer, "green": True, "class": "a", "code_sha256": code}
        changes |= {"facts": {"gates": [green]}, "environment": {"class": "a"}}
    return dataclasses.replace(first_record(trial, registry), measures=accuracy, **changes)


def test_a_mixer_and_task_is_a_check_a_trial_a_learning_rate_and_seed_one_test_and_the_processes_that_time(
    registry, suite, store
):
    suite = settings.with_settings(suite, ["training.seeds=(0, 1, 2)", "timing.processes=3"])
    made = make(registry, suite, store, "plain")
    assert [trial.kind for trial in made.trials] == ["check", *["train"] * 6, "test", *["time"] * 3]
    assert {(trial.lr, trial.seed) for trial in made.trials[1:7]} == {(lr, s) for lr in (1e-3, 1e-2) for s in range(3)}
    assert made.trials[7].needs == tuple(keys(made, "train"))
    assert len(set(keys(made, "train", "test", "time"))) == 10
    assert [trial.process for trial in made.trials[8:]] == [0, 1, 2]
    assert all(trial.checks == tuple(keys(made, "check")) for trial in made.trials[8:])


def test_mixers_are_timed_in_rounds_so_that_none_meets_one_moment_of_the_machine_only(registry, suite, store):
    suite = settings.with_settings(suite, ["timing.processes=3"])
    timed = [trial for trial in make(registry, suite, store).trials if trial.kind == "time"]
    mixers = {trial.mixer for trial in timed}
    rounds = [timed[i : i + len(mixers)] for i in range(0, len(timed), len(mixers))]
    assert [{trial.process for trial in one} for one in rounds] == [{0}, {1}, {2}]
    assert all({trial.mixer for trial in one} == mixers for one in rounds)


def test_on_a_gpu_the_tasks_of_a_mixer_share_the_process_of_a_round(registry, suite):
    suite = settings.with_settings(suite, ["timing.processes=2"])
    (entrant,), _ = entrants(registry, ["plain"], "cpu")
    for device, shared in (("cuda", {"plain/torch process 0": 2, "plain/torch process 1": 2}), ("cpu", {"": 4})):
        planner = Planner(registry, suite, suite.name, "cpu", no_estimate)
        planner.device = device  # no mixer is asked whether it runs there
        made = [trial for run in suite.runs for trial in planner.trials(entrant, run) if trial.kind == "time"]
        assert Counter(trial.together for trial in made) == shared


def test_what_shares_a_process_begins_only_where_its_training_has_not_failed(registry, suite, store):
    made = make(registry, suite, store, "plain", tasks=("mqar", "pile"))
    timed = [dataclasses.replace(trial, together="one process") for trial in made.trials if trial.kind == "time"]
    executor = LocalExecutor(made, store, registry, display=None)
    executor.state = dict.fromkeys(executor.state, "ok")
    first, other = timed
    for trial in made.trials:
        if trial.kind == "train":
            store.write(record(trial, registry), {})
    assert executor._mates(first, timed) == [other]
    for trial in made.trials:
        if trial.key in other.needs:
            store.remove(trial.key)
            store.write(failed(first_record(trial, registry), "it broke", 1.0), {})
    assert executor._mates(first, timed) == []
    assert executor._mates(dataclasses.replace(first, together=""), timed) == []


def test_beside_a_worker_that_runs_nothing_is_looked_up(registry, suite, store, monkeypatch):
    made = make(registry, settings.with_settings(suite, ["timing.processes=5"]), store, "plain")
    timed = [dataclasses.replace(trial, needs=(), checks=()) for trial in made.trials if trial.kind == "time"]
    executor, looked, polls = LocalExecutor(made, store, registry, display=None), [], []
    monkeypatch.setattr(executor, "_hopeless", lambda trial: looked.append(trial))
    monkeypatch.setattr(executor, "_start", lambda trials, slot: executor.running.append(Worker(slot)))
    monkeypatch.setattr(executor, "_listen", lambda: polls.append(None))
    monkeypatch.setattr(executor, "_has_ended", lambda worker: len(polls) % 50 == 0)
    monkeypatch.setattr(executor, "_collect", lambda worker: [])
    executor._pool(timed, [Slot(threads=1)])
    assert len(polls) == 5 * 50
    assert len(looked) == 5 + 4 + 3 + 2 + 1  # what waits, once a worker


def test_more_processes_add_to_those_on_disk(registry, suite, store):
    few, many = (
        keys(make(registry, settings.with_settings(suite, [f"timing.processes={n}"]), store, "plain"), "time")
        for n in (3, 5)
    )
    assert many[:3] == few
    with pytest.raises(InputError, match=r"timing\.processes takes at least 1, got 0"):
        make(registry, settings.with_settings(suite, ["timing.processes=0"]), store, "plain")


def test_without_checking_only_what_has_a_report_is_timed(registry, suite, store):
    made = make(registry, suite, store, "plain", check=False)
    assert [trial.kind for trial in made.trials] == ["train", "train", "test"]
    check = next(trial for trial in make(registry, suite, store, "plain").trials if trial.kind == "check")
    store.write(first_record(check, registry), {})
    assert keys(make(registry, suite, store, "plain", check=False), "time")


def test_all_scores_a_mixer_once_and_times_each_implementation_that_runs_here(registry, suite, store):
    made = make(registry, suite, store)
    kinds = {
        mixer: [t.kind for t in made.trials if t.mixer == mixer and t.kind != "check"]
        for mixer in ("two/fast", "two/slow", "plain/torch")
    }
    assert kinds["two/fast"] == ["train", "train", "test", "time"]
    assert kinds["two/slow"] == ["time"]
    assert "never/torch" not in {trial.mixer for trial in made.trials}


def test_what_cannot_run_here_is_listed_with_its_reason_under_all(registry, suite, store):
    missing = dict(make(registry, suite, store).unavailable)
    assert missing["never/torch"] == "no such chip; buy one"
    assert missing["two/gpu"] == "it runs on cuda only; use --device cuda where there is one"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("never", "never/torch is unavailable here: no such chip; buy one"),
        ("two/gpu", "two/gpu is unavailable here: it runs on cuda only"),
        ("plian", "did you mean 'plain'"),
        ("two/fats", "did you mean 'two/fast'"),
        ("plain(kernel=3)", "has no options"),
        ("attention(hedas=2)", "did you mean 'heads'"),
    ],
)
def test_a_mixer_that_was_named_and_cannot_run_is_an_input_error(registry, name, message):
    with pytest.raises(InputError) as error:
        choose(registry, name, "cpu")
    assert message in str(error.value)


def test_a_training_trial_is_the_same_whatever_else_is_in_the_grid_or_timed_or_limited(registry, suite, store):
    before = keys(make(registry, suite, store, "plain"), "train")
    changes = ["training.lrs=(1e-3, 0.5)", "training.seeds=(0, 7)", "timing.samples=99", "limits.trial_minutes=1"]
    after = keys(make(registry, settings.with_settings(suite, changes), store, "plain"), "train")
    assert before[0] in after
    assert before[1] not in after


@pytest.mark.parametrize("change", ["training.steps=7", "mqar.options.seed=3", "model.d_model=8", "training.clip=1.0"])
def test_what_decides_the_result_changes_every_key(registry, suite, store, change):
    before = make(registry, suite, store, "plain")
    after = make(registry, settings.with_settings(suite, [change]), store, "plain")
    assert not set(keys(before, "train", "test", "time")) & set(keys(after, "train", "test", "time"))


def test_rows_may_be_compared_whatever_the_mixer_the_limits_and_the_number_of_timing_samples(registry, suite):
    same = settings.with_settings(
        suite, ["limits.memory_gib=2", "timing.samples=3", "timing.warmup=9", "timing.processes=9"]
    )
    assert suite_key(same, registry) == suite_key(suite, registry)
    other = settings.with_settings(suite, ["pile.training.steps=3"])
    assert suite_key(other, registry) != suite_key(suite, registry)


def test_an_option_of_the_mixer_is_part_of_the_key(registry, suite, store):
    one, two = (keys(make(registry, suite, store, f"attention(heads={h})"), "train") for h in (1, 2))
    assert not set(one) & set(two)


def test_records_on_disk_are_not_run_again_and_failed_ones_only_when_asked(registry, suite, store):
    trials = make(registry, suite, store, "plain").trials
    check, first, second, test, time = trials
    for trial in (check, first, test, time):
        store.write(record(trial, registry), {}, weights={})
    store.write(record(second, registry, status="failed", reason="boom"), {})
    made = make(registry, suite, store, "plain")
    assert made.todo == ()
    assert made.having("failed") == (second,)
    again = make(registry, suite, store, "plain", rerun_failed=True)
    assert again.todo == (second, test)  # the choice of the learning rate is open again


def test_a_training_trial_whose_weights_are_gone_runs_again_if_its_test_has_not_run(registry, suite, store):
    first, second, *_ = make(registry, suite, store, "plain", check=False).trials
    store.write(record(first, registry), {}, weights={})
    store.write(record(second, registry), {})
    todo = make(registry, suite, store, "plain").todo
    assert first not in todo
    assert second in todo


def test_records_of_other_data_are_refused(registry, suite, store):
    first = make(registry, suite, store, "plain", check=False).trials[0]
    store.write(record(first, registry, data_sha256={"test": "abc"}), {}, weights={})
    made = make(registry, suite, store, "plain")
    run = next(run for run in suite.runs if run.task == "mqar")
    check_data(made, store, run, {"test": "abc"})
    with pytest.raises(HarnessError, match="the data of task mqar are not those of the record"):
        check_data(made, store, run, {"test": "xyz"})


def test_the_plan_in_json_counts_what_is_to_run(registry, suite, store):
    shown = plan_json(make(registry, suite, store, "plain", "attention"), 12.34)
    assert (shown["trials"], shown["to_run"], shown["on_disk"]) == (10, 10, 0)
    assert shown["estimate_seconds"] == 12.3
    assert {trial["state"] for trial in shown["plan"]} == {"new"}


def test_a_job_survives_the_way_to_its_worker(registry, suite, store):
    trial = make(registry, suite, store, "plain").trials[-1]
    job = Job(trial=trial, runs="r", files=("a.py",), device="cpu", threads=1, log="l", report=3, parent=4)
    assert job_from_text(job_to_text(job)) == job
    assert job.trial.run_config(registry) == next(run for run in suite.runs if run.task == "mqar")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.stpes=3", "unknown setting training.stpes: did you mean 'steps'?"),
        ("trianing.steps=3", "unknown setting trianing.steps: did you mean 'training'?"),
        ("mqra.training.steps=3", "unknown setting mqra.training.steps: did you mean 'mqar'?"),
        ("mqar.trainig.steps=3", "unknown setting mqar.trainig.steps: did you mean 'training'?"),
        ("mqar.training.stesp=3", "unknown setting mqar.training.stesp: did you mean 'steps'?"),
        ("mqar=3", "mqar is a task: write mqar.training.steps=100"),
        ("task=pile", "unknown setting task:"),
        ("options.seed=3", "mqar.options.seed or pile.options.seed"),
        ("training=3", "training is a group of settings"),
        ("training.steps=many", "training.steps takes a value of type int, got 'many'"),
        ("steps", "--set takes KEY=VALUE, got 'steps'"),
    ],
)
def test_a_mistyped_setting_is_answered_with_what_is_allowed(suite, setting, message):
    with pytest.raises(InputError) as error:
        settings.with_settings(suite, [setting])
    assert message in str(error.value)


def test_a_setting_is_for_every_task_and_with_a_task_in_front_for_that_task(suite):
    changed = settings.with_settings(suite, ["training.steps=7", "pile.training.steps=9"])
    assert {run.task: run.training.steps for run in changed.runs} == {"mqar": 7, "pile": 9}


def test_layers_and_corpus_reach_the_configs(suite):
    changed = settings.with_corpus(settings.with_layers(suite, "short_conv,MIXER*2"), "text.jsonl")
    assert {run.model.layers for run in changed.runs} == {"short_conv,MIXER*2"}
    assert [run.options.corpus for run in changed.runs if run.task == "pile"] == ["text.jsonl"]
    only_mqar = dataclasses.replace(suite, runs=suite.runs[:1])
    with pytest.raises(InputError, match="runs mqar only"):
        settings.with_corpus(only_mqar, "text.jsonl")


def test_a_task_outside_the_preset_is_named_with_what_the_preset_runs(suite, registry):
    with pytest.raises(InputError, match="did you mean 'mqar'"):
        settings.chosen_tasks(suite, ["mqra"], registry)
    only_pile = dataclasses.replace(suite, runs=suite.runs[1:])
    with pytest.raises(InputError, match="is not part of preset 'smoke'; it runs pile"):
        settings.chosen_tasks(only_pile, ["mqar"], registry)


def test_a_suite_with_default_options_is_filled_in(registry, suite):
    bare = dataclasses.replace(suite, runs=(RunConfig(task="mqar"),))
    assert settings.complete(bare, registry).runs[0].options.vocab_size == 8192


def test_a_record_begins_with_where_its_mixer_comes_from(registry, suite, store):
    found = first_record(make(registry, suite, store, "plain").trials[0], registry)
    assert isinstance(found, Record)
    assert found.plugin["distribution"] == "mine.py"
    assert len(found.plugin["code_sha256"]) == 64
