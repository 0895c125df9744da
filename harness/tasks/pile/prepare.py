"""From documents to token arrays in the cache: built once, memory mapped afterwards.

A prepared corpus is a folder named by a digest of all that decides its bytes. It is written beside its place and
moved there whole, under a lock, so that neither a crash nor a second process can leave half of one.
"""

import hashlib
import heapq
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from harness.errors import InputError, UnavailableError
from harness.tasks.pile import slices
from harness.tasks.pile.archives import Progress
from harness.tasks.pile.corpora import CLEANING, SPLITS, Document, split_of
from harness.tasks.pile.tokenizers import Tokenizer, pieces, train_bpe

FORMAT = 1  # raise it when the files of a prepared corpus change
_BATCH_CHARS = 1 << 21
_TRAIN_BPE_BYTES = 1 << 26  # above the mini corpus; of a larger corpus, a hash picks the documents


@dataclass(frozen=True)
class Prepared:
    """One tokenised corpus: memory mapped arrays and what is known about them."""

    folder: Path
    meta: dict[str, Any]

    def array(self, name: str) -> NDArray[Any]:
        """Returns one stored array, e.g. "train_tokens" or "bigram_counts", memory mapped."""
        loaded: NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return loaded


@dataclass(frozen=True)
class Recipe:
    """All that decides the bytes of a prepared corpus: what each of its inputs is called and its SHA-256."""

    inputs: dict[str, str]
    tokenizer: str
    seed: int

    def digest(self) -> str:
        """Returns the name of the prepared corpus in the cache."""
        parts = [FORMAT, CLEANING, sorted(self.inputs.items()), self.tokenizer, self.seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def find(recipe: Recipe, root: Path) -> Prepared | None:
    """Returns the prepared corpus if the cache holds it."""
    folder = root / "pile" / recipe.digest()
    try:
        return Prepared(folder, json.loads((folder / "meta.json").read_text("utf-8")))
    except (OSError, ValueError):
        return None


def build(
    recipe: Recipe, root: Path, documents: Iterable[Document], carrier: Tokenizer | None, progress: Progress
) -> Prepared:
    """Returns the corpus after tokenising it into the cache. Without a `carrier` tokenizer, one is trained."""
    place = root / "pile" / recipe.digest()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            ready = find(recipe, root)  # another process may have built it while this one waited
            if ready is not None:
                return ready
            work = place.with_suffix(".part")
            shutil.rmtree(work, ignore_errors=True)  # what a process that was killed left behind
            try:
                work.mkdir()
                _write(recipe, work, documents, carrier, progress)
                shutil.rmtree(place, ignore_errors=True)
                os.replace(work, place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UnavailableError(
            f"cannot write the tokens of the corpus to {root}: {error.strerror or error}; free some space there or set "
            "XDG_CACHE_HOME to a folder that can be written, then run again"
        ) from error
    built = find(recipe, root)
    if built is None:
        raise UnavailableError(f"the tokens written to {place} cannot be read back; delete that folder and run again")
    return built


def _write(
    recipe: Recipe, work: Path, documents: Iterable[Document], carrier: Tokenizer | None, progress: Progress
) -> None:
    tokenizer = carrier
    if tokenizer is None:
        progress("training the tokenizer", 0.1)
        tokenizer = train_bpe(training_sample(documents, recipe.seed))
    tokenizer.save(work / "tokenizer.json")
    facts = _Tokens(work, tokenizer).write(documents, recipe.seed, progress)
    progress("counting bigrams", 0.9)
    train = np.load(work / "train_tokens.npy", mmap_mode="r")
    keys, counts = slices.count_bigrams(train, tokenizer.vocab_size, tokenizer.end_of_text)
    np.save(work / "bigram_keys.npy", keys)
    np.save(work / "bigram_counts.npy", counts)
    facts |= {"inputs": recipe.inputs, "tokenizer": tokenizer.name, "tokenizer_sha256": tokenizer.sha256()}
    facts |= {"vocab_size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text, "bigrams": len(keys)}
    (work / "meta.json").write_text(json.dumps(facts, indent=1), "utf-8")
    progress("corpus ready", 1.0)


def training_sample(documents: Iterable[Document], seed: int, limit: int = _TRAIN_BPE_BYTES) -> list[str]:
    """Returns the texts a tokenizer is trained on: of the training split, as much as `limit` bytes hold.

    Documents are taken in the order of a hash of their text, whatever order they came in.
    """
    heap: list[tuple[int, str]] = []  # the largest hash first, which is the first to go
    size = 0
    for document in documents:
        if split_of(document, seed) != "train":
            continue
        raw = document["text"].encode("utf-8", "replace")
        heapq.heappush(heap, (-int.from_bytes(hashlib.sha256(raw).digest()[:8], "big"), document["text"]))
        size += len(raw)
        while size > limit and len(heap) > 1:
            size -= len(heapq.heappop(heap)[1].encode("utf-8", "replace"))
    return [piece for _, text in sorted(heap, reverse=True) for piece in pieces(text)]


class _Tokens:
    """Writes the token stream of each split, and where each document starts."""

    def __init__(self, work: Path, tokenizer: Tokenizer) -> None:
        self._work, self._end = work, tokenizer.end_of_text
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._encoding = tokenizer.encoding()
        self._threads = min(4, os.cpu_count() or 1)
        self._digest = {split: hashlib.sha256() for split in SPLITS}
        self._length = dict.fromkeys(SPLITS, 0)
        self._starts: dict[str, list[int]] = {split: [] for split in SPLITS}
        self._subset: dict[str, list[int]] = {split: [] for split in SPLITS}
        self._names: dict[str, int] = {}  # subset -> its number, in the order of appearance
        self._bytes: dict[str, int] = {}

    def write(self, documents: Iterable[Document], seed: int, progress: Progress) -> dict[str, Any]:
        """Returns what goes into meta.json after every array of the splits was written."""
        files = {split: (self._work / f"{split}.raw").open("wb") for split in SPLITS}
        try:
            for batch in _batches(documents):
                progress(f"tokenising: {sum(self._length.values()) / 1e6:.1f} M tokens", 0.5)
                for document, tokens in zip(batch, self._encode(batch), strict=True):
                    split = split_of(document, seed)
                    raw = tokens.tobytes()
                    files[split].write(raw)
                    self._note(document, split, raw, len(tokens))
        finally:
            for file in files.values():
                file.close()
        for split in SPLITS:
            self._finish(split)
        return self._facts()

    def _encode(self, batch: list[Document]) -> Iterator[NDArray[Any]]:
        """Yields the tokens of each document with the end-of-text id behind them."""
        cut = [list(pieces(document["text"])) for document in batch]
        flat = [piece for parts in cut for piece in parts]
        encoded = iter(self._encoding.encode_ordinary_batch(flat, num_threads=self._threads))
        for parts in cut:
            ids = [token for _ in parts for token in next(encoded)]
            yield np.array([*ids, self._end], dtype=self._dtype)

    def _note(self, document: Document, split: str, raw: bytes, count: int) -> None:
        name = document["meta"]["pile_set_name"]
        self._digest[split].update(raw)
        self._starts[split].append(self._length[split])
        self._subset[split].append(self._names.setdefault(name, len(self._names)))
        self._length[split] += count
        self._bytes[name] = self._bytes.get(name, 0) + len(document["text"].encode("utf-8", "replace"))
        if len(self._names) > np.iinfo(np.int16).max:
            raise InputError(
                f"the corpus has over {len(self._names) - 1:,} subsets; give fewer a pile_set_name of their own"
            )

    def _finish(self, split: str) -> None:
        raw = self._work / f"{split}.raw"
        if not self._length[split]:
            raise InputError(
                f"no document of the corpus falls into the {split} split ({sum(map(len, self._starts.values()))} "
                "documents in all, one in twenty for validation and one for test); hand over a corpus of more documents"
            )
        stream = np.memmap(raw, dtype=self._dtype, mode="r")
        np.save(self._work / f"{split}_tokens.npy", stream)
        del stream
        raw.unlink()
        np.save(self._work / f"{split}_starts.npy", np.array(self._starts[split], np.int64))
        np.save(self._work / f"{split}_subset.npy", np.array(self._subset[split], np.int16))

    def _facts(self) -> dict[str, Any]:
        return {
            "subset_names": list(self._names),
            "subset_bytes": self._bytes,
            "documents": {split: len(self._starts[split]) for split in SPLITS},
            "tokens": self._length,
            "sha256": {split: self._digest[split].hexdigest() for split in SPLITS},
        }


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yields documents with a few million characters together; those without text are left out."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        if not document["text"]:
            continue
        batch.append(document)
        size += len(document["text"])
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
