"""Softmax attention to a window of the last positions, as Triton kernels that meet no key outside the window.

A tile of queries meets only the tiles of keys that its window reaches, in float32 sums that are rescaled as larger
scores come (arXiv:2205.14135). The forward pass keeps the logarithm of each query's sum, from which the backward pass
forms the weights again: one kernel for the queries, one for keys and values, which looks ahead to the queries that see
them. No atomics: every gradient is the same to the bit from run to run.
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
from harness_zoo.ops.common_kernel import FUSION, dot_precision
from harness_zoo.ops.sliding_window import sliding_window as blockwise

LONG_WINDOW = 256
# BQ queries meet BK keys at a time; warps; tiles in flight. The largest that spill no registers on any of the devices
# the tests compile for; a wide head has more than 64 elements. Three TF32 products for one of float32 take many.
TILES = {
    "half": {
        "forward_kernel": (64, 64, 4, 2),
        "query_gradient_kernel": (64, 32, 4, 2),
        "key_gradient_kernel": (32, 64, 4, 2),
    },
    "half, long": {
        "forward_kernel": (128, 64, 8, 3),
        "query_gradient_kernel": (128, 64, 8, 3),
        "key_gradient_kernel": (32, 64, 4, 3),
    },
    "half, wide": {
        "forward_kernel": (128, 64, 8, 2),
        "query_gradient_kernel": (64, 64, 4, 2),
        "key_gradient_kernel": (32, 64, 4, 3),
    },
    "float32": {
        "forward_kernel": (32, 32, 4, 2),
        "query_gradient_kernel": (32, 32, 4, 1),
        "key_gradient_kernel": (32, 32, 4, 2),
    },
    "float32, wide": {
        "forward_kernel": (32, 32, 8, 2),
        "query_gradient_kernel": (16, 16, 4, 2),
        "key_gradient_kernel": (16, 16, 4, 2),
    },
}


def sliding_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Returns [B, H, T, hd]: each position's softmax over the keys of the last `window` positions, itself included.

    q is [B, H, T, hd] and k, v are [B, H, S, hd]. T is S, or 1: the newest alone, and then S is at most the window.
    float32, bfloat16 or float16, the same for all three, or that of autocast where it is on; sums are float32. Any
    strides, without a copy where the last axis is contiguous. One query, and heads wider than MAX_WIDTH, go the way
    that `path` says. Raises InputError for other shapes, dtypes and devices, and for a window below 1.
    """
    check_heads("sliding_window", q, k, v)
    if window < 1:
        raise InputError(f"sliding_window: window = {window}; it takes at least 1, the position itself")
    T, hd = q.shape[2:]
    if path(T, hd) == "torch":
        return blockwise(q, k, v, window)
    q, k, v = in_one_dtype("sliding_window", q, k, v)
    y: Tensor = SlidingWindowFunction.apply(q, k, v, min(window, T))
    return y


class SlidingWindowFunction(torch.autograd.Function):
    """The kernels as one differentiable operation. Keeps q, k, v, y, and one float32 a query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """Returns y [B, H, T, hd]."""
        q, k, v = (unit_columns(part) for part in (q, k, v))
        y, log_sum = empty_like_rows(q), torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
        launch(forward_kernel, (q, k, v, y, log_sum), strides(q, k, v), window)
        ctx.save_for_backward(q, k, v, y, log_sum)
        ctx.window = window
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of q, k and v."""
        q, k, v, y, log_sum = ctx.saved_tensors
        dy = unit_columns(dy)
        dq, dk, dv = (empty_like_rows(part) for part in (q, k, v))
        delta = torch.empty(q.shape[:3], device=q.device, dtype=torch.float32)
        given, apart = (q, k, v, y, dy, log_sum, delta), strides(q, k, v, dy)
        launch(query_gradient_kernel, (*given, dq), apart, ctx.window)
        launch(key_gradient_kernel, (q, k, v, dy, log_sum, delta, dk, dv), apart, ctx.window)
        return dq, dk, dv, None


