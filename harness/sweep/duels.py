"""One `harness compare` from what was typed to a verdict; and the A/A test, which says how often verdicts are wrong."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.config import ModelConfig, RunConfig, TimingConfig, TrainingConfig
from harness.errors import HarnessError, InputError
from harness.pattern import MixerChoice
from harness.plugins import Registry
from harness.record import DUEL, TIMING
from harness.store import StoredRecord
from harness.sweep.fit import require_fit
from harness.sweep.gated import (
    BATCH,
    D_MODEL,
    HERE,
    LENGTHS,
    LIMITS,
    Gate,
    Place,
    require_dtype,
    require_lengths,
    require_ok,
)
from harness.sweep.times import require_modes
from harness.sweep.trial import Trial
from harness.timing.duel import PLAIN, disturbances, log_ratios
from harness.timing.settings import DuelOptions
from harness.timing.verdict import FASTER, MARGIN, MIN_PROCESSES, SLOWER, Verdict, judge, smallest_found

LAYERS = "MIXER*2"
DUELS_A_PROCESS = 10  # of an A/A test: each with freshly built layers


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """What was typed."""

    a: str
    b: str
    lengths: tuple[int, ...] = LENGTHS[1:2]
    modes: tuple[str, ...] = ("forward",)
    d_model: int = D_MODEL
    batch_size: int = BATCH
    dtype: str = "float32"
    processes: int = MIN_PROCESSES
    margin: float = MARGIN
    duels: int = 1  # comparisons that share their processes
    batches: int = 1  # of processes
    planted: float = 0.0  # slowdown of B, as a share of A's time: tests of the ruler
    max_s: float = 1.0  # of sampling one comparison
    place: Place = HERE


@dataclass(frozen=True)
class Decided:
    """One comparison."""

    a: str
    b: str
    mode: str
    T: int
    verdict: Verdict
    disturbed: tuple[str, ...]  # by what; empty: clean
    log_ratios: tuple[float, ...]  # one a process
    launches: tuple[str, ...] = ()  # how the calls were launched, as the processes tell it

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as plain JSON values."""
        plain = {"a": self.a, "b": self.b, "mode": self.mode, "T": self.T, **self.verdict.to_json()}
        lists = {"disturbed": self.disturbed, "log_ratios": self.log_ratios, "launches": self.launches}
        return {**plain, **{name: list(values) for name, values in lists.items()}}

    def __str__(self) -> str:
        v = self.verdict
        said = {FASTER: f"{self.b} is faster", SLOWER: f"{self.b} is slower"}.get(v.verdict, v.verdict)
        interval = f"{v.low:.4f} to {v.high:.4f}: {v.level:.0%} interval of the median over {v.processes} processes"
        note = f"; {' or '.join(self.launches)}" if self.launches and self.launches != (PLAIN,) else ""
        note += f"; disturbed: {', '.join(self.disturbed)}" if self.disturbed else ""
        return (
            f"{self.mode}, T = {self.T}: {said}: {self.b} takes {v.ratio:.4f} times as long as {self.a} "
            f"({interval}; margin {v.margin:.1%}){note}"
        )


@dataclass(frozen=True)
class FalseVerdicts:
    """What the A/A test found: how often a mixer was called faster or slower than itself."""

    pairs: int
    wrong: int
    verdicts: dict[str, int]
    smallest_found: float  # slowdown that 95 of 100 of these comparisons would have called
    margin: float
    disturbed: int  # comparisons

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {verdict}" for verdict, n in self.verdicts.items())
        return (
            f"A/A: {self.wrong} of {self.pairs} comparisons of a mixer with itself were called faster or slower "
            f"({self.wrong / self.pairs:.1%}): {counts}; margin {self.margin:.1%}; "
            f"smallest slowdown found in 95 of 100: {self.smallest_found:.1%}; "
            f"{self.disturbed} of {self.pairs} disturbed"
        )


