"""What NVML says, with a driver that is made up: this machine need not have a GPU."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from harness.timing.nvml import MOVING, REASONS, SLOWING, STATIC, Gpu, slowing


class NoPermission(Exception):
    """What nvidia-ml-py raises, whatever the cause."""


class Driver:
    """The functions of nvidia-ml-py 13 that are asked, of one GPU."""

    NVMLError = NoPermission

    def __init__(self, pids=(), known=("GPU-1",), refuses=(), reasons=0):
        self.pids, self.known, self.refuses, self.reasons = pids, known, refuses, reasons

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid.decode() not in self.known:
            raise NoPermission("Not Found")
        return uuid.decode()

    def __getattr__(self, name):
        answers = {
            "nvmlSystemGetDriverVersion": "580.159.04",
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetMigMode": [0, 0],
            "nvmlDeviceGetCurrentClocksEventReasons": self.reasons,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=3, memory=1),
            "nvmlDeviceGetClockInfo": 1755,
            "nvmlDeviceGetTemperature": 41,
            "nvmlDeviceGetPowerUsage": 120_500,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=pid) for pid in self.pids],
        }
        if name in self.refuses or name not in answers:
            raise NoPermission("Insufficient Permissions")
        return lambda *args: answers[name]


@pytest.fixture
def gpu(monkeypatch):
    def made(holds_memory=True, uuid="1", **driver):
        monkeypatch.setitem(sys.modules, "pynvml", Driver(**driver))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
        found = Gpu("cuda")
        found.holds_memory = lambda: holds_memory
        return found

    return made


def test_every_fact_is_there_in_its_unit(gpu):
    found = gpu(reasons=0x4)
    assert found.facts() == {"driver": "580.159.04", "power_limit_w": 700.0, "clock_max_mhz": 1980, "mig": False}
    now = found.now()
    assert (now["clock_mhz"], now["temperature_c"], now["power_w"], now["utilisation_pct"]) == (1755, 41, 120.5, 3)
    assert now["throttle"] == ["sw_power_cap"]
    assert (tuple(found.facts()), tuple(now)) == (STATIC, MOVING)


def test_what_the_container_may_not_ask_is_none_and_the_rest_is_there(gpu):
    refused = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetMigMode")
    found = gpu(refuses=refused)
    assert (found.now()["other_processes"], found.now()["power_w"], found.facts()["mig"]) == (None, None, None)
    assert found.now()["clock_mhz"] == 1755


OURS, PARENT, FOREIGN = os.getpid(), os.getppid(), 4_242_424


@pytest.mark.parametrize(
    ("pids", "holds_memory", "others"),
    [
        ((), True, 0),  # the driver hides processes of other namespaces, ours too
        ((OURS,), True, 0),
        ((OURS, PARENT), True, 0),  # it waits for us
        ((OURS, FOREIGN), True, 1),
        ((FOREIGN,), True, 0),  # a pid of the host: ours under another number
        ((FOREIGN, FOREIGN + 1), True, 1),
        ((FOREIGN,), False, 1),  # before we hold memory none is ours
        ((), False, 0),
    ],
)
def test_our_own_process_is_no_neighbour_whatever_number_the_driver_gives_it(gpu, pids, holds_memory, others):
    assert gpu(pids=pids, holds_memory=holds_memory).now()["other_processes"] == others


@pytest.mark.parametrize("uuid", ["2", "GPU-2", "MIG-2"])
def test_a_mig_instance_is_found_by_its_own_uuid(gpu, uuid):
    found = gpu(uuid=uuid, known=("MIG-2",), refuses=("nvmlDeviceGetMigMode",))
    assert found.handle == "MIG-2"
    assert found.facts()["mig"] is True


def test_a_gpu_the_driver_does_not_know_has_no_facts(gpu):
    assert set(gpu(known=()).facts().values()) == {None}


def test_only_what_takes_speed_away_is_throttling():
    assert slowing(0x1 | 0x2 | 0x10 | 0x100) == []  # idle, a clock somebody chose, boost in step, a display
    assert slowing(sum(REASONS)) == list(SLOWING)
    assert slowing(0x200 | 0x8) == ["hw_slowdown", "board_limit"]
    assert slowing(0x8000_0000) == []  # a reason of a later driver


def test_the_reasons_have_the_bits_that_nvidia_ml_py_gives_them():
    pynvml = pytest.importorskip("pynvml")
    bits = {
        "sw_power_cap": "SwPowerCap",
        "hw_slowdown": "HwSlowdown",
        "sw_thermal": "SwThermalSlowdown",
        "hw_thermal": "HwThermalSlowdown",
        "hw_power_brake": "HwPowerBrakeSlowdown",
        "gpu_idle": "GpuIdle",
    }
    by_name = {name: bit for bit, name in REASONS.items()}
    for name, theirs in bits.items():
        assert by_name[name] == getattr(pynvml, f"nvmlClocksEventReason{theirs}", by_name[name])
