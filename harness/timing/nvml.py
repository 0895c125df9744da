"""What NVIDIA's driver says of a GPU, through nvidia-ml-py; where it is missing, every fact is None."""

import contextlib
import os
from typing import Any

STATIC = ("driver", "power_limit_w", "clock_max_mhz", "mig")
MOVING = ("clock_mhz", "memory_clock_mhz", "temperature_c", "power_w", "utilisation_pct", "throttle", "other_processes")
REASONS = {  # bits of nvmlDeviceGetCurrentClocksEventReasons, as in NVML's header
    0x1: "gpu_idle",
    0x2: "applications_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}
FASTEST = ("gpu_idle", "applications_clocks", "sync_boost", "display_clocks")  # somebody's choice, or nothing to do
SLOWING = tuple(name for name in REASONS.values() if name not in FASTEST)
SM, MEMORY, CORE = 1, 2, 0  # NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU


class Gpu:
    """One GPU. NVML knows it by its UUID, torch by its place in CUDA_VISIBLE_DEVICES."""

    def __init__(self, device: str = "cuda") -> None:
        self.nvml: Any = None
        self.handle: Any = None
        self.sliced = False  # a MIG instance: NVML tells its processes, and little else
        self.holds_memory = _holds_memory
        with contextlib.suppress(Exception):  # not installed, no driver, no permission: facts stay None
            import pynvml
            import torch

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-").removeprefix("MIG-")
            self.handle, self.sliced = _handle(pynvml, uuid)
            self.nvml = pynvml

    def facts(self) -> dict[str, Any]:
        """Returns what does not change during a run."""
        return {
            "driver": _text(self._ask("nvmlSystemGetDriverVersion", of_device=False)),
            "power_limit_w": _scaled(self._ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
            "clock_max_mhz": self._ask("nvmlDeviceGetMaxClockInfo", SM),
            "mig": True if self.sliced else _first(self._ask("nvmlDeviceGetMigMode")),
        }

    def now(self) -> dict[str, Any]:
        """Returns what changes: clocks, heat, power, reasons for low clocks, and how many other processes compute."""
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # the older name of the same call
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        used = self._ask("nvmlDeviceGetUtilizationRates")
        return {
            "clock_mhz": self._ask("nvmlDeviceGetClockInfo", SM),
            "memory_clock_mhz": self._ask("nvmlDeviceGetClockInfo", MEMORY),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", CORE),
            "power_w": _scaled(self._ask("nvmlDeviceGetPowerUsage"), 1e-3),
            "utilisation_pct": None if used is None else used.gpu,
            "throttle": None if reasons is None else slowing(reasons),
            "other_processes": self._others(),
        }

    def _others(self) -> int | None:
        found = self._ask("nvmlDeviceGetComputeRunningProcesses")
        if found is None:
            return None
        pids = {process.pid for process in found} - {os.getppid()}  # our parent waits
        if os.getpid() in pids:
            return len(pids) - 1
        # In a container the driver may tell pids of the host: then our own looks foreign, and one is taken off. It may
        # also hide what is outside, so that none is left; and before we hold memory none of them is ours.
        return max(len(pids) - 1, 0) if self.holds_memory() else len(pids)

    def _ask(self, function: str, *args: Any, of_device: bool = True) -> Any:
        if self.nvml is None:
            return None
        try:
            return getattr(self.nvml, function)(*([self.handle] if of_device else []), *args)
        except Exception:  # not supported on this card, or by this driver
            return None


def _handle(pynvml: Any, uuid: str) -> tuple[Any, bool]:
    """Returns (NVML's handle, whether it is of a MIG instance)."""
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode()), False
    except pynvml.NVMLError:
        return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}".encode()), True


def _holds_memory() -> bool:
    """Returns whether this process has a context on a GPU."""
    import torch

    return bool(torch.cuda.is_initialized()) and torch.cuda.memory_reserved() > 0  # type: ignore[no-untyped-call]


def slowing(reasons: int) -> list[str]:
    """Returns the names of the reasons that slow a GPU down; low clocks of an idle one are none."""
    return [name for bit, name in REASONS.items() if reasons & bit and name in SLOWING]


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _scaled(value: Any, unit: float) -> float | None:
    return None if value is None else round(value * unit, 1)


def _first(value: Any) -> bool | None:
    return None if value is None else bool(value[0])
