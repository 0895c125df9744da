"""What a run shows while it works: a live display on a terminal, plain lines elsewhere. Always on stderr."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from harness.check.report import report_from_facts
from harness.plugins import Registry
from harness.record import CHECK, Record
from harness.store import StoredRecord
from harness.sweep.estimate import in_words, wall_seconds
from harness.sweep.trial import Trial


class Display(Protocol):
    """What the executor tells."""

    def start(self, trial: Trial) -> None:
        """Shows that the trial has begun."""

    def progress(self, trial: Trial, step: int, of: int, text: str) -> None:
        """Shows how far the trial is."""

    def done(self, trial: Trial, stored: StoredRecord) -> None:
        """Shows the finished or failed trial."""

    def note(self, line: str) -> None:
        """Shows a line."""


def on_terminal() -> bool:
    """Returns whether stderr is a terminal that can redraw lines."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def summary(record: Record, registry: Registry) -> str:
    """Returns what came out in a few words."""
    seconds = f"{record.seconds:.0f} s" if record.seconds >= 10 else f"{record.seconds:.1f} s"
    if record.status != "ok":
        return f"FAILED: {record.reason}"
    if record.kind == CHECK:
        return f"{verdict(record)}, {seconds}"
    spec = registry.tasks.get(record.task)
    names = [spec.primary] if spec is not None and record.kind != "time" else ["train_step_ms", "forward_ms"]
    shown = [f"{name} {record.measures[name].value:.3g}" for name in names if name in record.measures]
    chosen = [f"lr {record.facts['lr']:g}"] if record.kind == "test" and "lr" in record.facts else []
    return ", ".join([*shown, *chosen, seconds])


def verdict(record: Record) -> str:
    """Returns what a check found: green, or the promises that are broken."""
    report = report_from_facts(record.facts)
    if report.green:
        counts = Counter(finding.verdict for finding in report.findings)
        return f"keeps its contract: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}"
    return f"BREAKS {', '.join(finding.promise for finding in report.broken)}: harness check shows how"


class Tally:
    """Counts finished trials and foretells the end from the estimates, corrected by what has passed."""

    def __init__(self, todo: Sequence[Trial], total: int, workers: int, clock: Callable[[], float]) -> None:
        self.left = {trial.key: trial for trial in todo}
        self.count, self.total, self.workers, self.clock = total - len(todo), total, workers, clock
        self.expected = max(wall_seconds(todo, workers), 1.0)
        self.started = clock()
        self.share: dict[str, float] = {}

    def part(self, trial: Trial, step: int, of: int) -> None:
        """Notes how far a running trial is."""
        self.share[trial.key] = min(1.0, step / of) if of else 0.0

    def finish(self, trial: Trial) -> str:
        """Returns "[12/36]" after counting the trial."""
        if self.left.pop(trial.key, None):
            self.count += 1
        self.share.pop(trial.key, None)
        return f"[{self.count}/{self.total}]"

    @property
    def remaining_s(self) -> float:
        """Returns the seconds still to come; the more is done, the more what has passed counts."""
        left = sum(trial.seconds * self.share.get(key, 0.0) for key, trial in self.left.items()) / self.workers
        rest = max(wall_seconds(list(self.left.values()), self.workers) - left, 0.0) if self.left else 0.0
        done = 1 - rest / self.expected
        if done <= 0:
            return rest
        pace = (self.clock() - self.started) / (self.expected - rest)
        return rest * (done * pace + (1 - done))


class PlainDisplay:
    """One line a finished trial."""

    def __init__(self, tally: Tally, registry: Registry) -> None:
        self.tally, self.registry = tally, registry

    def start(self, trial: Trial) -> None:
        """Shows nothing: a log is for results."""

    def progress(self, trial: Trial, step: int, of: int, text: str) -> None:
        """Shows nothing."""

    def done(self, trial: Trial, stored: StoredRecord) -> None:
        """Prints the trial's line."""
        self.note(line(self.tally.finish(trial), trial, stored, self.registry))

    def note(self, line: str) -> None:
        """Prints the line."""
        print(line, file=sys.stderr, flush=True)


class LiveDisplay:
    """A bar for the run, a line for each running trial, and the finished ones above."""

    def __init__(self, tally: Tally, registry: Registry, console: Console | None = None) -> None:
        self.tally, self.registry = tally, registry
        self.console = console or Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TextColumn("{task.fields[text]}", markup=False),
        )
        self.bars = Progress(*columns, console=self.console, transient=True)
        self.overall = self.bars.add_task("run", total=max(tally.total, 1), completed=tally.count, text="")
        self.rows: dict[str, TaskID] = {}

    def __enter__(self) -> "LiveDisplay":
        self.bars.start()
        self._overall()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def start(self, trial: Trial) -> None:
        """Adds the trial's line."""
        self.rows[trial.key] = self.bars.add_task(trial.label, total=None, text="starting")

    def progress(self, trial: Trial, step: int, of: int, text: str) -> None:
        """Moves the trial's bar."""
        self.tally.part(trial, step, of)
        self.bars.update(self.rows[trial.key], total=of, completed=step, text=f"{step}/{of} {text}")
        self._overall()

    def done(self, trial: Trial, stored: StoredRecord) -> None:
        """Turns the trial's line into its result."""
        if trial.key in self.rows:
            self.bars.remove_task(self.rows.pop(trial.key))
        text = line(self.tally.finish(trial), trial, stored, self.registry)
        self.console.print(Text(text, style="" if stored.record.status == "ok" else "red"))
        self._overall()

    def note(self, line: str) -> None:
        """Prints the line above the bars."""
        self.console.print(Text(line, style="yellow"))

    def _overall(self) -> None:
        words = f"{self.tally.count}/{self.tally.total} trials, {in_words(self.tally.remaining_s)} left"
        self.bars.update(self.overall, completed=self.tally.count, text=words)


def line(number: str, trial: Trial, stored: StoredRecord, registry: Registry) -> str:
    """Returns the line of a finished trial; a failed one says where its log is."""
    text = f"{number} {trial.label}: {summary(stored.record, registry)}"
    return text if stored.record.status == "ok" else f"{text}; log: {stored.path / 'log.txt'}"


def make_tally(todo: Sequence[Trial], total: int, workers: int) -> Tally:
    """Returns the tally of a run that begins now."""
    return Tally(todo, total, workers, time.monotonic)
