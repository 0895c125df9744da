"""The distribution of MQAR: examples of one cell drawn from a stream of raw bits. See `mqar` for the definition.

Bytes depend on the stream alone: raw Philox words (whose stream numpy guarantees), integers, and + - * / of float64.
"""

import dataclasses
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np

from harness.spec import Batch
from harness.tasks.options import MQAROptions

IGNORE = -100  # label where nothing is asked
MARKS = 2**23  # bytes of marks while fillers avoid keys; changing it changes the data of avoid_keys


@dataclass(frozen=True)
class Examples:
    """Some examples of one cell: the tokens, and the queries of each in the order of their positions."""

    tokens: np.ndarray  # [B, N] int32
    positions: np.ndarray  # [B, D] int64, ascending
    targets: np.ndarray  # [B, D] int32

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: "slice | np.ndarray") -> "Examples":
        return Examples(self.tokens[index], self.positions[index], self.targets[index])

    def bytes(self) -> bytes:
        """Returns each example's tokens, then its labels, as little-endian int32: what the SHA-256 of data is of."""
        return np.stack([self.tokens, self.labels()], axis=1).astype("<i4", copy=False).tobytes()

    def labels(self) -> np.ndarray:
        """Returns [B, N] int32: the target at each query, -100 elsewhere."""
        out = np.full_like(self.tokens, IGNORE)
        np.put_along_axis(out, self.positions, self.targets, axis=1)
        return out

    def batch(self) -> Batch:
        """Returns the examples as a Batch of int64 arrays."""
        B, N = self.tokens.shape
        rows = self.positions + N * np.arange(B)[:, None]  # [B, D]
        return Batch(tokens=self.tokens.astype(np.int64), rows=rows.ravel(), targets=self.targets.ravel().astype("i8"))


