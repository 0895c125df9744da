"""What `harness time` measured, as tables: one a model, shape and class of device. Speeds stand beside no score."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.board.cells import Cell, Column, fill
from harness.board.points import Records, device_class
from harness.board.table import Row, Table
from harness.record import CHECK, PEAK, SPEED, Record
from harness.spec import Measure
from harness.store import StoredRecord

if TYPE_CHECKING:
    from harness.timing import spread

MIN_PROCESSES = 3
COLUMNS = (
    Column("mode", "mode", "", "mode", kind="speed"),
    Column("T", "T", "", "T", kind="speed"),
    Column("ms", "ms", "", "ms", kind="speed"),
    Column("processes", "processes", "", "processes", kind="speed"),
    Column("within", "within ±%", "", "within", kind="speed", decimals=1),
    Column("per_probe", "× probe", "", "per_probe", kind="speed"),
    Column("floor", "floor %", "", "floor", kind="speed", decimals=0),
    Column("peak_mib", "peak MiB", "", "peak_mib", kind="speed", decimals=1),
    Column("state_kib", "state KiB", "", "state_kib", kind="speed"),
)
WHY_NOT = {
    "floor": "no measured ceiling, or nobody counted its operations",
    "peak_mib": "its peak memory was not measured",
    "state_kib": "read in decode rows only",
}
NOTES = (
    "± ms, × probe: the longer side of min–max over the processes; equal ranks: these overlap; ranked by mode and T",
    "within: half the distance of quartiles in one process; floor: share of the time that bytes and operations take "
    "at the measured ceilings; × probe: in units of a fixed product and copy, which is what travels between machines",
)


@dataclass(frozen=True)
class SpeedPoint:
    """One mixer implementation in one model, shape and class of device: every process that timed it."""

    mixer: str
    device_class: str
    setting: str  # the model, batch and dtype, as JSON
    speeds: tuple[StoredRecord, ...]
    peaks: tuple[StoredRecord, ...]
    check: StoredRecord | None

    @property
    def stored(self) -> list[StoredRecord]:
        """Returns all of its records, its check among them."""
        return [*self.speeds, *self.peaks, *([self.check] if self.check else [])]

    @property
    def missing(self) -> str | None:
        """Returns in one line why it cannot be submitted, or None."""
        by_length: dict[int, int] = defaultdict(int)
        for stored in self.speeds:
            by_length[stored.record.config["timing"]["T"]] += 1
        few = [f"T = {T} was timed in {n}" for T, n in sorted(by_length.items()) if n < MIN_PROCESSES]
        lacks = [f"{', '.join(few)} of {MIN_PROCESSES} processes"] if few else []
        lacks += [] if self.check else ["the check it rests on is not here"]
        return f"{self.mixer} (harness time, {self.device_class}): {'; '.join(lacks)}" if lacks else None


def speed_points(store: Records) -> list[SpeedPoint]:
    """Returns every point that `harness time` measured; of one mixer the newest code counts."""
    checks = {stored.record.key: stored for stored in store.records() if stored.record.kind == CHECK}
    together: dict[tuple[str, str, str], list[StoredRecord]] = defaultdict(list)
    for stored in sorted(store.records(), key=lambda stored: stored.record.started):
        record = stored.record
        if record.kind in (SPEED, PEAK) and record.status == "ok":
            together[record.mixer, str(device_class(record)), _setting(record)].append(stored)
    found = []
    for (mixer, on, setting), same in together.items():
        code = same[-1].record.plugin.get("code_sha256")
        newest = {_which(s.record): s for s in same if s.record.plugin.get("code_sha256") == code}.values()
        gates = same[-1].record.facts["gates"]
        speeds, peaks = (tuple(s for s in newest if s.record.kind == kind) for kind in (SPEED, PEAK))
        if speeds:
            found.append(SpeedPoint(mixer, on, setting, speeds, peaks, checks.get(gates[0]["check"])))
    return found


def complete_speeds(points: Sequence[SpeedPoint]) -> tuple[list[SpeedPoint], list[str]]:
    """Returns the points that may be submitted, and one line for each other that says what is missing."""
    return [point for point in points if point.missing is None], [p.missing for p in points if p.missing is not None]


def speed_tables(store: Records) -> list[Table]:
    """Returns one table a model, shape and class of device, of points timed in enough processes."""
    together: dict[tuple[str, str], list[SpeedPoint]] = defaultdict(list)
    for point in speed_points(store):
        together[point.device_class, point.setting].append(point)
    tables = [_table(same) for _, same in sorted(together.items())]
    return [table for table in tables if table is not None]


def _table(same: Sequence[SpeedPoint]) -> Table | None:
    from harness.sweep.times import exponents, ranks, rows_of  # torch, which only these tables need

    stored = [one for point in same for one in (*point.speeds, *point.peaks)]
    processes = {(p.mixer, T): n for p in same for T, n in _processes(p).items()}
    rows = [row for row in rows_of(stored) if processes[row.mixer, row.T] >= MIN_PROCESSES]
    if not rows:
        return None
    places, keys = ranks(rows), {point.mixer: tuple(s.record.key for s in point.speeds) for point in same}
    cells = [_cells(column, rows, processes) for column in COLUMNS]
    record = stored[0].record
    powers = [
        f"{one['mixer']} {one['series'].replace('_', ' ')}: time ~ T^{_power(one['time'])}, "
        f"peak memory ~ T^{_power(one['memory'])} over {one['lengths']} lengths"
        for one in exponents(rows)
    ]
    return Table(
        suite="harness time",
        suite_key=same[0].setting,
        device_class=same[0].device_class,
        device=str(record.environment.get("name") or same[0].device_class),
        retired=False,
        caption=(_caption(record),),
        columns=COLUMNS,
        rows=tuple(
            Row(places[row.series, row.T, row.mixer], row.mixer, column, _note(row), keys[row.mixer])
            for row, column in zip(rows, zip(*cells, strict=True), strict=True)
        ),
        notes=(*NOTES, *powers),
    )


def _cells(column: Column, rows: Sequence["spread.Row"], processes: dict[tuple[str, int], int]) -> list[Cell]:
    if column.key == "mode":
        return [Cell(row.series.replace("_", " "), value=row.series) for row in rows]
    if column.key == "T":
        return [Cell(str(row.T), value=row.T) for row in rows]
    counts = [processes[row.mixer, row.T] for row in rows]
    if column.key == "processes":
        return [Cell(str(n), value=n) for n in counts]
    measures = [_measure(column.key, row, n) for row, n in zip(rows, counts, strict=True)]
    return fill(column, measures, [WHY_NOT.get(column.key)] * len(rows))


def _measure(key: str, row: "spread.Row", processes: int) -> Measure | None:
    if key in ("ms", "per_probe"):
        found = row.ms if key == "ms" else row.per_probe
        return dataclasses.replace(found, n=processes)
    plain = {
        "within": (row.within_pct, "%"),
        "floor": (row.floor_pct, "%"),
        "peak_mib": (row.peak_mib, "MiB"),
        "state_kib": (row.state_kib if row.series == "decode" else None, "KiB"),
    }
    value, unit = plain[key]
    return None if value is None else Measure(value=value, unit=unit, n=1)


def _note(row: "spread.Row") -> str | None:
    return "; ".join(row.notes) or None


def _processes(point: SpeedPoint) -> dict[int, int]:
    counts: dict[int, int] = defaultdict(int)
    for stored in point.speeds:
        counts[stored.record.config["timing"]["T"]] += 1
    return counts


def _setting(record: Record) -> str:
    config = record.config
    return json.dumps([config["model"], config["timing"]["batch_size"], config["training"]["dtype"]], sort_keys=True)


def _which(record: Record) -> tuple[Any, ...]:
    options = record.config["options"]
    return record.kind, record.config["timing"]["T"], tuple(options["modes"]), options["process"]


def _caption(record: Record) -> str:
    config, environment = record.config, record.environment
    libraries = environment.get("libraries") or {}
    said = [
        f"D = {config['model']['d_model']}, batch {config['timing']['batch_size']}, {config['training']['dtype']}",
        f"{environment.get('threads')} threads" if environment.get("device") == "cpu" else None,
        *(f"{name} {libraries[name]}" for name in ("mixer-harness", "torch", "triton") if libraries.get(name)),
        f"driver {environment['driver']}" if environment.get("driver") else None,
    ]
    return f"what `harness time` measured: {', '.join(filter(None, said))}; forward is one layer, the rest the model"


def _power(fit: tuple[float, float | None] | None) -> str:
    if fit is None:
        return "?"
    return f"{fit[0]:.2f}" + (f" ±{fit[1]:.2f}" if fit[1] is not None else "")
