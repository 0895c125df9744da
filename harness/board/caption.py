"""What stands around a table: what was asked, on what it was measured, and what is behind each ±."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from harness.board.cells import Cell, Column
from harness.board.points import UNKNOWN, Point, task_options
from harness.board.processes import Processes
from harness.record import Record
from harness.spec import Measure

LEGEND = (
    "± is the longer side of the interval; equal ranks: the intervals overlap; – as rank: no score, or no green check; "
    "ppl: perplexity, AR: of recalled tokens"
)
LIBRARIES = ("mixer-harness", "torch", "numpy", "triton")


def device(group: Sequence[Point]) -> str:
    """Returns the device in words, e.g. "AMD EPYC 7B13, 2 cores"."""
    for point in group:
        for stored in point.stored:
            found = stored.record.environment
            cores = f", {found['cores']} cores" if found.get("device") == "cpu" and found.get("cores") else ""
            return f"{found.get('name') or point.device_class}{cores}"
    return "no device: nothing was measured" if group[0].device_class == UNKNOWN else group[0].device_class


def protocol(group: Sequence[Point], tasks: Sequence[str]) -> list[str]:
    """Returns one line a task: what was asked, the model, what was tried."""
    lines = []
    for task in tasks:
        record = _any_record(group, task)
        if record is not None:
            lines.append(f"{task}: {'; '.join(_asked(record))}")
    if len(tasks) > 1:
        lines.append(f"depth (layers), learning rate (chosen, of how many tried) and seeds: {' / '.join(tasks)}")
    return lines


def _any_record(group: Sequence[Point], task: str) -> Record | None:
    found = [p.record("test", task) or p.record("time", task) for p in group]
    return next(filter(None, found), None)


def _asked(record: Record) -> list[str]:
    model, training, options = record.config["model"], record.config["training"], task_options(record)
    said = []
    if options.get("test_cells"):
        cells = ", ".join(f"({cell[0]}, {cell[1]})" for cell in options["test_cells"])
        said.append(f"(N, D) = {cells}, {options['vocab_size']:,} ids, floor 1/D")
    if "corpus" in options:
        said.append(
            f"corpus {options['corpus']}, {options['tokenizer']}, T = {options['T']}, AR hits below "
            f"{options['threshold']:,} in training"
        )
    swiglu = "" if model["channel_mixer"] == "none" else f" + {model['channel_mixer']}"
    said.append(f"layers {model['layers']}{swiglu}, D = {model['d_model']}")
    said.append(f"{training['steps']:,} steps of batch {training['batch_size']}")
    said.append(f"learning rates {', '.join(f'{lr:g}' for lr in training['lrs'])}")
    said.append(f"seeds {', '.join(map(str, training['seeds']))}")
    said.append(f"learning rate chosen on the {training['select']} split")
    return said


def measured_on(group: Sequence[Point], task: str) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Returns what most rows' cost was measured on, and what was different or disturbed for a mixer."""
    found = {p.mixer: _setting(p.times[task]) for p in group if task in p.times}
    disturbed = {p.mixer: p.times[task].disturbed for p in group if task in p.times}
    usual = {
        name: Counter(setting[name] for setting in found.values()).most_common(1)[0][0]
        for name in next(iter(found.values()), {})
    }
    odd = {}
    for mixer, setting in found.items():
        differs = [_said(name, value) for name, value in setting.items() if value != usual[name]]
        notes = [f"cost measured with {', '.join(differs)}" if differs else None, disturbed[mixer]]
        if any(notes):
            odd[mixer] = "; ".join(filter(None, notes))
    return usual, odd


def _setting(timed: Processes) -> dict[str, Any]:
    facts, environment = timed.record.facts, timed.record.environment
    libraries = environment.get("libraries") or {}
    return {
        "B×T": f"{facts.get('B', '?')}×{facts.get('T', '?')}",
        "dtype": facts.get("dtype"),
        "protocol": timed.protocol,
        "threads": environment.get("threads"),
        **{name: libraries.get(name) for name in LIBRARIES},
        "Python": environment.get("python"),
        "CUDA": environment.get("cuda") if environment.get("device") != "cpu" else None,
        "driver": environment.get("driver"),
    }


def _said(name: str, value: Any) -> str:
    if name in ("B×T", "dtype"):
        return f"B×T = {value}" if name == "B×T" else str(value)
    if name == "protocol":
        return str(value)
    return f"{value} thread{'' if value == 1 else 's'}" if name == "threads" else f"{name} {value}"


def cost(task: str, usual: Mapping[str, Any]) -> list[str]:
    """Returns the line that says on what the cost columns were measured."""
    said = [_said(name, value) for name, value in usual.items() if value is not None]
    return [f"cost: the {task} model, {', '.join(said)}"] if said else []


def spreads(columns: Sequence[Column], filled: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Returns one line for each kind of ±, naming its columns, with n where it is the same in every row."""
    lines: dict[str, list[str]] = defaultdict(list)
    for column in columns:
        measures = [cell.measure for cell in filled[column.key] if cell.measure is not None]
        measures = [measure for measure in measures if column.spread and measure.low is not None]
        if not measures:
            continue
        counts = {measure.n for measure in measures}
        said = " or ".join(dict.fromkeys(_spread(measure, one_count=len(counts) == 1) for measure in measures))
        count = f"{counts.pop():,}" if len(counts) == 1 else None
        known = count is None or f" {count} " in f" {said} "  # said in the words of the spread, or in each cell
        lines[said].append(column.title if known else f"{column.title} (n = {count})")
    found = [f"± {', '.join(titles)}: {said}" for said, titles in lines.items()]
    return [*found, *([LEGEND] if found else [])]


def _spread(measure: Measure, one_count: bool) -> str:
    """Returns what the interval is, in words; with n for a count that every cell tells for itself."""
    said = f" {measure.spread or 'interval'} "
    return (said if one_count else said.replace(f" {measure.n} ", " n ")).strip()
