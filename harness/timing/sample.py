"""Timed repetitions of a call, and the median with quartiles in which they are reported."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from time import perf_counter_ns  # by name: replacing time.perf_counter_ns changes nothing here

import numpy as np
import torch

from harness.errors import InputError
from harness.spec import Measure


def sample(fn: Callable[[], object], *, device: str, samples: int, warmup: int) -> np.ndarray:
    """Returns the duration of each of `samples` calls in ms, after `warmup` calls that are not timed."""
    if samples < 1 or warmup < 0:
        raise InputError(f"timing takes samples of at least 1 and warmup of at least 0, got {samples} and {warmup}")
    for _ in range(warmup):
        fn()
    with _collector_paused():
        return _cuda_ms(fn, device, samples) if torch.device(device).type == "cuda" else _host_ms(fn, device, samples)


def summarise(samples_ms: np.ndarray) -> Measure:
    """Returns the median of the samples with its quartiles, in ms."""
    return quartiles(samples_ms, "ms")


def quartiles(samples: np.ndarray, unit: str) -> Measure:
    """Returns the median of the samples; low and high are the quartiles."""
    low, median, high = (float(q) for q in np.percentile(np.asarray(samples, dtype=np.float64), (25, 50, 75)))
    n = len(samples)
    return Measure(value=median, unit=unit, n=n, low=low, high=high, spread=f"quartiles of {n} samples")


def _host_ms(fn: Callable[[], object], device: str, samples: int) -> np.ndarray:
    synchronise(device)
    ns = np.empty(samples, dtype=np.int64)
    for i in range(samples):
        start = perf_counter_ns()
        fn()
        synchronise(device)
        ns[i] = perf_counter_ns() - start
    return ns / 1e6


def _cuda_ms(fn: Callable[[], object], device: str, samples: int) -> np.ndarray:
    # The host may run ahead of the device, as it does in training; the events stand in the stream, so each pair
    # holds exactly one call: its kernels, and the gaps between them where the launches cannot keep up.
    with torch.cuda.device(device):
        events = [(_event(), _event()) for _ in range(samples)]
        torch.cuda.synchronize()
        for start, end in events:
            start.record()
            fn()
            end.record()
        torch.cuda.synchronize()
        return np.array([start.elapsed_time(end) for start, end in events], dtype=np.float64)


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
def _collector_paused() -> Iterator[None]:
    """Keeps Python's cyclic collector, which runs when it likes, out of the timed window."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