def join(parts: list[Examples]) -> Examples:
    """Returns the parts as one, in their order."""
    if len(parts) == 1:
        return parts[0]
    fields = [f.name for f in dataclasses.fields(Examples)]
    return Examples(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


class Sampler:
    """Draws examples of one cell: `check` of `mqar` has seen that it is possible."""

    def __init__(self, options: MQAROptions, N: int, D: int) -> None:
        self.options, self.N, self.D = options, N, D
        self.start = 2 * D * options.num_passes  # of the query region
        self.n_slots = (N - self.start) // 2
        # exp(ln) of Decimal is correctly rounded everywhere; libm's pow is not.
        context = Context(prec=30)
        exponent = 1 - Decimal(repr(float(options.power_a)))
        logs = (context.multiply(exponent, context.ln(Decimal(i))) for i in range(1, self.n_slots + 1))
        self.inverse_weights = np.array([float(context.exp(log)) for log in logs])

    def draw(self, bits: np.random.Philox, B: int) -> Examples:
        """Returns B examples drawn from the stream `bits`."""
        V, D, start = self.options.vocab_size, self.D, self.start
        keys = _distinct(bits, B, D, V // 2 - 1) + np.int32(1)  # [B, D]
        values = _distinct(bits, B, D, V - V // 2) + np.int32(V // 2)  # [B, D]
        order, positions = self._queries(bits, B)  # [B, D] each
        tokens = np.zeros((B, self.N), np.int32)
        tokens[:, :start] = np.tile(np.stack([keys, values], axis=2).reshape(B, 2 * D), self.options.num_passes)
        if self.options.random_non_queries:
            tokens[:, start:] = self._fillers(bits, keys)
        asked = np.take_along_axis(keys, order, axis=1)
        np.put_along_axis(tokens, positions, asked, axis=1)
        return Examples(tokens, positions, np.take_along_axis(values, order, axis=1))

    def _queries(self, bits: np.random.Philox, B: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns which key is asked, and where, in the order of positions: [B, D] int64 each.

        Successive sampling as a race: slot i arrives at an exponential time with rate w_i, and the first D arrivals in
        their order have exactly the law of drawing slots by weight without replacement.
        """
        width = max(10, self.n_slots.bit_length())
        mask = np.uint64((1 << width) - 1)
        raw = bits.random_raw(B * self.n_slots).reshape(B, self.n_slots)
        times = _exponential(raw)
        times *= self.inverse_weights
        # Positive floats sort like their bits; the slot in the low bits rides along and settles ties.
        race = times.view(np.uint64)
        race &= ~mask
        race |= np.arange(self.n_slots, dtype=np.uint64)
        race.sort(axis=1)
        slots = race[:, : self.D] & mask  # [B, D]: that of key 0, of key 1, ...
        pairs = (slots << np.uint64(32)) | np.arange(self.D, dtype=np.uint64)
        pairs.sort(axis=1)
        positions = self.start + 2 * (pairs >> np.uint64(32)).astype(np.int64)
        return (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64), positions

    def _fillers(self, bits: np.random.Philox, keys: np.ndarray) -> np.ndarray:
        """Returns [B, N - start] int32: ids for the query region, none a key of its own row if that is asked."""
        B, V, region = len(keys), self.options.vocab_size, self.N - self.start
        fillers = below(bits, B * region, V).reshape(B, region)
        if self.options.avoid_keys:
            step = max(1, MARKS // V)  # rows at a time: a mark for every id of every row must fit in memory
            for start in range(0, B, step):
                _avoid(bits, fillers[start : start + step], keys[start : start + step], V)
        return fillers


def _avoid(bits: np.random.Philox, fillers: np.ndarray, keys: np.ndarray, V: int) -> None:
    """Draws each filler that is a key of its own row again until none is, in place."""
    is_key = np.zeros((len(keys), V), bool)
    np.put_along_axis(is_key, keys, True, axis=1)
    rows, columns = np.nonzero(np.take_along_axis(is_key, fillers, axis=1))
    while len(rows):
        fresh = below(bits, len(rows), V)
        fillers[rows, columns] = fresh
        again = is_key[rows, fresh]
        rows, columns = rows[again], columns[again]


def below(bits: np.random.Philox, count: int, n: int) -> np.ndarray:
    """Returns `count` ids uniform over 0 .. n - 1, int32."""
    words = bits.random_raw((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]
    product = np.multiply(words, np.uint64(n), dtype=np.uint64)
    product >>= np.uint64(32)
    ids: np.ndarray = product.astype(np.int32)
    return ids


def _distinct(bits: np.random.Philox, B: int, D: int, n: int) -> np.ndarray:
    """Returns [B, D] int32 ids below n, distinct in each row, every ordered choice equally likely.

    Repeats after the first are drawn again until none is left. Which places are drawn again depends on the pattern of
    equalities only, so no id is preferred. `check` sees to it that n is more than about 2 D.
    """
    ids = below(bits, B * D, n).reshape(B, D)
    rows = np.arange(B)
    # Places ride in the low bits of the sorted ids; 32-bit words where they fit, since those sort twice as fast.
    width = D.bit_length()
    kind = np.dtype(np.uint32 if n << width < 2**32 else np.uint64)
    shift, mask = kind.type(width), kind.type((1 << width) - 1)
    place = np.arange(D, dtype=kind)
    while len(rows):
        tagged = (ids[rows].astype(kind) << shift) | place
        tagged.sort(axis=1)
        row, column = np.nonzero((tagged[:, 1:] >> shift) == (tagged[:, :-1] >> shift))
        where = (tagged[row, column + 1] & mask).astype(np.int64)
        ids[rows[row], where] = below(bits, len(row), n)
        rows = rows[np.unique(row)]
    return ids


def _exponential(raw: np.ndarray) -> np.ndarray:
    """Returns -log(u) for u = (the high 52 bits of raw + 1/2) / 2**52, by exact float operations only.

    u = m * 2**e with m in [sqrt(1/2), sqrt(2)); log(m) = 2 artanh(t), t = (m - 1) / (m + 1). Error below 1e-13, small
    results included, since e = 0 there.
    """
    u = (raw >> np.uint64(12)).astype(np.float64)
    u += 0.5
    u *= 2.0**-52
    word = u.view(np.int64)
    root = np.int64(0x3FE6A09E00000000)  # about sqrt(1/2)
    word -= root
    power = (word >> np.int64(52)).astype(np.float64)
    word &= np.int64((1 << 52) - 1)
    word += root
    t = u - 1.0
    u += 1.0
    t /= u
    z = np.multiply(t, t, out=u)
    series = z * (1 / 17)
    for k in (15, 13, 11, 9, 7, 5, 3):
        series += 1 / k
        series *= z
    series += 1.0
    t *= -2.0
    t *= series
    power *= -0.6931471805599453
    t += power
    return t


def stream(key: np.ndarray, index: int, attempt: int = 0) -> np.random.Philox:
    """Returns the stream of raw words number (index, attempt) under `key`."""
    return np.random.Philox(key=key, counter=np.array([0, 0, attempt, index], np.uint64))


def permutation(bits: np.random.Philox, n: int) -> np.ndarray:
    """Returns 0 .. n - 1 in random order."""
    return np.argsort(bits.random_raw(n), kind="stable")
