"""Runs a plan on this machine: every trial in its own process, with limits; nothing a plugin does stops the others."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from harness.errors import HarnessError
from harness.plugins import Registry
from harness.record import ALONE, record_to_json
from harness.store import Store, StoredRecord
from harness.sweep.bench import chosen_lr, why_no_lr
from harness.sweep.gate import refusal
from harness.sweep.machine import gpus, physical_cores
from harness.sweep.plan import FAILED, NEW, OK, Plan
from harness.sweep.progress import Display
from harness.sweep.trial import Job, Trial, failed, first_record, job_to_text, read_log
from harness.timing.device import device_facts

WAIT_S = 0.1
WATCH_S = 0.5  # between two looks at a worker's memory
MAX_LOG_BYTES = 1 << 28
MAX_BUSY_CORES = 0.5  # by others, when a time trial begins
DIVERGED = "diverged"


@dataclass(frozen=True)
class Slot:
    """A place where one trial runs at a time."""

    threads: int
    gpu: str | None = None  # what CUDA_VISIBLE_DEVICES must be


@dataclass
class Running:
    """A worker process and what watches over it."""

    trial: Trial
    slot: Slot
    process: "subprocess.Popen[bytes]"
    pipe: int
    log: Path
    started: float = field(default_factory=time.monotonic)
    watched: float = 0.0
    unread: bytes = b""
    after: list[Trial] = field(default_factory=list)  # what it does next
    finished: bool = False  # with all of them
    stopped: str | None = None  # why it was killed
    doing: str | None = None  # what it last said


def slots(device: str, jobs: int | None) -> list[Slot]:
    """Returns one slot a physical core, or one a GPU; `jobs` overrides how many."""
    cores = physical_cores()
    if device == "cpu":
        return [Slot(threads=1)] * (jobs or cores)
    names = gpus()
    count = jobs or len(names)
    return [Slot(max(1, cores // count), names[index % len(names)]) for index in range(count)]


def alone(device: str) -> Slot:
    """Returns the slot of a trial that has the machine to itself."""
    return Slot(physical_cores(), gpus()[0] if device == "cuda" else None)


class LocalExecutor:
    """Runs what is left to do of a plan; `run` returns when all of it has a record."""

    def __init__(self, plan: Plan, store: Store, registry: Registry, display: Display, jobs: int | None = None) -> None:
        self.plan, self.store, self.registry, self.display, self.jobs = plan, store, registry, display, jobs
        self.state = dict(plan.state)
        self.running: list[Running] = []
        self.news = True  # a trial or a worker has ended since the last look at what waits
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Runs training and tests side by side, then what is timed one by one with nothing else running."""
        todo = self.plan.todo
        packed = [trial for trial in todo if trial.kind not in ALONE]
        # the longest first: no core is left alone with a long trial at the end. Tests follow their training.
        packed.sort(key=lambda trial: (trial.kind != "test", -trial.seconds))
        with tempfile.TemporaryDirectory(prefix="mixer-harness-") as folder:
            self.folder = Path(folder)
            try:
                self._pool(packed, slots(self.plan.device, self.jobs) if packed else [])
                timed = [trial for trial in todo if trial.kind in ALONE]
                self._pool(timed, [alone(self.plan.device)] if timed else [])
            finally:
                for worker in self.running:
                    kill(worker.process)
                    worker.process.wait()
                    os.close(worker.pipe)
                self.running.clear()
                self.selector.close()

    def _pool(self, trials: Sequence[Trial], free: list[Slot]) -> None:
        waiting, free, self.news = list(trials), list(free), True
        while waiting or self.running:
            while self.news:  # only then: what waits is looked up on disk, and beside a timed process nothing may work
                self.news = False
                waiting = self._dispatch(waiting, free)
            self._listen()
            for worker in [worker for worker in self.running if self._has_ended(worker)]:
                self.running.remove(worker)
                free.append(worker.slot)
                waiting, self.news = self._collect(worker) + waiting, True

    def _dispatch(self, waiting: list[Trial], free: list[Slot]) -> list[Trial]:
        """Returns what still waits after every trial that can begin has begun; takes their slots from `free`."""
        for trial in [trial for trial in waiting if self._ready(trial)]:
            if trial not in waiting:  # begun together with another
                continue
            hopeless = self._hopeless(trial)
            if hopeless is None and not free:
                continue
            mates = [trial, *self._mates(trial, waiting)] if hopeless is None else [trial]
            waiting = [other for other in waiting if other not in mates]
            if hopeless is None:
                self._start(mates, free.pop(0))
            else:
                self._record_failure(trial, hopeless, 0.0, None)
        return waiting

    def _ready(self, trial: Trial) -> bool:
        return all(self.state.get(key, OK) != NEW for key in (*trial.needs, *trial.checks))

    def _hopeless(self, trial: Trial) -> str | None:
        """Returns why the trial cannot succeed after what happened to the training or the check it needs, or None."""
        for stored in filter(None, map(self.store.find, trial.checks)):
            if refused := refusal(stored):
                return refused
        if not trial.needs:
            return None
        found = [stored.record for stored in map(self.store.find, trial.needs) if stored is not None]
        if trial.kind == "test":
            try:
                chosen_lr(self.registry.task(trial.task), trial.run_config(self.registry), found)
            except HarnessError as error:
                return str(error)
        elif all(record.status != "ok" and not (record.reason or "").startswith(DIVERGED) for record in found):
            return f"not timed, as its training failed: {why_no_lr(found)}"
        return None

    def _mates(self, trial: Trial, waiting: Sequence[Trial]) -> list[Trial]:
        """Returns what shares a process with the trial and can begin."""
        mates = [other for other in waiting if trial.together and other.together == trial.together and other != trial]
        return [other for other in mates if self._ready(other) and self._hopeless(other) is None]

    def _start(self, trials: Sequence[Trial], slot: Slot) -> None:
        for trial in trials:
            self.store.remove(trial.key)  # an earlier failure, or a test whose choice is open again
        trial, *after = trials
        log, job_file = self.folder / f"{trial.key}.log", self.folder / f"{trial.key}.json"
        pipe, report = os.pipe()
        job = Job(
            trial=trial,
            after=tuple(after),
            runs=str(self.store.root),
            files=self.registry.files,
            device=self.plan.device,
            threads=slot.threads,
            log=str(log),
            report=report,
            parent=os.getpid(),
        )
        job_file.write_text(job_to_text(job), encoding="utf-8")
        try:
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "harness.sweep.worker", str(job_file)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    pass_fds=(report,),
                    env=environment(slot),
                    start_new_session=True,  # Ctrl-C in the terminal reaches the parent only
                )
        finally:
            os.close(report)
        os.set_blocking(pipe, False)
        worker = Running(trial, slot, process, pipe, log, after=after)
        self.running.append(worker)
        self.selector.register(pipe, selectors.EVENT_READ, worker)
        self.display.start(trial)

    def _listen(self) -> None:
        for key, _ in self.selector.select(WAIT_S) if self.running else []:
            if not self._read(key.data):
                self.selector.unregister(key.fd)

    def _read(self, worker: Running) -> bool:
        """Returns whether more may come; passes on every whole line."""
        while True:
            try:
                part = os.read(worker.pipe, 1 << 16)
            except BlockingIOError:
                return True
            if not part:
                return False
            *lines, worker.unread = (worker.unread + part).split(b"\n")
            for line in lines:
                self._event(worker, json.loads(line))

    def _event(self, worker: Running, event: dict[str, Any]) -> None:
        if event["event"] == "done":
            self._next(worker, event["spent"])
            return
        if event["event"] == "unwritten":  # a full disk would fail the next trial too: stop here
            raise HarnessError(event["reason"])
        worker.doing = f"{event['step']}/{event['of']} {event['text']}"
        self.display.progress(worker.trial, event["step"], event["of"], event["text"])

    def _next(self, worker: Running, spent: bool) -> None:
        """Shows the trial that the worker has finished, and turns to the one after it."""
        stored = self.store.find(worker.trial.key)
        if stored is not None:
            self._finish(worker.trial, stored)
        worker.finished = spent or not worker.after
        if not worker.finished:
            worker.trial, worker.started, worker.doing = worker.after.pop(0), time.monotonic(), None
            self.display.start(worker.trial)

    def _has_ended(self, worker: Running) -> bool:
        if worker.process.poll() is not None:
            return True
        now = time.monotonic()
        if worker.stopped is None and now - worker.watched >= WATCH_S:
            worker.watched = now
            worker.stopped = over_limit(worker, now)
            if worker.stopped:
                kill(worker.process)
        return False

    def _collect(self, worker: Running) -> list[Trial]:
        """Returns the trials that the worker, which has ended, did not begin."""
        self._read(worker)
        with contextlib.suppress(KeyError):
            self.selector.unregister(worker.pipe)
        os.close(worker.pipe)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)  # processes it left behind
        stored = None if worker.finished else self.store.find(worker.trial.key)
        if worker.finished:
            pass
        elif stored is None:
            why = worker.stopped or why_it_ended(worker.process.returncode)
            why += f"; last heard at {worker.doing}" if worker.doing else ""
            self._record_failure(worker.trial, why, time.monotonic() - worker.started, worker.log)
        else:
            self._finish(worker.trial, stored)
        worker.log.unlink(missing_ok=True)
        return worker.after

    def _record_failure(self, trial: Trial, reason: str, seconds: float, log: Path | None) -> None:
        record = failed(first_record(trial, self.registry), reason, seconds)
        record = replace(record, environment=device_facts(self.plan.device))  # nobody else can say any more
        self.store.remove(trial.key)
        self._finish(trial, self.store.write(record, {}, log=read_log(log) if log else None))

    def _finish(self, trial: Trial, stored: StoredRecord) -> None:
        self.state[trial.key], self.news = OK if stored.record.status == "ok" else FAILED, True
        self.display.done(trial, stored)
        busy = stored.record.facts.get("busy_cores", 0.0)
        if busy > MAX_BUSY_CORES and self.plan.device == "cpu":  # beside a GPU, other cores may work
            self.display.note(f"warning: other processes kept {busy:g} cores busy: its times may be far too long")
        for line in self.registry.record_hooks(record_to_json(stored.record)):
            self.display.note(f"warning: {line}")


