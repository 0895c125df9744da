"""Errors a user can act on: what failed, the value received, what is allowed, the next command."""

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """Base of every error the command line prints without a traceback. Exit code 1."""

    exit_code = 1


class InputError(HarnessError):
    """Something the user typed or handed over is wrong. Exit code 2."""

    exit_code = 2


class SpecError(HarnessError):
    """A plugin declared something that does not fit its contract."""


class UnavailableError(HarnessError):
    """A mixer, a corpus or a device cannot be used here; the message says what helps."""


class RecordError(HarnessError):
    """A stored record does not match its raw data, or cannot be read."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Returns "did you mean …?", or the sorted choices where nothing is near."""
    choices = sorted(allowed)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose from: {', '.join(choices) or '(none)'}"
