import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from harness.errors import HarnessError, InputError, RecordError
from harness.record import Record
from harness.spec import Measure
from harness.store import Store, arrays_sha256, folder_name, stale_sums

KEY = "0123456789abcdef" * 4
RAW = {"predicted": np.arange(6, dtype=np.int32), "nll": np.linspace(0, 1, 6, dtype=np.float32)}


def a_record(key=KEY, **changes):
    fields = {
        "key": key,
        "kind": "train",
        "mixer": "base_conv/torch(kernel=3)",
        "task": "mqar",
        "suite": "quick",
        "suite_key": "s",
        "config": {"task": "mqar"},
        "lr": 0.003,
        "seed": 1,
        "measures": {"accuracy": Measure(value=0.5, unit="fraction", n=6)},
    }
    return Record(**(fields | changes))


def test_what_is_written_is_read_back(tmp_path):
    store = Store(tmp_path / "runs")
    written = store.write(a_record(), RAW, curve={"step": np.arange(3)}, log="one\n")
    (read,) = store.records()
    assert read == written == store.find(KEY)
    assert read.record == dataclasses.replace(a_record(), raw_sha256=arrays_sha256(RAW))
    assert all(np.array_equal(read.raw()[name], RAW[name]) for name in RAW)
    assert read.curve()["step"].tolist() == [0, 1, 2]
    assert (read.log, read.weights_path) == ("one\n", None)
    assert stale_sums(read.path) == []


def test_weights_come_back_as_tensors(tmp_path):
    import torch

    stored = Store(tmp_path).write(a_record(), RAW, weights={"w": torch.arange(4.0)})
    assert torch.equal(torch.load(stored.weights_path, weights_only=True)["w"], torch.arange(4.0))


def test_the_folder_name_says_what_is_inside(tmp_path):
    assert folder_name(a_record()) == "mqar-base_conv-torch-kernel-3-train-lr0.003-seed1-0123456789"
    assert folder_name(a_record(kind="time", mixer="attention/torch")) == "mqar-attention-torch-time-0123456789"


def test_a_folder_that_does_not_exist_holds_no_records(tmp_path):
    store = Store(tmp_path / "none")
    assert (store.records(), store.damaged, store.find(KEY), store.remove(KEY)) == ([], [], None, False)


def test_an_ok_record_is_kept_and_a_failed_one_replaced(tmp_path):
    store = Store(tmp_path)
    failed = store.write(a_record(status="failed", reason="out of memory", measures={}), {})
    assert store.find(KEY).record.reason == "out of memory"
    assert failed.raw() == {}
    store.write(a_record(), RAW, log="first")
    store.write(a_record(), RAW, log="second")
    store.write(a_record(status="failed", reason="late", measures={}), {})
    (only,) = store.records()
    assert (only.record.status, only.log) == ("ok", "first")


def test_a_removed_record_is_gone(tmp_path):
    store = Store(tmp_path)
    store.write(a_record(), RAW)
    assert store.remove(KEY)
    assert store.find(KEY) is None
    assert list(tmp_path.iterdir()) == []


def test_keys_that_begin_alike_are_told_apart(tmp_path):
    store = Store(tmp_path)
    other = KEY[:10] + "f" * 54
    store.write(a_record(), RAW)
    assert store.find(other) is None


@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("record.json", b"{", "not a record"),
        ("record.json", b"\xff\xfe", "not a record"),
        ("record.json", b"[]", "not a record"),
        ("record.json", b"{}", "schema"),
        ("record.json", b'{"schema": 1, "surprise": 2}', "surprise"),
        ("record.json", b'{"schema": 1, "measures": {"a": {"value": "x", "unit": "", "n": 1}}}', "value"),
        ("record.json", None, "No such file"),
        ("raw.npz", None, "raw.npz is missing"),
    ],
)
def test_a_damaged_record_is_one_line_of_cause_and_the_others_are_read(tmp_path, file, content, cause):
    store = Store(tmp_path)
    broken = store.write(a_record(), RAW).path / file
    store.write(a_record(key="f" * 64), RAW)
    broken.unlink() if content is None else broken.write_bytes(content)
    assert [stored.record.key for stored in store.records()] == ["f" * 64]
    (damage,) = store.damaged
    assert cause in str(damage)
    assert "\n" not in str(damage)
    assert store.find(KEY) is None
    store.write(a_record(), RAW)  # a second run repairs it
    assert store.damaged == []
    assert store.find(KEY) is not None


def test_truncated_arrays_are_an_error_that_names_the_file(tmp_path):
    stored = Store(tmp_path).write(a_record(), RAW)
    whole = (stored.path / "raw.npz").read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        (stored.path / "raw.npz").write_bytes(whole[:size])
        with pytest.raises(RecordError, match=r"raw\.npz cannot be read"):
            stored.raw()


def test_other_folders_are_no_business_of_the_store(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "leaderboard.md").write_text("x")
    assert Store(tmp_path).records() == Store(tmp_path).damaged == []


