"""One `harness check` from what was typed to reports on disk: a plan of check trials alone."""

from dataclasses import dataclass
from pathlib import Path

from harness.check.kit import chosen
from harness.config import LimitsConfig
from harness.plugins import Registry
from harness.record import CONTRACT, CONTRACT_KEY
from harness.store import Store, StoredRecord
from harness.sweep.command import show_while
from harness.sweep.local import LocalExecutor, slots
from harness.sweep.machine import choose_device
from harness.sweep.plan import CHECK_LIMITS, FAILED, NEW, OK, Plan, check_trial, entrants


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """What was typed."""

    mixers: tuple[str, ...] = ()  # none: every registered mixer that can run here
    promises: tuple[str, ...] = ()  # none: all
    runs: Path = Path("runs")
    device: str = "auto"
    limits: LimitsConfig = CHECK_LIMITS
    again: bool = False


@dataclass(frozen=True)
class Checked:
    """One check record a mixer, in the order of the request, and what cannot run here."""

    records: list[StoredRecord]
    unavailable: tuple[tuple[str, str], ...]


def run_checks(request: CheckRequest, registry: Registry) -> Checked:
    """Returns the check records, made now or found in the store; a check that failed before is made again."""
    chosen(request.promises)  # a misspelt promise is an error before anything starts
    device, store = choose_device(request.device), Store(request.runs)
    mixers, missing = entrants(registry, request.mixers, device)
    trials = [check_trial(registry, one.choice, device, request.limits, request.promises) for one in mixers]
    state = {}
    for trial in trials:
        found = store.find(trial.key)
        state[trial.key] = NEW if request.again or found is None or found.record.status == FAILED else OK
    plan = Plan(CONTRACT, CONTRACT_KEY, device, tuple(trials), state, missing)
    if plan.todo:
        if request.again:
            for trial in plan.todo:
                store.remove(trial.key)
        store.check_writable()
        show_while(
            plan,
            registry,
            len(slots(device, None)),
            lambda display: LocalExecutor(plan, store, registry, display).run(),
        )
    return Checked([one for trial in trials if (one := store.find(trial.key))], missing)
