"""Ranks that do not pretend: rows whose shown intervals overlap share a number."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Row = TypeVar("Row")
ROUNDING = 1e-12  # 0.994 - 0.992 is a little more than 0.002 in binary


@dataclass(frozen=True)
class Score:
    """A value as it is shown, so that a reader of the table can check the rank."""

    value: float
    half: float  # half the width of the interval around it
    higher_is_better: bool

    def overlaps(self, other: "Score") -> bool:
        """Returns whether the two intervals share a point."""
        if self.order == other.order:  # inf beside inf or nan too
            return True
        return abs(self.value - other.value) <= self.half + other.half + ROUNDING

    @property
    def order(self) -> float:
        """Returns the number by which the best comes first; nan is as bad as it gets."""
        if math.isnan(self.value):
            return math.inf
        return -self.value if self.higher_is_better else self.value


def ranked(
    rows: Sequence[Row], primary: Callable[[Row], Score | None], second: Callable[[Row], Score | None]
) -> list[tuple[int, Row]]:
    """Returns (rank, row), best first; equal numbers are ties.

    The rows whose interval overlaps that of the best one form the first group; the best of the rest leads the next.
    Within a group the second score decides in the same way, where every row of the group has it.
    """
    found: list[tuple[int, Row]] = []
    for tied in groups(rows, primary):
        for group in groups(tied, second):
            found += [(rank, row) for rank in [len(found) + 1] for row in group]
    return found


def groups(rows: Sequence[Row], score: Callable[[Row], Score | None]) -> list[list[Row]]:
    """Returns the rows as groups of ties, best first; a score that some row lacks decides nothing."""
    scored = [(found, row) for row in rows if (found := score(row)) is not None]
    scored.sort(key=lambda pair: pair[0].order)
    if len(scored) < len(rows):
        return [[row for _, row in scored] + [row for row in rows if score(row) is None]]
    made: list[list[Row]] = []
    leader: Score | None = None
    for found, row in scored:
        if leader is None or not leader.overlaps(found):
            leader = found
            made.append([])
        made[-1].append(row)
    return made
