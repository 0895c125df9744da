"""A user's own corpus: one JSON record a line, plain or zstandard, in the Pile's format. Read as a stream."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from harness.errors import InputError
from harness.tasks.pile.corpora import Document, Meta

_CHUNK = 1 << 16  # of packed bytes: they may unpack to thousands of times as many
_EXPECTED = 'expected one JSON object a line: {"text": "…", "meta": {"pile_set_name": "…"}}'


class JsonlCorpus:
    """The documents of one file: iterate as often as needed; nothing is held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Document]:
        """Yields the records; InputError names the file, the line and what is expected there."""
        number = 0
        for number, line in enumerate(_lines(self.path), 1):
            if line.strip():
                yield _document(line, f"{self.path}, line {number}")
        if not number:
            raise InputError(f"{self.path} is empty; {_EXPECTED}")


def check_path(corpus: str) -> Path:
    """Returns the corpus file's path; InputError if it is no file of a known kind."""
    path = Path(corpus)
    allowed = 'allowed: "mini", or the path of a .jsonl or .jsonl.zst file'
    if not path.name.endswith((".jsonl", ".jsonl.zst")):
        raise InputError(f"corpus {corpus!r} is neither the built-in corpus nor a .jsonl file; {allowed}")
    if not path.is_file():
        raise InputError(f"corpus {corpus!r}: {'is a folder' if path.is_dir() else 'there is no such file'}; {allowed}")
    return path


def _document(line: bytes, where: str) -> Document:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); {_EXPECTED}") from None
    except (ValueError, RecursionError) as error:  # ValueError also covers a number with too many digits
        raise InputError(f"{where}: not valid JSON ({error}), got {_shown(line)}; {_EXPECTED}") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise InputError(f'{where}: no "text" of type string, got {_shown(line)}; {_EXPECTED}')
    meta = record.get("meta") or {}
    name = meta.get("pile_set_name", "unnamed") if isinstance(meta, dict) else None
    if not isinstance(name, str):
        raise InputError(f'{where}: "meta" holds no "pile_set_name" of type string, got {_shown(line)}; {_EXPECTED}')
    raw = record["text"].encode("utf-8", "replace")  # JSON can spell half a surrogate pair
    # Named by its content: the split does not depend on the order, and no text stands in two splits.
    named: Meta = {"pile_set_name": name, "source": "file", "id": hashlib.sha1(raw, usedforsecurity=False).hexdigest()}
    return {"text": raw.decode("utf-8"), "meta": named}


def _shown(line: bytes) -> str:
    text = line[:60].decode("utf-8", "replace")
    return repr(text) + ("…" if len(line) > 60 else "")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from _joined(_unpacked(path)) if path.suffix == ".zst" else file
    except OSError as error:
        raise InputError(f"corpus {path} cannot be read: {error.strerror or error}") from error


def _joined(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yields lines from chunks that end anywhere."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    if any(rest):
        yield b"".join(rest)


def _unpacked(path: Path) -> Iterator[bytes]:
    """Yields the unpacked bytes of all frames; a stream reader would take a cut-off file for a finished one."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, packed_bytes = None, 0
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            packed_bytes += len(data)
            while data:
                frame = unpacker.decompressobj() if frame is None or frame.eof else frame
                try:
                    yield frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise InputError(
                        f"{path}: not intact zstandard data, found before byte {packed_bytes:,} ({error}); "
                        "fetch the file again, or name a .jsonl file if it is not compressed"
                    ) from error
                data = frame.unused_data if frame.eof else b""
    if frame is not None and not frame.eof:
        raise InputError(
            f"{path}: the file is cut off after {packed_bytes:,} bytes, its last frame has no end; fetch it again"
        )
