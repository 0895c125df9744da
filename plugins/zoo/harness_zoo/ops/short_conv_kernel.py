"""Gated short causal depthwise convolution as Triton kernels: y = gate * act(bias + conv(x, taps)).

Everything after the convolution is fused, and the backward pass recomputes what it needs from x: the forward pass keeps
its inputs and nothing else. No atomics: every gradient is the same to the bit from run to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness import InputError
from harness_zoo.ops.common_kernel import (
    FUSION,
    check_shapes,
    check_tensors,
    even_rows,
    output_dtype,
    power_of_two,
    row_stride,
)

MAX_TAPS = 8
ACTIVATIONS = ("none", "silu")


def short_conv(
    x: Tensor, taps: Tensor, bias: Tensor | None = None, gate: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """Returns gate * act(bias + causal convolution of x with taps), [B, T, D].

    x and gate are [B, T, D], taps [D, K] with lag 0 first and K <= 8, bias [D]; float32, bfloat16 or float16, in any
    mix. Sums are float32; the result has the dtype of x * gate, or that of autocast. x and gate may be slices of a
    wider tensor; other strides are copied. Raises InputError for other shapes, dtypes and devices.
    """
    B, T, D = x.shape
    K = taps.shape[-1]
    if not 1 <= K <= MAX_TAPS:
        raise InputError(f"short_conv: taps has K = {K}; the Triton kernel takes 1 to {MAX_TAPS}, torch any number")
    if activation not in ACTIVATIONS:
        raise InputError(f"short_conv: activation = {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    check_tensors("short_conv", x=x, taps=taps, bias=bias, gate=gate)
    check_shapes("short_conv", {"taps": (taps, (D, K)), "bias": (bias, (D,)), "gate": (gate, (B, T, D))})
    y: Tensor = ShortConvFunction.apply(x, taps, bias, gate, activation == "silu")
    return y


def launch_options(D: int, K: int, dtype: torch.dtype) -> dict[str, int]:
    """Returns tile sizes and warps: 16 elements a thread, and 8 where more taps would fill the registers.

    Half types take single warps and 32 elements a thread. Of 40 shapes tried on an H100 in bfloat16, (B, T, D) = (64,
    512, 128), that is the fastest backward (51 us, four warps 71) and near the fastest forward (16.4 us, four 18.7).
    """
    BD = min(64, max(16, power_of_two(D)))
    if dtype.itemsize == 2 and K <= 4:
        return {"BT": 16, "BD": BD, "num_warps": 1}
    return {"BT": 32, "BD": BD, "num_warps": 4 if K <= 4 else 8}


class ShortConvFunction(torch.autograd.Function):
    """The two kernels as one differentiable operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor | None, gate: Tensor | None, silu: bool) -> Tensor:
        """Returns y [B, T, D]."""
        y = torch.empty(x.shape, device=x.device, dtype=output_dtype(x, gate))
        x, taps = even_rows(x), taps.contiguous()
        bias, gate = bias if bias is None else bias.contiguous(), gate if gate is None else even_rows(gate)
        ctx.save_for_backward(x, taps, bias, gate)
        ctx.silu = silu
        launch(forward_kernel, (x, taps, bias, gate, y), STEP=1, SILU=silu)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x, taps, bias and gate."""
        x, taps, bias, gate = ctx.saved_tensors
        D, K = taps.shape
        dx, dy = torch.empty(x.shape, device=x.device, dtype=x.dtype), dy.contiguous()
        dz = torch.empty(x.shape, device=x.device, dtype=dy.dtype) if gate is not None or ctx.silu else None
        dgate = None if gate is None else torch.empty(x.shape, device=x.device, dtype=gate.dtype)
        partial = torch.empty(row_blocks(x, K), K + 1, D, device=x.device, dtype=torch.float32)
        launch(backward_kernel, (x, taps, bias, gate, dy, dz, dgate, partial), SILU=ctx.silu)
        launch(forward_kernel, (dy if dz is None else dz, taps, None, None, dx), STEP=-1, SILU=False)
        sums = partial.sum(0)  # [K + 1, D]: the gradient of each tap, and last that of the bias
        dbias = None if bias is None else sums[K].to(bias.dtype)
        return dx, sums[:K].T.to(taps.dtype), dbias, dgate, None


def row_blocks(x: Tensor, K: int) -> int:
    """Returns how many blocks of rows cover x."""
    B, T, D = x.shape
    return int(B * triton.cdiv(T, launch_options(D, K, x.dtype)["BT"]))


def launch(kernel: Any, tensors: tuple[Tensor | None, ...], **constants: int | bool) -> None:
    """Runs a kernel over all tiles of x [B, T, D]; its tensors begin with x, taps [D, K], bias, gate."""
    x, taps, _, gate = tensors[:4]
    _, T, D = x.shape
    K = taps.shape[1]
    options = launch_options(D, K, x.dtype)
    programs = row_blocks(x, K) * triton.cdiv(D, options["BD"])
    if programs:
        with torch.cuda.device_of(x):
            kernel[(programs,)](*tensors, T, D, row_stride(x), row_stride(gate), K=K, **constants, **options, **FUSION)


@triton.jit
def tile(T, D, BT: tl.constexpr, BD: tl.constexpr):
    """Returns this program's block of rows, the 64-bit number of its first row, its times [BT] and channels [BD]."""
    row_block = tl.program_id(0) // tl.cdiv(D, BD)
    t0 = row_block % tl.cdiv(T, BT) * BT
    row = (row_block // tl.cdiv(T, BT)).to(tl.int64) * T + t0
    return row_block, row, t0 + tl.arange(0, BT), tl.program_id(0) % tl.cdiv(D, BD) * BD + tl.arange(0, BD)


@triton.jit
def load_rows(X, row, apart, t, d, T, D, lag: tl.constexpr):
    """Returns x at t - lag, [BT, BD] in float32, zero outside the sequence; rows lie `apart` elements apart."""
    inside = ((t >= lag) & (t < T + lag))[:, None] & (d < D)[None, :]
    offsets = (tl.arange(0, t.shape[0]) - lag)[:, None] * apart + d[None, :]
    return tl.load(X + row * apart + offsets, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_rows(Y, y, row, t, d, T, D):
    """Writes y [BT, BD] to rows of D elements."""
    offsets = tl.arange(0, t.shape[0])[:, None] * D + d[None, :]
    tl.store(Y + row * D + offsets, y.to(Y.dtype.element_ty), mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit
def load_shifted(X, row, apart, t, d, T, D, STEP: tl.constexpr, K: tl.constexpr):
    """Returns x at t, t - STEP, … t - (K - 1) STEP: K tiles [BT, BD]."""
    shifted = ()
    for j in tl.static_range(K):
        shifted = shifted + (load_rows(X, row, apart, t, d, T, D, STEP * j),)  # noqa: RUF005, Triton knows no star
    return shifted


@triton.jit
def convolve(shifted, TAPS, BIAS, d, D, K: tl.constexpr):
    """Returns bias + sum over j of taps[j] * shifted[j], [BT, BD] in float32."""
    z = tl.zeros(shifted[0].shape, tl.float32)
    if BIAS is not None:
        z += tl.load(BIAS + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(K):
        z += tl.load(TAPS + d * K + j, mask=d < D, other=0.0).to(tl.float32)[None, :] * shifted[j]
    return z


@triton.jit
def forward_kernel(
    X, TAPS, BIAS, GATE, Y, T, D, X_ROW, GATE_ROW,
    K: tl.constexpr, STEP: tl.constexpr, SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes y [B, T, D]; with STEP = -1 the convolution runs from the future to the past, as gradients do.

    Grid: 1-D, B * cdiv(T, BT) * cdiv(D, BD) programs, channels fastest. Tile: [BT, BD] in registers.
    Reads x at K shifts (the first from memory, the others from the cache), taps, bias and gate; writes y once.
    64-bit: the first element of the tile; offsets within a tile are 32-bit.
    """
    _, row, t, d = tile(T, D, BT, BD)
    if GATE is not None:  # asked for first: a program waits once for memory, not twice
        gate = load_rows(GATE, row, GATE_ROW, t, d, T, D, 0)
    y = convolve(load_shifted(X, row, X_ROW, t, d, T, D, STEP, K), TAPS, BIAS, d, D, K)
    if SILU:
        y = y * tl.sigmoid(y)
    if GATE is not None:
        y = y * gate
    store_rows(Y, y, row, t, d, T, D)


@triton.jit
def backward_kernel(
    X, TAPS, BIAS, GATE, DY, DZ, DGATE, PARTIAL, T, D, X_ROW, GATE_ROW,
    K: tl.constexpr, SILU: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes dz and dgate [B, T, D], and partial [blocks of rows, K + 1, D]: a block's sums for each tap and the bias.

    z is what stands before the activation; without activation and gate, dz is dy and is not written.
    Grid, tile and reads as in `forward_kernel`, and dy; each output is written once.
    64-bit: the first element of the tile, and of the block in partial.
    """
    row_block, row, t, d = tile(T, D, BT, BD)
    shifted = load_shifted(X, row, X_ROW, t, d, T, D, 1, K)
    dz = load_rows(DY, row, D, t, d, T, D, 0)
    z = convolve(shifted, TAPS, BIAS, d, D, K)
    s = tl.sigmoid(z)
    if GATE is not None:
        store_rows(DGATE, dz * (z * s if SILU else z), row, t, d, T, D)
        dz *= load_rows(GATE, row, GATE_ROW, t, d, T, D, 0)
    if SILU:
        dz *= s * (1 + z * (1 - s))
    if DZ is not None:
        store_rows(DZ, dz, row, t, d, T, D)
    PARTIAL = PARTIAL + row_block.to(tl.int64) * (K + 1) * D + d
    for j in tl.static_range(K):
        tl.store(PARTIAL + j * D, tl.sum(dz * shifted[j], 0), mask=d < D)
    tl.store(PARTIAL + K * D, tl.sum(dz, 0), mask=d < D)
