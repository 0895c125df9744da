"""Runs the files of `cases/` in a pytest of their own.

Triton reads TRITON_INTERPRET once, when it is first imported, and other tests of a process may import it before. So
neither way to run the kernels depends on who shares the process: each case file gets a fresh one. By hand:

    TRITON_INTERPRET=1 pytest plugins/zoo/tests/kernels/cases/short_conv_cases.py
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).parent / "cases"


def has_cuda() -> bool:
    """Returns whether compiled kernels can run here."""
    return torch.cuda.is_available()


def run_cases(file: str, *, interpret: bool) -> None:
    """Fails with the output of the case file's tests where one of them fails."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: it has wheels for Linux only")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--tb=short",
        str(CASES / file),
    ]
    result = subprocess.run(command, env=environment, cwd=CASES, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.fail(f"{' '.join(command)}\n{result.stdout}{result.stderr}", pytrace=False)
