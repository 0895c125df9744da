"""From records to points: what one mixer implementation scored and cost in one suite on one class of device."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.board.processes import Processes, latest
from harness.check.promise import NOT_APPLICABLE
from harness.check.report import KIT_VERSION, report_from_facts
from harness.errors import InputError
from harness.pattern import parse_mixer
from harness.record import CHECK, GATED, TIME, Record
from harness.store import RECORD, Damage, Store, StoredRecord

CAUSALITY = "causality"  # a mixer that declares itself non-causal is checked, shown and not ranked
UNKNOWN = "unknown"  # the device class where every trial failed before it could look


class Records(Protocol):
    """Anything that holds records: a `Store`, or a list of them in `Gathered`."""

    def records(self) -> list[StoredRecord]:
        """Returns every readable record."""


@dataclass(frozen=True)
class Gathered:
    """Records found in any number of folders."""

    found: tuple[StoredRecord, ...]
    damaged: tuple[Damage, ...] = ()

    def records(self) -> list[StoredRecord]:
        """Returns every readable record."""
        return list(self.found)


@dataclass
class Point:
    """One mixer implementation in one suite on one class of device; the newest code of it that was measured."""

    mixer: str
    suite: str
    suite_key: str
    device_class: str
    code: str = ""  # digest of the plugin's sources
    tests: dict[str, StoredRecord] = field(default_factory=dict)  # by task, ok records only
    times: dict[str, Processes] = field(default_factory=dict)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)  # (task, "test" or "time") -> reason
    check: StoredRecord | None = None  # the newest check of this code on this class of device

    @property
    def not_ranked(self) -> str | None:
        """Returns why the point has no rank whatever it scored, or None where its contract was found kept."""
        if self.check is None:
            return "unchecked: no report of this code on this class of device; harness check MIXER makes one"
        record = self.check.record
        if record.status != "ok":
            return f"unchecked: its check failed: {reason(record)}"
        report = report_from_facts(record.facts)
        if report.kit_version != KIT_VERSION:
            return f"unchecked: its report is of contract {report.kit_version}, the current one is {KIT_VERSION}"
        if not report.green:
            return f"not ranked: breaks {'; '.join(f'{f.promise} ({f.detail})' for f in report.broken)}"
        unseen = [f.detail for f in report.findings if f.promise == CAUSALITY and f.verdict == NOT_APPLICABLE]
        return f"not ranked: {unseen[0]}" if unseen else None

    @property
    def waived(self) -> str | None:
        """Returns the promises that are broken with a written reason, or None."""
        found = report_from_facts(self.check.record.facts).waived if self.check is not None else ()
        return f"waived: {'; '.join(f'{f.promise}: {f.detail}' for f in found)}" if found else None

    @property
    def family(self) -> str:
        """Returns the mixer with its options but without its implementation: quality is measured once for it."""
        choice = parse_mixer(self.mixer)
        return f"{choice.name}{list(choice.settings)}"

    @property
    def stored(self) -> list[StoredRecord]:
        """Returns the ok records of the point."""
        checked = [self.check] if self.check is not None and self.check.record.status == "ok" else []
        timed = [stored for processes in self.times.values() for stored in processes.stored]
        return [*self.tests.values(), *timed, *checked]

    def record(self, kind: str, task: str) -> Record | None:
        """Returns the test record of the task, or one of its time records."""
        found = self.tests.get(task) if kind == "test" else self.times.get(task)
        return found.record if found else None

    @property
    def tasks(self) -> list[str]:
        """Returns every task that was tried, in alphabetical order."""
        return sorted({*self.tests, *self.times, *(task for task, _ in self.failed)})

    @property
    def data(self) -> dict[str, str]:
        """Returns the SHA-256 of each scored test split."""
        found = {task: stored.record.data_sha256.get("test") for task, stored in self.tests.items()}
        return {task: sha for task, sha in found.items() if sha}


def gather(root: Path) -> Gathered:
    """Returns the records of a folder, or of every folder below it: a runs folder and a board read alike."""
    stores = [Store(path) for path in sorted({root, *(file.parents[1] for file in root.rglob(RECORD))})]
    stores = [store for store in stores if not any(part.startswith(".") for part in store.root.relative_to(root).parts)]
    return Gathered(
        tuple(stored for store in stores for stored in store.records()),
        tuple(damage for store in stores for damage in store.damaged),
    )


def points(store: Records) -> list[Point]:
    """Returns every point of the records; only the newest record of each trial counts, failed ones too."""
    by_device: dict[tuple[str, str], dict[str, list[StoredRecord]]] = defaultdict(lambda: defaultdict(list))
    homeless: list[StoredRecord] = []  # failed before the device was known
    checks: dict[tuple[str, ...], StoredRecord] = {}
    for stored in sorted(store.records(), key=lambda stored: stored.record.started):
        record = stored.record
        if record.kind in GATED:  # of `harness time` and `harness compare`: they belong to no preset
            continue
        if record.kind == CHECK:
            checks[record.mixer, str(record.plugin.get("code_sha256")), str(device_class(record))] = stored
        elif device_class(record) is None:
            homeless.append(stored)
        else:
            by_device[record.suite_key, str(device_class(record))][record.mixer].append(stored)
    for stored in homeless:
        record = stored.record
        homes = [key for key in by_device if key[0] == record.suite_key and key[1] != UNKNOWN]
        home = homes[0] if len(homes) == 1 else (record.suite_key, UNKNOWN)
        by_device[home][record.mixer].append(stored)
    found = [
        _point(mixer, suite_key, device, stored)
        for (suite_key, device), mixers in by_device.items()
        for mixer, stored in mixers.items()
    ]
    for point in filter(None, found):
        point.check = checks.get((point.mixer, point.code, point.device_class))
    return [point for point in found if point is not None]


def device_class(record: Record) -> str | None:
    """Returns what two records must share for their cost to be compared, or None where the trial never got there."""
    found = record.environment.get("class")
    return str(found) if found else None


def task_options(record: Record) -> Mapping[str, Any]:
    """Returns the task's options as stored."""
    return record.config.get("options") or {}


