import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from harness.board.points import gather, points
from harness.board.processes import across, latest
from harness.board.render import render
from harness.board.speeds import complete_speeds, speed_points, speed_tables
from harness.board.submit import complete, submit
from harness.board.table import leaderboard
from harness.cli.board import leaderboard as leaderboard_command
from harness.cli.board import submit as submit_command
from harness.config import ModelConfig, RunConfig, TimingConfig, to_json
from harness.spec import Measure
from harness.store import StoredRecord
from harness.timing.settings import SpeedOptions
from harness.timing.spread import speed_measures
from harness.verify import verify


def green(maker, mixer="ema/torch"):
    """Returns a check record, and the gate that a time record takes from it."""
    stored = maker.check(mixer)
    gate = {"mixer": mixer, "check": stored.record.key, "green": True, "class": maker.environment["class"]}
    return stored, {**gate, "code_sha256": stored.record.plugin["code_sha256"]}


def speed(maker, gate, process, T=128, ms=2.0, disturbed=False, **changes):
    """Writes one process of `harness time`: forward of a mixer at one length."""
    flags = np.full(30, 2 if disturbed else 0, dtype=np.uint8)
    raw = {
        "forward_ms": ms * np.linspace(0.99, 1.01, 30) * (1 + 0.001 * process),
        "forward_flags": flags,
        "forward_first_ms": np.array([9.0]),
        "forward_probe": np.array([0, 1]),
        "forward_bytes": np.array([1000]),
        "forward_flops": np.array([1_000_000]),
        "ceilings": np.array([1e9, 1e9]),
        "probe_ms": np.array([[1.0, 2.0, np.nan], [1.0, 2.0, np.nan]]),
        "tokens": np.array([4, T]),
    }
    config = RunConfig(
        task="timing",
        options=SpeedOptions(modes=("forward",), process=process),
        model=ModelConfig(d_model=64, layers="ema/torch,ema/torch"),
        timing=TimingConfig(batch_size=4, T=T),
    )
    fields = {
        "suite": "timing",
        "suite_key": "",
        "config": to_json(config),
        "facts": {"gates": [gate], "flops_by": {"forward": "the spec's flops()"}, "process": process, "T": T},
        "measures": speed_measures(raw),
        "data_sha256": {},
    }
    return maker.record("speed", gate["mixer"], "timing", raw, **(fields | changes))


@pytest.fixture
def timed(maker):
    _, gate = green(maker)
    for process in range(3):
        speed(maker, gate, process)
        speed(maker, gate, process, T=512, ms=8.0, disturbed=process == 0)
    return maker


def test_what_harness_time_measured_is_a_table_of_its_own(timed):
    (table,) = speed_tables(timed.store)
    assert (table.suite, table.device) == ("harness time", "Test Processor")
    assert [[cell.text for cell in row.cells][:4] for row in table.rows] == [
        ["forward", "128", "2.00 ±0.01", "3"],
        ["forward", "512", "8.01 ±0.01", "3"],
    ]
    floor = next(i for i, column in enumerate(table.columns) if column.key == "floor")
    assert table.rows[0].cells[floor].text == "50"
    assert [row.note for row in table.rows] == [None, "disturbed 1/3: other processes"]
    assert any("time ~ T^1.00" in line for line in table.notes)
    assert "D = 64, batch 4, float32, 2 threads" in table.caption[0]
    shown = json.loads(render([table], "json"))
    assert shown[0]["rows"][0]["cells"]["ms"]["n"] == 3


def test_two_processes_are_no_row_and_no_submission(maker):
    _, gate = green(maker)
    for process in range(2):
        speed(maker, gate, process)
    assert speed_tables(maker.store) == []
    good, skipped = complete_speeds(speed_points(maker.store))
    assert good == []
    assert skipped == ["ema/torch (harness time, cpu-test-processor-2c): T = 128 was timed in 2 of 3 processes"]


def test_two_classes_of_device_and_two_widths_are_never_one_table(timed, other_gpu):
    _, gate = green(timed)
    wide = to_json(RunConfig(task="timing", options=SpeedOptions(), model=ModelConfig(d_model=128)))
    for process in range(3):
        elsewhere = {**gate, "class": "nvidia-test"}
        speed(timed, elsewhere, process, environment=other_gpu)
        wide["options"] = {**wide["options"], "process": process}
        speed(timed, gate, process, config={**wide, "timing": {**wide["timing"], "T": 128}})
    assert sorted(table.device_class for table in speed_tables(timed.store)) == [
        "cpu-test-processor-2c",
        "cpu-test-processor-2c",
        "nvidia-test",
    ]


