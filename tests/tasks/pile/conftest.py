"""Archives made of invented text, and a corpus file: no test here needs the network or anybody's text."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made_text import document

from harness.tasks.pile.archives import Archive


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[..., Archive]:
    """Returns a maker of small wheels whose SHA-256 is pinned as they were written."""

    def make(package: str, files: dict[str, str], folder: str = "index") -> Archive:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        stem = package.replace("-", "_")
        path = place / f"{stem}-1.0-py3-none-any.whl"
        info = f"{stem}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        return Archive(package, "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), "wheel")

    return make


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """Returns a corpus of 400 documents in three subsets, one of them rare."""
    path = tmp_path / "made.jsonl"
    lines = []
    for number in range(400):
        subset = "made:Rare" if number % 40 < 2 else ("made:A", "made:B")[number % 2]
        record = {"text": document(number)["text"], "meta": {"pile_set_name": subset}}
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
