"""Softmax attention to chosen blocks of keys, as Triton kernels that gather the keys and queries of a tile.

A tile of one block's queries meets the keys of the blocks that its row of the table names, tile by tile and whatever
the size of a block; the backward pass to keys and values meets the queries of the blocks that name theirs, from the
table turned around. No atomics: every gradient is the same to the bit from run to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness import InputError
from harness_zoo.ops.attention_kernel import (
    LOG2_E,
    LOWEST,
    absorb,
    check_heads,
    empty_like_rows,
    in_one_dtype,
    load_rows,
    own_rows_of,
    padded_width,
    path,
    rows_of,
    store_rows,
    strides,
    unit_columns,
    weights_again,
)
from harness_zoo.ops.block_sparse import block_sparse as gathered_blocks
from harness_zoo.ops.common_kernel import FUSION, dot_precision, power_of_two

# The most queries and keys that meet at a time; a tile holds queries (for key gradients: keys) of one block only. The
# largest that spill no registers on any of the devices the tests compile for; a wide head has more than 64 elements.
TILES = {
    "half": {"forward_kernel": (64, 64), "query_gradient_kernel": (64, 32), "key_gradient_kernel": (32, 64)},
    "half, wide": {"forward_kernel": (64, 32), "query_gradient_kernel": (64, 32), "key_gradient_kernel": (16, 64)},
    "float32": {"forward_kernel": (32, 32), "query_gradient_kernel": (32, 16), "key_gradient_kernel": (16, 32)},
    "float32, wide": {"forward_kernel": (16, 16), "query_gradient_kernel": (16, 16), "key_gradient_kernel": (16, 16)},
}


def block_sparse(q: Tensor, k: Tensor, v: Tensor, table: Tensor, block: int) -> Tensor:
    """Returns [B, H, T, hd]: each position's softmax over the keys of its block's blocks, up to its own position.

    q is [B, H, T, hd] and k, v are [B, H, S, hd]; T is S, or 1: the newest alone. Row i of `table` [blocks, K] names
    the key blocks of query block i, -1 where there are fewer than K. float32, bfloat16 or float16, the same for all
    three, or that of autocast where it is on; sums are float32. Any strides, without a copy where the last axis is
    contiguous. One query, and heads wider than MAX_WIDTH, go the way that `path` says. Raises InputError for other
    shapes, dtypes and devices, and for a table with too few rows.
    """
    check_heads("block_sparse", q, k, v)
    S = k.shape[2]
    if block < 1 or table.dim() != 2 or table.shape[0] * block < S:
        raise InputError(
            f"block_sparse: block = {block} and a table of {list(table.shape)} for {S} positions; it takes a block of "
            "at least 1, and a row of the table for every block"
        )
    T, hd = q.shape[2:]
    if path(T, hd) == "torch":
        return gathered_blocks(q, k, v, table, block)
    q, k, v = in_one_dtype("block_sparse", q, k, v)
    y: Tensor = BlockSparseFunction.apply(q, k, v, table[: triton.cdiv(T, block)], block)
    return y


class BlockSparseFunction(torch.autograd.Function):
    """The kernels as one differentiable operation. Keeps q, k, v, y, and one float32 a query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, table: Tensor, block: int) -> Tensor:
        """Returns y [B, H, T, hd]."""
        q, k, v = (unit_columns(part) for part in (q, k, v))
        table = table.to(torch.int32).contiguous()
        y, log_sum = empty_like_rows(q), torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
        launch(forward_kernel, (q, k, v, y, log_sum, *listed(table)), strides(q, k, v), block)
        ctx.save_for_backward(q, k, v, y, log_sum, table)
        ctx.block = block
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of q, k and v."""
        q, k, v, y, log_sum, table = ctx.saved_tensors
        dy = unit_columns(dy)
        dq, dk, dv = (empty_like_rows(part) for part in (q, k, v))
        delta = torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
        apart = strides(q, k, v, dy)
        launch(query_gradient_kernel, (q, k, v, y, dy, log_sum, delta, dq, *listed(table)), apart, ctx.block)
        turned = turned_around(table)
        launch(key_gradient_kernel, (q, k, v, dy, log_sum, delta, dk, dv, *turned), apart, ctx.block)
        return dq, dk, dv, None, None


def listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (blocks, starts) of a table [n, K]: row i is blocks[starts[i] : starts[i + 1]]."""
    n, K = table.shape
    return table.flatten(), torch.arange(0, (n + 1) * K, K, device=table.device, dtype=torch.int32)