def test_speeds_are_submitted_with_their_check_and_shown_on_the_board(timed, tmp_path, registry):
    board = tmp_path / "board"
    result = CliRunner().invoke(submit_command, (str(timed.store.root), "--board", str(board)))
    assert result.exit_code == 0, result.output
    assert "7 records added" in result.stdout
    assert "harness time · Test Processor" in (board / "README.md").read_text()
    found = gather(board / "submissions").found
    assert sorted({stored.record.kind for stored in found}) == ["check", "speed"]
    assert [line for stored in found for line in verify(stored, registry)] == []
    again = CliRunner().invoke(submit_command, (str(timed.store.root), "--board", str(board)))
    assert "0 records added, 7 were there already" in again.stdout


def test_a_speed_without_its_check_is_not_submitted(timed, tmp_path):
    for stored in timed.store.records():
        if stored.record.kind == "check":
            timed.store.remove(stored.record.key)
    result = CliRunner().invoke(
        submit_command, (str(timed.store.root), "--board", str(tmp_path / "b")), standalone_mode=False
    )
    assert "the check it rests on is not here" in str(result.exception)


def test_the_command_shows_speeds_below_the_presets_and_not_beside_one(timed):
    timed.point("attention/torch")
    shown = CliRunner().invoke(leaderboard_command, ("--runs", str(timed.store.root))).stdout
    assert shown.index("tiny · Test Processor") < shown.index("harness time · Test Processor")
    one = CliRunner().invoke(leaderboard_command, ("--runs", str(timed.store.root), "--preset", "tiny")).stdout
    assert "harness time" not in one


def in_processes(maker, mixer, count, **changes):
    _, gate = green(maker, mixer)
    return [
        maker.time(
            mixer,
            "mqar",
            1 + 0.1 * process,
            process=process,
            **{
                "facts": {"B": 16, "T": 32, "gates": [gate], "disturbed": {"forward": ["preempted"] if process else []}}
            },
            **changes,
        )
        for process in range(count)
    ]


def test_a_cost_is_the_median_over_processes_with_the_least_and_greatest(maker, registry):
    stored = in_processes(maker, "ema/torch", 3)
    maker.mqar_test("ema/torch")
    (table,) = leaderboard(maker.store, registry)
    (row,) = table.rows
    cell = next(cell for cell, column in zip(row.cells, table.columns, strict=True) if column.key == "forward_ms")
    medians = sorted(one.record.measures["forward_ms"].value for one in stored)
    assert (cell.measure.low, cell.measure.value, cell.measure.high) == tuple(medians)
    assert cell.measure.spread == "min–max of the medians of 3 processes"
    assert row.note == "times disturbed in 2/3: preempted"
    assert "3 processes" in " ".join(table.caption)


def test_a_cost_from_before_there_was_a_gate_says_so(maker, registry):
    maker.point("ema/torch")
    (table,) = leaderboard(maker.store, registry)
    assert "1 process without a gate" in " ".join(table.caption)


def test_numbered_processes_replace_a_time_without_a_number_and_the_other_way_round(maker):
    old = maker.time("ema/torch", "mqar")
    new = in_processes(maker, "ema/torch", 3, started="2026-02-01T00:00:00+00:00")
    assert latest([old, *new]).stored == tuple(new)
    assert latest([*new, old]).stored == (old,)
    later = StoredRecord(dataclasses.replace(new[1].record, seconds=1.0), new[1].path)
    assert latest([*new, later]).stored == (new[0], later, new[2])


def test_a_point_with_a_process_missing_or_failed_is_not_complete(maker, tmp_path, registry):
    in_processes(maker, "ema/torch", 2)
    maker.mqar_test("ema/torch")
    every = points(maker.store)
    assert complete(every, every)[1] == ["ema/torch (tiny, cpu-test-processor-2c): mqar was timed in 2 of 3 processes"]
    maker.failed("time", "ema/torch", "mqar", "out of memory", process=2, started="2026-03-01T00:00:00+00:00")
    every = points(maker.store)
    assert "mqar time failed: out of memory" in complete(every, every)[1][0]


def test_processes_of_a_whole_point_are_submitted_together(maker, tmp_path, registry):
    in_processes(maker, "ema/torch", 3)
    maker.mqar_test("ema/torch")
    every = points(maker.store)
    good, _ = complete(every, every)
    assert len(submit(good, [], tmp_path / "board", registry).added) == 5


def test_what_is_equal_in_every_process_has_no_interval():
    same = Measure(value=5.0, unit="parameters", n=1)
    assert across([same] * 3) == same
    differs = across([same, dataclasses.replace(same, value=7.0), dataclasses.replace(same, value=6.0)])
    assert (differs.low, differs.value, differs.high, differs.n) == (5.0, 6.0, 7.0, 3)
    assert differs.spread == "min–max of 3 processes"


def test_the_least_peak_stands_for_all_processes():
    of_one = [Measure(value=value, unit="MiB", n=1) for value in (800.0, 702.0, 800.0)]
    found = across(of_one, least=True)
    assert (found.value, found.low, found.high, found.n) == (702.0, 702.0, 800.0, 3)
    assert found.spread == "least and greatest of 3 processes"