def launch_options(kernel: Any, window: int, hd: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the tile sizes of a kernel, and how products are formed.

    The window itself is a number of the launch: one compiled kernel serves all windows on a side of LONG_WINDOW.
    """
    size = "float32" if dtype == torch.float32 else "half"
    if hd > 64:
        size += ", wide"
    elif size == "half" and window >= LONG_WINDOW:
        size += ", long"
    BQ, BK, warps, stages = TILES[size][kernel.__name__]
    tiles = {"HD": hd, "DH": padded_width(hd), "BQ": BQ, "BK": BK}
    return {**tiles, "PRECISION": dot_precision(dtype), "num_warps": warps, "num_stages": stages}


def launch(kernel: Any, tensors: tuple[Tensor, ...], apart: tuple[tuple[int, ...], ...], window: int) -> None:
    """Runs a kernel over all tiles of q [B, H, T, hd], the first of its tensors."""
    q = tensors[0]
    B, H, T, hd = q.shape
    options = launch_options(kernel, window, hd, q.dtype)
    programs = B * H * triton.cdiv(T, options["BK" if kernel is key_gradient_kernel else "BQ"])
    if programs:
        with torch.cuda.device_of(q):
            kernel[(programs,)](*tensors, *apart, H, T, window, hd**-0.5, **options, **FUSION)


@triton.jit
def tile(H, T, ROWS: tl.constexpr):
    """Returns this program's sequence and head (64-bit), and the first row of its tile."""
    tiles = tl.cdiv(T, ROWS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    return head // H, head % H, tl.program_id(0) % tiles * ROWS


@triton.jit
def sees(queries, keys, window):
    """Returns which queries see which keys, both positions that broadcast: those 0 to window - 1 before them."""
    back = queries - keys
    return (back >= 0) & (back < window)


@triton.jit
def forward_kernel(
    Q, K, V, Y, LOG_SUM, q_apart, k_apart, v_apart, H, T, window, scale,
    HD: tl.constexpr, DH: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes y, and log_sum [B, H, T], the base-2 logarithm of the sum of a query's weights before they are divided.

    Grid: 1-D, B * H * cdiv(T, BQ) programs, the tiles of a head side by side. Tile: y [BQ, DH], a loop over the tiles
    of BK keys from the first that the window of the first query reaches to the last query's own. Reads q once and each
    key and value 1 + window / BQ times, from the cache after the first; writes y and log_sum once. 64-bit: the place of
    a tile's first element.
    """
    b, h, first = tile(H, T, BQ)
    keys, values = rows_of(K, k_apart, b, h), rows_of(V, v_apart, b, h)
    q = load_rows(rows_of(Q, q_apart, b, h), first, T - first, BQ, HD, DH)
    at, of = first + tl.arange(0, BQ), tl.arange(0, BK)
    largest, total = tl.full([BQ], LOWEST, tl.float32), tl.zeros([BQ], tl.float32)
    y = tl.zeros([BQ, DH], tl.float32)
    # To the end of the tile, past that of the sequence: a row there sees itself, and no sum is zero.
    for n in range(tl.maximum(first - window + 1, 0) // BK * BK, first + BQ, BK):
        k = load_rows(keys, n, T - n, BK, HD, DH)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
        scores = tl.where(sees(at[:, None], (n + of)[None, :], window), scores, float("-inf"))
        v = load_rows(values, n, T - n, BK, HD, DH)
        largest, total, y = absorb(scores, v, largest, total, y, PRECISION)
    store_rows(own_rows_of(Y, b, h, H, T, HD), first, T - first, y / total[:, None], BQ, HD, DH)
    tl.store(LOG_SUM + (b * H + h) * T + at, largest + tl.log2(total), mask=at < T)


@triton.jit
def query_gradient_kernel(
    Q, K, V, Y, DY, LOG_SUM, DELTA, DQ, q_apart, k_apart, v_apart, dy_apart, H, T, window, scale,
    HD: tl.constexpr, DH: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dq, and delta [B, H, T], the product of y and dy of each query, for `key_gradient_kernel`.

    Grid, tile, reads and 64-bit places as in `forward_kernel`; y, dy and log_sum are read once too.
    """
    b, h, first = tile(H, T, BQ)
    keys, values = rows_of(K, k_apart, b, h), rows_of(V, v_apart, b, h)
    q = load_rows(rows_of(Q, q_apart, b, h), first, T - first, BQ, HD, DH)
    dy = load_rows(rows_of(DY, dy_apart, b, h), first, T - first, BQ, HD, DH)
    y = load_rows(own_rows_of(Y, b, h, H, T, HD), first, T - first, BQ, HD, DH)
    at, of = first + tl.arange(0, BQ), tl.arange(0, BK)
    delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)
    tl.store(DELTA + (b * H + h) * T + at, delta, mask=at < T)
    log_sum = tl.load(LOG_SUM + (b * H + h) * T + at, mask=at < T, other=0.0)
    dq = tl.zeros([BQ, DH], tl.float32)
    for n in range(tl.maximum(first - window + 1, 0) // BK * BK, tl.minimum(first + BQ, T), BK):
        k, v = load_rows(keys, n, T - n, BK, HD, DH), load_rows(values, n, T - n, BK, HD, DH)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
        weights = weights_again(scores, sees(at[:, None], (n + of)[None, :], window), log_sum[:, None])
        d_weights = tl.dot(dy, tl.trans(v), input_precision=PRECISION)
        d_scores = weights * (d_weights - delta[:, None])
        dq = tl.dot(d_scores.to(k.dtype), k, dq, input_precision=PRECISION)
    store_rows(own_rows_of(DQ, b, h, H, T, HD), first, T - first, dq * scale, BQ, HD, DH)


@triton.jit
def key_gradient_kernel(
    Q, K, V, DY, LOG_SUM, DELTA, DK, DV, q_apart, k_apart, v_apart, dy_apart, H, T, window, scale,
    HD: tl.constexpr, DH: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv.

    Grid: 1-D, B * H * cdiv(T, BK) programs, the tiles of a head side by side. Tile: dk and dv [BK, DH], a loop over the
    tiles of BQ queries from the first key's own to the last that sees the last key. Reads k and v once, and q, dy,
    log_sum and delta 1 + window / BK times, from the cache after the first; writes once. 64-bit as in `forward_kernel`.
    """
    b, h, first = tile(H, T, BK)
    queries, upstream = rows_of(Q, q_apart, b, h), rows_of(DY, dy_apart, b, h)
    k = load_rows(rows_of(K, k_apart, b, h), first, T - first, BK, HD, DH)
    v = load_rows(rows_of(V, v_apart, b, h), first, T - first, BK, HD, DH)
    LOG_SUM, DELTA = LOG_SUM + (b * H + h) * T, DELTA + (b * H + h) * T
    at, of = tl.arange(0, BQ), first + tl.arange(0, BK)
    dk, dv = tl.zeros([BK, DH], tl.float32), tl.zeros([BK, DH], tl.float32)
    for m in range(first // BQ * BQ, tl.minimum(first + BK + window - 1, T), BQ):
        q, dy = load_rows(queries, m, T - m, BQ, HD, DH), load_rows(upstream, m, T - m, BQ, HD, DH)
        log_sum = tl.load(LOG_SUM + m + at, mask=at < T - m, other=0.0)
        delta = tl.load(DELTA + m + at, mask=at < T - m, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2_E)  # [BK, BQ]
        weights = weights_again(scores, sees((m + at)[None, :], of[:, None], window), log_sum[None, :])
        dv = tl.dot(weights.to(dy.dtype), dy, dv, input_precision=PRECISION)
        d_weights = tl.dot(v, tl.trans(dy), input_precision=PRECISION)
        d_scores = weights * (d_weights - delta[None, :])
        dk = tl.dot(d_scores.to(q.dtype), q, dk, input_precision=PRECISION)
    store_rows(own_rows_of(DK, b, h, H, T, HD), first, T - first, dk * scale, BK, HD, DH)
    store_rows(own_rows_of(DV, b, h, H, T, HD), first, T - first, dv, BK, HD, DH)
