"""The processes that timed one model: what they share, and what is between them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.record import Record
from harness.spec import Measure
from harness.store import StoredRecord

MAX_BUSY_CORES = 0.5  # by other processes, before a row from one process says that it was disturbed
LEAST = ("peak_mib",)  # what else a process holds can only add: the least of the processes stands for all


@dataclass(frozen=True)
class Processes:
    """One time record a process; a record from before they were numbered stands alone."""

    stored: tuple[StoredRecord, ...]

    @property
    def record(self) -> Record:
        """Returns the record of one of them, for what they share: facts, environment, configuration."""
        return self.stored[0].record

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """Returns each measure over the processes."""
        names = [name for name in self.record.measures if all(name in one.record.measures for one in self.stored)]
        return {name: across([one.record.measures[name] for one in self.stored], name in LEAST) for name in names}

    @property
    def protocol(self) -> str:
        """Returns how many processes there were, and whether they rest on a check."""
        if self.record.process is None:
            return "1 process without a gate"
        return f"{len(self.stored)} process{'' if len(self.stored) == 1 else 'es'}"

    @property
    def missing(self) -> str | None:
        """Returns "2 of 3" where processes that were planned are not there, or None."""
        planned = self.record.config["timing"].get("processes", 1) if self.record.process is not None else 1
        return f"{len(self.stored)} of {planned}" if len(self.stored) < planned else None

    @property
    def disturbed(self) -> str | None:
        """Returns what may have made the times too long, or None."""
        if self.record.process is None:
            busy = self.record.facts.get("busy_cores") or 0.0
            said = f"other processes kept {busy:g} cores busy: its times may be far too long"
            return said if busy > MAX_BUSY_CORES else None
        found = [_causes(one.record.facts.get("disturbed") or {}) for one in self.stored]
        causes = sorted(set().union(*found))
        return f"times disturbed in {sum(map(bool, found))}/{len(found)}: {', '.join(causes)}" if causes else None


def across(measures: Sequence[Measure], least: bool = False) -> Measure:
    """Returns the median over processes with the least and the greatest; what is the same in all of them, as it is.

    With `least` the least process stands for all.
    """
    values = [measure.value for measure in measures]
    single = all(measure.n == 1 for measure in measures)
    if len(measures) == 1 or (single and len(set(values)) == 1):
        return measures[0]
    low, high = (None, None) if any(map(math.isnan, values)) else (min(values), max(values))
    of = "" if single else "the medians of "
    said = "least and greatest of " if least else f"min–max of {of}"
    return Measure(
        value=min(values) if least else statistics.median(values),
        unit=measures[0].unit,
        n=len(values),
        low=low,
        high=high,
        spread=f"{said}{len(values)} processes",
    )


def latest(found: Sequence[StoredRecord]) -> Processes:
    """Returns the newest record of each process, from records in the order of their time.

    Earlier records have no number: where the newest has none it stands alone, else those without go.
    """
    if found[-1].record.process is None:
        return Processes((found[-1],))
    numbered = {one.record.process: one for one in found if one.record.process is not None}
    return Processes(tuple(numbered[number] for number in sorted(numbered)))


def _causes(disturbed: Mapping[str, Any]) -> set[str]:
    return {str(cause) for causes in disturbed.values() for cause in causes}
