"""The series of one timing process: each stands between two readings of the probe, with who else was there."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harness.timing.conditions import conditions
from harness.timing.nvml import Gpu
from harness.timing.probe import Probe
from harness.timing.sample import Call, Series, measure
from harness.timing.stop import StopRule


@dataclass
class Session:
    """What one process measured so far. Measure memory before it begins: the probe holds some."""

    device: str
    rule: StopRule
    warmup: int = 0  # untimed calls before a series, at least
    raw: dict[str, np.ndarray] = field(default_factory=dict)
    series: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gpu = Gpu(self.device) if torch.device(self.device).type == "cuda" else None
        self.before, self.probe = conditions(self.gpu), Probe(self.device)
        self.readings = [self.probe.read()]

    def take(self, name: str, call: Call) -> None:
        """Measures the call, and reads the probe once more."""
        found = measure(call, self.device, self.rule, self.gpu, self.warmup)
        self.readings.append(self.probe.read())
        self.raw[f"{name}_ms"], self.raw[f"{name}_flags"] = found.ms, found.flags
        self.raw[f"{name}_first_ms"] = np.array([found.first_ms])
        self.raw[f"{name}_probe"] = np.array([len(self.readings) - 2, len(self.readings) - 1])
        if len(found.launch_us):
            self.raw[f"{name}_launch_us"] = found.launch_us
        self.series[name] = _facts(found)

    def finish(self) -> dict[str, Any]:
        """Returns the facts, after the probe's readings were put among the arrays."""
        self.raw["probe_ms"] = np.array(self.readings)
        return {
            "series": self.series,
            "conditions": {"before": self.before, "after": conditions(self.gpu)},
            "policy": {
                "operands": "the same each call",
                "cold": None,
                "launches": "as in training: the host may run ahead",
                "threads": torch.get_num_threads(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),  # as in training
                "warmup": self.warmup,
                "stop": {name: getattr(self.rule, name) for name in ("target", "min_samples", "min_s", "max_s")},
            },
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
