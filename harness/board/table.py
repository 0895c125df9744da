"""The ranked tables: one a suite and class of device, one row a mixer implementation."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.board import caption
from harness.board.cells import DASH, Cell, Column, fill
from harness.board.points import Point, Records, of_suite, points
from harness.board.rank import Score, ranked
from harness.errors import HarnessError
from harness.plugins import Registry
from harness.spec import Measure

KNOWN = ("mqar", "pile")  # the order of the columns; tasks of plugins follow
QUALITY = (
    Column("mqar_accuracy", "MQAR accuracy", "mqar", "accuracy", decimals=3),
    Column("mqar_floor", "floor", "mqar", "floor", decimals=3, spread=False),
    Column("pile_perplexity", "Pile ppl all", "pile", "perplexity"),
    Column("pile_perplexity_ar", "Pile ppl AR", "pile", "perplexity_ar"),
    Column("pile_perplexity_other", "Pile ppl other", "pile", "perplexity_other"),
)
COST = (
    ("train_tokens_per_s", "train tokens/s"),
    ("forward_ms", "forward ms"),
    ("decode_us_per_token", "decode µs/token"),
    ("peak_mib", "peak MiB"),
    ("state_kib", "state KiB"),
    ("parameters", "parameters"),
)
PROTOCOL = (("depth", "depth"), ("lr", "learning rate"), ("seeds", "seeds"))
RANKED_BY = (("mqar_accuracy", True), ("pile_perplexity_ar", False))
MEASURED_ONCE = "quality is measured once a mixer: its other implementation here has the score"  # one footnote for all


@dataclass(frozen=True)
class Row:
    """One mixer implementation."""

    rank: int | None  # None where there is no score to rank
    mixer: str
    cells: tuple[Cell, ...]  # one a column
    note: str | None = None  # what was measured differently from the rest of the table
    records: tuple[str, ...] = ()  # the keys of what the row shows


@dataclass(frozen=True)
class Table:
    """Rows that may be compared with each other, and with no others."""

    suite: str
    suite_key: str
    device_class: str
    device: str
    retired: bool  # the preset, or a task in it, has another version by now
    caption: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # what stands behind each ±


def leaderboard(store: Records, registry: Registry, *, suite: str | None = None) -> list[Table]:
    """Returns one table a suite and class of device, those of a retired version last."""
    together: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in points(of_suite(store, suite)):
        together[point.suite_key, point.device_class].append(point)
    current = {name: _current_key(name, registry) for name in registry.suites}
    tables = [_table(same, registry, current) for group in together.values() for same in _on_equal_data(group)]
    return sorted(tables, key=lambda table: (table.retired, table.suite, table.device_class, table.suite_key))


def _current_key(suite: str, registry: Registry) -> str | None:
    from harness.sweep.plan import suite_key
    from harness.sweep.settings import complete

    try:
        return suite_key(complete(registry.suite(suite), registry), registry)
    except HarnessError:  # a task of the suite is not installed here
        return None


def _on_equal_data(group: Sequence[Point]) -> list[list[Point]]:
    """Returns the points split where they were scored on different data: a corpus of one's own, under one name."""
    seen: dict[str, set[str]] = defaultdict(set)
    for point in group:
        for task, sha in point.data.items():
            seen[task].add(sha)
    differ = sorted(task for task, shas in seen.items() if len(shas) > 1)
    split: dict[tuple[str | None, ...], list[Point]] = defaultdict(list)
    for point in group:
        split[tuple(point.data.get(task) for task in differ)].append(point)
    return list(split.values())


def _table(group: list[Point], registry: Registry, current: dict[str, str | None]) -> Table:
    group = sorted(group, key=lambda point: point.mixer)
    tasks = _tasks(group)
    costs = _cost_task(group, tasks)
    columns = _columns(group, tasks, costs, registry)
    filled = {column.key: _column_cells(column, group, tasks) for column in columns}
    usual, odd = caption.measured_on(group, costs)
    first = group[0]
    key = current.get(first.suite)
    return Table(
        suite=first.suite,
        suite_key=first.suite_key,
        device_class=first.device_class,
        device=caption.device(group),
        retired=key is not None and key != first.suite_key,
        caption=(*caption.protocol(group, tasks), *caption.cost(costs, usual)),
        columns=columns,
        rows=tuple(_rows(group, columns, filled, odd)),
        notes=tuple(caption.spreads(columns, filled)),
    )


def _tasks(group: Sequence[Point]) -> list[str]:
    tried = {task for point in group for task in point.tasks}
    return [task for task in KNOWN if task in tried] + sorted(tried - set(KNOWN))


def _cost_task(group: Sequence[Point], tasks: Sequence[str]) -> str:
    """Returns the task whose model's cost is shown: Pile where it was timed, the larger of the two."""
    timed = {task for point in group for task in point.times}
    return next((task for task in ("pile", *tasks) if task in timed), tasks[0])