def run_compare(request: CompareRequest, registry: Registry) -> list[Decided]:
    """Returns every comparison of each mode and length; finished processes stay on disk."""
    lengths, modes = require_lengths(request.lengths), require_modes(request.modes)
    require_dtype(request.dtype)
    if request.processes < MIN_PROCESSES:
        raise InputError(f"--processes takes at least {MIN_PROCESSES}, got {request.processes}: fewer decide nothing")
    gate = Gate(registry, (request.a, request.b), request.place, request.dtype)
    for T in lengths:
        require_fit(gate.mixers, request.d_model, T, registry)
    refused = gate.open()
    if refused:
        raise HarnessError("; ".join(refused))
    pair = (gate.mixers[0], gate.mixers[-1])  # one mixer against itself is listed once
    points = [(mode, T) for mode in modes for T in lengths]
    trials = {
        (point, process): _trial(pair, point, process, request, gate)
        for process in range(request.processes * request.batches)
        for point in points
    }
    order = list(trials)
    random.Random(0).shuffle(order)
    # a process of a round serves all points: half of a short one would be imports
    together = {key: replace(trials[key], together=f"{pair[0]} against {pair[1]} process {key[1]}") for key in order}
    records = gate.run([together[key] for key in order])
    require_ok(records, len(trials))
    by_key = {stored.record.key: stored for stored in records}
    found = []
    for point in points:
        for batch in range(request.batches):
            processes = range(batch * request.processes, (batch + 1) * request.processes)
            found += decide(pair, point, [by_key[trials[point, p].key] for p in processes], request)
    return found


def run_aa(request: CompareRequest, pairs: int, registry: Registry) -> FalseVerdicts:
    """Returns how often A is called faster or slower than itself on this machine, over so many comparisons."""
    return false_verdicts(run_pairs(replace(request, b=request.a), pairs, registry), request.margin)


def run_pairs(request: CompareRequest, pairs: int, registry: Registry, duels: int = DUELS_A_PROCESS) -> list[Decided]:
    """Returns so many comparisons of each mode and length; `duels` of them share their processes."""
    duels = min(pairs, duels)
    many = replace(request, duels=duels, batches=math.ceil(pairs / duels))
    return run_compare(many, registry)[:pairs]


def false_verdicts(found: Sequence[Decided], margin: float) -> FalseVerdicts:
    """Returns the count over comparisons of mixers with themselves."""
    counts = Counter(one.verdict.verdict for one in found)
    return FalseVerdicts(
        pairs=len(found),
        wrong=counts[FASTER] + counts[SLOWER],
        verdicts=dict(counts),
        smallest_found=smallest_found([one.log_ratios for one in found], margin),
        margin=margin,
        disturbed=sum(bool(one.disturbed) for one in found),
    )


def _trial(
    pair: tuple[MixerChoice, MixerChoice], point: tuple[str, int], process: int, request: CompareRequest, gate: Gate
) -> Trial:
    mode, T = point
    options = DuelOptions(
        other=str(pair[1]),
        mode=mode,
        process=process,
        duels=request.duels,
        planted=request.planted,
        max_s=request.max_s,
    )
    config = RunConfig(
        task=TIMING,
        options=options,
        model=ModelConfig(d_model=request.d_model, layers=LAYERS),
        training=TrainingConfig(dtype=request.dtype),
        timing=TimingConfig(batch_size=request.batch_size, T=T),
        limits=LIMITS,
    )
    return gate.trial(DUEL, pair, config, pair)


def decide(
    pair: tuple[MixerChoice, MixerChoice],
    point: tuple[str, int],
    processes: Sequence[StoredRecord],
    request: CompareRequest,
) -> list[Decided]:
    """Returns one comparison a duel, over the processes that each fought it."""
    raws = [stored.raw() for stored in processes]
    ratios = list(zip(*map(log_ratios, raws), strict=True))  # [duels][processes]
    noticed = list(zip(*map(disturbances, raws), strict=True))
    launches = tuple(sorted({stored.record.facts["policy"].get("launches", PLAIN) for stored in processes}))
    return [
        Decided(
            a=str(pair[0]),
            b=str(pair[1]),
            mode=point[0],
            T=point[1],
            verdict=judge(of_duel, request.margin),
            disturbed=tuple(sorted({cause for causes in noticed[number] for cause in causes})),
            log_ratios=tuple(of_duel),
            launches=launches,
        )
        for number, of_duel in enumerate(ratios)
    ]
