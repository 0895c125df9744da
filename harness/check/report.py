"""The report of one check: what was found of every promise, for which code, on which device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.check.promise import BROKEN, WAIVED, Finding
from harness.errors import RecordError

# Raise it when layers that were checked might break what is new: older reports then no longer count. `forward_at` came
# without: no layer had it before.
KIT_VERSION = 1


@dataclass(frozen=True)
class CheckReport:
    """The findings of one mixer implementation. Green means: every promise is kept, or waived where that is allowed."""

    findings: tuple[Finding, ...]
    kit_version: int = KIT_VERSION
    dtype: str = "float32"  # in which the mixer was checked

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Returns the promises that are broken."""
        return self._having(BROKEN)

    @property
    def waived(self) -> tuple[Finding, ...]:
        """Returns the promises that are broken with a written reason."""
        return self._having(WAIVED)

    @property
    def green(self) -> bool:
        """Returns whether nothing is broken."""
        return bool(self.findings) and not self.broken

    def to_facts(self) -> dict[str, Any]:
        """Returns the report as the facts of a record."""
        findings = [finding.to_json() for finding in self.findings]
        return {"kit_version": self.kit_version, "dtype": self.dtype, "findings": findings}

    def _having(self, verdict: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == verdict)


def report_from_facts(facts: Mapping[str, Any]) -> CheckReport:
    """Returns the report stored in a record's facts."""
    found: Sequence[Mapping[str, Any]] = facts.get("findings", ())
    try:
        findings = tuple(Finding(**finding) for finding in found)
        return CheckReport(findings, int(facts.get("kit_version", 0)), str(facts.get("dtype", "float32")))
    except (TypeError, ValueError) as error:
        raise RecordError(f"not a check report: {error}") from error
