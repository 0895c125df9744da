"""What a run consists of: a trial a learning rate and seed, one test, and the processes that time, a mixer and task."""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.check.report import KIT_VERSION
from harness.config import LimitsConfig, RunConfig, to_json
from harness.errors import HarnessError, InputError
from harness.pattern import MixerChoice, parse_layers, parse_mixer
from harness.plugins import Registry, unavailable
from harness.record import CHECK, CONTRACT, CONTRACT_KEY, TIME, digest
from harness.spec import MixerSpec, SuiteSpec
from harness.store import Store, StoredRecord
from harness.sweep.identity import code_sha256
from harness.sweep.settings import task_names
from harness.sweep.trial import Trial

NEW, OK, FAILED = "new", "ok", "failed"
CHECK_LIMITS = LimitsConfig(trial_minutes=5, memory_gib=8)
CHECK_S = 8.0  # a usual check on one core


@dataclass(frozen=True)
class Entrant:
    """A mixer in the run: its score is measured where `quality`, its time always."""

    choice: MixerChoice
    quality: bool = True


@dataclass(frozen=True)
class Plan:
    """Every trial of a run, what is on disk of it, and what cannot run here."""

    suite: str
    suite_key: str
    device: str
    trials: tuple[Trial, ...]
    state: Mapping[str, str]  # by key: NEW, OK or FAILED
    unavailable: tuple[tuple[str, str], ...] = ()  # (mixer, reason)

    @property
    def todo(self) -> tuple[Trial, ...]:
        """Returns the trials that will run."""
        return self.having(NEW)

    def having(self, state: str) -> tuple[Trial, ...]:
        """Returns the trials in that state."""
        return tuple(trial for trial in self.trials if self.state[trial.key] == state)


def entrants(
    registry: Registry, names: Sequence[str], device: str, dtypes: Sequence[str] = ()
) -> tuple[list[Entrant], tuple[tuple[str, str], ...]]:
    """Returns the mixers to run in all these dtypes and the unavailable ones with the reason; no names means all."""
    if names:
        chosen = [choose(registry, name, device, dtypes) for name in names]
        return [Entrant(choice) for choice in dict.fromkeys(chosen)], ()
    found: list[Entrant] = []
    missing: list[tuple[str, str]] = []
    for name in dict.fromkeys(spec.name for spec in registry.mixers.values()):
        usable = []
        for spec in registry.implementations(name):
            reason = why_not(spec, device, dtypes)
            if reason is None:
                usable.append(registry.mixer(spec.full_name))
            else:
                missing.append((spec.full_name, reason))
        found += [Entrant(choice, quality=index == 0) for index, choice in enumerate(usable)]
    return found, tuple(missing)


def choose(registry: Registry, text: str, device: str, dtypes: Sequence[str] = ()) -> MixerChoice:
    """Returns the mixer named, pinned to its preferred implementation on this device and in these dtypes of a run.

    One that cannot run raises InputError.
    """
    choice = parse_mixer(text)
    specs = registry.implementations(choice.name)
    if choice.implementation or not specs:
        specs = [
            registry.mixers[full] for full in (f"{choice.name}/{choice.implementation}",) if full in registry.mixers
        ]
    reasons = {spec.full_name: why_not(spec, device, dtypes) for spec in specs}
    for spec in specs:
        if reasons[spec.full_name] is None:
            return registry.mixer(str(choice.pinned(spec.implementation)))
    if specs:
        raise InputError("; ".join(f"{name} is unavailable here: {reason}" for name, reason in reasons.items()))
    return registry.mixer(text)  # raises: nobody registered it


def why_not(spec: MixerSpec, device: str, dtypes: Sequence[str] = ()) -> str | None:
    """Returns why the mixer cannot run on this device in one of these dtypes, or None.

    What computes in full precision also runs under autocast; what does not runs in the dtypes it declares only.
    """
    reason = unavailable(spec)
    if reason is None and device not in spec.devices:
        return f"it runs on {' and '.join(spec.devices)} only; use --device {spec.devices[0]} where there is one"
    other = [dtype for dtype in dtypes if dtype not in spec.dtypes]
    if reason is None and other and not {"float32", "float64"} & set(spec.dtypes):
        return (
            f"it computes in {' and '.join(spec.dtypes)}, not in {other[0]}; say --set training.dtype={spec.dtypes[0]} "
            f"(harness run) or --dtype {spec.dtypes[0]} (harness time and compare)"
        )
    return reason


