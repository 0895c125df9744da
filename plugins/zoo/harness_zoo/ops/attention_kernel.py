"""What the Triton kernels of attention share: the tensors they take, tiles of rows, sums of a softmax, its gradient.

A softmax over tiles of keys keeps sums that are rescaled as larger scores come (arXiv:2205.14135); from the logarithm
of a query's sum its weights can be formed again in the backward pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness import InputError
from harness_zoo.ops.common_kernel import check_shapes, check_tensors, power_of_two

MAX_WIDTH = 128  # of a head
LOG2_E = tl.constexpr(1.4426950408889634)  # the kernels raise 2, not e, to a power: it is one instruction
LOWEST = tl.constexpr(-3.4e38)  # below every score and finite, so that where no key is seen yet nothing becomes NaN


def path(T: int, hd: int) -> str:
    """Returns what an operator runs: "tiles", or "torch" for one query and for a head beyond MAX_WIDTH."""
    return "tiles" if T > 1 and hd <= MAX_WIDTH else "torch"


def check_heads(op: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises InputError unless q is [B, H, T, hd] and k, v are [B, H, S, hd], where T is S or 1."""
    if q.dim() != 4 or k.dim() != 4 or q.shape[2] < 1:
        raise InputError(
            f"{op}: q has shape {list(q.shape)} and k {list(k.shape)}; they must be [B, H, T, hd] with T of at least 1"
        )
    B, H, T, hd = q.shape
    S = T if T > 1 else k.shape[2]
    check_tensors(op, q=q, k=k, v=v)
    check_shapes(op, {"k": (k, (B, H, S, hd)), "v": (v, (B, H, S, hd))})


def in_one_dtype(op: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns q, k and v in the dtype of autocast where it is on; raises InputError where it is not and they differ."""
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        return q.to(dtype), k.to(dtype), v.to(dtype)
    if not q.dtype == k.dtype == v.dtype:
        raise InputError(f"{op}: q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; they must have one dtype")
    return q, k, v


def unit_columns(x: Tensor) -> Tensor:
    """Returns x [B, H, T, hd], copied unless the elements of a row lie side by side."""
    return x if x.stride(3) == 1 else x.contiguous()


def empty_like_rows(x: Tensor) -> Tensor:
    """Returns an empty [B, H, T, hd] that lies in memory as [B, T, H, hd]: merging the heads again needs no copy."""
    B, H, T, hd = x.shape
    return torch.empty(B, T, H, hd, device=x.device, dtype=x.dtype).transpose(1, 2)


def strides(*tensors: Tensor) -> tuple[tuple[int, ...], ...]:
    """Returns for each tensor [B, H, T, hd] how many elements a sequence, a head and a row are from the next."""
    return tuple(x.stride()[:3] for x in tensors)


def padded_width(hd: int) -> int:
    """Returns how many elements of a head a tile has; tensor cores take at least 16."""
    return max(16, power_of_two(hd))


@triton.jit
def rows_of(X, apart, b, h):
    """Returns where the rows of a head begin, and how many elements (64-bit) one is from the next."""
    return X + b * apart[0] + h * apart[1], tl.cast(apart[2], tl.int64)


@triton.jit
def own_rows_of(X, b, h, H, T, HD: tl.constexpr):
    """Returns what `rows_of` does, of a tensor that `empty_like_rows` made."""
    return X + (b * T * H + h) * HD, tl.cast(H * HD, tl.int64)


@triton.jit
def load_rows(rows, first, left, ROWS: tl.constexpr, HD: tl.constexpr, DH: tl.constexpr):
    """Returns rows [ROWS, DH] from `first` on, zeros once none is left and from HD on. 64-bit: where they begin."""
    base, apart = rows
    r, d = tl.arange(0, ROWS), tl.arange(0, DH)
    places = base + first * apart + (r[:, None] * apart.to(tl.int32) + d[None, :])
    return tl.load(places, mask=(r < left)[:, None] & (d < HD)[None, :], other=0.0)


@triton.jit
def store_rows(rows, first, left, x, ROWS: tl.constexpr, HD: tl.constexpr, DH: tl.constexpr):
    """Writes x [ROWS, DH] to the rows that `load_rows` reads."""
    base, apart = rows
    r, d = tl.arange(0, ROWS), tl.arange(0, DH)
    places = base + first * apart + (r[:, None] * apart.to(tl.int32) + d[None, :])
    tl.store(places, x.to(base.dtype.element_ty), mask=(r < left)[:, None] & (d < HD)[None, :])


@triton.jit
def absorb(scores, v, largest, total, y, PRECISION: tl.constexpr):
    """Returns (largest, total, y) with a tile of keys: scores [BQ, BK] to base 2, -inf where a key is not seen.

    They are a query's largest score, and its sums of weights and of weighted values relative to it.
    """
    above = tl.maximum(largest, tl.max(scores, 1))
    weights, fall = tl.exp2(scores - above[:, None]), tl.exp2(largest - above)
    total = total * fall + tl.sum(weights, 1)
    return above, total, tl.dot(weights.to(v.dtype), v, y * fall[:, None], input_precision=PRECISION)


@triton.jit
def weights_again(scores, seen, log_sum):
    """Returns the weights P of scores to base 2, from the logarithms of their queries' sums, which broadcast.

    With dP = dy v^T and delta, the product of y and dy of a query, the gradient of the scores is P (dP - delta).
    """
    return tl.where(seen, tl.exp2(scores - log_sum), 0.0)
