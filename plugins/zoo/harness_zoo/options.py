"""What the specs of the zoo share. No torch: listing mixers imports this."""

from collections.abc import Iterable

from harness import InputError

FLOAT_BYTES = 4


def at_least(mixer: str, name: str, value: int, least: int) -> int:
    """Returns the value of a numeric option, or raises InputError where it is below the least allowed."""
    if value < least:
        raise InputError(f"{mixer}: {name} = {value}; it takes a number of at least {least}")
    return int(value)


def one_of(mixer: str, name: str, value: str, allowed: Iterable[str]) -> str:
    """Returns the value of an option, or raises InputError where it is none of the allowed."""
    if value not in allowed:
        raise InputError(f"{mixer}: {name} = {value!r}; choose one of {', '.join(allowed)}")
    return value
