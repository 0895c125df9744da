"""What the numbers were measured on: the device, its driver, the libraries. A missing fact is an explicit None."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from harness.errors import HarnessError
from harness.hookspecs import PROJECT
from harness.timing.conditions import limits
from harness.timing.nvml import Gpu

LIBRARIES = ("mixer-harness", "torch", "numpy", "triton", "xformers")
MIB = 1 << 20


def device_facts(device: str) -> dict[str, Any]:
    """Returns the facts of the device as plain JSON values; `class` is what two runs must share to be compared."""
    import torch

    facts: dict[str, Any] = {
        "device": device,
        "class": None,
        "name": None,
        "memory_mib": None,
        "driver": None,
        "cuda": torch.version.cuda,
        "compute_capability": None,
        "power_limit_w": None,
        "clock_max_mhz": None,
        "mig": None,
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "host_memory_mib": psutil.virtual_memory().total // MIB,
        "python": platform.python_version(),
        "os": platform.platform(),
        "libraries": library_versions(),
        **limits(),
    }
    if torch.device(device).type == "cuda":
        facts.update(_cuda_facts(device))
    else:
        facts["name"], facts["memory_mib"] = facts["cpu"], facts["host_memory_mib"]
    facts["class"] = device_class(torch.device(device).type, str(facts["name"]), int(facts["cores"]))
    return facts


def facts_from_outside(device: str) -> dict[str, Any]:
    """Returns `device_facts` as a process of its own finds them, so that this one gets no context on the device."""
    code = f"import json; from {__name__} import device_facts; print(json.dumps(device_facts({device!r})))"
    path = os.pathsep.join(part for part in sys.path if part)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise HarnessError(f"the device {device} does not answer: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def device_class(kind: str, name: str, cores: int) -> str:
    """Returns a slug such as "cpu-intel-xeon-processor-2c" or "nvidia-h200": one of a kind of hardware."""
    name = re.sub(r"\((r|tm|c)\)|\bcpu\b|@.*$", " ", name.lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "unknown"
    return slug if kind == "cuda" else f"{kind}-{slug}-{cores}c"


def library_versions() -> dict[str, str | None]:
    """Returns the version of each library that may change a number, and of every distribution with a plugin."""
    plugins = {point.dist.name for point in metadata.entry_points(group=PROJECT) if point.dist}
    return {name: _version(name) for name in [*LIBRARIES, *sorted(plugins - set(LIBRARIES))]}


def usable_cores() -> int:
    """Returns the number of cores this process may use: affinity and the container's quota count."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else psutil.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return cores


def cpu_name() -> str:
    """Returns the processor's marketing name, or the architecture where the system does not tell."""
    try:
        if sys.platform == "darwin":
            return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _cuda_facts(device: str) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = Gpu(device).facts()
    return {
        **told,
        "name": properties.name,
        "memory_mib": properties.total_memory // MIB,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": told["driver"] or _output(query),
    }


def _output(command: list[str]) -> str | None:
    """Returns the first line the program prints, or None where there is no such program or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