def _point(mixer: str, suite_key: str, device: str, stored: Iterable[StoredRecord]) -> Point | None:
    """Returns the point, or None where nothing but training is there, and none of it failed."""
    ordered = sorted(stored, key=lambda s: (s.record.started, s.record.status == "ok"))
    code = ordered[-1].record.plugin.get("code_sha256")
    ordered = [s for s in ordered if s.record.plugin.get("code_sha256") == code]
    point = Point(mixer, ordered[-1].record.suite, suite_key, device, str(code))
    together: dict[tuple[str, str], list[StoredRecord]] = defaultdict(list)
    for one in ordered:
        together[one.record.task, one.record.kind].append(one)
    for (task, kind), same in together.items():
        _place(point, task, kind, same)
    return point if point.tests or point.times or point.failed else None


def _place(point: Point, task: str, kind: str, same: Sequence[StoredRecord]) -> None:
    """Puts the records of one task and kind into the point; the newest count, failed ones too."""
    failed = [stored for stored in same if stored.record.status != "ok"]
    if kind == "train":
        if failed:  # shown only as long as there is no test record, which knows better
            point.failed.setdefault((task, "test"), reason(failed[0].record))
        return
    newest = latest(same) if kind == TIME else Processes((same[-1],))
    broken = [stored for stored in newest.stored if stored.record.status != "ok"]
    if broken:
        point.failed[task, kind] = reason(broken[0].record)
        return
    point.failed.pop((task, kind), None)
    if kind == TIME:
        point.times[task] = newest
    else:
        point.tests[task] = newest.stored[0]


def reason(record: Record) -> str:
    """Returns in one line why a trial failed."""
    return " ".join((record.reason or "no reason given").split())


def of_suite(store: Records, suite: str | None) -> Gathered:
    """Returns the records of the named suite (`quick` takes `quick*` too), or all; an unknown one raises InputError."""
    found = store.records()
    if suite is None:
        return Gathered(tuple(found))
    names = {s.record.suite for s in found if s.record.kind not in (CHECK, *GATED)}
    chosen = [s for s in found if s.record.kind == CHECK or suite in (s.record.suite, s.record.suite.removesuffix("*"))]
    if found and not any(suite in (name, name.removesuffix("*")) for name in names):
        listed = ", ".join(sorted(names))
        raise InputError(f"no records of preset {suite!r} here; there are records of: {listed}")
    return Gathered(tuple(chosen))


def config_digest_input(record: Record) -> str:
    """Returns the task and its options as text: two records with the same text read the same data."""
    return json.dumps([record.task, task_options(record)], sort_keys=True)
