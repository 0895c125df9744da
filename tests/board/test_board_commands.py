import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from harness.cli import harness
from harness.errors import InputError, RecordError


def run(*words):
    """Returns the result; an error of the harness is raised, as `main` would see it."""
    return CliRunner().invoke(harness, list(map(str, words)), catch_exceptions=False, standalone_mode=False)


@pytest.fixture
def runs(maker):
    maker.point("attention/torch")
    maker.failed("time", "ema/torch", "mqar", "out of memory")
    return maker.store.root


def test_the_leaderboard_without_records_says_what_to_type(tmp_path):
    with pytest.raises(InputError, match="harness run --all") as error:
        run("leaderboard", "--runs", tmp_path / "none")
    assert error.value.exit_code == 2


def test_the_leaderboard_prints_every_format(runs):
    assert "attention/torch" in run("leaderboard", "--runs", runs).output
    assert run("leaderboard", "--runs", runs, "--format", "github").output.startswith("### tiny")
    assert run("leaderboard", "--runs", runs, "--format", "html").output.startswith("<!DOCTYPE html>")
    assert json.loads(run("leaderboard", "--runs", runs, "--json").stdout)[0]["suite"] == "tiny"


def test_the_leaderboard_imports_neither_torch_nor_numpy(runs):
    code = (
        "import sys\n"
        "from harness.cli import harness\n"
        f"harness(['leaderboard', '--runs', {str(runs)!r}], standalone_mode=False)\n"
        "print([name for name in ('torch', 'numpy') if name in sys.modules], file=sys.stderr)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "attention/torch" in out.stdout
    assert out.stderr.splitlines()[-1] == "[]"


def test_submit_adds_the_complete_points_of_a_folder(runs, tmp_path):
    result = run("submit", runs, "--board", tmp_path / "board")
    assert "5 records added" in result.output
    assert "skipped: ema/torch" in result.output
    again = json.loads(run("submit", runs, "--board", tmp_path / "board", "--json").stdout)
    assert (again["added"], len(again["present"])) == ([], 5)


def test_submit_takes_the_point_of_one_record(maker, runs, tmp_path):
    maker.point("short_conv/torch", (0.3, 0.3))
    stored = next(s for s in maker.store.records() if s.record.mixer == "short_conv/torch" and s.record.kind == "test")
    for board, named in (("a", [stored.path]), ("b", [stored.record.key[:12], "--runs", runs])):
        assert "5 records added" in run("submit", *named, "--board", tmp_path / board).output
        assert "short-conv" not in (tmp_path / board / "README.md").read_text()
        assert "attention/torch" not in (tmp_path / board / "README.md").read_text()


def test_a_failed_record_is_not_submitted(maker, runs, tmp_path):
    failed = next(s for s in maker.store.records() if s.record.status == "failed")
    with pytest.raises(InputError, match="out of memory"):
        run("submit", failed.path, "--board", tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_an_unknown_run_is_an_error_that_says_what_is_taken(runs, tmp_path):
    with pytest.raises(InputError, match="give a folder of records"):
        run("submit", tmp_path / "nowhere")
    with pytest.raises(InputError, match="list them: harness records"):
        run("verify", "0000000000000000", "--runs", runs)


def test_verify_says_what_was_checked(runs):
    result = run("verify", runs, "--no-labels")
    assert result.exit_code == 0
    assert result.output.count("measures recomputed") == 6
    found = json.loads(run("verify", runs, "--json").stdout)
    assert {row["labels"] for row in found if row["task"] == "mqar" and row["kind"] == "test"} == {
        "equal the task's own"
    }
    assert all(row["mismatches"] == [] for row in found)


def test_verify_of_a_changed_file_exits_with_1_and_names_it(maker, runs):
    path = next(s.path for s in maker.store.records() if s.record.status == "ok")
    (path / "config.json").write_text("{}")
    with pytest.raises(RecordError, match="1 of 6 records") as error:
        run("verify", runs, "--no-labels")
    assert error.value.exit_code == 1


def test_a_damaged_record_fails_verification(maker, runs):
    path = maker.store.records()[0].path
    (path / "record.json").write_text("{")
    with pytest.raises(RecordError, match="1 of 6"):
        run("verify", runs, "--no-labels", "--json")
    with pytest.raises(RecordError, match="1 of 1"):
        run("verify", path)


def test_a_submitted_board_verifies_and_prints_like_a_run(runs, tmp_path):
    run("submit", runs, "--board", tmp_path / "board")
    submissions = tmp_path / "board" / "submissions"
    assert run("verify", submissions, "--no-labels").output.count("measures recomputed") == 5
    table = run("leaderboard", "--runs", submissions, "--format", "github").stdout
    assert (tmp_path / "board" / "README.md").read_text().endswith(table)


def test_records_are_listed_with_status_and_reason(runs):
    text = run("records", "--runs", runs).output
    assert "out of memory" in text
    rows = json.loads(run("records", "--runs", runs, "--json").stdout)
    assert sorted(row["status"] for row in rows) == ["failed", *["ok"] * 5]
    assert all(len(row["key"]) == 64 for row in rows)
