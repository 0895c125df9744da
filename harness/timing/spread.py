"""From the raw arrays of processes to numbers: spread within a process and between processes, kept apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.errors import RecordError
from harness.spec import Measure
from harness.timing.probe import drift, reading_ms
from harness.timing.sample import quartiles
from harness.timing.settings import MODES
from harness.timing.watch import disturbed_by

PERCENT, MIB = 100.0, 2**20
DRIFT = 0.1  # of the probe, from one side of a series to the other
SLOW_CLOCK = 0.75  # of the fastest clock in the process, before a series counts as throttled
SHORT_MS, SHORT_SPREAD, LONG_SPREAD = 0.1, 0.03, 0.01  # between processes, before a row is called unstable
VARIANTS = ("", "_cold", "_graph")
Raw = Mapping[str, np.ndarray]


def series_names(raw: Raw) -> list[str]:
    """Returns the series in the arrays: modes, and on CUDA their cold and graph variants."""
    return [f"{mode}{variant}" for mode in MODES for variant in VARIANTS if f"{mode}{variant}_ms" in raw]


def speed_measures(raw: Raw) -> dict[str, Measure]:
    """Returns the measures of one process, from its raw arrays alone: a time record's or a peak record's."""
    measures: dict[str, Measure] = {}
    for name in series_names(raw):
        measures[f"{name}_ms"] = quartiles(raw[f"{name}_ms"], "ms")
        measures[f"{name}_per_probe"] = one(per_probe(raw, name), "probes")
        if f"{name}_launch_us" in raw:
            measures[f"{name}_launch_us"] = quartiles(raw[f"{name}_launch_us"], "µs")
    if "probe_ms" in raw:
        measures["probe_drift_pct"] = one(PERCENT * drift(raw["probe_ms"]), "%")
    if "state_bytes" in raw:
        measures["state_kib"] = one(float(np.sum(raw["state_bytes"])) / float(raw["tokens"][0]) / 2**10, "KiB")
    for mode in MODES:
        if f"{mode}_peak_bytes" in raw:
            measures[f"{mode}_peak_mib"] = one(float(raw[f"{mode}_peak_bytes"][0]) / MIB, "MiB")
    if not measures:
        raise RecordError("the raw arrays of a timing process hold no series; time it again")
    return measures


def one(value: float, unit: str) -> Measure:
    """Returns a measure of a single figure."""
    return Measure(value=float(value), unit=unit, n=1)


def per_probe(raw: Raw, name: str) -> float:
    """Returns the median sample in units of the probe, as it was just before and after the series."""
    beside = reading_ms(raw["probe_ms"])[raw[f"{name}_probe"]]
    return float(np.median(raw[f"{name}_ms"]) / np.mean(beside))


def floor_ms(raw: Raw, mode: str) -> float | None:
    """Returns the least time the measured ceilings allow for the mode's bytes and operations; None if unknown."""
    ceilings = raw.get("ceilings")  # bytes/s, operations/s
    if ceilings is None or f"{mode}_bytes" not in raw:
        return None
    operations = float(raw[f"{mode}_flops"][0]) if f"{mode}_flops" in raw else 0.0
    return 1e3 * max(float(raw[f"{mode}_bytes"][0]) / float(ceilings[0]), operations / float(ceilings[1]))


def disturbances(raw: Raw, name: str) -> list[str]:
    """Returns what may have made the series of one process too long, in words."""
    found = disturbed_by(raw[f"{name}_flags"])
    before, after = reading_ms(raw["probe_ms"])[raw[f"{name}_probe"]]
    if max(before, after) > (1 + DRIFT) * min(before, after):
        found.append("probe drift")
    cycles_ms = raw["probe_ms"][:, 2]  # a fixed number of cycles: nan where there is no such clock
    if cycles_ms[raw[f"{name}_probe"]].max() > cycles_ms.min() / SLOW_CLOCK:
        found.append("slow clock")
    return found


