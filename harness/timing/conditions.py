"""The state of the machine at one moment: clocks, heat, load, limits. A fact nobody knows is an explicit None."""

import os
import sys
from pathlib import Path
from typing import Any

import psutil

from harness.timing.nvml import MOVING, Gpu

GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
QUOTA = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us")
MEMORY = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
PRESSURE = "/proc/pressure/cpu"
MIB = 1 << 20


def conditions(gpu: Gpu | None) -> dict[str, Any]:
    """Returns what may differ from one minute to the next, as plain JSON values; `gpu` is None on a CPU."""
    memory = psutil.virtual_memory()
    return {
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "cpu_mhz": cpu_mhz(),
        "cpu_pressure_10s_pct": cpu_pressure(),
        "free_memory_mib": memory.available // MIB,
        "kernel_cache_entries": kernel_cache_entries(),
        "gpu": gpu.now() if gpu is not None else dict.fromkeys(MOVING),
    }


def limits() -> dict[str, Any]:
    """Returns the governor and what the container allows; None where there is none, or nobody says."""
    return {
        "governor": _line(GOVERNOR),
        "quota_cores": quota_cores(),
        "memory_limit_mib": memory_limit_mib(),
    }


def quota_cores() -> float | None:
    """Returns how many cores the container may use on average, or None where there is no quota."""
    version_2, quota_file, period_file = (_line(path) for path in QUOTA)
    quota, period = (version_2.split() if version_2 else [quota_file, period_file])[:2]
    try:
        return round(int(quota or "") / int(period or ""), 3) if int(quota or "") > 0 else None
    except ValueError:  # "max", or no such file
        return None


def memory_limit_mib() -> int | None:
    """Returns the container's memory limit, or None where it has none."""
    for path in MEMORY:
        text = _line(path)
        if text is not None and text.isdigit() and int(text) < psutil.virtual_memory().total:
            return int(text) // MIB
    return None


def cpu_mhz() -> float | None:
    """Returns the mean clock of the cores as the system tells it; a virtual machine may tell a constant."""
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return round(found.current, 1) if found is not None and found.current else None


def cpu_pressure() -> float | None:
    """Returns the share of the last ten seconds in which some process waited for a core, in percent (Linux PSI)."""
    text = _line(PRESSURE)
    try:
        return float((text or "").split("avg10=")[1].split()[0])
    except (IndexError, ValueError):
        return None


def kernel_cache_entries() -> int | None:
    """Returns how many compiled kernels Triton has cached; a cold cache makes first calls slow, never samples."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return None


def pin_to_cores(threads: int) -> int | None:
    """Returns to how many processors this process is now bound: one hardware thread a core; None where it cannot be."""
    if sys.platform != "linux":
        return None
    first: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = _line(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        first.setdefault(siblings, cpu)
    chosen = list(first.values())
    if len(chosen) < threads:  # more threads than cores were asked for: the system places them
        return None
    os.sched_setaffinity(0, chosen[:threads])
    return threads


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text().partition("\n")[0].strip() or None
    except OSError:
        return None
