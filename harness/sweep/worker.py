"""One trial, or some that share it, in a process of its own: `python -m harness.sweep.worker JOB_FILE`.

Events go to a pipe of their own, one JSON object a line, so that nothing a plugin prints can be taken for one.
"""

import ctypes
import dataclasses
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from harness.check.seals import Seals, require_unbroken, seal
from harness.errors import HarnessError
from harness.pattern import parse_layers
from harness.plugins import Registry, load_registry
from harness.record import CHECK, GATED, Record
from harness.store import Store
from harness.sweep.bench import Bench, Outcome
from harness.sweep.contract import check
from harness.sweep.identity import code_sha256
from harness.sweep.trial import Event, Job, failed, first_record, job_from_text, read_log

UNWRITTEN = 3  # exit code: the trial ended, its record could not be written
PR_SET_PDEATHSIG = 1
PROGRESS_EVERY_S = 0.2
FEW_STEPS = 100


class Reporter:
    """Writes events to the pipe; a pipe nobody reads any more ends the process."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # a process that a plugin starts must not hold it open
        self.descriptor = descriptor
        self.last = 0.0

    def send(self, event: Event) -> None:
        """Writes one event."""
        try:
            os.write(self.descriptor, json.dumps(event).encode() + b"\n")
        except OSError:
            os._exit(1)

    def progress(self, step: int, steps: int, text: str) -> None:
        """Writes how far the trial is, a few times a second at most; of a few steps, each."""
        now = time.monotonic()
        if now - self.last >= PROGRESS_EVERY_S or step == steps or steps <= FEW_STEPS:
            self.last = now
            self.send({"event": "progress", "step": step, "of": steps, "text": text})


def die_with(parent: int) -> None:
    """Makes the system end this process when `parent` is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it went before we asked
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """Runs the trials in the job file and leaves their records in the store."""
    job = job_from_text(Path(sys.argv[1]).read_text(encoding="utf-8"))
    die_with(job.parent)
    reporter = Reporter(job.report)
    seals = sealed()  # before a plugin's first line runs
    registry = load_registry(job.files)
    for trial in (job.trial, *job.after):
        one = dataclasses.replace(job, trial=trial, after=())
        record, outcome = run_trial(one, registry, reporter, seals)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            write(one, record, outcome)
        except HarnessError as error:
            reporter.send({"event": "unwritten", "reason": str(error)})
            os._exit(UNWRITTEN)
        spent = outcome is not None and outcome.spent
        reporter.send({"event": "done", "spent": spent})
        if spent:  # the executor gives the rest another process
            break
        del record, outcome
        gc.collect()  # what the trial built is gone before the next
    os._exit(0)  # a thread that a plugin left running, or an exit hook, cannot hold the finished trial


def sealed() -> Seals:
    """Returns what measures, as it is now: clocks, torch's functions, and all of the harness that a trial runs."""
    import harness.sweep.contract
    import harness.sweep.speed
    import harness.timing.cost
    import harness.timing.duel
    import harness.verify  # noqa: F401

    return seal()


def run_trial(job: Job, registry: Registry, reporter: Reporter, seals: Seals) -> tuple[Record, Outcome | None]:
    """Returns the record, and what is stored with it; any exception makes it a failed one with its reason."""
    started = time.perf_counter()
    record = first_record(job.trial, registry)
    try:
        record = dataclasses.replace(record, environment=_prepare(job))
        record, outcome = _measured(job, registry, reporter, record)
        require_unbroken(seals)
    except BaseException as error:  # sys.exit() of a plugin too
        traceback.print_exc()
        return failed(record, reason(error), time.perf_counter() - started), None
    seconds = round(time.perf_counter() - started, 3)
    return dataclasses.replace(record, seconds=seconds), outcome


def reason(error: BaseException) -> str:
    """Returns the error in one line: a message of ours as it is, another's with its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, HarnessError) else f"{type(error).__name__}: {text}".rstrip(": ")


def write(job: Job, record: Record, outcome: Outcome | None) -> None:
    """Writes the record with what belongs to it."""
    raw = outcome.raw if outcome else {}
    curve, weights = (outcome.curve, outcome.weights) if outcome else (None, None)
    Store(Path(job.runs)).write(record, raw, curve, weights, read_log(Path(job.log)))


def _prepare(job: Job) -> dict[str, Any]:
    """Returns the facts of the machine, after setting up the process."""
    from harness.timing.device import device_facts
    from harness.train import prepare_process

    prepare_process(job.device, job.threads)
    gc.freeze()  # what was imported stays: each pause of the collector then walks the objects of the trial alone
    return {**device_facts(job.device), "threads": job.threads}


def _measured(job: Job, registry: Registry, reporter: Reporter, record: Record) -> tuple[Record, Outcome]:
    trial = job.trial
    if code_sha256(trial.kind, trial.task, parse_layers(trial.layers, trial.mixer), registry) != trial.code:
        raise HarnessError("the source was edited after the run was planned; run the same command again")
    if trial.kind == CHECK:
        outcome = check(job, registry, reporter.progress)
        return dataclasses.replace(record, facts={**record.facts, **outcome.facts}), outcome
    if trial.kind in GATED:
        from harness.sweep.speed import speed

        outcome = speed(job, registry, reporter.progress)
        return dataclasses.replace(record, measures=outcome.measures, facts={**record.facts, **outcome.facts}), outcome
    spec, config = registry.task(trial.task), trial.run_config(registry)
    task = spec.load(config.options, lambda what, fraction: None)
    bench = Bench(job, registry, spec, task, config, reporter.progress)
    if trial.kind == "train":
        outcome = bench.train()
    elif trial.kind == "test":
        outcome = bench.test()
    else:
        outcome = bench.time()
    facts = {**record.facts, **outcome.facts}
    return dataclasses.replace(record, measures=outcome.measures, facts=facts, data_sha256=task.data_sha256()), outcome


if __name__ == "__main__":
    main()
