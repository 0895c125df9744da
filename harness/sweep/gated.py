"""What `harness time` and `harness compare` share: the checks first, then one process a trial, nothing beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config import LimitsConfig, RunConfig, to_json
from harness.errors import HarnessError, InputError, nearest
from harness.pattern import MixerChoice
from harness.plugins import Registry
from harness.record import TIMING, digest
from harness.store import Store, StoredRecord
from harness.sweep.checks import CheckRequest, run_checks
from harness.sweep.command import show_while
from harness.sweep.gate import refusal
from harness.sweep.identity import code_sha256
from harness.sweep.local import LocalExecutor, slots
from harness.sweep.machine import choose_device
from harness.sweep.plan import FAILED, NEW, OK, Plan, check_trial, entrants
from harness.sweep.trial import Trial
from harness.timing.ceilings import DTYPES
from harness.timing.device import device_facts, facts_from_outside

LIMITS = LimitsConfig(trial_minutes=10, memory_gib=16)
PROCESS_S = {"speed": 8.0, "peak": 4.0, "duel": 6.0}  # usual, start included
LENGTHS, D_MODEL, BATCH = (128, 512, 2048), 64, 4


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and on what a measurement runs."""

    runs: Path = Path("runs")
    device: str = "auto"
    again: bool = False


HERE = Place()


class Gate:
    """The checked mixers of one command on one device, in one dtype."""

    def __init__(self, registry: Registry, names: Sequence[str], place: Place, dtype: str = "float32") -> None:
        self.registry, self.place = registry, place
        self.device, self.store = choose_device(place.device), Store(place.runs)
        found, self.unavailable = entrants(registry, names, self.device, (dtype,))
        self.mixers = [one.choice for one in found]
        # a CUDA context in this process would be a neighbour of every process that is timed
        self.facts = facts_from_outside(self.device) if self.device == "cuda" else device_facts(self.device)
        self.device_class = self.facts["class"]

    def open(self) -> list[str]:
        """Returns one line for each mixer that may not be timed; the checks that are missing are made now."""
        checked = run_checks(
            CheckRequest(
                mixers=tuple(map(str, self.mixers)), runs=self.place.runs, device=self.device, again=self._foreign()
            ),
            self.registry,
        )
        refused = {stored.record.mixer: line for stored in checked.records if (line := refusal(stored)) is not None}
        self.mixers = [choice for choice in self.mixers if str(choice) not in refused]
        return list(refused.values())

    def trial(
        self, kind: str, layers: Sequence[MixerChoice], config: RunConfig, tested: Sequence[MixerChoice]
    ) -> Trial:
        """Returns one process; the first of `tested` gives it its name, and each of them must have a green check."""
        code = code_sha256(kind, TIMING, layers, self.registry)
        plain = to_json(config)
        decides = {
            "kind": kind,
            "mixers": [str(choice) for choice in tested],
            "layers": [str(layer) for layer in layers],
            "code": code,
            "class": self.device_class,
            "model": plain["model"],
            "timing": plain["timing"],
            "dtype": plain["training"]["dtype"],
            "options": plain["options"],
        }
        return Trial(
            key=digest(decides),
            kind=kind,
            mixer=str(tested[0]),
            layers=",".join(map(str, layers)),
            code=code,
            task=TIMING,
            suite=TIMING,
            suite_key="",
            config=plain,
            checks=tuple(check_trial(self.registry, choice, self.device).key for choice in tested),
            seconds=PROCESS_S[kind],
        )

    def run(self, trials: Sequence[Trial]) -> list[StoredRecord]:
        """Returns the records of the trials in their order; what is on disk is not measured again."""
        state: dict[str, str] = {}
        for trial in trials:
            found = self.store.find(trial.key)
            fresh = self.place.again or found is None or found.record.status == FAILED
            state[trial.key] = NEW if fresh else OK
        plan = Plan(TIMING, "", self.device, tuple(trials), state)
        if plan.todo:
            if self.place.again:
                for trial in plan.todo:
                    self.store.remove(trial.key)
            self.store.check_writable()
            show_while(
                plan,
                self.registry,
                len(slots(self.device, None)),
                lambda display: LocalExecutor(plan, self.store, self.registry, display).run(),
            )
        return [one for trial in trials if (one := self.store.find(trial.key)) is not None]

    def _foreign(self) -> bool:
        """Returns whether a check on disk was made on another class of device, and so must be made here again."""
        found = [self.store.find(check_trial(self.registry, choice, self.device).key) for choice in self.mixers]
        return any(one is not None and one.record.environment.get("class") != self.device_class for one in found)


def require_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """Returns the lengths, each once, shortest first; one below 2 raises InputError."""
    for T in lengths:
        if T < 2:
            raise InputError(f"--T takes lengths of at least 2, got {T}: a decode step needs a context")
    return tuple(sorted(set(lengths)))


def require_dtype(dtype: str) -> str:
    """Returns the dtype; one that no model is trained in raises InputError."""
    if dtype not in DTYPES:
        raise InputError(f"unknown --dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    return dtype


def require_ok(records: Sequence[StoredRecord], wanted: int) -> None:
    """Raises HarnessError where a process failed, with its reason."""
    failed = [stored for stored in records if stored.record.status != "ok"]
    if failed or len(records) < wanted:
        reason = failed[0].record.reason if failed else "its record is missing"
        where = f"; log: {failed[0].path / 'log.txt'}" if failed else ""
        raise HarnessError(f"{len(failed) or wanted - len(records)} of {wanted} processes failed: {reason}{where}")
