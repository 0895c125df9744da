"""When enough samples were taken: by their noise, by noise that has settled, by the wall clock; never with none."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

QUIET, SETTLED, TIME = "quiet", "settled", "time"  # why sampling ended
MEDIAN_ERROR = math.sqrt(math.pi / 2)  # standard error of a median over that of a mean, of normal samples
MAD_TO_SIGMA = 1.4826  # standard deviation of normal samples over their median absolute deviation
SETTLED_LOOKS = 4  # so many looks in a row
SETTLED_WITHIN = 0.15  # must see the same noise, within this share of it
GROWTH = 1.25  # samples between two looks


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When sampling ends. The wall clock has the last word, so that a noisy machine cannot hold a run up."""

    target: float = 0.005  # relative standard error of the median
    min_samples: int = 10
    min_s: float = 0.2
    max_s: float = 1.5


def stop_rule(device: str, max_s: float, min_samples: int = 10) -> StopRule:
    """Returns the rule of a series on this device. A GPU is given half the time: nobody preempts it."""
    if device.partition(":")[0] == "cuda":
        return StopRule(min_samples=min_samples, min_s=0.1, max_s=max_s / 2)
    return StopRule(min_samples=min_samples, max_s=max_s)


def noise(samples: np.ndarray) -> float:
    """Returns the spread of one sample, relative to the median: a standard deviation that outliers do not move."""
    median = float(np.median(samples))
    if len(samples) < 2 or median == 0.0:
        return math.inf
    return MAD_TO_SIGMA * float(np.median(np.abs(samples - median))) / abs(median)


def median_error(samples: np.ndarray) -> float:
    """Returns the standard error of the median of independent samples, relative to it."""
    return MEDIAN_ERROR * noise(samples) / math.sqrt(len(samples))


class Stopper:
    """Says how many samples to take next, and why it is enough."""

    def __init__(self, rule: StopRule, now: Callable[[], float] = perf_counter) -> None:
        self.rule, self.now, self.started = rule, now, now()
        self.looks: list[float] = []  # the noise at every look
        self.ended = ""  # QUIET, SETTLED or TIME once it is enough

    def more(self, samples: np.ndarray) -> int:
        """Returns how many samples to add to these; 0: enough. The first time it is one, whatever the clock says."""
        n = len(samples)
        if n == 0:
            return 1
        elapsed = self.now() - self.started
        self.ended = self._why_enough(samples, elapsed)
        if self.ended:
            return 0
        affordable = int((self.rule.max_s - elapsed) / max(elapsed / n, 1e-9))
        return max(1, min(max(self.rule.min_samples - n, math.ceil(n * (GROWTH - 1))), affordable))

    def _why_enough(self, samples: np.ndarray, elapsed: float) -> str:
        rule = self.rule
        if elapsed >= rule.max_s:
            return TIME
        if len(samples) < rule.min_samples or elapsed < rule.min_s:
            return ""
        error = median_error(samples)
        if error <= rule.target:
            return QUIET
        self.looks.append(noise(samples))
        recent = self.looks[-SETTLED_LOOKS:]
        same = len(recent) == SETTLED_LOOKS and max(recent) - min(recent) <= SETTLED_WITHIN * max(recent)
        # the error falls with the root of the count: where the budget does not reach, waiting is wasted
        needed_s = elapsed * (error / rule.target) ** 2
        return SETTLED if same and needed_s > rule.max_s else ""
