"""One cell: a number at the precision of its column, its spread, or a dash and why."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.spec import Measure

DASH = "–"
MOST_DECIMALS = 4
HEADER_WIDTH = 8
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Column:
    """One column; its unit stands in the title."""

    key: str  # in JSON
    title: str
    task: str
    measure: str
    kind: str = "test"  # the kind of record it comes from; or "protocol": what the facts say
    decimals: int | None = None  # None: as the values ask for
    spread: bool = True  # whether ± stands beside the value


@dataclass(frozen=True)
class Cell:
    """What stands in a row under a column."""

    text: str
    measure: Measure | None = None
    value: Any = None  # of a cell that is no measure
    note: str | None = None  # footnote
    shown: float = math.nan  # the measure's value, rounded as in `text`
    half: float = 0.0  # the ± in `text`


def one_precision(measures: Sequence[Measure | None]) -> int:
    """Returns the decimals of a column: at least two digits of its smallest value and three of its greatest."""
    sizes = [abs(m.value) for m in measures if m is not None and math.isfinite(m.value) and m.value]
    if not sizes:
        return 0
    wanted = max(1 - math.floor(math.log10(min(sizes))), 2 - math.floor(math.log10(max(sizes))))
    return min(max(wanted, 0), MOST_DECIMALS)


def fill(column: Column, measures: Sequence[Measure | None], reasons: Sequence[str | None]) -> list[Cell]:
    """Returns a column's cells; n stands in each where the rows differ in it, else once below the table."""
    decimals = one_precision(measures) if column.decimals is None else column.decimals
    counts = {m.n for m in measures if m is not None and m.low is not None}
    return [
        Cell(DASH, note=reason) if measure is None else _number(measure, decimals, column.spread, len(counts) > 1)
        for measure, reason in zip(measures, reasons, strict=True)
    ]


def _number(measure: Measure, decimals: int, spread: bool, show_n: bool) -> Cell:
    text, half = f"{measure.value:,.{decimals}f}", 0.0
    if spread and measure.low is not None and measure.high is not None:
        half = _half(measure, decimals)
        text += f" ±{half:,.{decimals}f}"
        text += f" (n={measure.n:,})" if show_n else ""
    return Cell(text, measure, shown=round(measure.value, decimals), half=half)


def _half(measure: Measure, decimals: int) -> float:
    """Returns the longer side of the interval, rounded up: what is shown never claims more than was measured."""
    low, high = measure.low, measure.high
    if low is None or high is None or low == measure.value == high:
        return 0.0
    side = max(measure.value - low, high - measure.value)
    if not math.isfinite(side):
        return math.inf
    return float(math.ceil(side * 10**decimals - 1e-9) / 10**decimals)


class Notes:
    """Footnotes, numbered in the order in which they are met; equal ones share a number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, text: str, note: str | None) -> str:
        """Returns the text with the number of its note."""
        if note is None:
            return text
        number = self.numbers.setdefault(note, len(self.numbers) + 1)
        return text + str(number).translate(SUPERSCRIPT)

    def lines(self) -> list[str]:
        """Returns one line a note."""
        return [f"{str(number).translate(SUPERSCRIPT)} {note}" for note, number in self.numbers.items()]


def stacked(titles: Sequence[str]) -> list[str]:
    """Returns the titles in narrow lines, all as high as the highest."""
    lines = [textwrap.wrap(name, HEADER_WIDTH, break_long_words=False) for name in titles]
    height = max(map(len, lines))
    return ["\n".join([""] * (height - len(parts)) + parts) for parts in lines]
