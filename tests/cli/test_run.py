import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from harness.cli.run import run
from harness.errors import InputError

SMOKE = ("--preset", "smoke", "--layers", "MIXER", "--device", "cpu")


def invoke(*args):
    return CliRunner().invoke(run, args, standalone_mode=False)


def command(*args):
    environment = {**os.environ, "HARNESS_PLUGINS": ""}
    words = [sys.executable, "-m", "harness", "run", *args]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "either --all, or --mixer NAME"),
        (("--all", "--mixer", "attention"), "either --all, or --mixer NAME"),
        (("--mixer", "atention", *SMOKE), "unknown mixer 'atention': did you mean 'attention'?"),
        (("--all", "--preset", "smok"), "unknown preset 'smok': did you mean 'smoke'?"),
        (("--all", *SMOKE, "--task", "mqra"), "unknown task 'mqra': did you mean 'mqar'?"),
        (("--all", *SMOKE, "--set", "training.stps=3"), "did you mean 'steps'?"),
        (("--all", "--preset", "smoke", "--layers", "nothing_such,MIXER"), "unknown mixer 'nothing_such'"),
        (("--all", "--preset", "smoke", "--layers", "MIXER*"), "cannot read 'MIXER*'"),
        (("--all", *SMOKE, "--plugin", "nowhere.py"), "plugin file 'nowhere.py' does not exist"),
    ],
)
def test_bad_input_is_one_clear_error(args, message):
    result = invoke(*args)
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2
    assert message in str(result.exception)
    assert result.stdout == ""


def test_an_error_has_exit_code_2_and_no_traceback():
    done = command("--all", *SMOKE, "--set", "mqra.training.steps=3")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: unknown setting mqra.training.steps: did you mean 'mqar'?"]


def test_a_dry_run_prints_the_plan_and_touches_nothing(tmp_path):
    done = command("--all", *SMOKE, "--dry-run", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0
    assert done.stdout == ""
    assert "preset smoke* on cpu" in done.stderr
    assert "contract: 0 of 1 mixers have a report, 1 to check" in done.stderr
    assert "7 trials, 7 to run: about" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_in_json_is_the_plan_and_nothing_else_on_stdout(tmp_path):
    plugin = tmp_path / "loud.py"
    plugin.write_text("print('I am loud')\nimport nothing_of_that_name\n")
    done = command("--all", *SMOKE, "--dry-run", "--json", "--plugin", str(plugin), "--runs", str(tmp_path / "runs"))
    plan = json.loads(done.stdout)["plan"]
    assert plan["suite"] == "smoke*"
    assert plan["device"] == "cpu"
    assert {trial["task"] for trial in plan["plan"]} == {"contract", "mqar", "pile"}
    assert "I am loud" in done.stderr
    assert "warning: loud.py: ModuleNotFoundError" in done.stderr


def test_the_default_preset_is_that_of_the_device():
    done = command("--all", "--device", "cpu", "--layers", "MIXER", "--dry-run")
    assert done.stderr.startswith("preset quick* on cpu")


def test_a_runs_folder_that_cannot_be_written_is_one_error_before_any_training(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = command("--mixer", "attention", *SMOKE, "--task", "mqar", "--runs", str(tmp_path / "file" / "runs"))
    assert done.returncode == 2
    assert "cannot" in done.stderr.splitlines()[-1]
    assert "--runs DIR" in done.stderr.splitlines()[-1]
    assert "[1/" not in done.stderr


def test_a_corpus_that_cannot_be_read_is_one_error_before_any_training(tmp_path):
    corpus = ("--corpus", str(tmp_path / "nothing.jsonl"))
    done = command("--mixer", "attention", *SMOKE, "--task", "pile", *corpus, "--runs", str(tmp_path / "runs"))
    assert done.returncode != 0
    assert "nothing.jsonl" in done.stderr.splitlines()[-1]
    assert "[1/" not in done.stderr
    assert "Traceback" not in done.stderr
