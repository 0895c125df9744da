"""Who else was there while samples were taken: counters of the system before and after, and what they flag."""

import sys
import time
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

import numpy as np
import psutil

from harness.timing.nvml import Gpu

TICK_S = 0.01  # in such steps the system counts CPU time, on each core
SLACK_S = 5 * TICK_S  # on a machine of a few cores
OTHER_CORES = 0.1  # of other processes, beyond the slack
BUSY_SHARE = 0.5  # of what this process leaves: where a GPU does the work, others disturb once they crowd the cores
STOLEN_CORES = 0.02  # taken by the hypervisor
LATE = 1.05  # of the median: a preempted sample that took no longer was not disturbed


class Disturbance(IntFlag):
    """What may have made a sample too long."""

    NONE = 0
    PREEMPTED = 1  # the system took a core away during this sample, and it took longer
    OTHERS = 2  # other processes kept cores, or the GPU, busy during the series
    STOLEN = 4  # the hypervisor gave core time to another guest
    THROTTLED = 8  # a quota, heat or a power limit slowed the device down


IN_WORDS = {
    Disturbance.PREEMPTED: "preempted",
    Disturbance.OTHERS: "other processes",
    Disturbance.STOLEN: "stolen core time",
    Disturbance.THROTTLED: "throttled",
}


PREEMPTED_SHARE = 0.1  # of the samples, before preemption counts


def disturbed_by(flags: np.ndarray) -> list[str]:
    """Returns in words what may have made samples with these flags too long; an empty list means clean."""
    least = {Disturbance.PREEMPTED: PREEMPTED_SHARE}
    return [words for kind, words in IN_WORDS.items() if float(np.mean((flags & int(kind)) > 0)) > least.get(kind, 0.0)]


@dataclass(frozen=True)
class Reading:
    """The counters at one moment."""

    wall_s: float
    busy_s: float  # of all cores, by all processes
    stolen_s: float
    own_s: float  # of this process, all threads
    quota_s: float | None  # waited for the container's quota; None where there is none
    gpu: dict[str, object] | None = None


@dataclass(frozen=True)
class Window:
    """What happened between two readings."""

    wall_s: float
    own_cores: float
    other_cores: float
    stolen_cores: float
    quota_s: float | None
    flags: Disturbance


def read(gpu: Gpu | None = None) -> Reading:
    """Returns the counters now; takes about 0.1 ms."""
    cpu = psutil.cpu_times()
    idle = {"idle", "iowait", "steal", "guest", "guest_nice"}  # a guest's time is in user already
    busy = sum(value for name, value in cpu._asdict().items() if name not in idle)
    return Reading(
        wall_s=time.perf_counter(),
        busy_s=busy,
        stolen_s=float(getattr(cpu, "steal", 0.0)),
        own_s=time.process_time(),
        quota_s=quota_seconds(),
        gpu=gpu.now() if gpu is not None else None,
    )


def between(before: Reading, after: Reading) -> Window:
    """Returns what happened in between, with the flags that hold for every sample taken there."""
    wall = max(after.wall_s - before.wall_s, 1e-9)
    own = after.own_s - before.own_s
    other = max(after.busy_s - before.busy_s - own, 0.0)
    stolen = max(after.stolen_s - before.stolen_s, 0.0)
    quota = None if None in (before.quota_s, after.quota_s) else float(after.quota_s or 0) - float(before.quota_s or 0)
    flags = Disturbance.NONE
    if _crowded(before, other, own, wall) or _foreign(before) or _foreign(after):
        flags |= Disturbance.OTHERS
    if stolen > SLACK_S + STOLEN_CORES * wall:
        flags |= Disturbance.STOLEN
    if (quota or 0.0) > 0.0 or _slowed(before) or _slowed(after):
        flags |= Disturbance.THROTTLED
    return Window(wall, own / wall, other / wall, stolen / wall, quota, flags)


def _crowded(before: Reading, other: float, own: float, wall: float) -> bool:
    if before.gpu is None:
        return other > SLACK_S + OTHER_CORES * wall
    cores = psutil.cpu_count() or 1
    return other > TICK_S * cores + BUSY_SHARE * max(wall * cores - own, 0.0)


def switches() -> int:
    """Returns how often the system took a core away from this process; 0 where it does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def page_faults() -> int:
    """Returns how many pages this process has touched for the first time; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def quota_seconds() -> float | None:
    """Returns how long this container has waited for its CPU quota, or None where nobody counts."""
    for path, name, unit in (
        ("/sys/fs/cgroup/cpu.stat", "throttled_usec", 1e-6),
        ("/sys/fs/cgroup/cpu/cpu.stat", "throttled_time", 1e-9),
    ):
        try:
            counts = dict(line.split() for line in Path(path).read_text().splitlines())
            return int(counts[name]) * unit
        except (OSError, KeyError, ValueError):
            continue
    return None


def _foreign(reading: Reading) -> bool:
    return bool((reading.gpu or {}).get("other_processes"))


def _slowed(reading: Reading) -> bool:
    return bool((reading.gpu or {}).get("throttle"))
