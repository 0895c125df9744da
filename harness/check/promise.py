"""A promise, and what was found of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.check.subject import Subject

KEPT, BROKEN, WAIVED, NOT_APPLICABLE = "kept", "broken", "waived", "not applicable"


class BrokenPromise(HarnessError):
    """The mixer does not do what it promised; the message says where, the value found and what is allowed."""


class NotApplicable(HarnessError):
    """The promise does not concern this mixer or this machine; the message says why."""


@dataclass(frozen=True)
class Promise:
    """One thing every mixer promises."""

    name: str
    why: str  # the reason in one sentence
    test: "Callable[[Subject], str]"
    """Returns what was measured, in a few words; raises BrokenPromise or NotApplicable."""
    waivable: bool = True  # whether `expected_failures` may excuse it on the leaderboard


@dataclass(frozen=True)
class Finding:
    """What was found of one promise."""

    promise: str
    verdict: str  # KEPT, BROKEN, WAIVED or NOT_APPLICABLE
    detail: str
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns the finding as plain JSON values."""
        return {
            "promise": self.promise,
            "verdict": self.verdict,
            "detail": self.detail,
            "seconds": round(self.seconds, 3),
        }
