import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from harness import MQAR, InputError
from harness.cli.data import data


def export(*args):
    return CliRunner().invoke(data, ["export", *args], catch_exceptions=True)


def test_export_writes_the_split_and_prints_where_how_many_and_its_digest(tmp_path):
    out = tmp_path / "test.npz"
    result = export("mqar", "--N", "64", "--D", "4", "--split", "test", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told == {"path": str(out), "examples": 3000, "sha256": MQAR(N=64, D=4).data_sha256()["test"]}
    with np.load(out) as stored:
        assert stored["tokens"].shape == (3000, 64)


def test_examples_sets_the_count_of_the_exported_split(tmp_path):
    out = tmp_path / "train.jsonl"
    result = export("mqar", "--split", "train", "--examples", "7", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "7 examples, sha256 " in result.output
    assert len(out.read_text().splitlines()) == 7


def test_settings_reach_the_options(tmp_path):
    out = tmp_path / "out.npz"
    sets = ("--set", "vocab_size=128", "--set", "test_cells=((16, 2, 5), (32, 4, 6))", "--set", "seed=3")
    result = export("mqar", *sets, "--set", "random_non_queries=true", "--out", str(out))
    assert result.exit_code == 0, result.output
    with np.load(out) as stored:
        assert stored["tokens"].shape == (11, 32)
        assert stored["tokens"].max() < 128
        assert (stored["tokens"][5:, 9::2] != 0).any()


def test_the_training_seed_changes_the_training_data(tmp_path):
    digests = set()
    for seed in ("0", "1"):
        args = ("--split", "train", "--examples", "5", "--train-seed", seed, "--json")
        digests.add(json.loads(export("mqar", *args, "--out", str(tmp_path / "out.npz")).output)["sha256"])
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("mqra",), "cannot export task 'mqra': did you mean 'mqar'?"),
        (("pile",), "cannot export task 'pile'"),
        (("mqar", "--split", "tets"), "did you mean 'test'?"),
        (("mqar", "--N", "64"), "takes both N"),
        (("mqar", "--N", "64", "--D", "17"), "D must be from 1 to 16"),
        (("mqar", "--examples", "0"), "examples must be at least 1, got 0"),
        (("mqar", "--set", "vocab_siez=9"), "did you mean 'vocab_size'?"),
        (("mqar", "--set", "vocab_size"), "--set takes KEY=VALUE"),
        (("mqar", "--set", "test_cells=((16, 2, 5), (32, 4, 6))", "--examples", "5"), "test_cells has 2"),
    ],
)
def test_bad_input_names_what_is_allowed_and_writes_nothing(args, message, tmp_path):
    result = export(*args, "--out", str(tmp_path / "out.npz"))
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_an_input_error(tmp_path):
    result = export("mqar", "--out", str(tmp_path / "missing" / "out.npz"))
    assert isinstance(result.exception, InputError)
    assert "cannot write" in str(result.exception)


def test_the_help_of_export_needs_no_numpy():
    code = "import harness.cli.data, sys; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
