"""Questions with answers for mini:DMMath, from integers alone: the bytes are equal on every platform."""

import datetime
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

CHUNKS = 24  # documents of each kind
QUESTIONS = 72  # in each document
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MASK = 2**64 - 1


class Draw:
    """A stream of integers that depends on its seed alone (SplitMix64): no library may change it under us."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def between(self, low: int, high: int) -> int:
        """Returns an integer from low to high, both included; its bias is below 2**-32 for ranges below 2**32."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return low + (((z ^ (z >> 31)) * (high - low + 1)) >> 64)

    def sized(self) -> int:
        """Returns a positive integer of one to four digits, each length equally often."""
        digits = self.between(1, 4)
        return self.between(10 ** (digits - 1), 10**digits - 1)


Question = Callable[[Draw], tuple[str, str]]


def _sum(draw: Draw) -> tuple[str, str]:
    terms = [draw.sized() * draw.between(0, 1) or -draw.sized() for _ in range(draw.between(2, 4))]
    shown = " ".join(f"{'-' if term < 0 else '+'} {abs(term)}" for term in terms[1:])
    return f"What is {terms[0]} {shown}?", str(sum(terms))


def _product(draw: Draw) -> tuple[str, str]:
    a, b = draw.sized(), draw.between(-99, 99)
    return f"Multiply {a} and {b}.", str(a * b)


def _remainder(draw: Draw) -> tuple[str, str]:
    a, b = draw.sized(), draw.between(2, 60)
    return f"Calculate the remainder when {a} is divided by {b}.", str(a % b)


def _fraction(draw: Draw) -> tuple[str, str]:
    a, b = (Fraction(draw.between(1, 30), draw.between(2, 30)) for _ in range(2))
    sign = "+-"[draw.between(0, 1)]
    return f"Calculate {a} {sign} {b} as a fraction.", str(a + b if sign == "+" else a - b)


def _comparison(draw: Draw) -> tuple[str, str]:
    a, b = (Fraction(draw.between(-40, 40), draw.between(1, 12)) for _ in range(2))
    if draw.between(0, 1):
        return f"Which is bigger: {a} or {b}?", "They are equal" if a == b else str(max(a, b))
    return f"Is {a} at least as big as {b}?", str(a >= b)


def _order(draw: Draw) -> tuple[str, str]:
    values = [draw.between(-99, 99) for _ in range(draw.between(3, 6))]
    down = bool(draw.between(0, 1))
    shown = ", ".join(map(str, values))
    answer = ", ".join(map(str, sorted(values, reverse=down)))
    return f"Sort {shown} in {'decreasing' if down else 'increasing'} order.", answer


def _divisor(draw: Draw) -> tuple[str, str]:
    common = draw.between(1, 24)
    a, b = common * draw.between(1, 60), common * draw.between(1, 60)
    if draw.between(0, 1):
        return f"What is the greatest common factor of {a} and {b}?", str(math.gcd(a, b))
    return f"What is the smallest common multiple of {a} and {b}?", str(math.lcm(a, b))


def _equation(draw: Draw) -> tuple[str, str]:
    name = "abcdhkmnpqrstuvwxyz"[draw.between(0, 18)]
    x, a, b = draw.between(-30, 30), draw.between(2, 20), draw.between(-60, 60)
    return f"Solve {a}*{name} {'-' if b < 0 else '+'} {abs(b)} = {a * x + b} for {name}.", str(x)


def _date(draw: Draw) -> datetime.date:
    return datetime.date(1900, 1, 1) + datetime.timedelta(days=draw.between(0, 73000))


def _show(date: datetime.date) -> str:
    return f"{date.day} {_MONTHS[date.month - 1]} {date.year}"


def _weekday(draw: Draw) -> tuple[str, str]:
    date = _date(draw)
    return f"Which day of the week is {_show(date)}?", _DAYS[date.weekday()]


def _calendar(draw: Draw) -> tuple[str, str]:
    date = _date(draw)
    days = draw.between(1, 400)
    later = date + datetime.timedelta(days=days)
    if draw.between(0, 1):
        return f"How many days are there from {_show(date)} to {_show(later)}?", str(days)
    return f"Which date is {days} days after {_show(date)}?", _show(later)


_KINDS: tuple[tuple[str, Question], ...] = (
    *(("sum", _sum), ("product", _product), ("remainder", _remainder), ("fraction", _fraction)),
    *(("comparison", _comparison), ("order", _order), ("divisor", _divisor), ("equation", _equation)),
    *(("weekday", _weekday), ("calendar", _calendar)),
)


def documents() -> Iterator[tuple[str, str]]:
    """Yields (id, text): each document asks one kind of question, each answer stands on the line below it."""
    for number, (kind, ask) in enumerate(_KINDS):
        draw = Draw(1_000_003 * (number + 1))
        for chunk in range(CHUNKS):
            lines = [line for _ in range(QUESTIONS) for line in ask(draw)]
            yield f"{kind}/{chunk:03d}", "\n".join(lines)
