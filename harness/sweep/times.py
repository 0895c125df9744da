"""One `harness time` from what was typed to rows: shuffled processes, then spread, ratios, exponents, ties."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.board.rank import Score, groups
from harness.config import ModelConfig, RunConfig, TimingConfig, TrainingConfig
from harness.errors import InputError, nearest
from harness.pattern import MixerChoice, parse_layers
from harness.plugins import Registry
from harness.record import PEAK, SPEED
from harness.store import StoredRecord
from harness.sweep.fit import require_fit
from harness.sweep.fork import can_fork
from harness.sweep.gated import BATCH, D_MODEL, HERE, LENGTHS, LIMITS, Gate, Place, require_dtype, require_lengths
from harness.sweep.local import alone
from harness.sweep.plan import choose
from harness.sweep.trial import Trial
from harness.timing.ceilings import ensure_ceilings
from harness.timing.settings import MODES, SpeedOptions
from harness.timing.spread import Row, exponent, row_of, series_names

MIN_PROCESSES = 3


@dataclass(frozen=True, kw_only=True)
class TimeRequest:
    """What was typed."""

    mixers: tuple[str, ...]
    lengths: tuple[int, ...] = LENGTHS
    modes: tuple[str, ...] = tuple(MODES)
    d_model: int = D_MODEL
    batch_size: int = BATCH
    layers: str = "MIXER*2"
    dtype: str = "float32"
    processes: int = MIN_PROCESSES
    seed: int = 0  # of the order
    place: Place = HERE


@dataclass(frozen=True)
class Timed:
    """What came out."""

    rows: list[Row]
    exponents: list[dict[str, Any]]
    ranks: dict[tuple[str, int, str], int]  # (series, T, mixer) -> rank; equal ranks are ties
    probe_drift_pct: float | None
    refused: tuple[str, ...]
    unavailable: tuple[tuple[str, str], ...]
    failed: tuple[str, ...]
    records: tuple[str, ...]  # paths

    def rank(self, row: Row) -> int:
        """Returns the place of the row among those of its mode and length."""
        return self.ranks[row.series, row.T, row.mixer]

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain JSON values."""
        return {
            "rows": [{**asdict(row), "clean": row.clean, "rank": self.rank(row)} for row in self.rows],
            "exponents": self.exponents,
            "probe_drift_pct": self.probe_drift_pct,
            "refused": list(self.refused),
            "unavailable": [{"mixer": mixer, "reason": reason} for mixer, reason in self.unavailable],
            "failed": list(self.failed),
            "records": list(self.records),
        }


def run_times(request: TimeRequest, registry: Registry) -> Timed:
    """Returns rows, exponents and ties; finished processes stay on disk, so the same command goes on where it ended."""
    lengths, modes = require_lengths(request.lengths), require_modes(request.modes)
    require_dtype(request.dtype)
    if request.processes < MIN_PROCESSES:
        raise InputError(f"--processes takes at least {MIN_PROCESSES}, got {request.processes}: spread is the point")
    parse_layers(request.layers, "attention")  # a pattern that cannot be read is the user's error, before anything
    gate = Gate(registry, request.mixers, request.place, request.dtype)
    for choice in gate.mixers:
        for T in lengths:
            require_fit(_layers(choice, request, gate), request.d_model, T, registry)
    refused = gate.open()
    if gate.mixers:
        ensure_ceilings(gate.device, gate.facts, alone(gate.device).threads)
    points = [(choice, T) for choice in gate.mixers for T in lengths]
    speeds = _in_rounds(lengths, request, modes, gate)
    peaks = [trial for point in points for trial in _peaks(point, request, modes, gate)]
    found = gate.run([*peaks, *speeds])
    return _timed(found, refused, gate)


def require_modes(modes: Sequence[str]) -> tuple[str, ...]:
    """Returns the modes, each once; an unknown one raises InputError."""
    for mode in modes:
        if mode not in MODES:
            raise InputError(f"unknown mode {mode!r}: {nearest(mode, MODES)}")
    return tuple(dict.fromkeys(modes))


def _in_rounds(lengths: Sequence[int], request: TimeRequest, modes: tuple[str, ...], gate: Gate) -> list[Trial]:
    """Returns every point once a round, mixers and lengths shuffled: its processes are spread over the whole run.

    The lengths of one mixer share the process of the round: half of a short process would be imports.
    """
    order = random.Random(request.seed)
    trials = []
    for process in range(request.processes):
        options = SpeedOptions(modes=modes, process=process)
        for choice in order.sample(gate.mixers, len(gate.mixers)):
            for T in order.sample(lengths, len(lengths)):
                trial = _trial(SPEED, (choice, T), request, options, gate)
                trials.append(replace(trial, together=f"{choice} process {process}"))
    return trials


