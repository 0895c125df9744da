"""Timed repetitions of a call, and the median with quartiles in which they are reported."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter, perf_counter_ns  # by name: replacing time.perf_counter_ns changes nothing here
from typing import Any

import numpy as np
import torch

from harness.spec import Measure
from harness.timing.nvml import Gpu
from harness.timing.stop import Stopper, StopRule
from harness.timing.watch import LATE, Disturbance, Window, between, page_faults, read, switches

WARM_UP_S = 0.05  # at least, after the first call
WARM_UP_GPU_S = 0.02  # there the host is busy from the first launch on, and no page is new
WARM_UP_MOST_S = 1.0
CALM_CALLS = 2  # so many calls in a row that touch no new page


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is timed: one call is one sample."""

    fn: Callable[[], Any]
    before: Callable[[], Any] | None = None  # runs before each sample, outside the timed window
    units: int = 1  # a sample is divided by it: steps in one call


@dataclass
class Series:
    """The samples of one call in one process, and what happened meanwhile."""

    ms: np.ndarray
    preempted: np.ndarray  # bool: a core was taken away during the sample
    ended: str  # why: stop.QUIET, SETTLED or TIME
    first_ms: float  # the first call of the process: imports, compilation, autotuning
    warmup: int  # untimed calls after the first
    window: Window
    launch_us: np.ndarray = field(default_factory=lambda: np.empty(0))  # CUDA: host time to launch, a sample each

    @property
    def flags(self) -> np.ndarray:
        """Returns uint8 flags a sample, see `Disturbance`."""
        late = self.preempted & (self.ms > LATE * np.median(self.ms))
        own = np.where(late, Disturbance.PREEMPTED, Disturbance.NONE)
        return (own | int(self.window.flags)).astype(np.uint8)


def measure(call: Call, device: str, rule: StopRule, gpu: Gpu | None = None, least: int = 0) -> Series:
    """Returns samples of the call until the rule is content; the first call and a warm-up of `least` calls are none."""
    first_ms = float(draw([call], device)[0][0])
    warmup = warm_up(call, device, least)
    parts: list[tuple[np.ndarray, ...]] = []
    taken = np.empty(0)
    with collector_paused():
        before, stopper = read(gpu), Stopper(rule)
        while count := stopper.more(taken):
            parts.append(draw([call] * count, device))
            taken = np.concatenate((taken, parts[-1][0]))
        window = between(before, read(gpu))
    _, preempted, launch_us = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Series(taken / call.units, preempted, stopper.ended, first_ms, warmup, window, launch_us / call.units)


def warm_up(call: Call, device: str, least: int = 0) -> int:
    """Returns how many untimed calls were made: `least`, until none touches a new page, and for some time."""
    started, calm, calls, faults = perf_counter(), 0, 0, page_faults()
    at_least = WARM_UP_S if torch.device(device).type == "cpu" else WARM_UP_GPU_S
    while True:
        spent = perf_counter() - started
        warm = spent >= WARM_UP_MOST_S or (calm >= CALM_CALLS and spent >= at_least)
        if warm and calls >= least:
            return calls
        once(call)
        synchronise(device)
        calls, touched = calls + 1, page_faults()
        calm = calm + 1 if touched == faults else 0
        faults = touched


def summarise(samples_ms: np.ndarray) -> Measure:
    """Returns the median of the samples with its quartiles, in ms."""
    return quartiles(samples_ms, "ms")


def quartiles(samples: np.ndarray, unit: str) -> Measure:
    """Returns the median of the samples; low and high are the quartiles."""
    low, median, high = (float(q) for q in np.percentile(np.asarray(samples, dtype=np.float64), (25, 50, 75)))
    n = len(samples)
    return Measure(value=median, unit=unit, n=n, low=low, high=high, spread=f"quartiles of {n} samples")


def once(call: Call) -> None:
    """Makes the call, untimed, with what belongs before it."""
    if call.before is not None:
        call.before()
    call.fn()


def repeated(call: Call, times: int) -> Callable[[], None]:
    """Returns a function that makes the call so many times, untimed."""

    def run() -> None:
        for _ in range(times):
            once(call)

    return run


def draw(calls: Sequence[Call], device: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (ms, whether a core was taken away, µs to launch) of one sample a call; the last is empty on CPU."""
    chunk = _cuda_chunk if torch.device(device).type == "cuda" else _host_chunk
    return chunk(calls, device)


def _host_chunk(calls: Sequence[Call], device: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    runs_ahead = torch.device(device).type != "cpu"  # asked once: half a microsecond would show in a short call
    synchronise(device)
    ns, taken = np.empty(len(calls), dtype=np.int64), np.empty(len(calls), dtype=np.int64)
    for i, call in enumerate(calls):
        if call.before is not None:
            call.before()
            synchronise(device)
        fn, before = call.fn, switches()  # outside the window: what asking costs is not in a sample
        start = perf_counter_ns()
        fn()
        if runs_ahead:
            synchronise(device)
        ns[i] = perf_counter_ns() - start
        taken[i] = switches() - before
    return ns / 1e6, taken > 0, np.empty(0)


def _cuda_chunk(calls: Sequence[Call], device: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Only events around a call: the host may run ahead, as it does in training. What `before` puts into the stream
    # stands outside the pair. Launch time is the host's, and means nothing where the queue is full.
    with torch.cuda.device(device):
        events = [(_event(), _event()) for _ in calls]
        launch_ns = np.empty(len(calls), dtype=np.int64)
        torch.cuda.synchronize()
        for i, (call, (start, end)) in enumerate(zip(calls, events, strict=True)):
            if call.before is not None:
                call.before()
            start.record()
            began = perf_counter_ns()
            call.fn()
            launch_ns[i] = perf_counter_ns() - began
            end.record()
        torch.cuda.synchronize()
        ms = np.array([start.elapsed_time(end) for start, end in events], dtype=np.float64)
    return ms, np.zeros(len(calls), dtype=bool), launch_ns / 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def synchronise(device: str) -> None:
    """Waits until the device has done all it was asked to do; the CPU is never behind."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keeps Python's cyclic collector, which runs when it likes, out of the timed window."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
