"""The ruler's own tests, on the wall clock of this machine: `pytest -m slow tests/timing`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RULER = Path(__file__).parents[2] / "benchmarks/ruler.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [("--parts", "clock,burn"), ("--parts", "aa", "--pairs", "20", "--duels", "20")],
    ids=["a sleep is found and burning neighbours are flagged", "a mixer is not called faster than itself"],
)
def test_the_ruler_keeps_its_targets(args, tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, str(RULER), "--runs", str(tmp_path / "runs"), "--json", str(found), "--T", "128", *args]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(found.read_text())