def suite_key(suite: SuiteSpec, registry: Registry) -> str:
    """Returns the digest of the suite's configurations and task versions: rows with equal keys may be compared."""
    return digest([[_compared(run), registry.task(run.task).version] for run in suite.runs])


def _compared(run: RunConfig) -> dict[str, Any]:
    plain = to_json(run)
    del plain["limits"]
    for how_often in ("samples", "warmup", "processes"):
        del plain["timing"][how_often]
    return plain


@dataclass(frozen=True, kw_only=True)
class Which:
    """What tells a trial from others of its kind, mixer and task."""

    lr: float | None = None
    seed: int | None = None
    process: int | None = None


@dataclass
class Planner:
    """Makes the trials of one suite on one device."""

    registry: Registry
    suite: SuiteSpec
    name: str  # the suite's name, with * where a setting was changed
    device: str
    seconds: Callable[[str, RunConfig, tuple[MixerChoice, ...], str], float]  # (kind, config, layers, mixer)

    def __post_init__(self) -> None:
        self.suite_key = suite_key(self.suite, self.registry)

    def trials(self, entrant: Entrant, config: RunConfig) -> list[Trial]:
        """Returns the trials of one mixer on one task run."""
        training = config.training
        made: list[Trial] = []
        if entrant.quality:
            grid = [Which(lr=lr, seed=seed) for lr in training.lrs for seed in training.seeds]
            made = [self._trial("train", entrant, config, which) for which in grid]
        needs = tuple(trial.key for trial in made)
        if needs:
            made.append(self._trial("test", entrant, config, needs=needs))
        if config.timing.processes < 1:
            raise InputError(f"timing.processes takes at least 1, got {config.timing.processes}")
        checks = (check_trial(self.registry, entrant.choice, self.device).key,)
        for process in range(config.timing.processes):
            timed = self._trial(TIME, entrant, config, Which(process=process), needs)
            # The tasks of a mixer share the process of a round, half of which would be imports. Not on a CPU: there the
            # memory of a model can be told from what was before it in a fresh process only.
            together = f"{entrant.choice} process {process}" if self.device == "cuda" else ""
            made.append(dataclasses.replace(timed, checks=checks, together=together))
        return made

    def _trial(
        self,
        kind: str,
        entrant: Entrant,
        config: RunConfig,
        which: Which = Which(),
        needs: tuple[str, ...] = (),
    ) -> Trial:
        mixer = str(entrant.choice)
        layers = tuple(
            choose(self.registry, str(layer), self.device, (config.training.dtype,))
            for layer in parse_layers(config.model.layers, mixer)
        )
        code = code_sha256(kind, config.task, layers, self.registry)
        decides = {
            "kind": kind,
            "task": [config.task, self.registry.task(config.task).version],
            "mixer": mixer,
            "layers": [str(layer) for layer in layers],
            "code": code,
            "device": self.device,
            **_relevant(kind, config, which),
        }
        if kind != "train":  # what a board shows belongs to one suite; training is shared
            decides["suite_key"] = self.suite_key
        if kind == "test":
            decides["trained"] = list(needs)
        return Trial(
            key=digest(decides),
            kind=kind,
            mixer=mixer,
            layers=",".join(map(str, layers)),
            code=code,
            task=config.task,
            suite=self.name,
            suite_key=self.suite_key,
            config=to_json(config),
            **dataclasses.asdict(which),
            needs=needs,
            seconds=self.seconds(kind, config, layers, mixer),
        )


def _relevant(kind: str, config: RunConfig, which: Which) -> dict[str, Any]:
    """Returns the settings that matter for this kind of trial."""
    plain = to_json(config)
    model = {key: value for key, value in plain["model"].items() if key != "layers"}
    training = plain["training"]
    settings = {"options": plain["options"], "model": model}
    if kind == "train":
        of_one = {key: value for key, value in training.items() if key not in ("lrs", "seeds")}
        return {**settings, "training": of_one, "lr": which.lr, "seed": which.seed}
    if kind == TIME:
        timing = {key: value for key, value in plain["timing"].items() if key != "processes"}  # more add to the others
        of_time = {"timing": timing, "process": which.process}
        return {**settings, **of_time, "dtype": training["dtype"], "clip": training["clip"]}
    return settings


