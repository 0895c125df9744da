"""One `harness run` from what was typed to records on disk."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.config import RunConfig
from harness.errors import InputError
from harness.pattern import UNDER_TEST, MixerChoice, parse_layers
from harness.plugins import Registry
from harness.record import CHECK, KINDS
from harness.spec import SuiteSpec
from harness.store import Store, StoredRecord
from harness.sweep import settings
from harness.sweep.estimate import Estimator, wall_seconds
from harness.sweep.fit import require_fit
from harness.sweep.local import LocalExecutor, slots
from harness.sweep.machine import choose_device
from harness.sweep.plan import FAILED, NEW, OK, Plan, Planner, check_data, choose, entrants, plan, suite_key
from harness.sweep.progress import Display, LiveDisplay, PlainDisplay, make_tally, on_terminal

FALLBACK = "cpu"  # the default preset of a device type for which no suite says that it is the default


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What was typed."""

    mixers: tuple[str, ...] = ()  # none: every registered mixer
    tasks: tuple[str, ...] = ()  # none: every task of the preset
    preset: str | None = None
    layers: str | None = None
    corpus: str | None = None
    changes: tuple[str, ...] = ()
    runs: Path = Path("runs")
    device: str = "auto"
    jobs: int | None = None
    rerun_failed: bool = False
    check: bool = True


class Sweep:
    """A plan with what is needed to run it."""

    def __init__(self, request: RunRequest, registry: Registry) -> None:
        self.request, self.registry, self.store = request, registry, Store(request.runs)
        device = choose_device(request.device)
        base = settings.complete(default_suite(request.preset, device, registry), registry)
        suite = settings.with_corpus(settings.with_layers(base, request.layers), request.corpus)
        self.suite = settings.with_settings(suite, request.changes)
        tasks = settings.chosen_tasks(self.suite, request.tasks, registry)
        dtypes = sorted({run.training.dtype for run in self.suite.runs if run.task in tasks})
        mixers, missing = entrants(registry, request.mixers, device, dtypes)
        changed = suite_key(self.suite, registry) != suite_key(base, registry)
        name = base.name + ("*" if changed else "")
        planner = Planner(registry, self.suite, name, device, Estimator(self.store, device))
        again = request.rerun_failed
        self.plan: Plan = plan(
            planner, mixers, tasks, self.store, rerun_failed=again, missing=missing, check=request.check
        )
        self.workers = len(slots(device, request.jobs))
        self.seconds = wall_seconds(self.plan.todo, self.workers)

    def execute(self) -> None:
        """Runs what is left to do; when it returns, every trial of the plan has a record."""
        if not self.plan.todo:
            return
        self.store.check_writable()
        self._prepare()
        show_while(self.plan, self.registry, self.workers, self._run)

    def on_disk(self) -> int:
        """Returns how many trials of the plan have a record."""
        keys = {stored.record.key for stored in self.store.records()}
        return sum(trial.key in keys for trial in self.plan.trials)

    def failures(self) -> list[StoredRecord]:
        """Returns the records of the plan's trials that failed, now or before."""
        found = {stored.record.key: stored for stored in self.store.records()}
        records = [found[trial.key] for trial in self.plan.trials if trial.key in found]
        return [stored for stored in records if stored.record.status != "ok"]

    def _run(self, display: Display) -> None:
        LocalExecutor(self.plan, self.store, self.registry, display, self.request.jobs).run()

    def _prepare(self) -> None:
        """Loads each task's data once, so that an error of a corpus comes once, and before any training."""
        waiting = {trial.task for trial in self.plan.todo}
        for run in self.suite.runs:
            if run.task in waiting:
                task = self.registry.task(run.task).load(run.options, announcer(run.task))
                check_data(self.plan, self.store, run, task.data_sha256())
                require_fit(self._typed(run), run.model.d_model, task.max_len, self.registry)

    def _typed(self, run: RunConfig) -> list[MixerChoice]:
        """Returns the layers that somebody named. Of --all, one that does not fit fails alone, in its own trials."""
        mixers = {trial.mixer for trial in self.plan.todo} if self.request.mixers else {UNDER_TEST}
        layers = {layer for mixer in mixers for layer in parse_layers(run.model.layers, mixer)}
        named = [str(layer) for layer in layers if layer.name != UNDER_TEST]
        return [choose(self.registry, name, self.plan.device, (run.training.dtype,)) for name in sorted(named)]


def show_while(plan: Plan, registry: Registry, workers: int, work: Callable[[Display], None]) -> None:
    """Does the work, with its progress shown on stderr: live on a terminal, a line a trial elsewhere."""
    tally = make_tally(plan.todo, len(plan.trials), workers)
    if on_terminal():
        with LiveDisplay(tally, registry) as display:
            work(display)
    else:
        work(PlainDisplay(tally, registry))


def default_suite(name: str | None, device: str, registry: Registry) -> SuiteSpec:
    """Returns the suite named, or the default of the device type."""
    if name is not None:
        return registry.suite(name)
    for wanted in (device, FALLBACK):
        for suite in registry.suites.values():
            if wanted in suite.default_on:
                return suite
    raise InputError(f"no preset is the default on {device}; choose one with --preset: {', '.join(registry.suites)}")


def announcer(task: str) -> Callable[[str, float], None]:
    """Returns a progress function that prints each stage of preparing the data once, on stderr."""
    told: set[str] = set()

    def announce(what: str, fraction: float) -> None:
        if what not in told:
            told.add(what)
            print(f"preparing {task}: {what}" if what != task else f"preparing {task}", file=sys.stderr, flush=True)

    return announce


def plan_rows(plan: Plan) -> list[dict[str, object]]:
    """Returns one row a mixer and task: how many trials of each kind there are, and what is on disk already."""
    rows: list[dict[str, object]] = []
    for task, mixer in dict.fromkeys((trial.task, trial.mixer) for trial in plan.trials if trial.kind != CHECK):
        trials = [trial for trial in plan.trials if (trial.task, trial.mixer) == (task, mixer)]
        states = [plan.state[trial.key] for trial in trials]
        rows.append(
            {
                "task": task,
                "mixer": mixer,
                **{kind: sum(trial.kind == kind for trial in trials) for kind in KINDS},
                "to run": states.count(NEW),
                "on disk": states.count(OK),
                "failed before": states.count(FAILED),
            }
        )
    return rows
