"""One process of `harness compare`: two calls in turn, a coin deciding which goes first in every pair."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch

from harness.config import RunConfig
from harness.errors import RecordError
from harness.plugins import Registry
from harness.spec import Measure
from harness.timing.conditions import conditions
from harness.timing.cuda import TYPICAL_CALLS, spin
from harness.timing.nvml import Gpu
from harness.timing.probe import Probe, drift
from harness.timing.sample import Call, collector_paused, draw, quartiles, warm_up
from harness.timing.stop import Stopper, StopRule
from harness.timing.watch import LATE, Disturbance, Window, between, disturbed_by, read
from harness.timing.workload import GRAPHED, Workload

PAIRS_TARGET = 0.002  # relative standard error of the median ratio
PLAIN, REPLAYED = "plain launches", "each call is one CUDA graph, replayed"
Raw = Mapping[str, np.ndarray]
Report = Callable[[int, int, str], None]


@dataclass
class Pairs:
    """The samples of one duel."""

    a_ms: np.ndarray
    b_ms: np.ndarray
    a_first: np.ndarray  # bool
    flags: np.ndarray  # uint8 a pair
    window: Window
    ended: str


def duel(a: Call, b: Call, device: str, rule: StopRule, coin: random.Random, gpu: Gpu | None = None) -> Pairs:
    """Returns samples of both calls, taken in pairs whose order a coin decides, until the ratio is known well."""
    for call in (a, b):
        warm_up(call, device)
    parts: list[np.ndarray] = []  # [4, n]: ms of a, ms of b, a first, a core was taken away
    ratios = np.empty(0)
    with collector_paused():
        before, stopper = read(gpu), Stopper(rule)
        while count := stopper.more(ratios):
            parts.append(_pairs(a, b, device, np.array([coin.random() < 0.5 for _ in range(count)])))
            ratios = np.concatenate((ratios, parts[-1][1] / parts[-1][0]))
        window = between(before, read(gpu))
    a_ms, b_ms, a_first, taken = np.concatenate(parts, axis=1)
    late = (a_ms > LATE * np.median(a_ms)) | (b_ms > LATE * np.median(b_ms))
    own = np.where(late & (taken > 0), Disturbance.PREEMPTED, Disturbance.NONE)
    flags = (own | int(window.flags)).astype(np.uint8)
    return Pairs(a_ms, b_ms, a_first > 0, flags, window, stopper.ended)


def run_duels(
    registry: Registry,
    mixer: str,
    config: RunConfig,
    device: str,
    report: Callable[[int, int, str], None],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns (raw arrays, facts) of the comparisons of this process, each with freshly built layers."""
    options = config.options
    gpu = Gpu(device) if device != "cpu" else None
    before, probe, coin = conditions(gpu), Probe(device), random.Random(options.process)
    rule = StopRule(target=PAIRS_TARGET, min_samples=20, max_s=options.max_s)
    readings, found, launches = [probe.read()], [], ""
    for number in range(options.duels):
        report(number, options.duels, f"{mixer} against {options.other}")
        seed = options.process * options.duels + number
        works = [Workload(registry, name, config, device, seed) for name in (mixer, options.other)]
        a, b, launches = pair_of(works, options.mode, device)
        found.append(duel(a, planted(a, b, options.planted, device), device, rule, coin, gpu))
        readings.append(probe.read())
    raw = {name: np.concatenate([getattr(one, name) for one in found]) for name in ("a_ms", "b_ms", "a_first", "flags")}
    raw["duel"] = np.repeat(np.arange(len(found)), [len(one.a_ms) for one in found])
    raw["probe_ms"] = np.array(readings)
    return raw, {
        "mode": options.mode,
        "other": options.other,
        "ended": [one.ended for one in found],
        "other_cores": [round(one.window.other_cores, 3) for one in found],
        "conditions": {"before": before, "after": conditions(gpu)},
        "policy": {"order": "a coin a pair", "threads": torch.get_num_threads(), "launches": launches},
    }


def pair_of(works: Sequence[Workload], mode: str, device: str) -> tuple[Call, Call, str]:
    """Returns the calls of A and B, and how both are launched: on CUDA as graphs, unless one cannot be captured.

    The host's launches take as long as a small layer, and vary more than layers differ.
    """
    said = PLAIN
    if torch.device(device).type == "cuda" and mode in GRAPHED:
        try:
            a, b = (work.replayed(mode) for work in works)
            return a, b, REPLAYED
        except Exception as error:  # whatever a layer does that a graph cannot hold
            said = f"{PLAIN}: one cannot be captured: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    a, b = (work.call(mode) for work in works)
    return a, b, said


def planted(a: Call, b: Call, share: float, device: str) -> Call:
    """Returns B made slower by that share of A's time: it spins, on the device that does the work."""
    if share == 0.0:
        return b
    warm_up(a, device)
    delay_ms = share * float(np.median(draw([a] * TYPICAL_CALLS, device)[0]))
    on_gpu = torch.device(device).type == "cuda"
    delay = spin(delay_ms, device) if on_gpu else _host_spin(delay_ms)

    def slowed() -> None:
        b.fn()
        delay()

    return Call(fn=slowed, before=b.before, units=b.units)


def log_ratios(raw: Raw) -> list[float]:
    """Returns log(B/A) of each duel of the process: the median over its pairs."""
    ratios = np.log(raw["b_ms"] / raw["a_ms"])
    return [float(np.median(ratios[raw["duel"] == number])) for number in np.unique(raw["duel"])]


def disturbances(raw: Raw) -> list[list[str]]:
    """Returns what disturbed each duel of the process, in words."""
    return [disturbed_by(raw["flags"][raw["duel"] == number]) for number in np.unique(raw["duel"])]


def duel_measures(raw: Raw) -> dict[str, Measure]:
    """Returns the measures of one process, from its raw arrays alone."""
    if "a_ms" not in raw or "b_ms" not in raw or "duel" not in raw:
        raise RecordError("the raw arrays of a comparison lack a_ms, b_ms or duel; compare again")
    return {
        "a_ms": quartiles(raw["a_ms"], "ms"),
        "b_ms": quartiles(raw["b_ms"], "ms"),
        "ratio": quartiles(np.exp(log_ratios(raw)), "B/A"),
        "probe_drift_pct": Measure(value=100 * drift(raw["probe_ms"]), unit="%", n=1),
    }


def _pairs(a: Call, b: Call, device: str, a_first: np.ndarray) -> np.ndarray:
    """Returns [4, n] of n pairs: ms of A, ms of B, whether A went first, whether a core was taken away."""
    calls = [call for first in a_first for call in ((a, b) if first else (b, a))]
    ms, taken, _ = draw(calls, device)
    ms, taken = ms.reshape(-1, 2), taken.reshape(-1, 2)
    a_ms, b_ms = np.where(a_first, ms[:, 0], ms[:, 1]), np.where(a_first, ms[:, 1], ms[:, 0])
    return np.stack((a_ms / a.units, b_ms / b.units, a_first, taken.any(axis=1)))


def _host_spin(delay_ms: float) -> Callable[[], object]:
    delay_ns = int(delay_ms * 1e6)

    def spin() -> None:
        end = perf_counter_ns() + delay_ns
        while perf_counter_ns() < end:
            pass

    return spin