def check_trial(
    registry: Registry,
    choice: MixerChoice,
    device: str,
    limits: LimitsConfig = CHECK_LIMITS,
    promises: tuple[str, ...] = (),
) -> Trial:
    """Returns the trial that holds one pinned mixer implementation against its contract, or some promises of it."""
    code = code_sha256(CHECK, CONTRACT, (choice,), registry)
    decides = {"kind": CHECK, "mixer": str(choice), "code": code, "device": device, "promises": list(promises)}
    return Trial(
        key=digest({**decides, "kit": KIT_VERSION}),
        kind=CHECK,
        mixer=str(choice),
        layers=str(choice),
        code=code,
        task=CONTRACT,
        suite=CONTRACT,
        suite_key=CONTRACT_KEY,
        config=to_json(RunConfig(task=CONTRACT, limits=limits)),
        promises=promises,
        seconds=CHECK_S,
    )


def plan(
    planner: Planner,
    mixers: Sequence[Entrant],
    tasks: Sequence[str] | None,
    store: Store,
    *,
    rerun_failed: bool = False,
    missing: tuple[tuple[str, str], ...] = (),
    check: bool = True,
) -> Plan:
    """Returns the trials of these mixers on these tasks (None: all of the suite), and which of them are on disk."""
    wanted = task_names(planner.suite) if tasks is None else tasks
    runs = [run for run in planner.suite.runs if run.task in wanted]
    trials = [check_trial(planner.registry, one.choice, planner.device) for one in mixers] if check else []
    trials += [trial for run in runs for entrant in mixers for trial in planner.trials(entrant, run)]
    trials = list({trial.key: trial for trial in trials}.values())
    by_key = {stored.record.key: stored for stored in store.records()}
    if not check:  # what has a report already is timed nevertheless
        trials = [trial for trial in trials if trial.kind != TIME or all(key in by_key for key in trial.checks)]
    trials = in_rounds(trials)
    state: dict[str, str] = {}
    for trial in sorted(trials, key=lambda trial: bool(trial.needs)):
        state[trial.key] = _state(trial, by_key.get(trial.key), rerun_failed, state)
    for trial in trials:
        if trial.kind == "test" and state[trial.key] == NEW:
            for key in trial.needs:  # a test needs the weights, and somebody may have deleted them to save space
                stored = by_key.get(key)
                if state[key] == OK and stored is not None and stored.weights_path is None:
                    state[key] = NEW
    return Plan(planner.name, planner.suite_key, planner.device, tuple(trials), state, missing)


def in_rounds(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials with those that time last: a round a process, shuffled, so that no mixer meets one moment."""
    timed = [trial for trial in trials if trial.process is not None]
    random.Random(0).shuffle(timed)
    timed.sort(key=lambda trial: trial.process or 0)
    return [trial for trial in trials if trial.process is None] + timed


def _state(trial: Trial, stored: StoredRecord | None, rerun_failed: bool, state: Mapping[str, str]) -> str:
    if stored is None:
        return NEW
    if rerun_failed and stored.record.status == FAILED:
        return NEW
    # another try of a learning rate may change which one is chosen
    if rerun_failed and trial.kind == "test" and any(state[key] == NEW for key in trial.needs):
        return NEW
    return OK if stored.record.status == "ok" else FAILED


def check_data(plan: Plan, store: Store, run: RunConfig, data_sha256: Mapping[str, str]) -> None:
    """Raises HarnessError where a record on disk was measured on other data than the task has now."""
    options = to_json(run)["options"]
    for trial in plan.having(OK):
        stored = store.find(trial.key) if (trial.task, trial.config["options"]) == (run.task, options) else None
        if stored is not None and stored.record.data_sha256 != dict(data_sha256):
            raise HarnessError(
                f"the data of task {run.task} are not those of the record {stored.path}: its files were changed; "
                "choose another folder with --runs DIR, or delete the old records of this task"
            )


def plan_json(plan: Plan, seconds: float) -> dict[str, Any]:
    """Returns the plan as plain JSON values."""
    count = Counter(plan.state[trial.key] for trial in plan.trials)
    return {
        "suite": plan.suite,
        "suite_key": plan.suite_key,
        "device": plan.device,
        "trials": len(plan.trials),
        "to_run": count[NEW],
        "on_disk": count[OK],
        "failed_before": count[FAILED],
        "estimate_seconds": round(seconds, 1),
        "unavailable": [{"mixer": mixer, "reason": reason} for mixer, reason in plan.unavailable],
        "plan": [
            {**{k: v for k, v in dataclasses.asdict(trial).items() if k != "config"}, "state": plan.state[trial.key]}
            for trial in plan.trials
        ],
    }
