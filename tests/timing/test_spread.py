import json
from dataclasses import asdict

import numpy as np
import pytest

from harness.errors import RecordError
from harness.timing.duel import disturbances as duel_disturbances
from harness.timing.duel import duel_measures, log_ratios
from harness.timing.spread import disturbances, exponent, floor_ms, row_of, series_names, speed_measures
from harness.timing.watch import Disturbance


def process(ms=1.0, spread=0.01, probe=(2.0, 2.0), n=101, flags=0, T=128):
    """Returns the arrays of one process: `forward` with evenly spread samples, and the probe before and after it."""
    readings = np.array([[p * 2, p / 2, np.nan] for p in probe])
    return {
        "forward_ms": ms * (1 + spread * np.linspace(-1, 1, n)),
        "forward_flags": np.full(n, int(flags), dtype=np.uint8),
        "forward_first_ms": np.array([50 * ms]),
        "forward_probe": np.array([0, 1]),
        "forward_bytes": np.array([1_000_000]),
        "forward_flops": np.array([4_000_000]),
        "probe_ms": readings,
        "ceilings": np.array([1e10, 1e10]),
        "tokens": np.array([4, T]),
    }


def test_every_measure_of_a_process_comes_from_its_arrays():
    found = speed_measures(process(ms=3.0))
    assert found["forward_ms"].value == pytest.approx(3.0)
    assert found["forward_per_probe"].value == pytest.approx(1.5)
    assert found["probe_drift_pct"].value == 0.0
    assert series_names(process()) == ["forward"]
    with pytest.raises(RecordError, match="no series"):
        speed_measures({"tokens": np.array([1, 2])})


def test_spread_within_a_process_and_between_processes_stand_apart():
    steady = row_of("m/torch", "forward", [process(1.0), process(1.0), process(1.0)], {}, None)
    assert (steady.within_pct, steady.between_pct) == (pytest.approx(0.5), pytest.approx(0.0))
    moved = row_of("m/torch", "forward", [process(1.0), process(1.1), process(1.3)], {}, None)
    assert moved.within_pct == pytest.approx(0.5)
    assert moved.between_pct == pytest.approx(100 * 0.3 / 1.1)
    assert (moved.ms.value, moved.ms.low, moved.ms.high) == tuple(map(pytest.approx, (1.1, 1.0, 1.3)))
    assert "unstable" in moved.notes


def test_a_machine_that_slows_down_as_a_whole_keeps_its_ratio_to_the_probe():
    raws = [process(ms=s, probe=(2 * s, 2 * s)) for s in (1.0, 1.5, 2.0)]
    found = row_of("m/torch", "forward", raws, {}, None)
    assert found.between_pct == pytest.approx(100 / 1.5)
    assert found.per_probe.low == pytest.approx(found.per_probe.high)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (process(), []),
        (process(flags=Disturbance.OTHERS), ["other processes"]),
        (process(flags=Disturbance.THROTTLED | Disturbance.STOLEN), ["stolen core time", "throttled"]),
        (process(probe=(2.0, 2.5)), ["probe drift"]),
        (process(probe=(2.5, 2.0)), ["probe drift"]),
    ],
)
def test_what_disturbed_a_series_is_said(raw, said):
    assert disturbances(raw, "forward") == said
    row = row_of("m/torch", "forward", [process(), process(), raw], {}, None)
    assert row.clean == (not said)
    assert not said or row.notes[0] == f"disturbed 1/3: {', '.join(said)}"


def test_a_gpu_whose_clock_fell_is_noticed():
    raw = process()
    raw["probe_ms"] = np.array([[4.0, 1.0, 0.5], [4.0, 1.0, 0.7]])
    assert disturbances(raw, "forward") == ["slow clock"]
    raw["probe_ms"][1, 2] = 0.55
    assert disturbances(raw, "forward") == []


def test_the_floor_is_the_larger_of_bytes_and_operations_at_the_ceilings():
    assert floor_ms(process(), "forward") == pytest.approx(0.4)
    assert row_of("m", "forward", [process(ms=0.8)], {"flops_by": {"forward": "me"}}, 1.0).floor_pct == pytest.approx(
        50
    )
    no_flops = {name: array for name, array in process().items() if name != "forward_flops"}
    assert floor_ms(no_flops, "forward") == pytest.approx(0.1)
    assert floor_ms({**process(), "ceilings": np.array([1e10, np.nan])}, "forward") == pytest.approx(0.1)
    unknown = {name: array for name, array in process().items() if name != "ceilings"}
    assert row_of("m/torch", "forward", [unknown], {}, None).floor_pct is None


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_is_that_power(power):
    T = (128, 256, 512, 2048)
    slope, error = exponent(T, [3.0 * t**power for t in T])
    assert slope == pytest.approx(power, abs=1e-9)
    assert error == pytest.approx(0.0, abs=1e-7)


def test_the_error_of_an_exponent_is_that_of_the_fit():
    rng = np.random.default_rng(0)
    T = np.array([64, 128, 256, 512, 1024, 2048])
    fits = [exponent(T.tolist(), (T * np.exp(0.1 * rng.standard_normal(6))).tolist()) for _ in range(2000)]
    slopes = [slope for slope, _ in fits]
    assert np.mean(slopes) == pytest.approx(1.0, abs=0.01)
    assert np.mean([error for _, error in fits]) == pytest.approx(np.std(slopes), rel=0.1)


def test_two_lengths_give_a_slope_without_an_error_and_one_gives_nothing():
    assert exponent([128, 256], [1.0, 4.0]) == (pytest.approx(2.0), None)
    assert exponent([128], [1.0]) is None
    assert exponent([], []) is None


def test_a_row_is_json():
    row = row_of("m/torch", "forward", [process()] * 3, {}, None)
    assert json.loads(json.dumps(asdict(row)))["ms"]["n"] == 303


def test_a_duel_is_the_median_over_its_pairs_and_drift_cancels():
    rng = np.random.default_rng(0)
    drift = np.linspace(1.0, 2.0, 200)
    a = drift * (1 + 0.01 * rng.standard_normal(200))
    raw = {
        "a_ms": a,
        "b_ms": 1.05 * drift * (1 + 0.01 * rng.standard_normal(200)),
        "duel": np.repeat([0, 1], 100),
        "flags": np.repeat([0, int(Disturbance.OTHERS)], 100).astype(np.uint8),
        "probe_ms": process()["probe_ms"],
    }
    assert log_ratios(raw) == pytest.approx([np.log(1.05)] * 2, abs=0.005)
    assert duel_disturbances(raw) == [[], ["other processes"]]
    assert duel_measures(raw)["ratio"].value == pytest.approx(1.05, abs=0.005)
    with pytest.raises(RecordError, match="lack a_ms"):
        duel_measures({"duel": np.zeros(1)})