def _columns(group: Sequence[Point], tasks: Sequence[str], costs: str, registry: Registry) -> tuple[Column, ...]:
    quality = [column for column in QUALITY if column.task in tasks]
    for task in tasks:
        if task not in KNOWN and task in registry.tasks:
            primary = registry.tasks[task].primary
            quality.append(Column(f"{task}_{primary}", f"{task} {primary}", task, primary))
    cost = [Column(name, title, costs, name, kind="time") for name, title in COST]
    return (*quality, *cost, *(Column(name, title, "", name, kind="protocol") for name, title in PROTOCOL))


def _column_cells(column: Column, group: Sequence[Point], tasks: Sequence[str]) -> list[Cell]:
    if column.kind == "protocol":
        return [_protocol_cell(column, point, group, tasks) for point in group]
    measures = [_measure(column, point) for point in group]
    reasons = [
        None if found is not None else _why_missing(column, point, group)
        for found, point in zip(measures, group, strict=True)
    ]
    return fill(column, measures, reasons)


def _measure(column: Column, point: Point) -> Measure | None:
    if column.kind == "test":
        scored = point.tests.get(column.task)
        return scored.record.measures.get(column.measure) if scored else None
    timed = point.times.get(column.task)
    return timed.measures.get(column.measure) if timed else None


def _why_missing(column: Column, point: Point, group: Sequence[Point]) -> str:
    task, kind = column.task, column.kind
    if (task, kind) in point.failed:
        return f"failed: {point.failed[task, kind]}"
    record = point.record(kind, task)
    if record is not None:
        facts = record.facts
        why = facts.get("no_decode") if column.measure in ("decode_us_per_token", "state_kib") else None
        return str(why or f"the {task} record has no {column.measure}")
    if kind == "test" and any(p.family == point.family and task in p.tests for p in group):
        return MEASURED_ONCE
    return f"not {'scored' if kind == 'test' else 'timed'} on {task} yet"


def _protocol_cell(column: Column, point: Point, group: Sequence[Point], tasks: Sequence[str]) -> Cell:
    parts = [_protocol_part(column.measure, point, task) for task in tasks]
    if all(value is None for _, value in parts):
        source = Column("", "", tasks[0], column.measure, kind="time" if column.measure == "depth" else "test")
        return Cell(DASH, note=_why_missing(source, point, group))
    notes = [note for task in tasks for note in [_training_note(column.measure, point, task)] if note]
    values = {task: value for task, (_, value) in zip(tasks, parts, strict=True)}
    return Cell(" / ".join(text for text, _ in parts), value=values, note="; ".join(notes) or None)


def _training_note(what: str, point: Point, task: str) -> str | None:
    """Returns what a reader of that column should know of the training, if anything."""
    facts = point.tests[task].record.facts if task in point.tests else {}
    if what == "lr" and facts.get("lrs_failed"):
        return f"{task}: no result at learning rate {', '.join(f'{lr:g}' for lr in facts['lrs_failed'])}"
    if what == "seeds" and facts.get("not_deterministic"):
        return f"{task}: {facts['not_deterministic']} has no deterministic kernel: another run gives other numbers"
    return None


def _protocol_part(what: str, point: Point, task: str) -> tuple[str, Any]:
    record = point.record("test", task) or (point.record("time", task) if what == "depth" else None)
    facts = record.facts if record else {}
    if what == "lr":
        found = facts.get("lr")
        return (DASH, None) if found is None else (f"{found:g} of {len(facts.get('lrs', []))}", found)
    found = len(facts["seeds"]) if what == "seeds" and "seeds" in facts else facts.get(what)
    return (DASH, None) if found is None else (str(found), found)


def _unranked(point: Point) -> str | None:
    """Returns why a point with a score has no rank, or which promises were waived."""
    if not point.tests:
        return None
    return point.not_ranked or point.waived


def _rows(
    group: list[Point], columns: Sequence[Column], filled: dict[str, list[Cell]], odd: dict[str, str]
) -> list[Row]:
    indices = list(range(len(group)))
    names = [key for key, _ in RANKED_BY if any(cell.measure for cell in filled.get(key, []))]
    higher = dict(RANKED_BY)

    def score(which: int, row: int) -> Score | None:
        if which >= len(names):
            return None
        cell = filled[names[which]][row]
        return None if cell.measure is None else Score(cell.shown, cell.half, higher[names[which]])

    scored = [i for i in indices if score(0, i) is not None and group[i].not_ranked is None]
    places: list[tuple[int | None, int]] = [*ranked(scored, lambda i: score(0, i), lambda i: score(1, i))]
    # what was scored but not ranked comes first, then cost without a score, then what failed
    rest = sorted(
        set(indices) - set(scored), key=lambda i: (score(0, i) is None, not group[i].stored, bool(group[i].failed), i)
    )
    return [
        Row(
            rank=rank,
            mixer=group[i].mixer,
            cells=tuple(filled[column.key][i] for column in columns),
            note="; ".join(filter(None, (_unranked(group[i]), odd.get(group[i].mixer)))) or None,
            records=tuple(stored.record.key for stored in group[i].stored),
        )
        for rank, i in [*places, *((None, i) for i in rest)]
    ]
