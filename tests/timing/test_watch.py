import dataclasses
import os

import numpy as np
import pytest

from harness.timing.nvml import MOVING, Gpu
from harness.timing.watch import Disturbance, Reading, between, disturbed_by, read

START = Reading(wall_s=0.0, busy_s=0.0, stolen_s=0.0, own_s=0.0, quota_s=None)


def window(wall=1.0, own=2.0, other=0.0, stolen=0.0, quota=None, gpu=None):
    end = Reading(wall_s=wall, busy_s=own + other, stolen_s=stolen, own_s=own, quota_s=quota, gpu=gpu)
    return between(dataclasses.replace(START, quota_s=None if quota is None else 0.0), end)


@pytest.mark.parametrize(
    ("happened", "flags"),
    [
        ({}, Disturbance.NONE),
        ({"other": 0.04, "wall": 0.3}, Disturbance.NONE),  # the system's own clock ticks are that coarse
        ({"other": 0.3, "wall": 0.3}, Disturbance.OTHERS),
        ({"other": 1.0}, Disturbance.OTHERS),
        ({"stolen": 0.2}, Disturbance.STOLEN),
        ({"quota": 0.0}, Disturbance.NONE),
        ({"quota": 0.01}, Disturbance.THROTTLED),
        ({"other": 1.0, "stolen": 0.5, "quota": 0.5}, ~Disturbance.PREEMPTED),
        ({"gpu": {"throttle": ["sw_power_cap"], "other_processes": 0}}, Disturbance.THROTTLED),
        ({"gpu": {"throttle": [], "other_processes": 2}}, Disturbance.OTHERS),
        ({"gpu": {"throttle": None, "other_processes": None}}, Disturbance.NONE),
    ],
)
def test_the_counters_tell_who_else_was_there(happened, flags):
    assert window(**happened).flags == flags


def test_where_a_gpu_works_other_processes_count_once_they_crowd_the_cores(monkeypatch):
    monkeypatch.setattr("psutil.cpu_count", lambda: 16)
    alone = dataclasses.replace(START, gpu={"throttle": [], "other_processes": 0})
    for own, other, wall, flags in (
        (1.0, 6.0, 1.0, Disturbance.NONE),
        (1.0, 8.0, 1.0, Disturbance.OTHERS),
        (12.0, 1.5, 1.0, Disturbance.NONE),  # its own threads are no neighbours
        (12.0, 3.0, 1.0, Disturbance.OTHERS),
        (0.03, 0.3, 0.03, Disturbance.NONE),  # the clock ticks of all cores are that coarse
        (0.03, 0.45, 0.03, Disturbance.OTHERS),
    ):
        end = dataclasses.replace(alone, wall_s=wall, busy_s=own + other, own_s=own)
        assert between(alone, end).flags == flags


def test_cores_are_counted_as_shares_of_the_window():
    found = window(wall=2.0, own=3.0, other=1.0, stolen=0.5)
    assert (found.own_cores, found.other_cores, found.stolen_cores) == (1.5, 0.5, 0.25)


def test_counters_only_grow():
    first = read()
    sum(range(200_000))
    second = read()
    assert second.wall_s > first.wall_s
    assert second.own_s > first.own_s
    assert second.busy_s >= first.busy_s


def test_a_few_preempted_samples_are_no_disturbance_and_one_busy_neighbour_is():
    flags = np.zeros(100, dtype=np.uint8)
    flags[:5] = int(Disturbance.PREEMPTED)
    assert disturbed_by(flags) == []
    flags[:20] = int(Disturbance.PREEMPTED)
    assert disturbed_by(flags) == ["preempted"]
    assert disturbed_by(flags | int(Disturbance.OTHERS)) == ["preempted", "other processes"]


class Driver:
    """A driver that answers two questions and knows no others."""

    def nvmlSystemGetDriverVersion(self):
        return b"580.1"

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return 0x8

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [type("Process", (), {"pid": pid})() for pid in (os.getpid(), 4242)]


def test_what_the_driver_does_not_answer_is_none():
    gpu = Gpu()
    gpu.nvml = None
    assert set(gpu.facts().values()) == {None}
    assert set(gpu.now().values()) == {None}
    gpu.nvml = Driver()
    assert gpu.facts()["driver"] == "580.1"
    assert gpu.facts()["mig"] is None
    now = gpu.now()
    assert tuple(now) == MOVING
    assert (now["throttle"], now["other_processes"], now["clock_mhz"]) == (["hw_slowdown"], 1, None)
