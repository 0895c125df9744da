"""The folder of records: one folder a trial, written whole or not at all.

Listing needs the standard library only; arrays and weights are read when they are asked for.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, InputError, RecordError
from harness.record import Record, record_from_json, record_to_json, require_gate

if TYPE_CHECKING:
    import numpy as np

RECORD, CONFIG, RAW, CURVE = "record.json", "config.json", "raw.npz", "curve.npz"
LOG, WEIGHTS, SUMS = "log.txt", "weights.pt", "SHA256SUMS"
TEMPORARY = ".tmp-"
FOLDER = re.compile(r".+-[0-9a-f]{10}")
PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class Damage:
    """A record folder that cannot be read, and why, in one line."""

    path: Path
    cause: str

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}; delete this folder and run the same command again"


@dataclass(frozen=True)
class StoredRecord:
    """A record and where it lies."""

    record: Record
    path: Path

    def raw(self) -> "dict[str, np.ndarray]":
        """Returns every array the measures are computed from; a record without arrays gives an empty dict."""
        return _load_arrays(self.path / RAW) if self.record.raw_sha256 else {}

    def curve(self) -> "dict[str, np.ndarray] | None":
        """Returns the training curve, or None where none was stored."""
        return _load_arrays(self.path / CURVE) if (self.path / CURVE).exists() else None

    @property
    def weights_path(self) -> Path | None:
        """Returns where the trained weights lie, or None where none were stored."""
        path = self.path / WEIGHTS
        return path if path.exists() else None

    @property
    def log(self) -> str:
        """Returns what the trial printed."""
        path = self.path / LOG
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


class Store:
    """The records below one folder. Any number of processes may write to it at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def records(self) -> list[StoredRecord]:
        """Returns every readable record, failed trials too, in the order of the folder names."""
        return [found for found in self._read() if isinstance(found, StoredRecord)]

    @property
    def damaged(self) -> list[Damage]:
        """Returns the record folders that cannot be read."""
        return [found for found in self._read() if isinstance(found, Damage)]

    def find(self, key: str) -> StoredRecord | None:
        """Returns the readable record of that key, ok or failed, or None."""
        for path in sorted(self.root.glob(f"*-{key[:10]}")):
            found = _open(path)
            if isinstance(found, StoredRecord) and found.record.key == key:
                return found
        return None

    def write(
        self,
        record: Record,
        raw: "Mapping[str, np.ndarray]",
        curve: "Mapping[str, np.ndarray] | None" = None,
        weights: Mapping[str, Any] | None = None,
        log: str | None = None,
    ) -> StoredRecord:
        """Returns the record as stored, its `raw_sha256` filled in; an ok record of the same key stays as it is."""
        require_gate(record)
        record = replace(record, raw_sha256=arrays_sha256(raw) if raw else None)
        files = _contents(record, raw, curve, log)
        if weights is not None:
            files[WEIGHTS] = _weights_bytes(weights)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            part = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{_owner()}-", dir=self.root))
            try:
                for name, content in files.items():
                    _write_synced(part / name, content)
                _sync_folder(part)
                part.chmod(0o755)  # mkdtemp makes it private
                return self._publish(part, self.root / folder_name(record), record)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        except OSError as error:
            raise HarnessError(_cannot_write(self.root, error)) from error

    def remove(self, key: str) -> bool:
        """Returns whether a record of that key was there; it no longer is."""
        found = self.find(key)
        if found is None:
            return False
        try:
            self._discard(found.path)
        except OSError as error:
            raise HarnessError(_cannot_write(self.root, error)) from error
        return True

    def check_writable(self) -> None:
        """Writes and removes a real file; a folder that does not take one raises InputError."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{_owner()}-", dir=self.root) as folder:
                _write_synced(Path(folder) / "probe", bytes(PROBE_BYTES))
        except OSError as error:
            raise InputError(_cannot_write(self.root, error)) from error

    def _read(self) -> list[StoredRecord | Damage]:
        try:
            folders = sorted(path for path in self.root.iterdir() if FOLDER.fullmatch(path.name) and path.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(
                f"cannot read records in {self.root}: {error.strerror}; choose a folder with --runs DIR"
            ) from error
        return [_open(path) for path in folders if not path.name.startswith(TEMPORARY)]

    def _publish(self, part: Path, path: Path, record: Record) -> StoredRecord:
        """Renames the finished folder to its name: readers see the whole record, or the one before."""
        while True:
            try:
                os.rename(part, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                before = _open(path)
                if isinstance(before, StoredRecord) and before.record.status == "ok":
                    return before
                self._discard(path)
            else:
                _sync_folder(self.root)
                return StoredRecord(record, path)

    def _discard(self, path: Path) -> None:
        """Takes a record away in one rename, then deletes it: no reader meets a folder that is half gone."""
        grave = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{_owner()}-", dir=self.root))
        try:
            os.rename(path, grave / "record")
        except FileNotFoundError:  # another process was faster
            pass
        finally:
            shutil.rmtree(grave, ignore_errors=True)

    def _sweep(self) -> None:
        """Deletes what killed writers left."""
        for path in self.root.glob(f"{TEMPORARY}*"):
            if _abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def folder_name(record: Record) -> str:
    """Returns `<task>-<mixer>-<kind>[-lr..-seed..]-<first ten of the key>`."""
    parts = [record.task, re.sub(r"[^a-z0-9_.]+", "-", record.mixer.lower()).strip("-"), record.kind]
    if record.kind == "train":
        parts += [f"lr{record.lr:g}" if record.lr is not None else "", f"seed{record.seed}"]
    return "-".join([*filter(None, parts), record.key[:10]])


def arrays_sha256(arrays: "Mapping[str, np.ndarray]") -> str:
    """Returns the SHA-256 over names, dtypes, shapes and little-endian bytes: the same on every platform."""
    import numpy as np

    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.hasobject:
            raise RecordError(f"array {name!r} holds Python objects; store numbers, booleans or text")
        array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        sha.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode() + b"\n")
        sha.update(array.tobytes())
    return sha.hexdigest()


def stale_sums(path: Path) -> list[str]:
    """Returns one line for each file of a record folder whose content is not what SHA256SUMS says."""
    try:
        text = (path / SUMS).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        return [f"{SUMS} cannot be read: {error}"]
    stated = {name: sha for sha, _, name in (line.partition("  ") for line in text.split("\n")[:-1])}
    wrong = [] if text == _sums(stated) else [f"{SUMS} is not a list of digests and file names"]
    for name in (CONFIG, RECORD, RAW, CURVE, LOG):
        file = path / name
        if not file.exists():
            if name in stated and name not in (CURVE, LOG):
                wrong.append(f"{name} is listed in {SUMS} but missing")
        elif stated.get(name) != hashlib.sha256(file.read_bytes()).hexdigest():
            wrong.append(f"{name} was changed after it was written: its SHA-256 is not the one in {SUMS}")
    return wrong


def _contents(
    record: Record, raw: "Mapping[str, np.ndarray]", curve: "Mapping[str, np.ndarray] | None", log: str | None
) -> dict[str, bytes]:
    """Returns the files of a record, with their SHA-256 in the format that `sha256sum --check` reads."""
    files = {CONFIG: _json_bytes(record.config), RECORD: _json_bytes(record_to_json(record))}
    if raw:
        files[RAW] = _npz_bytes(raw)
    if curve:
        files[CURVE] = _npz_bytes(curve)
    if log is not None:
        files[LOG] = log.encode("utf-8", errors="replace")
    files[SUMS] = _sums({name: hashlib.sha256(body).hexdigest() for name, body in files.items()}).encode()
    return files


def _sums(digests: Mapping[str, str]) -> str:
    return "".join(f"{sha}  {name}\n" for name, sha in digests.items())


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _npz_bytes(arrays: "Mapping[str, np.ndarray]") -> bytes:
    import numpy as np

    buffer = io.BytesIO()  # a full disk then fails in one place, with its errno
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _weights_bytes(weights: Mapping[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    return buffer.getvalue()


def _load_arrays(path: Path) -> "dict[str, np.ndarray]":
    import zipfile

    from numpy.lib import format as npy

    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
        return {name: npy.read_array(io.BytesIO(body), allow_pickle=False) for name, body in members.items()}
    except Exception as error:  # damaged bytes raise anything from zlib.error to RuntimeError("encrypted")
        cause = " ".join(str(error).split()) or type(error).__name__
        raise RecordError(f"{path} cannot be read: {cause}; delete its folder and run the trial again") from error


def _open(path: Path) -> StoredRecord | Damage:
    try:
        data = json.loads((path / RECORD).read_bytes())
        record = record_from_json(data)
    except OSError as error:
        return Damage(path, f"{RECORD}: {error.strerror}")
    except HarnessError as error:
        return Damage(path, str(error))
    except (ValueError, TypeError, AttributeError) as error:  # not JSON, not text, not an object
        return Damage(path, f"{RECORD} is not a record: {' '.join(str(error).split())}")
    if not isinstance(record.key, str) or not path.name.endswith(record.key[:10]):
        return Damage(path, f"the folder belongs to another key than {record.key!r}")
    if record.raw_sha256 and not (path / RAW).is_file():
        return Damage(path, f"{RAW} is missing")
    return StoredRecord(record, path)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _owner() -> str:
    return f"{_host()}-{os.getpid()}"


def _abandoned(path: Path) -> bool:
    """Returns whether the process that made the temporary folder is gone; one on another host counts as alive."""
    import psutil

    host, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
    pid = rest.partition("-")[0]
    if host != _host() or not pid.isdigit():
        return False
    try:
        # a process that is younger than the folder only has the number of the one that made it
        owner = psutil.Process(int(pid))
        return owner.status() == psutil.STATUS_ZOMBIE or owner.create_time() > path.stat().st_mtime + 1
    except psutil.AccessDenied:
        return False
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def _cannot_write(root: Path, error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return (
        f"cannot write records to {root}: {error.strerror or error} ({name}); "
        "free space there, or choose another folder with --runs DIR"
    )