def test_the_digest_depends_on_names_types_shapes_and_values_but_not_on_byte_order_or_layout():
    a = np.arange(6, dtype=np.int32).reshape(2, 3)
    same = [{"a": a.astype(">i4")}, {"a": np.asfortranarray(a)}, {"a": np.repeat(a, 2, axis=1)[:, ::2]}]
    other = [{"b": a}, {"a": a.astype(np.int64)}, {"a": a.reshape(3, 2)}, {"a": a + 1}, {"a": a, "b": a}]
    assert {arrays_sha256(raw) for raw in same} == {arrays_sha256({"a": a})}
    assert len({arrays_sha256(raw) for raw in [*other, {"a": a}]}) == len(other) + 1
    assert arrays_sha256({"a": np.array(1)}) != arrays_sha256({"a": np.array([1])})
    assert arrays_sha256({"a": a, "b": a + 1}) == arrays_sha256({"b": a + 1, "a": a})
    golden = "e4ee2ec75453"
    assert arrays_sha256({"a": a})[:12] == golden


def test_objects_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RecordError, match="Python objects"):
        Store(tmp_path).write(a_record(), {"a": np.array([None])})
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_a_folder_is_an_error_with_its_path_and_the_fix(tmp_path):
    (tmp_path / "runs").write_text("a file")
    for root in (tmp_path / "runs", tmp_path / "runs" / "below"):
        with pytest.raises(InputError, match=r"runs.*--runs DIR") as caught:
            Store(root).check_writable()
        assert "exists" in str(caught.value) or "Not a directory" in str(caught.value)
        with pytest.raises(HarnessError, match="--runs DIR"):
            Store(root).write(a_record(), RAW)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_root_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="EACCES"):
        Store(tmp_path).check_writable()


def test_a_writable_root_is_left_as_it_was(tmp_path):
    Store(tmp_path / "new").check_writable()
    assert list((tmp_path / "new").iterdir()) == []


def run_python(code, *args, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from tests_record import a_record
from harness.errors import HarnessError
from harness.store import Store
store = Store(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the system refuses the bytes beyond
for act in (store.check_writable, lambda: store.write(a_record(), {"a": np.random.default_rng(0).random(50_000)})):
    try:
        act()
    except HarnessError as error:
        print(error)
"""

WRITE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from tests_record import a_record
from harness.store import Store
store, rng = Store(Path(sys.argv[1])), np.random.default_rng()
while True:
    key = rng.bytes(32).hex()
    store.write(a_record(key=key, measures={}), {"a": rng.random(5_000)}, log="x" * 4_000_000)
    print("wrote", flush=True)
"""


@pytest.fixture
def with_helper(tmp_path, monkeypatch):
    """Makes `a_record` importable in another process as `tests_record`."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tests_record.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path / "lib")


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit")
@pytest.mark.usefixtures("with_helper")
def test_a_write_that_the_system_refuses_leaves_nothing_and_says_what_to_do(tmp_path):
    out, err = run_python(FULL_DISK, tmp_path / "runs").communicate(timeout=60)
    lines = out.splitlines()
    assert len(lines) == 2, err
    assert all("EFBIG" in line and "--runs DIR" in line and str(tmp_path / "runs") in line for line in lines)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.usefixtures("with_helper")
def test_a_killed_writer_leaves_whole_records_and_the_next_writer_tidies_up(tmp_path):
    root = tmp_path / "runs"
    left_something, attempt = False, 0
    while attempt < 4 or (not left_something and attempt < 20):
        attempt += 1
        writer = run_python(WRITE_FOREVER, root)
        assert writer.stdout.readline() == "wrote\n", writer.stderr.read()
        deadline = time.monotonic() + 0.05 + 0.007 * attempt
        while time.monotonic() < deadline:  # a reader beside the writer never sees a part
            assert Store(root).damaged == []
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        left_something |= any(path.name.startswith(".tmp-") for path in root.iterdir())
        for stored in Store(root).records():
            assert arrays_sha256(stored.raw()) == stored.record.raw_sha256
            assert stale_sums(stored.path) == []
    assert Store(root).records()
    Store(root).write(a_record(), RAW)
    assert left_something
    assert [path.name for path in root.iterdir() if path.name.startswith(".tmp-")] == []


def test_the_unfinished_folder_of_a_living_writer_is_left_alone(tmp_path):
    from harness.store import _owner

    living = tmp_path / f".tmp-{_owner()}-abc"
    elsewhere = tmp_path / ".tmp-00000000-1-abc"
    living.mkdir()
    elsewhere.mkdir()
    Store(tmp_path).write(a_record(), RAW)
    assert living.is_dir()
    assert elsewhere.is_dir()


@pytest.mark.usefixtures("with_helper")
def test_two_writers_of_one_key_leave_one_whole_record(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests_record import *\n"
        "for n in range(40): Store(Path(sys.argv[1])).write(a_record(status='failed', reason=sys.argv[2]), RAW)"
    )
    writers = [run_python(code, tmp_path / "runs", name) for name in "ab"]
    errors = [writer.communicate(timeout=60)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], errors
    (path,) = (tmp_path / "runs").iterdir()
    assert stale_sums(path) == []
    assert json.loads((path / "record.json").read_text())["reason"] in "ab"


def test_listing_needs_neither_numpy_nor_torch(tmp_path):
    Store(tmp_path).write(a_record(), RAW)
    code = (
        "import sys; from pathlib import Path; from harness.store import Store\n"
        "print(len(Store(Path(sys.argv[1])).records()), [m for m in ('numpy', 'torch', 'psutil') if m in sys.modules])"
    )
    out, err = run_python(code, tmp_path).communicate(timeout=60)
    assert out == "1 []\n", err
