"""A plugin of one file keeps the same promises, in at most twenty lines."""

from pathlib import Path

from harness.testing import mixer_contract

FILE = Path(__file__).parents[1] / "one_file.py"

test_running_mean = mixer_contract("running_mean", plugin=FILE)


def test_one_file_of_twenty_lines_is_a_whole_plugin() -> None:
    assert len([line for line in FILE.read_text().splitlines() if line.strip()]) <= 20