def _peaks(point: tuple[MixerChoice, int], request: TimeRequest, modes: tuple[str, ...], gate: Gate) -> list[Trial]:
    parts = [modes] if gate.device == "cuda" or can_fork() else [(mode,) for mode in modes]
    trials = [_trial(PEAK, point, request, SpeedOptions(modes=part), gate) for part in parts]
    return [replace(trial, together=f"memory of {point[0]}") for trial in trials] if len(parts) == 1 else trials


def _trial(kind: str, point: tuple[MixerChoice, int], request: TimeRequest, options: SpeedOptions, gate: Gate) -> Trial:
    choice, T = point
    layers = _layers(choice, request, gate)
    config = RunConfig(
        task="timing",
        options=options,
        model=ModelConfig(d_model=request.d_model, layers=",".join(map(str, layers))),
        training=TrainingConfig(dtype=request.dtype),
        timing=TimingConfig(batch_size=request.batch_size, T=T),
        limits=LIMITS,
    )
    return gate.trial(kind, layers, config, [choice])


def _layers(choice: MixerChoice, request: TimeRequest, gate: Gate) -> list[MixerChoice]:
    parsed = parse_layers(request.layers, str(choice))
    return [choose(gate.registry, str(layer), gate.device, (request.dtype,)) for layer in parsed]


def _timed(found: Sequence[StoredRecord], refused: Sequence[str], gate: Gate) -> Timed:
    good = [stored for stored in found if stored.record.status == "ok"]
    drifts = [s.record.measures["probe_drift_pct"].value for s in good if s.record.kind == SPEED]
    rows = rows_of(good)
    return Timed(
        rows=rows,
        exponents=exponents(rows),
        ranks=ranks(rows),
        probe_drift_pct=max(drifts) if drifts else None,
        refused=tuple(refused),
        unavailable=gate.unavailable,
        failed=tuple(_why(stored) for stored in found if stored.record.status != "ok"),
        records=tuple(str(stored.path) for stored in found),
    )


def rows_of(good: Sequence[StoredRecord]) -> list[Row]:
    """Returns a row a mixer, length and series, from the ok records of its processes and of its memory."""
    peaks = _peak_mib(good)
    by_point: dict[tuple[str, int], list[StoredRecord]] = defaultdict(list)
    for stored in good:
        if stored.record.kind == SPEED:
            by_point[point(stored)].append(stored)
    rows: list[Row] = []
    for (mixer, T), group in by_point.items():
        raws = [(stored.raw(), stored.record.facts) for stored in group]
        for series in dict.fromkeys(name for raw, _ in raws for name in series_names(raw)):
            having = [(raw, facts) for raw, facts in raws if f"{series}_ms" in raw]
            peak = peaks.get((mixer, T, series.split("_")[0]))
            rows.append(row_of(mixer, series, [raw for raw, _ in having], having[0][1], peak))
    return sorted(rows, key=lambda row: (list(MODES).index(row.series.split("_")[0]), row.series, row.T, row.ms.value))


def point(stored: StoredRecord) -> tuple[str, int]:
    """Returns (mixer, T) of a record."""
    return stored.record.mixer, int(stored.record.config["timing"]["T"])


def _peak_mib(good: Sequence[StoredRecord]) -> dict[tuple[str, int, str], float]:
    return {
        (*point(stored), mode): stored.record.measures[f"{mode}_peak_mib"].value
        for stored in good
        if stored.record.kind == PEAK
        for mode in MODES
        if f"{mode}_peak_mib" in stored.record.measures
    }


def exponents(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the slope of time and of peak memory over T, log against log, of each mixer and series."""
    found = []
    for mixer, series in dict.fromkeys((row.mixer, row.series) for row in rows):
        mine = [row for row in rows if (row.mixer, row.series) == (mixer, series)]
        peaks = [(row.T, row.peak_mib) for row in mine if row.peak_mib]
        time = exponent([row.T for row in mine], [row.ms.value for row in mine])
        memory = exponent([T for T, _ in peaks], [mib for _, mib in peaks])
        if time is not None:
            found.append({"mixer": mixer, "series": series, "time": time, "memory": memory, "lengths": len(mine)})
    return found


def ranks(rows: Sequence[Row]) -> dict[tuple[str, int, str], int]:
    """Returns the rank of each row among those of its mode and length; overlapping processes share one."""
    ranks: dict[tuple[str, int, str], int] = {}
    for series, T in dict.fromkeys((row.series, row.T) for row in rows):
        same, place = [row for row in rows if (row.series, row.T) == (series, T)], 1
        for tied in groups(same, _score):
            ranks.update({(series, T, row.mixer): place for row in tied})
            place += len(tied)
    return ranks


def _score(row: Row) -> Score:
    half = max(row.ms.value - (row.ms.low or 0.0), (row.ms.high or 0.0) - row.ms.value)
    return Score(row.ms.value, half, higher_is_better=False)


def _why(stored: StoredRecord) -> str:
    mixer, T = point(stored)
    return f"{mixer} T={T} {stored.record.kind}: {stored.record.reason}; log: {stored.path / 'log.txt'}"
