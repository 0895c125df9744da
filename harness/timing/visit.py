"""One process of `harness time`: one mixer at one length, every mode in random order, the probe around each."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harness.errors import UnavailableError
from harness.timing.conditions import conditions
from harness.timing.cuda import cold, graphed, rotations
from harness.timing.floor import flops, least_bytes
from harness.timing.nvml import Gpu
from harness.timing.probe import Probe
from harness.timing.sample import Call, Series, measure, once
from harness.timing.settings import SpeedOptions
from harness.timing.stop import StopRule
from harness.timing.workload import Workload

COLD = ("forward", "decode")  # what a whole step or a prompt touches does not fit into a cache anyway
GRAPHED = ("forward", "prefill")  # decode restores a state, train updates one: both stay with plain launches
Report = Callable[[int, int, str], None]


@dataclass
class Visit:
    """What one process measured so far."""

    work: Workload
    options: SpeedOptions
    device: str
    raw: dict[str, np.ndarray] = field(default_factory=dict)
    series: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # mode -> why it was not timed
    counted: dict[str, str | None] = field(default_factory=dict)  # mode -> who counted its operations

    def run(self, report: Report) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns (raw arrays, facts)."""
        self.gpu = Gpu(self.device) if self.device != "cpu" else None
        before, self.probe = conditions(self.gpu), Probe(self.device)
        self.readings = [self.probe.read()]
        modes = list(self.options.modes)
        random.Random(self.options.process).shuffle(modes)
        for number, mode in enumerate(modes):
            report(number, len(modes), mode)
            self._mode(mode)
        self.raw["probe_ms"] = np.array(self.readings)
        self.raw["tokens"] = np.array([self.work.B, self.work.T])
        return self.raw, {
            "order": modes,
            "not_timed": self.missing,
            "series": self.series,
            "flops_by": self.counted,
            "conditions": {"before": before, "after": conditions(self.gpu)},
            "policy": self._policy(),
        }

    def _mode(self, mode: str) -> None:
        try:
            call = self.work.call(mode, self._rotations(mode))
        except UnavailableError as error:
            self.missing[mode] = str(error)
            return
        self._series(mode, call)
        self._floor(mode, call)
        if self.gpu is None:
            return
        if mode in COLD:
            self._series(f"{mode}_cold", cold(call, self.device))
        if mode in GRAPHED:
            self._graph(mode)

    def _graph(self, mode: str) -> None:
        try:
            replay = graphed(self.work.call(mode), self.device)
        except Exception as error:  # whatever a layer does that a graph cannot hold
            cause = str(error).partition("\n")[0]
            self.missing[f"{mode}_graph"] = f"cannot be captured: {type(error).__name__}: {cause}"
        else:
            self._series(f"{mode}_graph", replay)

    def _series(self, name: str, call: Call) -> None:
        found = measure(call, self.device, self._rule(), self.gpu)
        self.readings.append(self.probe.read())
        self.raw[f"{name}_ms"], self.raw[f"{name}_flags"] = found.ms, found.flags
        self.raw[f"{name}_first_ms"] = np.array([found.first_ms])
        self.raw[f"{name}_probe"] = np.array([len(self.readings) - 2, len(self.readings) - 1])
        if len(found.launch_us):
            self.raw[f"{name}_launch_us"] = found.launch_us
        self.series[name] = _facts(found)

    def _floor(self, mode: str, call: Call) -> None:
        count, self.counted[mode] = flops(self.work, mode, lambda: once(call), call.units)
        self.raw[f"{mode}_bytes"] = np.array([least_bytes(self.work, mode)])
        if count is not None:
            self.raw[f"{mode}_flops"] = np.array([count])
        if mode == "decode":
            self.raw["state_bytes"] = np.array(self.work.state_bytes)

    def _rotations(self, mode: str) -> int:
        work = self.work
        size = work.B * work.T * (work.D * 4 if mode == "forward" else 8)
        return rotations(self.device, size) if mode != "decode" else 1

    def _rule(self) -> StopRule:
        return StopRule(max_s=self.options.max_s)

    def _policy(self) -> dict[str, Any]:
        rule = self._rule()
        return {
            "operands": "the same each call" if self.gpu is None else "in turn, more than the cache holds",
            "cold": None if self.gpu is None else "a buffer of twice the cache is written before each sample",
            "launches": "as in training: the host may run ahead",
            "threads": torch.get_num_threads(),
            "stop": {name: getattr(rule, name) for name in ("target", "min_samples", "min_s", "max_s")},
        }


def _facts(found: Series) -> dict[str, Any]:
    window = found.window
    return {
        "samples": len(found.ms),
        "ended": found.ended,
        "warmup_calls": found.warmup,
        "own_cores": round(window.own_cores, 3),
        "other_cores": round(window.other_cores, 3),
        "stolen_cores": round(window.stolen_cores, 3),
        "quota_wait_s": window.quota_s,
    }
