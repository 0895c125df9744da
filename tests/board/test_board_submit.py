import dataclasses
import getpass
import json
import os
import shutil
import socket

import numpy as np
import pytest

import harness.board.submit as submitting
from harness.board.points import gather, points
from harness.board.private import PUBLIC, public
from harness.board.render import render
from harness.board.submit import complete, place, readme, submit
from harness.board.table import MEASURED_ONCE, leaderboard
from harness.config import to_json
from harness.errors import HarnessError, InputError
from harness.timing.device import device_facts
from harness.verify import verify


def snapshot(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def board(tmp_path):
    (tmp_path / "board").mkdir()
    return tmp_path / "board"


def add(maker, board, registry):
    every = points(maker.store)
    return submit(*complete(every, every), board, registry)


def test_a_submission_holds_the_evidence_and_no_weights(maker, board, registry):
    maker.point("attention/torch")
    raw = maker.mqar["labels"] | {"x": np.zeros(3)}
    maker.store.write(dataclasses.replace(maker.store.records()[0].record, key="ff" * 32, kind="train"), raw, log="log")
    done = add(maker, board, registry)
    assert len(done.added) == 5
    names = {path.name for path in board.rglob("*") if path.is_file()}
    assert names == {"record.json", "config.json", "raw.npz", "SHA256SUMS", "README.md"}
    places = sorted({path.parts[:4] for path in done.added})
    assert places == [
        ("submissions", folder, "cpu-test-processor-2c", "attention-torch") for folder in ("contract", "tiny-5a5a5a5a")
    ]
    found = gather(board).found
    assert len(found) == 5
    assert [verify(stored, registry) for stored in found] == [[]] * 5


def test_submitting_twice_changes_nothing(maker, board, registry):
    maker.point("attention/torch")
    add(maker, board, registry)
    before = snapshot(board)
    again = add(maker, board, registry)
    assert (len(again.added), len(again.present)) == (0, 5)
    assert snapshot(board) == before


def test_the_readme_is_the_table_of_the_submissions_alone(maker, board, registry, tmp_path):
    maker.point("attention/torch")
    add(maker, board, registry)
    shutil.rmtree(maker.store.root)
    text = (board / "README.md").read_text()
    assert text == readme(board, registry)
    assert text.endswith(render(leaderboard(gather(board / "submissions"), registry), "github") + "\n")
    assert "attention/torch" in text


def test_a_tampered_measure_is_refused_and_the_board_is_unchanged(maker, board, registry):
    maker.point("attention/torch")
    add(maker, board, registry)
    before = snapshot(board)
    maker.point("ema/torch")
    stored = next(s for s in maker.store.records() if s.record.mixer == "ema/torch" and s.record.kind == "test")
    data = json.loads((stored.path / "record.json").read_text())
    next(iter(data["measures"].values()))["value"] = 0.9999
    (stored.path / "record.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="the board is unchanged") as error:
        add(maker, board, registry)
    assert "the raw arrays give" in str(error.value)
    assert snapshot(board) == before


def test_labels_that_are_not_the_tasks_own_are_refused(maker, board, registry):
    raw = {**maker.mqar["labels"], "seeds": np.array([0])}
    raw["targets"] = np.roll(raw["targets"], 1)
    raw |= {"predicted": raw["targets"][None].astype(np.int32), "nll": np.zeros((1, len(raw["targets"])), np.float32)}
    maker.test("ema/torch", "mqar", raw)
    maker.time("ema/torch", "mqar")
    with pytest.raises(InputError, match="'targets' is not that of the test split"):
        add(maker, board, registry)
    assert snapshot(board) == {}


def test_another_data_digest_is_refused(maker, board, registry):
    maker.mqar_test("ema/torch", data_sha256={"test": "00" * 32})
    maker.time("ema/torch", "mqar")
    with pytest.raises(InputError, match="data_sha256 of test"):
        add(maker, board, registry)


def test_labels_of_a_corpus_that_is_not_here_are_reported_as_not_compared(maker, board, registry):
    maker.point("attention/torch")
    (line,) = add(maker, board, registry).labels
    assert "task pile does not load here" in line


def test_failed_and_unfinished_points_are_left_out_with_the_reason(maker, registry):
    maker.point("attention/torch")
    maker.mqar_test("ema/torch")
    maker.mqar_test("base_conv/torch")
    maker.failed("time", "base_conv/torch", "mqar", "out of memory")
    maker.time("short_conv/torch", "mqar")
    every = points(maker.store)
    good, skipped = complete(every, every)
    assert [point.mixer for point in good] == ["attention/torch"]
    assert sorted(line.split(" (")[0] + line.split("):")[1] for line in skipped) == [
        "base_conv/torch mqar time failed: out of memory",
        "ema/torch mqar is not timed",
        "short_conv/torch mqar is not scored",
    ]


def test_a_second_implementation_needs_no_score_of_its_own(maker, board, registry):
    maker.point("attention/torch")
    maker.time("attention/xformers", "mqar")
    maker.time("attention/xformers", "pile")
    assert len(add(maker, board, registry).added) == 7
    assert MEASURED_ONCE in (board / "README.md").read_text()


@pytest.mark.parametrize("after", [0, 2, 4])
def test_an_interrupted_submission_leaves_the_board_as_it_was(maker, board, registry, monkeypatch, after):
    maker.point("attention/torch")
    add(maker, board, registry)
    before = snapshot(board)
    maker.point("ema/torch")
    real, calls = os.rename, []

    def interrupted(source, target):
        if "submissions" in str(target) and board in target.parents and submitting.TEMPORARY not in str(target):
            if len(calls) == after:
                raise KeyboardInterrupt
            calls.append(target)
        real(source, target)

    def no_readme(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(submitting.os, "rename", interrupted)
    monkeypatch.setattr(submitting.os, "replace", no_readme)
    with pytest.raises(KeyboardInterrupt):
        add(maker, board, registry)
    assert snapshot(board) == before


def test_a_board_that_cannot_be_written_is_one_error(maker, tmp_path, registry):
    maker.point("attention/torch")
    (tmp_path / "file").write_text("")
    with pytest.raises(HarnessError, match="nothing was added"):
        add(maker, tmp_path / "file", registry)


def test_nothing_private_is_copied(maker, board, registry, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host.lab.example")
    monkeypatch.setattr(getpass, "getuser", lambda: "maryann")
    config = to_json(maker.configs["mqar"])
    environment = {**maker.environment, "hostname": "secret-host", "user": "maryann", "cwd": "/home/maryann/work"}
    facts = {
        "B": 16,
        "T": 32,
        "layers": "short_conv/torch,attention/torch",
        "peak_method": "VmHWM in /proc/self/status, log in /home/maryann/x/run.log on secret-host",
        "cache": ["~/.cache/thing", "C:\\Users\\maryann\\thing.bin"],
    }
    maker.mqar_test("attention/torch", environment=environment)
    maker.time("attention/torch", "mqar", environment=environment, facts=facts, config=config)
    add(maker, board, registry)
    for path in board.rglob("*.json"):
        text = path.read_text()
        for private in ("maryann", "secret-host", "/home", "~/", "hostname", "Users"):
            assert private not in text, (path.name, private)
    (timed,) = [s for s in gather(board).found if s.record.kind == "time"]
    assert timed.record.facts["layers"] == "short_conv/torch,attention/torch"
    assert "/proc/self/status" in timed.record.facts["peak_method"]
    assert timed.record.environment["class"] == maker.environment["class"]


def test_a_corpus_path_keeps_its_last_part_only(maker):
    config = to_json(maker.configs["pile"])
    config["options"]["corpus"] = "/data/our group/private/pile.jsonl.zst"
    stored = maker.pile_test("attention/torch", config=config)
    assert public(stored.record).config["options"]["corpus"] == "pile.jsonl.zst"
    assert public(stored.record).config["options"]["tokenizer"] == config["options"]["tokenizer"]


def test_every_fact_of_the_device_is_known_to_be_public():
    assert set(device_facts("cpu")) <= set(PUBLIC)


def test_changed_settings_have_a_place_that_every_file_system_takes(maker):
    record = maker.point("a/torch", suite="quick*", suite_key="9" * 64) or maker.store.records()[0].record
    assert place(record).parts[1] == "quick-changed-99999999"


def test_the_boards_own_readme_is_what_its_submissions_give(registry):
    from pathlib import Path

    board = Path(__file__).parents[2] / "leaderboard"
    assert (board / "README.md").read_text() == readme(board, registry), (
        "run: harness submit, or do not edit it by hand"
    )
