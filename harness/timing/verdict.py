"""Faster, slower, same or undecided: from one ratio a process to a verdict with its interval."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FASTER, SLOWER, SAME, UNDECIDED = "faster", "slower", "same", "undecided"
LEVEL = 0.99
MARGIN = 0.01  # the smallest difference worth a verdict
MIN_PROCESSES = 8  # below it no interval of order statistics covers the median with LEVEL


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is said of B against A."""

    verdict: str
    ratio: float  # time of B over time of A
    low: float
    high: float
    processes: int
    margin: float
    level: float = LEVEL

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain JSON values; an open end of the interval is null."""
        plain = asdict(self)
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in plain.items()}


def judge(log_ratios: Sequence[float], margin: float = MARGIN) -> Verdict:
    """Returns the verdict on B from log(B/A) of each process.

    The interval must lie beyond the margin on one side to be called faster or slower, and within it to be called the
    same. Everything else is undecided: more processes, or a quieter machine, may decide it.
    """
    low, high = median_interval(log_ratios)
    edge = math.log1p(margin)
    if low > edge:
        verdict = SLOWER
    elif high < -edge:
        verdict = FASTER
    elif -edge <= low and high <= edge:
        verdict = SAME
    else:
        verdict = UNDECIDED
    middle = float(np.median(np.asarray(log_ratios, dtype=np.float64)))
    return Verdict(
        verdict=verdict,
        ratio=math.exp(middle),
        low=math.exp(low),
        high=math.exp(high),
        processes=len(log_ratios),
        margin=margin,
    )


def median_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Returns an interval that covers the median with at least this probability, whatever the distribution.

    It is bounded by order statistics: the sign test turned round. Too few values leave it unbounded.
    """
    ordered, n = sorted(float(v) for v in values), len(values)
    beyond, cut = 0.0, -1  # chance that fewer than cut + 1 of n values lie on one side of the median
    while cut + 1 < n / 2:
        beyond += math.comb(n, cut + 1) / 2**n
        if 2 * beyond > 1 - level:
            break
        cut += 1
    return (ordered[cut], ordered[-1 - cut]) if cut >= 0 else (-math.inf, math.inf)


def smallest_found(pairs: Sequence[Sequence[float]], margin: float = MARGIN, share: float = 0.95) -> float:
    """Returns the smallest slowdown that would be called slower in that share of the pairs.

    Each pair, the log ratios of its processes, compares a mixer with itself. A slowdown moves every log ratio by the
    same amount, so the least shift at which an interval leaves the margin is read off the interval.
    """
    needed = sorted(math.log1p(margin) - median_interval(pair)[0] for pair in pairs)
    at = math.ceil(share * len(needed)) - 1
    return math.expm1(needed[at])