@dataclass(frozen=True, kw_only=True)
class Row:
    """One mixer in one mode at one length, over all its processes."""

    mixer: str
    T: int
    series: str
    ms: Measure  # median of the processes' medians, least and greatest of them
    within_pct: float  # half the distance of the quartiles in one process, median over processes
    between_pct: float  # greatest minus least process median
    per_probe: Measure
    floor_pct: float | None  # share of the measured time that bytes and operations account for
    flops_by: str | None
    first_ms: float  # the slowest first call: compilation and autotuning are in it
    launch_us: float | None  # host time to launch one call; None on a CPU
    peak_mib: float | None
    state_kib: float | None
    notes: tuple[str, ...]  # what disturbed it; nothing: clean

    @property
    def clean(self) -> bool:
        """Returns whether nothing disturbed it."""
        return not any(note.startswith("disturbed") for note in self.notes)


def row_of(mixer: str, series: str, raws: Sequence[Raw], facts: Mapping[str, Any], peak: float | None) -> Row:
    """Returns the row of a series from the arrays of its processes; `facts` are those of one of them."""
    medians = np.array([np.median(raw[f"{series}_ms"]) for raw in raws])
    within = [_half_quartiles(raw[f"{series}_ms"]) for raw in raws]
    mode = series.split("_")[0]
    floors = [found for raw in raws if (found := floor_ms(raw, mode)) is not None]
    middle = float(np.median(medians))
    return Row(
        mixer=mixer,
        T=int(raws[0]["tokens"][1]),
        series=series,
        ms=over_processes(medians, "ms", sum(len(raw[f"{series}_ms"]) for raw in raws)),
        within_pct=PERCENT * float(np.median(within)),
        between_pct=PERCENT * float(np.ptp(medians)) / middle,
        per_probe=over_processes(np.array([per_probe(raw, series) for raw in raws]), "probes", len(raws)),
        floor_pct=PERCENT * float(np.median(floors)) / middle if floors else None,
        flops_by=(facts.get("flops_by") or {}).get(mode),
        first_ms=max(float(raw[f"{series}_first_ms"][0]) for raw in raws),
        launch_us=_launch_us(series, raws),
        peak_mib=peak,
        state_kib=speed_measures(raws[0])["state_kib"].value if "state_bytes" in raws[0] else None,
        notes=_notes(series, raws, medians),
    )


def over_processes(medians: np.ndarray, unit: str, n: int) -> Measure:
    """Returns the median of the processes' medians, with the least and the greatest."""
    low, high = float(medians.min()), float(medians.max())
    spread = f"min–max of the medians of {len(medians)} processes"
    return Measure(value=float(np.median(medians)), unit=unit, n=n, low=low, high=high, spread=spread)


def exponent(T: Sequence[int], values: Sequence[float]) -> tuple[float, float | None] | None:
    """Returns (slope of log value over log T, its standard error) of a straight line; None below two lengths.

    Two lengths give a slope and no error.
    """
    if len(set(T)) < 2 or min(values) <= 0:
        return None
    x, y = np.log(np.asarray(T, dtype=np.float64)), np.log(np.asarray(values, dtype=np.float64))
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    if len(x) < 3:
        return slope, None
    return slope, math.sqrt(float(left @ left) / (len(x) - 2) / float(x @ x))


def _notes(series: str, raws: Sequence[Raw], medians: np.ndarray) -> tuple[str, ...]:
    found = [disturbances(raw, series) for raw in raws]
    causes = sorted({cause for causes in found for cause in causes})
    notes = []
    if causes:
        notes.append(f"disturbed {sum(map(bool, found))}/{len(raws)}: {', '.join(causes)}")
    apart, middle = float(np.ptp(medians)), float(np.median(medians))
    if apart > (SHORT_SPREAD if middle < SHORT_MS else LONG_SPREAD) * middle:
        notes.append("unstable")
    return tuple(notes)


def _launch_us(series: str, raws: Sequence[Raw]) -> float | None:
    found = [float(np.median(raw[f"{series}_launch_us"])) for raw in raws if f"{series}_launch_us" in raw]
    return float(np.median(found)) if found else None


def _half_quartiles(ms: np.ndarray) -> float:
    low, middle, high = np.percentile(ms, (25, 50, 75))
    return float((high - low) / 2 / middle)
