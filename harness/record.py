"""One trial's record: what ran, on what, what came out; written once, never edited."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from harness.config import from_json, to_json
from harness.errors import RecordError
from harness.spec import Measure

SCHEMA = 1
TIME = "time"  # one process of the cost of a model in `harness run`
KINDS = ("train", "test", TIME)  # the kinds that belong to a task
CHECK = "check"  # the kind that belongs to a mixer alone
CONTRACT, CONTRACT_KEY = "contract", ""  # what stands in place of task, suite and suite_key in a check record
SPEED, PEAK, DUEL = "speed", "peak", "duel"  # one process of `harness time`: its samples, its memory; of `compare`
GATED = (SPEED, PEAK, DUEL)  # the kinds that need a check of the same code on the same class of device, and no task
ALONE = (TIME, SPEED, DUEL)  # the kinds that have the machine to themselves
TIMING = "timing"  # what stands in place of task and suite in them


@dataclass(frozen=True, kw_only=True)
class Record:
    """One trial. A `train` trial is one learning rate and seed, scored on the validation split; a `test` trial
    reads the test split once with the chosen learning rate, all seeds; a `time` trial measures cost and state;
    a `check` trial holds the mixer against its contract, once a mixer implementation, code and device class;
    `time`, `speed`, `peak` and `duel` are one process of a measurement, and name the green check they rest on.
    An earlier `time` record has no process number: it was one process, without a gate."""

    schema: int = SCHEMA
    key: str  # hash of all that decides the result: task, protocol and plugin code, configuration
    kind: str  # one of KINDS, or CHECK
    mixer: str  # "attention/torch": with options as written, e.g. "base_conv/torch(kernel=3)"
    task: str
    suite: str  # "quick", or "quick*" where a setting was changed
    suite_key: str  # hash of the task configurations and versions: rows with equal suite_key may be compared
    config: dict[str, Any]  # the RunConfig
    lr: float | None = None
    seed: int | None = None
    process: int | None = None  # which of the processes that time the same
    status: str = "ok"  # or "failed"
    reason: str | None = None  # one line, when failed
    plugin: dict[str, str | None] = field(default_factory=dict)  # distribution, version, code_sha256
    data_sha256: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)  # device facts, library versions, threads
    started: str = ""  # UTC, ISO 8601
    seconds: float = 0.0
    measures: dict[str, Measure] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # parameters, steps taken, tokens seen, chosen lr, ...
    raw_sha256: str | None = None  # of raw.npz, the arrays every measure is computed from


def is_gated(record: Record) -> bool:
    """Returns whether the record needs a green check."""
    return record.kind in GATED or (record.kind == TIME and record.process is not None)


def require_gate(record: Record) -> None:
    """Raises RecordError where a time stands without a green check of the same code on the same class of device."""
    if record.status != "ok" or not is_gated(record):
        return
    gates = {gate.get("mixer"): gate for gate in record.facts.get("gates") or []}
    other = (record.config.get("options") or {}).get("other")
    for mixer in filter(None, (record.mixer, other)):
        gate = gates.get(mixer, {})
        same = gate.get("class") == record.environment.get("class") is not None
        if mixer == record.mixer:
            same = same and gate.get("code_sha256") == record.plugin.get("code_sha256") is not None
        if gate.get("green") is not True or not same:
            raise RecordError(
                f"a {record.kind} record needs a green check of {mixer}, of the same code on the same class of device; "
                f"make one: harness check {mixer}"
            )


def record_to_json(record: Record) -> dict[str, Any]:
    """Returns the record as plain JSON values."""
    return to_json(record)


def record_from_json(data: dict[str, Any]) -> Record:
    """Returns the record stored in `data`; a record this version cannot read raises RecordError."""
    if data.get("schema") != SCHEMA:
        raise RecordError(
            f"record schema {data.get('schema')!r} is not {SCHEMA}; use the harness version that wrote it"
        )
    try:
        measures = {name: from_json(Measure, value) for name, value in data.get("measures", {}).items()}
        known = {f.name for f in dataclasses.fields(Record)}
        unknown = set(data) - known
        if unknown:
            raise RecordError(f"record has unknown fields: {', '.join(sorted(unknown))}")
        record = Record(**{**data, "measures": measures})
        require_gate(record)
    except (TypeError, AttributeError) as error:
        raise RecordError(f"not a record: {error}") from error
    return record


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, independent of key order and white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
