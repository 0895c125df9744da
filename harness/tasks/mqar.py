"""Multi-query associative recall (arXiv:2312.04927): the task, its splits, its score. numpy only.

One example of a cell (N, D) over a vocabulary of V ids: D distinct keys from 1 .. V//2 - 1 and D distinct values from
V//2 .. V - 1 are written as k1 v1 k2 v2 ..., `num_passes` times. In the rest, the query region, every key stands once
more, at an even offset 2 (i - 1): slots i are drawn one after another without replacement with weight
i ** (power_a - 1) and handed to the keys in the order of the draw. The label at a query is the key's value.
Everything else is token 0, or with `random_non_queries` an id uniform over 0 .. V - 1.

What is scored: the D planted queries and nothing else. A random filler may happen to equal a key of its own context;
such a repeat is not labelled and not scored, though a model may be distracted by it. `avoid_keys` removes them.

Data depend on (options, seed) alone, and the bytes are equal on every platform. An id below n is the high word of a
32-bit draw times n, so its probability is off by at most 2**-32.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import IO, Any

import numpy as np

from harness.config import to_json
from harness.errors import InputError, nearest
from harness.spec import Batch, Measure
from harness.tasks.mqar_sampler import IGNORE, Examples, Sampler, join, permutation, stream
from harness.tasks.options import MQAROptions

BLOCK = 1024  # examples drawn from one stream; changing it changes the data
POOL = 16  # blocks shuffled together from the second pass on
ROUNDS = 1000  # draws of one example before its cell is declared too small
SPLITS = ("train", "validation", "test")
MAX_VOCAB = 2**20  # keeps the relative bias of an id below 2**-12


class MQAR:
    """The task: `MQAR(options)`, or `MQAR(N=64, D=4)` for one cell in every split.

    Splits never share a sequence: validation leaves out those of test, train those of both (by a 64-bit hash of the
    tokens; a row left out is drawn again). Within one split a sequence may repeat, as independent draws do.
    """

    def __init__(self, options: MQAROptions | None = None, *, N: int | None = None, D: int | None = None) -> None:
        options = options or MQAROptions()
        if N is not None or D is not None:
            options = one_cell(options, N, D)
        check(options)
        self.options = options
        self.vocab_size = options.vocab_size
        self.max_len = max(N for split in SPLITS for N, _, _ in cells(options, split))
        samplers = {cell[:2] for split in SPLITS for cell in cells(options, split)}
        self._samplers = {(N, D): Sampler(options, N, D) for N, D in sorted(samplers)}
        self._taken: dict[tuple[str, int], np.ndarray] = {}  # sorted hashes of an evaluation split's rows of length N

    def train(self, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
        """Yields `steps` batches, each of one cell; a pass takes every example once, cells in a seeded random order.

        The last batch of a cell in a pass may be smaller. The first pass takes the examples as they were drawn; each
        further pass draws the same ones again, with the blocks in another order and the rows shuffled within pools of
        16 blocks, so that memory stays bounded.
        """
        _at_least("batch_size", batch_size, 1)
        _at_least("steps", steps, 0)
        done, n_cells = 0, len(self.options.train_cells)
        for turn in itertools.count():
            streams = [_slices(self._pass(cell, seed, turn), batch_size) for cell in range(n_cells)]
            for cell in self._cell_order(batch_size, seed, turn):
                if done == steps:
                    return
                yield next(streams[cell]).batch()
                done += 1

    def epoch_steps(self, batch_size: int) -> int:
        """Returns the number of batches in one pass over the training data."""
        _at_least("batch_size", batch_size, 1)
        return sum(-(-count // batch_size) for _, _, count in self.options.train_cells)

    def evaluate(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Yields every batch of the validation or test split once, cell by cell, in a fixed order."""
        _at_least("batch_size", batch_size, 1)
        for cell in range(len(cells(self.options, _evaluation(split)))):
            for part in _slices(self._blocks(split, cell), batch_size):
                yield part.batch()

    def labels(self, split: str) -> dict[str, np.ndarray]:
        """Returns `targets`, and the cell's `N` and `D`, of every query of the split, [R] int32, as in `evaluate`."""
        found = [(part.targets, N, D) for N, D, part in self.examples(_evaluation(split))]
        return {
            "targets": np.concatenate([targets.ravel() for targets, _, _ in found]),
            "N": np.concatenate([np.full(targets.size, N, np.int32) for targets, N, _ in found]),
            "D": np.concatenate([np.full(targets.size, D, np.int32) for targets, _, D in found]),
        }

    def data_sha256(self) -> dict[str, str]:
        """Returns the SHA-256 of each evaluation split, and of what identifies the training data.

        A split: each example's tokens, then its labels (-100 where nothing is asked), as little-endian int32. Train:
        the same over the first block of every cell at train seed 0, then the options as sorted JSON.
        """
        hashes = {split: self._sha256(split, 0) for split in ("validation", "test")}
        first = hashlib.sha256()
        for index, (_, _, count) in enumerate(self.options.train_cells):
            first.update(self.block("train", index, 0)[:count].bytes())
        first.update(json.dumps(to_json(self.options), sort_keys=True).encode())
        return {**hashes, "train": first.hexdigest()}

    def examples(self, split: str, seed: int = 0) -> Iterator[tuple[int, int, Examples]]:
        """Yields (N, D, examples) block by block: every example of the split once. `seed` is train's."""
        for index, (N, D, _) in enumerate(cells(self.options, split)):
            for part in self._blocks(split, index, seed):
                yield N, D, part

    def _sha256(self, split: str, seed: int) -> str:
        found = hashlib.sha256()
        for _, _, part in self.examples(split, seed):
            found.update(part.bytes())
        return found.hexdigest()

    def block(self, split: str, cell: int, index: int, seed: int = 0) -> Examples:
        """Returns block `index` (1,024 examples, beyond the cell's count too) of a cell without drawing former ones."""
        N, D, _ = cells(self.options, split)[cell]
        # Only the training data depend on the seed of a run: evaluation splits are part of the task.
        key = _key("rows", self.options.seed, split, cell, seed if split == "train" else 0)
        sampler, taken = self._samplers[N, D], self._excluded(split, N)
        rows = sampler.draw(stream(key, index), BLOCK)
        if not len(taken):
            return rows
        bad = np.flatnonzero(_found(_hash(rows.tokens), taken))
        for attempt in range(1, ROUNDS):
            if not len(bad):
                return rows
            fresh = sampler.draw(stream(key, index, attempt), len(bad))
            rows.tokens[bad], rows.positions[bad], rows.targets[bad] = fresh.tokens, fresh.positions, fresh.targets
            bad = bad[_found(_hash(fresh.tokens), taken)]
        raise InputError(
            f"cell (N={N}, D={D}) of the {split} split: {ROUNDS} draws of one example gave only sequences of the other "
            f"splits; ask for fewer validation and test examples, or raise vocab_size (now {self.vocab_size})"
        )

    def _blocks(self, split: str, cell: int, seed: int = 0) -> Iterator[Examples]:
        count = cells(self.options, split)[cell][2]
        for index in range(-(-count // BLOCK)):
            yield self.block(split, cell, index, seed)[: count - index * BLOCK]

    def _pass(self, cell: int, seed: int, turn: int) -> Iterator[Examples]:
        """Yields the examples of a training cell in the order of pass `turn`."""
        if turn == 0:
            yield from self._blocks("train", cell, seed)
            return
        count = self.options.train_cells[cell][2]
        bits = stream(_key("order", self.options.seed, "train", cell, seed), turn)
        order = permutation(bits, -(-count // BLOCK))
        for start in range(0, len(order), POOL):
            chosen = [int(index) for index in order[start : start + POOL]]
            pool = join([self.block("train", cell, index, seed)[: count - index * BLOCK] for index in chosen])
            yield pool[permutation(bits, len(pool))]

    def _cell_order(self, batch_size: int, seed: int, turn: int) -> list[int]:
        counts = [-(-count // batch_size) for _, _, count in self.options.train_cells]
        order = np.repeat(np.arange(len(counts)), counts)
        bits = stream(_key("cells", self.options.seed, "train", 0, seed), turn)
        return [int(cell) for cell in order[permutation(bits, len(order))]]

    def _excluded(self, split: str, N: int) -> np.ndarray:
        """Returns the sorted hashes of the rows of length N which `split` must not contain."""
        others = {"train": ("validation", "test"), "validation": ("test",), "test": ()}[split]
        for other in others:
            if (other, N) not in self._taken:
                same = [i for i, cell in enumerate(cells(self.options, other)) if cell[0] == N]
                hashes = [_hash(part.tokens) for i in same for part in self._blocks(other, i)]
                self._taken[other, N] = np.sort(np.concatenate([*hashes, np.empty(0, np.uint64)]))
        return np.sort(np.concatenate([np.empty(0, np.uint64), *(self._taken[other, N] for other in others)]))


def _key(purpose: str, seed: int, split: str, cell: int, train_seed: int) -> np.ndarray:
    text = json.dumps(["mqar", purpose, int(seed), split, cell, int(train_seed)])
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], "<u8").astype(np.uint64)


def _hash(tokens: np.ndarray) -> np.ndarray:
    factors = stream(_key("hash", 0, "", 0, 0), 0).random_raw(tokens.shape[1]) | np.uint64(1)
    return np.asarray(tokens.astype(np.uint64) @ factors)  # [B], modulo 2**64


def _found(hashes: np.ndarray, taken: np.ndarray) -> np.ndarray:
    return np.asarray(taken[np.minimum(np.searchsorted(taken, hashes), len(taken) - 1)] == hashes)


def _slices(parts: Iterator[Examples], size: int) -> Iterator[Examples]:
    """Yields the examples again, `size` at a time, the last ones as they remain."""
    waiting: list[Examples] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) < size:
            continue
        joined = join(waiting)
        cut = len(joined) - len(joined) % size
        for start in range(0, cut, size):
            yield joined[start : start + size]
        waiting = [joined[cut:]] if cut < len(joined) else []
    if waiting:
        yield join(waiting)


def cells(options: MQAROptions, split: str) -> tuple[tuple[int, int, int], ...]:
    """Returns the (N, D, examples) cells of a split."""
    by_split = {
        "train": options.train_cells,
        "validation": options.validation_cells,
        "test": options.test_cells,
    }
    if split not in by_split:
        raise InputError(f"unknown split {split!r}: {nearest(split, by_split)}")
    return by_split[split]


def one_cell(options: MQAROptions, N: int | None, D: int | None) -> MQAROptions:
    """Returns the options with the cell (N, D) in every split, the counts being the usual ones."""
    if N is None or D is None:
        raise InputError(f"one cell takes both N (length) and D (key-value pairs), got N={N}, D={D}")
    counts = {f"{split}_cells": ((N, D, cells(MQAROptions(), split)[0][2]),) for split in SPLITS}
    return dataclasses.replace(options, **counts)  # type: ignore[arg-type]


def check(options: MQAROptions) -> None:
    """Raises InputError for the first setting that cannot work, saying what is allowed."""
    V = options.vocab_size
    if not _whole(V) or not 5 <= V <= MAX_VOCAB:
        raise InputError(f"vocab_size takes a whole number from 5 to {MAX_VOCAB}, got {V!r}")
    if not _whole(options.num_passes) or options.num_passes < 1:
        raise InputError(f"num_passes takes a whole number of at least 1, got {options.num_passes!r}")
    if not isinstance(options.power_a, (int, float)) or not -10 <= options.power_a <= 10:
        raise InputError(f"power_a takes a number from -10 to 10, got {options.power_a!r}")
    if not _whole(options.seed):
        raise InputError(f"seed takes a whole number, got {options.seed!r}")
    for split in SPLITS:
        if not cells(options, split):
            raise InputError(f"{split}_cells is empty: give at least one (N, D, examples)")
        for cell in cells(options, split):
            if len(cell) != 3 or not all(map(_whole, cell)):
                raise InputError(f"{split}_cells takes whole numbers (N, D, examples), got {cell!r}")
            _check_cell(options, f"{split}_cells", *cell)
    _check_space(options)


def _check_cell(options: MQAROptions, where: str, N: int, D: int, count: int) -> None:
    passes, here = options.num_passes, f"{where}: cell (N={N}, D={D})"
    least = 2 * (passes + 1)
    if N % 2 or least > N:
        raise InputError(f"{here}: N must be even and at least {least}; the next such N is {max(least, N + N % 2)}")
    if options.vocab_size <= N:
        raise InputError(f"{here}: vocab_size must be larger than N, got vocab_size={options.vocab_size}")
    if D < 1 or D * least > N:
        fits = f"from 1 to {N // least}" if N // least > 1 else "1"
        raise InputError(
            f"{here}: D must be {fits}, since {passes} pass(es) of the pairs and the queries take {least} D positions; "
            f"D={D} needs N >= {max(1, D) * least}"
        )
    if count < 1:
        raise InputError(f"{here}: examples must be at least 1, got {count}")


def _check_space(options: MQAROptions) -> None:
    """Raises InputError where a split cannot avoid the sequences of the others: no draw could ever succeed."""
    V, held = options.vocab_size, dict[tuple[int, int], int]()
    for N, D, count in (*options.test_cells, *options.validation_cells):
        held[N, D] = held.get((N, D), 0) + count
    for N, D, _ in options.train_cells:
        start = 2 * D * options.num_passes
        space = math.perm(V // 2 - 1, D) * math.perm(V - V // 2, D) * math.perm((N - start) // 2, D)
        if options.random_non_queries:
            space *= V ** (N - start - D)
        if space <= held.get((N, D), 0):
            raise InputError(
                f"cell (N={N}, D={D}) has {space} sequences at vocab_size={V}, and validation and test ask for "
                f"{held[N, D]} of them: raise vocab_size, or ask for fewer than {space} in the two together"
            )


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _at_least(what: str, value: int, least: int) -> None:
    if not _whole(value) or value < least:
        raise InputError(f"{what} takes a whole number of at least {least}, got {value!r}")


def _evaluation(split: str) -> str:
    if split not in ("validation", "test"):
        raise InputError(f"split takes validation or test, got {split!r}; train(...) yields the training data")
    return split


def load(options: MQAROptions, progress: Callable[[str, float], None]) -> MQAR:
    """Returns the task; nothing is stored, since drawing an example again is cheaper than reading it."""
    task = MQAR(options)
    progress("mqar", 1.0)
    return task


def score(raw: Mapping[str, np.ndarray]) -> dict[str, Measure]:
    """Returns `accuracy` over all queries, that of each cell as `accuracy/64x4`, the mean `nll`, and the `floor`."""
    right = raw["predicted"] == raw["targets"]
    N, D = raw["N"], raw["D"]
    measures = {"accuracy": _accuracy(right)}
    for n, d in sorted({(int(n), int(d)) for n, d in np.unique(np.stack([N, D]), axis=1).T}):
        measures[f"accuracy/{n}x{d}"] = _accuracy(right[(n == N) & (d == D)])
    measures["nll"] = Measure(value=float(np.mean(raw["nll"], dtype=np.float64)), unit="nats", n=len(right))
    measures["floor"] = Measure(value=float(np.mean(1 / D)), unit="fraction", n=len(right))
    return measures


def _accuracy(right: np.ndarray) -> Measure:
    """Returns the share of right answers with its Wilson score interval."""
    n, z = len(right), NormalDist().inv_cdf(0.975)
    p = float(np.mean(right))
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    # At p = 0 or 1 an end equals p; rounding may put it beyond.
    return Measure(
        value=p,
        unit="fraction",
        n=n,
        low=max(0.0, min(low, p)),
        high=min(1.0, max(high, p)),
        spread="95 % Wilson interval",
    )


def floor(options: MQAROptions) -> float:
    """Returns the accuracy of guessing any value of the context, 1/D, over the queries of the test cells."""
    return sum(n for _, _, n in options.test_cells) / sum(n * D for _, D, n in options.test_cells)


def export(options: MQAROptions, split: str, path: Path, seed: int = 0) -> dict[str, Any]:
    """Returns {path, examples, sha256} after writing a split to `path`; the suffix .npz or .jsonl is the format.

    `.npz` holds tokens and labels [examples, longest N] int32, padded by 0 and -100, and each example's N and D. A line
    of `.jsonl` is {"tokens": [...], "targets": [[position, target], ...]}. The SHA-256 is that of the examples, by the
    rule of `data_sha256`, whatever the format. `seed` is that of the training data.
    """
    task, count = MQAR(options), sum(n for _, _, n in cells(options, split))
    writers = {".npz": _write_npz, ".jsonl": _write_jsonl}
    if path.suffix not in writers:
        raise InputError(f"cannot write {path}: the suffix must be .npz or .jsonl, got {path.suffix!r}")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / "part"
            with part.open("wb") as file:
                writers[path.suffix](file, task, split, seed)
            os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error
    return {"path": str(path), "examples": count, "sha256": task._sha256(split, seed)}


def _write_jsonl(file: IO[bytes], task: MQAR, split: str, seed: int) -> None:
    for _, _, part in task.examples(split, seed):
        pairs = np.stack([part.positions, part.targets], axis=2).tolist()
        for tokens, targets in zip(part.tokens.tolist(), pairs, strict=True):
            line = json.dumps({"tokens": tokens, "targets": targets}, separators=(",", ":"))
            file.write(line.encode() + b"\n")


def _write_npz(file: IO[bytes], task: MQAR, split: str, seed: int) -> None:
    """Writes one array after another, drawing the examples again for each: no array is ever whole in memory."""
    width = max(N for N, _, _ in cells(task.options, split))
    count = sum(n for _, _, n in cells(task.options, split))

    def padded(values: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)

    arrays: dict[str, tuple[tuple[int, ...], Callable[[int, int, Examples], np.ndarray]]] = {
        "tokens": ((count, width), lambda N, D, part: padded(part.tokens, 0)),
        "labels": ((count, width), lambda N, D, part: padded(part.labels(), IGNORE)),
        "N": ((count,), lambda N, D, part: np.full(len(part), N)),
        "D": ((count,), lambda N, D, part: np.full(len(part), D)),
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, (shape, take) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                header = {"descr": "<i4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(entry, header)
                for N, D, part in task.examples(split, seed):
                    entry.write(take(N, D, part).astype("<i4").tobytes())