def turned_around(table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (blocks, starts), where blocks[starts[j] : starts[j + 1]] are the rows of the table that name j."""
    n, K = table.shape
    named, order = table.flatten().sort(stable=True)
    starts = torch.searchsorted(named, torch.arange(n + 1, device=table.device, dtype=table.dtype), out_int32=True)
    return (order // K).to(torch.int32), starts


def launch_options(kernel: Any, block: int, hd: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the tile sizes of a kernel, and how products are formed."""
    size = ("float32" if dtype == torch.float32 else "half") + (", wide" if hd > 64 else "")
    BQ, BK = TILES[size][kernel.__name__]
    one_block = max(16, power_of_two(block))
    if kernel is key_gradient_kernel:
        BK = min(BK, one_block)
    else:
        BQ = min(BQ, one_block)
    tiles = {"BLOCK": block, "HD": hd, "DH": padded_width(hd), "BQ": BQ, "BK": BK}
    return {**tiles, "PRECISION": dot_precision(dtype), "num_warps": 4, "num_stages": 2}


def launch(kernel: Any, tensors: tuple[Tensor, ...], apart: tuple[tuple[int, ...], ...], block: int) -> None:
    """Runs a kernel over all tiles of q [B, H, T, hd], the first of its tensors."""
    q = tensors[0]
    B, H, T, hd = q.shape
    options = launch_options(kernel, block, hd, q.dtype)
    tile_rows = options["BK" if kernel is key_gradient_kernel else "BQ"]
    programs = B * H * triton.cdiv(T, block) * triton.cdiv(block, tile_rows)
    if programs:
        with torch.cuda.device_of(q):
            kernel[(programs,)](*tensors, *apart, H, T, hd**-0.5, **options, **FUSION)


@triton.jit
def block_tile(H, T, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Returns this program's sequence and head (64-bit), block, first row, and how many rows are left in the block."""
    tiles = tl.cdiv(T, BLOCK) * tl.cdiv(BLOCK, ROWS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    block = tl.program_id(0) % tiles // tl.cdiv(BLOCK, ROWS)
    inside = tl.program_id(0) % tl.cdiv(BLOCK, ROWS) * ROWS
    first = block * BLOCK + inside
    return head // H, head % H, block, first, tl.minimum(BLOCK - inside, T - first)


@triton.jit
def positions(BLOCKS, first, count, T, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Returns the positions [ROWS] from number `first` on of the `count` blocks that are listed; -1 for none."""
    n = first + tl.arange(0, ROWS)
    block = tl.load(BLOCKS + n // BLOCK, mask=n < count * BLOCK, other=-1)
    at = block * BLOCK + n % BLOCK
    return tl.where((block >= 0) & (at < T), at, -1)


@triton.jit
def gather_rows(rows, at, HD: tl.constexpr, DH: tl.constexpr):
    """Returns the rows [., DH] at the positions, zeros for none and from HD on. 64-bit: all places."""
    base, apart = rows
    d = tl.arange(0, DH)
    inside = (at >= 0)[:, None] & (d < HD)[None, :]
    return tl.load(base + (at[:, None] * apart + d[None, :]), mask=inside, other=0.0)


@triton.jit
def forward_kernel(
    Q, K, V, Y, LOG_SUM, BLOCKS, STARTS, q_apart, k_apart, v_apart, H, T, scale, BLOCK: tl.constexpr,
    HD: tl.constexpr, DH: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes y, and log_sum [B, H, T], the base-2 logarithm of the sum of a query's weights before they are divided.

    Grid: 1-D, B * H * blocks * cdiv(BLOCK, BQ) programs, the tiles of a head side by side. Tile: y [BQ, DH], a loop
    over BK gathered keys at a time. Reads q and its row of the table once, keys and values as often as they are named;
    writes y and log_sum once. 64-bit: the place of a tile's first element, and of every gathered row.
    """
    b, h, block, first, left = block_tile(H, T, BLOCK, BQ)
    keys, values = rows_of(K, k_apart, b, h), rows_of(V, v_apart, b, h)
    q = load_rows(rows_of(Q, q_apart, b, h), first, left, BQ, HD, DH)
    r = tl.arange(0, BQ)
    largest, total = tl.full([BQ], LOWEST, tl.float32), tl.zeros([BQ], tl.float32)
    y = tl.zeros([BQ, DH], tl.float32)
    start = tl.load(STARTS + block)
    count = tl.load(STARTS + block + 1) - start
    for c in range(0, count * BLOCK, BK):
        of = positions(BLOCKS + start, c, count, T, BLOCK, BK)
        k, v = gather_rows(keys, of, HD, DH), gather_rows(values, of, HD, DH)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
        seen = (of >= 0)[None, :] & (of[None, :] <= (first + r)[:, None])
        largest, total, y = absorb(tl.where(seen, scores, float("-inf")), v, largest, total, y, PRECISION)
    store_rows(own_rows_of(Y, b, h, H, T, HD), first, left, y / total[:, None], BQ, HD, DH)
    tl.store(LOG_SUM + (b * H + h) * T + first + r, largest + tl.log2(total), mask=r < left)


@triton.jit
def query_gradient_kernel(
    Q, K, V, Y, DY, LOG_SUM, DELTA, DQ, BLOCKS, STARTS, q_apart, k_apart, v_apart, dy_apart, H, T, scale,
    BLOCK: tl.constexpr, HD: tl.constexpr, DH: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dq, and delta [B, H, T], the product of y and dy of each query, for `key_gradient_kernel`.

    Grid, tile, reads and 64-bit places as in `forward_kernel`; y, dy and log_sum are read once too.
    """
    b, h, block, first, left = block_tile(H, T, BLOCK, BQ)
    keys, values = rows_of(K, k_apart, b, h), rows_of(V, v_apart, b, h)
    q = load_rows(rows_of(Q, q_apart, b, h), first, left, BQ, HD, DH)
    dy = load_rows(rows_of(DY, dy_apart, b, h), first, left, BQ, HD, DH)
    y = load_rows(own_rows_of(Y, b, h, H, T, HD), first, left, BQ, HD, DH)
    r, sums = tl.arange(0, BQ), (b * H + h) * T + first
    delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)
    tl.store(DELTA + sums + r, delta, mask=r < left)
    log_sum = tl.load(LOG_SUM + sums + r, mask=r < left, other=0.0)
    dq = tl.zeros([BQ, DH], tl.float32)
    start = tl.load(STARTS + block)
    count = tl.load(STARTS + block + 1) - start
    for c in range(0, count * BLOCK, BK):
        of = positions(BLOCKS + start, c, count, T, BLOCK, BK)
        k, v = gather_rows(keys, of, HD, DH), gather_rows(values, of, HD, DH)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
        seen = (of >= 0)[None, :] & (of[None, :] <= (first + r)[:, None])
        weights = weights_again(scores, seen, log_sum[:, None])
        d_weights = tl.dot(dy, tl.trans(v), input_precision=PRECISION)
        d_scores = weights * (d_weights - delta[:, None])
        dq = tl.dot(d_scores.to(k.dtype), k, dq, input_precision=PRECISION)
    store_rows(own_rows_of(DQ, b, h, H, T, HD), first, left, dq * scale, BQ, HD, DH)


@triton.jit
def key_gradient_kernel(
    Q, K, V, DY, LOG_SUM, DELTA, DK, DV, BLOCKS, STARTS, q_apart, k_apart, v_apart, dy_apart, H, T, scale,
    BLOCK: tl.constexpr, HD: tl.constexpr, DH: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv, with the blocks of queries that name each block of keys listed in BLOCKS and STARTS.

    Grid: 1-D, B * H * blocks * cdiv(BLOCK, BK) programs, the tiles of a head side by side. Tile: dk and dv [BK, DH], a
    loop over BQ gathered queries at a time, which is long for a block that all name. Reads k, v and its list once, and
    the rest as often as the block is named; writes once. 64-bit as in `forward_kernel`.
    """
    b, h, block, first, left = block_tile(H, T, BLOCK, BK)
    queries, upstream = rows_of(Q, q_apart, b, h), rows_of(DY, dy_apart, b, h)
    k = load_rows(rows_of(K, k_apart, b, h), first, left, BK, HD, DH)
    v = load_rows(rows_of(V, v_apart, b, h), first, left, BK, HD, DH)
    LOG_SUM, DELTA = LOG_SUM + (b * H + h) * T, DELTA + (b * H + h) * T
    r = tl.arange(0, BK)
    dk, dv = tl.zeros([BK, DH], tl.float32), tl.zeros([BK, DH], tl.float32)
    start = tl.load(STARTS + block)
    count = tl.load(STARTS + block + 1) - start
    for c in range(0, count * BLOCK, BQ):
        at = positions(BLOCKS + start, c, count, T, BLOCK, BQ)
        q, dy = gather_rows(queries, at, HD, DH), gather_rows(upstream, at, HD, DH)
        log_sum = tl.load(LOG_SUM + at, mask=at >= 0, other=0.0)
        delta = tl.load(DELTA + at, mask=at >= 0, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2_E)  # [BK, BQ]
        seen = (at >= 0)[None, :] & (at[None, :] >= (first + r)[:, None])
        weights = weights_again(scores, seen, log_sum[None, :])
        dv = tl.dot(weights.to(dy.dtype), dy, dv, input_precision=PRECISION)
        d_weights = tl.dot(v, tl.trans(dy), input_precision=PRECISION)
        d_scores = weights * (d_weights - delta[None, :])
        dk = tl.dot(d_scores.to(q.dtype), q, dk, input_precision=PRECISION)
    store_rows(own_rows_of(DK, b, h, H, T, HD), first, left, dk * scale, BK, HD, DH)
    store_rows(own_rows_of(DV, b, h, H, T, HD), first, left, dv, BK, HD, DH)
