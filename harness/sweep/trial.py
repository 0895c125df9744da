"""One trial as it travels to its worker process, and the record every trial begins with. Standard library only."""

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.config import RunConfig, run_config_from_json, to_json
from harness.pattern import parse_mixer
from harness.plugins import Registry
from harness.record import CHECK, GATED, PEAK, Record

Event = dict[str, Any]  # what a worker reports: one JSON object a line


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One process' worth of work."""

    key: str
    kind: str  # one of record.KINDS, CHECK, or record.GATED
    mixer: str  # canonical text, implementation pinned
    layers: str  # every layer's canonical text, first layer first, so that a worker builds what was planned
    code: str  # digest of the sources, as planned
    task: str
    suite: str
    suite_key: str
    config: dict[str, Any]  # the RunConfig
    lr: float | None = None
    seed: int | None = None
    process: int | None = None  # of a time trial: which of those that time the same
    needs: tuple[str, ...] = ()  # keys of the train trials of the same mixer and task
    checks: tuple[str, ...] = ()  # keys of the checks without which nothing is timed
    promises: tuple[str, ...] = ()  # of a check: only these
    seconds: float = 0.0  # estimate
    together: str = ""  # trials with this text share a process, one after the other; empty: it has its own

    @property
    def label(self) -> str:
        """Returns the trial in a few words: task, mixer, and what tells it from its neighbours."""
        if self.kind == CHECK:
            return f"check {self.mixer}"
        if self.kind in GATED:
            return self._process_label
        words = [self.task, self.mixer, *([self.kind] if self.kind != "train" else [])]
        if self.kind == "train":
            words += [f"lr={self.lr:g}", f"seed={self.seed}"]
        if self.process is not None:
            words += [f"process {self.process}"]
        return " ".join(words)

    @property
    def _process_label(self) -> str:
        options, T = self.config["options"], self.config["timing"]["T"]
        against = f" against {options['other']}" if "other" in options else ""
        what = "memory of " + ", ".join(options["modes"]) if self.kind == PEAK else f"process {options['process']}"
        return f"{self.mixer}{against} T={T} {what}"

    @property
    def limits(self) -> tuple[float, float]:
        """Returns (seconds, bytes) after which the trial is stopped."""
        limits = self.config["limits"]
        return limits["trial_minutes"] * 60, limits["memory_gib"] * 2**30

    def run_config(self, registry: Registry) -> RunConfig:
        """Returns the configuration, with the task's options as the task's own dataclass."""
        return run_config_from_json(self.config, registry.task(self.task).options)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial and where it runs: all that a worker process is told."""

    trial: Trial
    after: tuple[Trial, ...] = ()  # what the same process does next, one by one
    runs: str  # the store's folder
    files: tuple[str, ...]  # --plugin files
    device: str
    threads: int
    log: str  # the file its stdout and stderr go to
    report: int  # the file descriptor its events go to
    parent: int  # the process without which it must not go on


def job_to_text(job: Job) -> str:
    """Returns the job as JSON."""
    return json.dumps(to_json(job))


def job_from_text(text: str) -> Job:
    """Returns the job written in `text`."""
    data = json.loads(text)
    after = tuple(map(_trial, data["after"]))
    return Job(**{**data, "trial": _trial(data["trial"]), "after": after, "files": tuple(data["files"])})


def _trial(data: dict[str, Any]) -> Trial:
    return Trial(**{**data, **{name: tuple(data[name]) for name in ("needs", "checks", "promises")}})


def first_record(trial: Trial, registry: Registry) -> Record:
    """Returns the record as known before the trial runs."""
    choice = parse_mixer(trial.mixer)
    origin = registry.origin(registry.spec(choice))
    return Record(
        key=trial.key,
        kind=trial.kind,
        mixer=trial.mixer,
        task=trial.task,
        suite=trial.suite,
        suite_key=trial.suite_key,
        config=trial.config,
        lr=trial.lr,
        seed=trial.seed,
        process=trial.process,
        plugin={
            "distribution": origin.distribution,
            "version": origin.version,
            "code_sha256": origin.code_sha256(),
        },
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        facts={"layers": trial.layers},
    )


def failed(record: Record, reason: str, seconds: float) -> Record:
    """Returns the record of a trial that did not finish; the reason is one line."""
    return dataclasses.replace(record, status="failed", reason=" ".join(reason.split()), seconds=round(seconds, 3))


def read_log(path: Path, head: int = 1 << 16, tail: int = 1 << 20) -> str:
    """Returns what a trial printed; of a flood, its beginning and its end."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= head + tail:
                return file.read().decode(errors="replace")
            begin = file.read(head)
            file.seek(size - tail)
            left_out = f"\n[... {size - head - tail:,} bytes left out ...]\n"
            return begin.decode(errors="replace") + left_out + file.read().decode(errors="replace")
    except OSError as error:
        return f"(the log cannot be read: {error.strerror})"
