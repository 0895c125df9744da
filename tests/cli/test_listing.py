import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from harness.cli import COMMANDS, harness


def command(*args):
    return subprocess.run([sys.executable, "-m", "harness", *args], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_begins_as_the_overview_says(name):
    result = CliRunner().invoke(harness, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "--help" in result.output


@pytest.mark.parametrize("listing", ["mixers", "tasks", "suites"])
def test_listings_print_json(listing):
    out = command(listing, "--json")
    assert out.returncode == 0, out.stderr
    assert len(json.loads(out.stdout)) >= 1


def test_the_table_of_mixers_names_the_baseline_and_its_distribution():
    out = command("mixers")
    assert "attention/torch" in out.stdout
    assert "mixer-harness 0.1.0" in out.stdout


def test_an_unknown_command_is_answered_with_the_nearest_and_exit_code_2():
    out = command("leaderbord")
    assert out.returncode == 2
    assert "did you mean 'leaderboard'" in out.stderr
    assert "Traceback" not in out.stderr


def test_an_error_is_one_message_and_a_traceback_only_with_debug():
    quiet, loud = command("mixers", "--plugin", "nowhere.py"), command("--debug", "mixers", "--plugin", "nowhere.py")
    assert (quiet.returncode, quiet.stderr.count("\n")) == (2, 1)
    assert "nowhere.py" in quiet.stderr
    assert "Traceback" in loud.stderr


def test_a_listing_into_a_closed_pipe_is_no_traceback():
    line = f"{sys.executable} -m harness suites --json | head -1"
    out = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in out.stderr
