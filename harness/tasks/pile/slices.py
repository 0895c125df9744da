"""Which tokens are AR hits (arXiv:2312.04927, section 3): repeated bigrams, and how often training text holds them.

A token is *repeated* if the bigram it ends already ended earlier in the same document of the same window. It is an
AR hit at a threshold if, besides, that bigram occurs fewer times than the threshold in the training split.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 22  # tokens counted at once: bounds memory on a corpus of any size


def repeated(windows: NDArray[np.integer], vocab_size: int, end_of_text: int) -> NDArray[np.bool_]:
    """Returns [B, T] for windows [B, T + 1]: whether the bigram that ends at t + 1 ended earlier in its document."""
    B, T = windows.shape[0], windows.shape[1] - 1
    first, second = windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)  # [B, T]
    separated = (first == end_of_text) | (second == end_of_text)
    document = np.cumsum(first == end_of_text, axis=1)  # [B, T]: number of the document within its window
    pair = first * vocab_size + second
    # A stable sort keeps equal bigrams in time order, so the one before is the latest earlier occurrence. Documents
    # are runs of a window: if any earlier occurrence lies in this document, then the latest one does.
    order = np.argsort(pair, axis=1, kind="stable")
    pair, document = np.take_along_axis(pair, order, axis=1), np.take_along_axis(document, order, axis=1)
    same = np.zeros((B, T), dtype=np.bool_)
    same[:, 1:] = (pair[:, 1:] == pair[:, :-1]) & (document[:, 1:] == document[:, :-1])
    out: NDArray[np.bool_] = np.empty_like(same)
    np.put_along_axis(out, order, same, axis=1)
    out[separated] = False
    return out


def count_bigrams(
    tokens: NDArray[np.integer], vocab_size: int, end_of_text: int, block: int = _BLOCK
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Returns (bigrams, counts): the distinct bigrams inside documents, ascending, as first * vocab_size + second."""
    keys, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for some in _bigrams(tokens, vocab_size, end_of_text, block):
        new_keys, new_counts = np.unique(some, return_counts=True)
        keys, counts = _merged(np.concatenate((keys, new_keys)), np.concatenate((counts, new_counts)))
    return keys, counts


def _bigrams(
    tokens: NDArray[np.integer], vocab_size: int, end_of_text: int, block: int
) -> Iterator[NDArray[np.uint64]]:
    for start in range(0, max(len(tokens) - 1, 0), block):
        some = tokens[start : start + block + 1].astype(np.uint64)
        inside = (some[:-1] != end_of_text) & (some[1:] != end_of_text)
        yield (some[:-1] * np.uint64(vocab_size) + some[1:])[inside]


def _merged(keys: NDArray[np.uint64], counts: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[starts], np.add.reduceat(counts, starts)


def look_up(
    windows: NDArray[np.integer], vocab_size: int, keys: NDArray[np.uint64], counts: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Returns [B, T] for windows [B, T + 1]: how often the bigram that ends at t + 1 occurs in the training split."""
    asked = windows[:, :-1].astype(np.uint64) * np.uint64(vocab_size) + windows[:, 1:].astype(np.uint64)
    if not len(keys):
        return np.zeros(asked.shape, np.int32)
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    found = np.where(keys[place] == asked, counts[place], 0)
    return np.minimum(found, np.iinfo(np.int32).max).astype(np.int32)
