"""Whether records are what their raw arrays say, and whether those arrays answer the task's own questions."""

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.board.points import config_digest_input
from harness.config import run_config_from_json
from harness.plugins import Registry
from harness.record import CHECK, GATED, Record
from harness.spec import Task
from harness.store import StoredRecord
from harness.verify import verify, verify_labels


@dataclass(frozen=True)
class Checked:
    """What was found of one record."""

    stored: StoredRecord
    wrong: tuple[str, ...]  # one line a mismatch
    labels: str  # "equal the task's own", or why they were not compared

    def to_json(self) -> dict[str, Any]:
        """Returns the findings as plain JSON values."""
        record = self.stored.record
        return {
            "key": record.key,
            "kind": record.kind,
            "mixer": record.mixer,
            "task": record.task,
            "measures": len(record.measures),
            "labels": self.labels,
            "mismatches": list(self.wrong),
        }


@dataclass
class Checker:
    """Checks records; a task is loaded once however many records were scored on it."""

    registry: Registry
    labels: bool = True
    _tasks: dict[str, Task | str] = field(default_factory=dict)  # by task and options; text: why it does not load
    _data: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def check(self, stored: StoredRecord) -> Checked:
        """Returns what does not match: numbers, files, and where the task loads also labels and data."""
        wrong = verify(stored, self.registry)
        if wrong or stored.record.status != "ok":
            return Checked(stored, tuple(wrong), "not compared")
        if stored.record.kind in ("time", CHECK, *GATED):
            return Checked(stored, (), "none")
        task = self._task(stored.record) if self.labels else "not asked for"
        if isinstance(task, str):
            return Checked(stored, (), f"not compared: {task}")
        found = verify_labels(stored, task) + self._other_data(stored.record, task)
        return Checked(stored, tuple(found), "equal the task's own" if not found else "differ")

    def _task(self, record: Record) -> Task | str:
        key = config_digest_input(record)
        if key not in self._tasks:
            try:
                spec = self.registry.task(record.task)
                config = run_config_from_json(record.config, spec.options)
                options = spec.options() if config.options is None else config.options
                with contextlib.redirect_stdout(sys.stderr):
                    self._tasks[key] = spec.load(options, lambda what, fraction: None)
            except Exception as error:  # no network, no corpus, another version of the task's options
                self._tasks[key] = f"task {record.task} does not load here: {' '.join(str(error).split())}"
        return self._tasks[key]

    def _other_data(self, record: Record, task: Task) -> list[str]:
        key = config_digest_input(record)
        if key not in self._data:
            self._data[key] = task.data_sha256()
        return [
            f"data_sha256 of {name} is {record.data_sha256.get(name)}, the task's own is {sha}"
            for name, sha in self._data[key].items()
            if record.data_sha256.get(name) != sha
        ]
