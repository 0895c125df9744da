"""A fixed piece of work, timed before, between and after: it shows a machine that changes, and ratios to it travel."""

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from harness.timing.cuda import SPIN_CYCLES
from harness.timing.sample import Call, draw

REPEATS = 5
PARTS = ("product", "copy", "clock")  # the columns of a reading
WARM_S = 0.3


class Probe:
    """A matrix product and a copy of fixed size; on CUDA also a spin of fixed cycles, which tells the clock."""

    def __init__(self, device: str) -> None:
        self.device, self.on_gpu = device, torch.device(device).type == "cuda"
        N, n_bytes = (4096, 1 << 28) if self.on_gpu else (512, 1 << 24)
        dtype = torch.bfloat16 if self.on_gpu else torch.float32
        generator = torch.Generator(device).manual_seed(0)
        self.a = torch.randn(N, N, generator=generator, device=device).to(dtype)
        self.b, self.out = self.a.flip(0), torch.empty_like(self.a)
        self.source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source).zero_()  # touched, so that no copy meets a new page
        self._warm()

    def _warm(self) -> None:
        """Starts the libraries, and on a GPU waits until an idle clock has risen."""
        started = perf_counter()
        self.read()
        while self.on_gpu and perf_counter() - started < WARM_S:
            self.read()

    def read(self) -> np.ndarray:
        """Returns ms of (product, copy, clock): medians of five; the clock is nan where there is none to ask."""
        parts = [
            self._median(lambda: torch.mm(self.a, self.b, out=self.out)),
            self._median(lambda: self.target.copy_(self.source)),
        ]
        spin = getattr(torch.cuda, "_sleep", None) if self.on_gpu else None
        parts.append(self._median(lambda: spin(SPIN_CYCLES)) if spin is not None else np.nan)
        return np.array(parts)

    def _median(self, fn: Callable[[], object]) -> float:
        return float(np.median(draw([Call(fn=fn)] * REPEATS, self.device)[0]))


def reading_ms(readings: np.ndarray) -> np.ndarray:
    """Returns one number a reading [M]: the geometric mean of product and copy, from readings [M, 3]."""
    ms: np.ndarray = np.sqrt(readings[:, 0] * readings[:, 1])
    return ms


def drift(readings: np.ndarray) -> float:
    """Returns how far the probe moved: greatest minus least reading, relative to the median."""
    ms = reading_ms(readings)
    return float((ms.max() - ms.min()) / np.median(ms))
