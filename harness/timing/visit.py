"""One visit of `harness time`: one mixer at one length, every mode in random order, the probe around each."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.errors import UnavailableError
from harness.timing.cuda import MOST_ROTATIONS, ROTATE_CACHES, cold, rotations
from harness.timing.floor import flops, least_bytes
from harness.timing.sample import Call, once
from harness.timing.session import Session
from harness.timing.settings import SpeedOptions
from harness.timing.stop import stop_rule
from harness.timing.workload import GRAPHED, Workload

COLD = "forward"  # of a whole step, a prompt or many tokens only the first part would meet a cold cache
OPERANDS = f"in turn, {ROTATE_CACHES} times what the cache holds, {MOST_ROTATIONS} at most"
FLUSHED = "a buffer of twice the cache is written before each sample, and the device waits until all is launched"
Report = Callable[[int, int, str], None]


@dataclass
class Visit:
    """What one process measured so far."""

    work: Workload
    options: SpeedOptions
    device: str
    missing: dict[str, str] = field(default_factory=dict)  # mode -> why it was not timed
    counted: dict[str, str | None] = field(default_factory=dict)  # mode -> who counted its operations

    def run(self, report: Report) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns (raw arrays, facts)."""
        self.session = Session(self.device, stop_rule(self.device, self.options.max_s))
        self.raw, self.gpu = self.session.raw, self.session.gpu
        modes = list(self.options.modes)
        random.Random(self.options.process).shuffle(modes)
        for number, mode in enumerate(modes):
            report(number, len(modes), mode)
            self._mode(mode)
        for mode in modes:  # last: a capture that fails may leave the generator of the device unusable
            if self.gpu is not None and mode in GRAPHED and mode not in self.missing:
                self._graph(mode)
        self.raw["tokens"] = np.array([self.work.B, self.work.T])
        facts = {"order": modes, "not_timed": self.missing, "flops_by": self.counted, **self.session.finish()}
        if self.gpu is not None:
            facts["policy"] |= {"operands": OPERANDS, "cold": FLUSHED}
        return self.raw, facts

    @property
    def capture_failed(self) -> bool:
        """Returns whether a graph could not be captured: the allocator and the generator may still think they are."""
        return any(name.endswith("_graph") for name in self.missing)

    def _mode(self, mode: str) -> None:
        try:
            call = self.work.call(mode, self._rotations(mode))
        except UnavailableError as error:
            self.missing[mode] = str(error)
            return
        self.session.take(mode, call)
        self._floor(mode, call)
        if self.gpu is not None and mode == COLD:
            self.session.take(f"{mode}_cold", cold(call, self.device))

    def _graph(self, mode: str) -> None:
        try:
            replay = self.work.replayed(mode)
        except Exception as error:  # whatever a layer does that a graph cannot hold
            cause = str(error).partition("\n")[0]
            self.missing[f"{mode}_graph"] = f"cannot be captured: {type(error).__name__}: {cause}"
        else:
            self.session.take(f"{mode}_graph", replay)

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
