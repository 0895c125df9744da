"""What of this machine a sweep may use."""

import os
from pathlib import Path

import psutil

from harness.errors import InputError
from harness.timing.device import usable_cores

SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int:
    """Returns the physical cores this process may use: affinity and the container's quota count."""
    return max(1, min(usable_cores(), _cores_in_affinity()))


def _cores_in_affinity() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return psutil.cpu_count(logical=False) or 1
    allowed = os.sched_getaffinity(0)
    try:  # two hardware threads of one core count once
        return len({Path(SIBLINGS.format(cpu)).read_text() for cpu in allowed})
    except OSError:
        return min(len(allowed), psutil.cpu_count(logical=False) or len(allowed))


def choose_device(wanted: str) -> str:
    """Returns "cpu" or "cuda"; a CUDA device that is not there raises InputError."""
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        built = "finds no usable GPU" if torch.version.cuda else "was built without CUDA"
        raise InputError(f"--device cuda: torch {torch.__version__} {built}; use --device cpu")
    return "cpu"


def gpus() -> list[str]:
    """Returns what CUDA_VISIBLE_DEVICES must be for each of the visible GPUs alone."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return [name.strip() for name in ids][: torch.cuda.device_count()]