def environment(slot: Slot) -> dict[str, str]:
    """Returns the environment of a worker: our import path, the slot's threads and GPU, logs that survive a crash."""
    threads = str(slot.threads)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": slot.gpu or "",
    }


def over_limit(worker: Running, now: float) -> str | None:
    """Returns which limit the worker has passed, or None."""
    seconds, limit = worker.trial.limits
    if now - worker.started > seconds:
        return f"stopped after {seconds / 60:g} minutes, its time limit (limits.trial_minutes)"
    used = tree_bytes(worker.process.pid)
    if used > limit:
        return (
            f"stopped at {used / 2**30:.2f} GiB of memory, over its limit of {limit / 2**30:g} GiB (limits.memory_gib)"
        )
    if worker.log.stat().st_size > MAX_LOG_BYTES:
        return f"stopped: it printed more than {MAX_LOG_BYTES >> 20} MiB"
    return None


def tree_bytes(pid: int) -> int:
    """Returns the resident bytes of the process and all it started."""
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kills the worker, its process group, and whatever it started in a session of its own."""
    tree = _tree(process.pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in tree:
        with contextlib.suppress(psutil.Error):
            member.kill()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def why_it_ended(code: int) -> str:
    """Returns what an exit code without a record means."""
    if code >= 0:
        return f"the process ended with exit code {code} before its record was written"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
    return f"the process was killed by {name}{hint}"
