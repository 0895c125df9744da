import json

import pytest
from click.testing import CliRunner

from harness.cli.compare import compare
from harness.cli.device import device
from harness.cli.time import time
from harness.errors import InputError


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (time, ("attention", "--T", "12,many"), "--T takes whole numbers with commas between"),
        (time, ("attention", "--mode", "forward,bakward"), "unknown mode 'bakward'"),
        (time, ("attention", "--processes", "2"), "--processes takes at least 3"),
        (time, ("attention", "--dtype", "bfloat61"), "unknown --dtype 'bfloat61': did you mean 'bfloat16'?"),
        (time, ("attention", "--T", "1,512"), "--T takes lengths of at least 2"),
        (compare, ("attention", "ema", "--dtype", "int8"), "unknown --dtype 'int8'"),
        (time, ("atention",), "did you mean 'attention'?"),
        (compare, ("attention",), "give two mixers, or one and --aa"),
        (compare, ("attention", "ema", "--aa"), "give two mixers, or one and --aa"),
        (compare, ("attention", "ema", "--processes", "3"), "--processes takes at least 8"),
        (compare, ("attention", "nothing_such"), "unknown mixer 'nothing_such'"),
    ],
)
def test_bad_input_is_one_clear_error(command, args, message, tmp_path):
    result = CliRunner().invoke(command, (*args, "--device", "cpu", "--runs", str(tmp_path)), standalone_mode=False)
    assert isinstance(result.exception, InputError), result.exception
    assert message in str(result.exception)
    assert result.stdout == ""


def test_the_device_is_shown_with_ceilings_that_were_kept(tmp_path, monkeypatch):
    from harness.sweep.local import alone
    from harness.timing.ceilings import Ceilings, ceilings_path, save
    from harness.timing.device import device_facts

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    threads = alone("cpu").threads
    known = Ceilings(
        device_class=device_facts("cpu")["class"],
        threads=threads,
        driver=None,
        torch="2",
        copy_bytes_per_s=20e9,
        product_flops_per_s={"float32": 1.5e11, "float16": None},
        measured="2026-01-01T00:00:00+00:00",
        other_cores=1.2,
    )
    save(known, ceilings_path(device_facts("cpu"), threads))
    shown = CliRunner().invoke(device, ("--device", "cpu"))
    assert "20.0 GB/s" in shown.stdout
    assert "0.15 TFLOP/s" in shown.stdout
    assert "not on this device" in shown.stdout
    assert "other processes kept 1.2 cores busy" in shown.stderr
    plain = json.loads(CliRunner().invoke(device, ("--device", "cpu", "--json")).stdout)
    assert plain["ceilings"]["copy_bytes_per_s"] == 20e9
    assert set(plain) == {"facts", "conditions", "ceilings", "kept_in"}


def test_time_and_compare_take_the_same_options_where_they_mean_the_same():
    taken = [{p.name: p for p in command.params if p.param_type_name == "option"} for command in (time, compare)]
    shared = taken[0].keys() & taken[1].keys()
    assert {"lengths", "modes", "d_model", "batch_size", "dtype", "again", "files", "runs", "device"} < shared
    for name in shared - {"processes"}:
        assert taken[0][name].help == taken[1][name].help
