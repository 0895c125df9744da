"""One process of `harness time` or `harness compare`: what its worker measures, behind the gate of the contract."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from harness.config import RunConfig, run_config_from_json
from harness.errors import RecordError, UnavailableError
from harness.plugins import Registry
from harness.record import ALONE, DUEL, GATED, PEAK, SPEED
from harness.store import Store
from harness.sweep.bench import Outcome
from harness.sweep.fork import can_fork, in_a_copy
from harness.sweep.gate import gates
from harness.sweep.trial import Job, Trial
from harness.timing.ceilings import load_ceilings
from harness.timing.conditions import pin_to_cores
from harness.timing.device import device_facts
from harness.timing.memory import memory_baseline, peak_bytes
from harness.timing.sample import repeated
from harness.timing.settings import DuelOptions, SpeedOptions
from harness.timing.spread import speed_measures
from harness.timing.visit import Visit
from harness.timing.workload import Workload

MEMORY_CALLS = 3  # the first makes the optimiser's state, the second has it beside the gradients
Report = Callable[[int, int, str], None]


def speed(job: Job, registry: Registry, report: Report) -> Outcome:
    """Returns what one process of a gated kind measured; without green checks it raises and nothing is measured."""
    trial = job.trial
    found = gates(Store(Path(job.runs)), trial.checks, device_facts(job.device)["class"])
    measure = {SPEED: _speed, PEAK: _peak, DUEL: _duel}[trial.kind]
    bound = pin_to_cores(job.threads) if job.device == "cpu" and trial.kind in ALONE else None
    outcome = measure(job, registry, report)
    facts = {"bound_to_cores": bound, "gates": found, "together": trial.together or None}
    return replace(outcome, facts={**outcome.facts, **facts})


def options_of(kind: str) -> type:
    """Returns the options dataclass of a gated kind."""
    return DuelOptions if kind == DUEL else SpeedOptions


def config_of(trial: Trial) -> RunConfig:
    """Returns the configuration of a gated trial."""
    if trial.kind not in GATED:
        raise RecordError(f"{trial.kind} trials belong to a task")
    return run_config_from_json(trial.config, options_of(trial.kind))


def _speed(job: Job, registry: Registry, report: Report) -> Outcome:
    config = config_of(job.trial)
    work = Workload(registry, job.trial.mixer, config, job.device)
    visit = Visit(work, config.options, job.device)
    raw, facts = visit.run(report)
    ceilings = load_ceilings(device_facts(job.device), job.threads)
    if ceilings is not None:
        raw["ceilings"] = np.array([ceilings.copy_bytes_per_s, ceilings.flops_per_s(config.training.dtype) or np.nan])
    facts |= {"ceilings": None if ceilings is None else ceilings.to_json(), "depth": len(work.model.layers)}
    return Outcome(speed_measures(raw), facts, raw, spent=visit.capture_failed)


def _peak(job: Job, registry: Registry, report: Report) -> Outcome:
    modes = config_of(job.trial).options.modes
    torch.set_num_threads(1)  # bytes do not depend on it, and others may be measured beside this process
    if job.device == "cpu" and can_fork():
        memory_baseline(job.device)  # what torch loads on first use is loaded once, before the copies
    raw: dict[str, np.ndarray] = {}
    methods, missing = {}, {}
    for number, mode in enumerate(modes):
        report(number, len(modes), f"memory of {mode}")
        # CUDA's allocator counts from zero again in the same process; the pages of a CPU process do not all come back
        work = partial(_peak_of, job, registry, mode)
        peak, said, reason = in_a_copy(work) if job.device == "cpu" and can_fork() else work()
        if reason is not None:
            missing[mode] = reason
            continue
        methods[mode] = said
        if peak is not None:
            raw[f"{mode}_peak_bytes"] = np.array([peak])
    return Outcome(speed_measures(raw) if raw else {}, {"peak_method": methods, "not_measured": missing}, raw)


def _peak_of(job: Job, registry: Registry, mode: str) -> tuple[int | None, str, str | None]:
    """Returns (peak bytes of a mode, how they were measured, why they were not)."""
    baseline = memory_baseline(job.device)
    try:
        # the high-water mark of a CPU process would keep what one pass over the prompt took
        by_steps = job.device == "cpu"
        call = Workload(registry, job.trial.mixer, config_of(job.trial), job.device, by_steps=by_steps).call(mode)
    except UnavailableError as error:
        return None, "", str(error)
    return *peak_bytes(repeated(call, MEMORY_CALLS), job.device, baseline), None


def _duel(job: Job, registry: Registry, report: Report) -> Outcome:
    from harness.timing.duel import PLAIN, duel_measures, run_duels

    config = config_of(job.trial)
    raw, facts = run_duels(registry, job.trial.mixer, config, job.device, report)
    # an attempt to capture that failed may have left the allocator believing that it goes on
    return Outcome(duel_measures(raw), facts, raw, spent=facts["policy"]["launches"].startswith(f"{PLAIN}:"))
