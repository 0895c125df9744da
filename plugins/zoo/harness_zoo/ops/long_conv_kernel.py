"""Gated causal convolution with a tap for every lag, on tensor cores: y = gate * (bias + conv(factor * x, taps)).

A block of C outputs is the sum over blocks of C inputs of a product with a [C, C] Toeplitz matrix, which is gathered
from 2 C - 1 taps. Channels do not mix, so the products want a channel's sequences side by side: one kernel brings
[B, T, D] to [D, B, P], P = T rounded up to whole blocks of zeros, and one brings it back, with bias and gate. The work
grows with T^2; beyond MAX_LEN the Fourier transform of the torch implementation is used, and `path` says which it is.

No atomics: every gradient is the same to the bit from run to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness_zoo.ops.common_kernel import (
    FUSION,
    check_shapes,
    check_tensors,
    dot_precision,
    even_rows,
    output_dtype,
    power_of_two,
    row_stride,
)
from harness_zoo.ops.long_conv import long_conv as fourier_conv
from harness_zoo.ops.long_conv import require_columns

MAX_LEN = 2048
FULL_ROWS = 16  # sequences that fill the rows of a product; with 4 of them at T = 2048 the transform is twice as fast
BLOCK = 64  # C: positions of a block


def long_conv(
    x: Tensor, taps: Tensor, bias: Tensor | None = None, gate: Tensor | None = None, factor: Tensor | None = None
) -> Tensor:
    """Returns gate * (bias + causal convolution of factor * x with taps), [B, T, D].

    x is [B, T, D], taps [D, T] with lag 0 first, bias [D]; gate and factor are [B, T, D], or [B, T, W] where W divides
    D and column c is that of the channels c, c + W, ...; float32, bfloat16 or float16, in any mix. The result has the
    dtype of factor * x * gate, or that of autocast, and so have the operands of the products; sums are float32. x, gate
    and factor may be slices of a wider tensor; other strides are copied. Raises InputError for other shapes, dtypes and
    devices.
    """
    B, T, D = x.shape
    check_tensors("long_conv", x=x, taps=taps, bias=bias, gate=gate, factor=factor)
    check_shapes("long_conv", {"taps": (taps, (D, T)), "bias": (bias, (D,))})
    for name, tensor in (("gate", gate), ("factor", factor)):
        if tensor is not None:
            require_columns("long_conv", name, tensor, x)
    if path(B, T) == "fourier":
        return fourier_conv(x, taps, bias, gate, factor).to(output_dtype(x, gate, factor))
    y: Tensor = LongConvFunction.apply(x, taps, bias, gate, factor)
    return y


def path(B: int, T: int) -> str:
    """Returns what `long_conv` runs: "toeplitz" up to MAX_LEN, or half of it for few sequences; "fourier" beyond."""
    longest = MAX_LEN if B >= FULL_ROWS else MAX_LEN // 2
    return "fourier" if longest < T else "toeplitz"


class LongConvFunction(torch.autograd.Function):
    """The kernels as one differentiable operation.

    Keeps what is convolved, as [D, B, P], or x and a factor as they came: their product is then taken again. With a
    gate it also keeps the convolution.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: Tensor, bias: Tensor | None, gate: Tensor | None, factor: Tensor | None
    ) -> Tensor:
        """Returns y [B, T, D]."""
        dtype = output_dtype(x, gate, factor)
        inputs, padded = to_channels(x, factor, dtype), pad_taps(taps, dtype)
        z = convolve(inputs, padded, anti=False)
        kept = inputs if factor is None else x
        ctx.save_for_backward(kept, padded, bias, gate, factor, None if gate is None else z)
        ctx.T, ctx.dtypes = x.shape[1], (x.dtype, taps.dtype, dtype)
        return from_channels(z, bias, gate, ctx.T, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x, taps, bias, gate and factor, those that are asked for."""
        x, padded, bias, gate, factor, z = ctx.saved_tensors
        T, (x_dtype, taps_dtype, dtype) = ctx.T, ctx.dtypes
        dz = to_channels(dy, gate, dy.dtype)  # [D, B, P]
        dx = dtaps = dbias = dgate = dfactor = None
        if ctx.needs_input_grad[1]:
            inputs = x if factor is None else to_channels(x, factor, dtype)
            dtaps = correlate(dz, inputs)[:, :T].to(taps_dtype)
            del inputs
        if ctx.needs_input_grad[2]:
            dbias = dz.sum((1, 2), dtype=torch.float32).to(bias.dtype)
        if ctx.needs_input_grad[3]:
            dgate = gathered(from_channels(z, bias, dy, T, gate.dtype), gate)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[4]:
            dproduct = convolve(dz, padded, anti=True)
            del dz
            dx = from_channels(dproduct, None, factor, T, x_dtype)
            if ctx.needs_input_grad[4]:
                dfactor = gathered(from_channels(dproduct, None, x, T, factor.dtype), factor)
        return dx, dtaps, dbias, dgate, dfactor


def gathered(dgate: Tensor, gate: Tensor) -> Tensor:
    """Returns the gradient [B, T, W] of a gate, from that of the channels it multiplied, [B, T, D]."""
    if dgate.shape == gate.shape:
        return dgate
    return dgate.unflatten(2, (-1, gate.shape[2])).sum(2, dtype=torch.float32).to(gate.dtype)


def to_channels(x: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Returns x * gate as [D, B, P], zero from T on; x is [B, T, D], the gate [B, T, W]."""
    B, T, D = x.shape
    out = torch.empty(D, B, triton.cdiv(T, BLOCK) * BLOCK, device=x.device, dtype=dtype)
    x, gate = even_rows(x), gate if gate is None else even_rows(gate)
    _transpose(to_channels_kernel, (x, gate, out), out, (T, row_stride(x), row_stride(gate), width(gate, D)))
    return out


def from_channels(z: Tensor, bias: Tensor | None, gate: Tensor | None, T: int, dtype: torch.dtype) -> Tensor:
    """Returns gate * (bias + z) as [B, T, D], from z [D, B, P]; the gate is [B, T, W]."""
    D, B, _ = z.shape
    y = torch.empty(B, T, D, device=z.device, dtype=dtype)
    bias, gate = bias if bias is None else bias.contiguous(), gate if gate is None else even_rows(gate)
    _transpose(from_channels_kernel, (z, bias, gate, y), z, (T, row_stride(y), row_stride(gate), width(gate, D)))
    return y


def width(gate: Tensor | None, D: int) -> int:
    """Returns the columns W of a gate [B, T, W]; D where there is none."""
    return D if gate is None else gate.shape[2]


def pad_taps(taps: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the taps as [D, C + P], zeros at the C lags before 0 and from T on: every block can be read whole."""
    D, T = taps.shape
    padded = torch.empty(D, BLOCK + triton.cdiv(T, BLOCK) * BLOCK, device=taps.device, dtype=dtype).zero_()
    padded[:, BLOCK : BLOCK + T] = taps
    return padded


def convolve(x: Tensor, padded: Tensor, anti: bool) -> Tensor:
    """Returns the causal (or, from the future to the past, anticausal) convolution of x [D, B, P]."""
    D, B, P = x.shape
    z = torch.empty(D, B, P, device=x.device, dtype=x.dtype)
    programs = D * (P // BLOCK) * triton.cdiv(B, launch_options(B, x.dtype)["BB"])
    if programs:
        with torch.cuda.device_of(x):
            toeplitz_kernel[(programs,)](x, padded, z, D, B, P, ANTI=anti, **launch_options(B, x.dtype), **FUSION)
    return z


def correlate(dz: Tensor, x: Tensor) -> Tensor:
    """Returns the sum over sequences and times of dz_t * x_{t - lag} for every lag, [D, P] in float32."""
    D, B, P = x.shape
    sums = torch.empty(2, D, P // BLOCK, BLOCK, device=x.device, dtype=torch.float32)
    if sums.numel():
        with torch.cuda.device_of(x):
            correlate_kernel[(D * (P // BLOCK),)](dz, x, sums, D, B, P, **launch_options(B, x.dtype), **FUSION)
    at, before = sums
    at[:, :-1] += before[:, 1:]
    return at.flatten(1)


def launch_options(B: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns tile sizes and how products are formed; tensor cores take at least 16 rows, so some may be masked."""
    wide = dtype == torch.float32
    # in float32, 64 rows would take eight warps (four would spill): 1.6 to 3.4 times as long on an H100
    rows = 32 if wide else 64
    return {
        "C": BLOCK,
        "BB": min(rows, max(16, power_of_two(B))),
        "PRECISION": dot_precision(dtype),
        "num_warps": 4,
        "num_stages": 2 if wide else 3,  # blocks in flight; two fill an AMD device's shared memory
    }


def transpose_options(D: int) -> dict[str, int]:
    """Returns the tile of the kernels that change the layout."""
    return {"BT": BLOCK, "BD": min(64, max(16, power_of_two(D))), "num_warps": 4}


def _transpose(kernel: Any, tensors: tuple[Tensor | None, ...], channels: Tensor, sizes: tuple[int, ...]) -> None:
    D, B, P = channels.shape
    options = transpose_options(D)
    programs = B * (P // BLOCK) * triton.cdiv(D, options["BD"])
    if programs:
        with torch.cuda.device_of(channels):
            kernel[(programs,)](*tensors, B, D, P, *sizes, **options, **FUSION)


@triton.jit
def transpose_tile(B, D, P, BT: tl.constexpr, BD: tl.constexpr):
    """Returns this program's sequence (64-bit), times [BT] and channels [BD], and their offsets in [D, B, P]."""
    d = tl.program_id(0) % tl.cdiv(D, BD) * BD + tl.arange(0, BD)
    block = tl.program_id(0) // tl.cdiv(D, BD)
    b = (block // (P // BT)).to(tl.int64)
    t = block % (P // BT) * BT + tl.arange(0, BT)
    return b, t, d, (d.to(tl.int64) * B + b)[None, :] * P + t[:, None]


@triton.jit
def to_channels_kernel(X, GATE, OUT, B, D, P, T, X_ROW, GATE_ROW, W, BT: tl.constexpr, BD: tl.constexpr):
    """Writes x * gate to [D, B, P], zeros from T on; channel d is multiplied by column d % W of the gate.

    Grid: 1-D, B * P / BT * cdiv(D, BD) programs, channels fastest. Tile: [BT, BD], turned around in shared memory.
    Reads x and gate, whose rows are X_ROW and GATE_ROW apart, once; writes once. 64-bit: all offsets.
    """
    b, t, d, channels = transpose_tile(B, D, P, BT, BD)
    inside = (t < T)[:, None] & (d < D)[None, :]
    x = tl.load(X + (b * T + t)[:, None] * X_ROW + d[None, :], mask=inside, other=0.0).to(tl.float32)
    if GATE is not None:
        x *= tl.load(GATE + (b * T + t)[:, None] * GATE_ROW + (d % W)[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(OUT + channels, x.to(OUT.dtype.element_ty), mask=(d < D)[None, :])


@triton.jit
def from_channels_kernel(Z, BIAS, GATE, Y, B, D, P, T, Y_ROW, GATE_ROW, W, BT: tl.constexpr, BD: tl.constexpr):
    """Writes y = gate * (bias + z), [B, T, D], from z [D, B, P]; the gate's columns are those of `to_channels_kernel`.

    Grid, tile and 64-bit offsets as in `to_channels_kernel`. Reads z, gate and bias, writes y, each once.
    """
    b, t, d, channels = transpose_tile(B, D, P, BT, BD)
    inside = (t < T)[:, None] & (d < D)[None, :]
    # Unmasked in time, since the padding is there to be read: a mask that ends at T would forbid wide loads.
    y = tl.load(Z + channels, mask=(d < D)[None, :], other=0.0).to(tl.float32)
    if BIAS is not None:
        y += tl.load(BIAS + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    if GATE is not None:
        y *= tl.load(GATE + (b * T + t)[:, None] * GATE_ROW + (d % W)[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + (b * T + t)[:, None] * Y_ROW + d[None, :], y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def toeplitz_kernel(
    X, TAPS, Z, D, B, P, ANTI: tl.constexpr, C: tl.constexpr, BB: tl.constexpr, PRECISION: tl.constexpr
):
    """Writes z [D, B, P], the convolution of x [D, B, P] with taps [D, C + P] (lag 0 in column C).

    Grid: 1-D, D * P / C * cdiv(B, BB) programs, the blocks with the longest sums first. Tile: z [BB, C] of one channel,
    the sum over blocks of x [BB, C] @ Toeplitz [C, C]. Reads the blocks of x before (ANTI: after) its own once, and C
    rows of C taps for each, from the cache after the first; writes z once. 64-bit: the offset of a row of x and z.
    """
    blocks = P // C
    d = tl.program_id(0) % D
    rows = tl.program_id(0) // D % tl.cdiv(B, BB) * BB + tl.arange(0, BB)
    i = tl.program_id(0) // D // tl.cdiv(B, BB)
    k, n = tl.arange(0, C), tl.arange(0, C)
    if ANTI:
        first, last, lags = i, blocks, k[:, None] - n[None, :]
    else:
        i = blocks - 1 - i
        first, last, lags = 0, i + 1, n[None, :] - k[:, None]
    x = X + (d.to(tl.int64) * B + rows)[:, None] * P + k[None, :]
    TAPS += d.to(tl.int64) * (C + P) + C
    z = tl.zeros([BB, C], tl.float32)
    for j in range(first, last):
        block = tl.load(x + j * C, mask=(rows < B)[:, None], other=0.0)
        apart = (j - i if ANTI else i - j) * C
        z = tl.dot(block, tl.load(TAPS + (apart + lags)), z, input_precision=PRECISION)
    z_row = Z + (d.to(tl.int64) * B + rows)[:, None] * P
    tl.store(z_row + (i * C + n)[None, :], z.to(Z.dtype.element_ty), mask=(rows < B)[:, None])


@triton.jit
def correlate_kernel(DZ, X, SUMS, D, B, P, C: tl.constexpr, BB: tl.constexpr, PRECISION: tl.constexpr):
    """Writes sums [2, D, P / C, C]: of dz_t * x_{t - lag}, for t in one block and t - lag in the block m before it.

    Grid: 1-D, D * P / C programs, the smallest m with the longest sums first. Tile: the products [C, C] of one channel
    and m, summed over sequences and pairs of blocks; its diagonals are the lags. Plane 0 has lags m C + r, plane 1 lags
    (m - 1) C + r, r in [0, C). Reads dz and x of the channel once for each m, writes sums once. 64-bit: the offset of a
    row of dz and x, and of the sums.
    """
    blocks = P // C
    d = (tl.program_id(0) % D).to(tl.int64)
    m = tl.program_id(0) // D
    k, r = tl.arange(0, C), tl.arange(0, C)
    row_blocks = tl.cdiv(B, BB)
    products = tl.zeros([C, C], tl.float32)  # [position of dz, position of x], each in its block
    for n in range(0, (blocks - m) * row_blocks):
        rows = n % row_blocks * BB + tl.arange(0, BB)
        i = n // row_blocks
        offsets = (d * B + rows)[:, None] * P + (i * C + k)[None, :]
        dz = tl.load(DZ + offsets + m * C, mask=(rows < B)[:, None], other=0.0)
        x = tl.load(X + offsets, mask=(rows < B)[:, None], other=0.0)
        products = tl.dot(tl.trans(dz), x, products, input_precision=PRECISION)
    # Column c moves up by c: row r then holds the products that are r apart, or r - C from where the column wrapped.
    wrapped = r[:, None] + k[None, :] >= C
    skewed = tl.gather(products, (r[:, None] + k[None, :]) % C, 0)
    SUMS += (d * blocks + m) * C + r
    tl.store(SUMS, tl.sum(tl.where(wrapped, 0.0, skewed), 1))
    tl.store(SUMS + D * blocks * C, tl.sum(tl.where(wrapped, skewed, 0.0), 1))
