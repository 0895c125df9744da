"""Causal depthwise convolution with one tap for every lag, with bias and gate."""

from typing import Any

import torch
from torch import Tensor, fft
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harness import InputError
from harness_zoo.inputs import widened

MATRIX_LEN, MATRIX_BATCH = 64, 128  # up to this T and from this B on, a product with Toeplitz matrices is faster


def long_conv(
    x: Tensor, taps: Tensor, bias: Tensor | None = None, gate: Tensor | None = None, factor: Tensor | None = None
) -> Tensor:
    """Returns y [B, T, D]: y_t = gate_t * (bias + sum over s <= t of taps[:, s] * factor_{t-s} * x_{t-s}).

    x [B, T, D], taps [D, T] with lag 0 first, bias [D]. Gate and factor are [B, T, D], or [B, T, W] where W divides D
    and column c is that of the channels c, c + W, ... 16-bit input is convolved in float32; y has the dtype of x.
    """
    B, T, D = x.shape
    if taps.shape != (D, T):
        raise InputError(f"long_conv got taps of shape {tuple(taps.shape)} for x {(B, T, D)}; it takes [D, T]")
    x = gated(x, factor)
    as_matrix = x.device.type == "cpu" and T <= MATRIX_LEN and B >= MATRIX_BATCH
    y = (_ToeplitzConv if as_matrix else _FourierConv).apply(widened(x), widened(taps)).to(x.dtype)
    return gated(y if bias is None else y + bias, gate)


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """Returns x [B, T, D] times a gate [B, T, W], channel d by column d % W."""
    if gate is None or gate.shape == x.shape:
        return x if gate is None else gate * x
    require_columns("long_conv", "a gate", gate, x)
    # by broadcasting: what is kept for the backward pass is the narrow gate
    return (gate.unsqueeze(2) * x.unflatten(2, (-1, gate.shape[2]))).flatten(2)


def require_columns(op: str, name: str, gate: Tensor, x: Tensor) -> None:
    """Raises InputError unless the gate is [B, T, W] for x [B, T, D], and W divides D."""
    if gate.dim() != 3 or gate.shape[:2] != x.shape[:2] or not gate.shape[2] or x.shape[2] % gate.shape[2]:
        B, T, D = x.shape
        raise InputError(
            f"{op}: {name} has shape {list(gate.shape)}; it must be [{B}, {T}, {D}], or narrower by a whole factor"
        )


def add_skip(taps: Tensor, skip: Tensor) -> Tensor:
    """Returns the taps [D, T] of a filter that also adds skip [D] times its input."""
    return torch.cat((taps[:, :1] + skip.unsqueeze(1), taps[:, 1:]), dim=1)


def newest_output(x: Tensor, taps: Tensor) -> Tensor:
    """Returns the last position [B, D] of the convolution of x [B, T, D] with taps [D, T]: one decoding step."""
    return (x * taps.flip(1).T).sum(1)


def fast_length(n: int) -> int:
    """Returns the smallest length of at least n of the form 2^a, 3 * 2^a or 5 * 2^a: fast to transform."""
    return min(m << max(0, (-(-n // m) - 1).bit_length()) for m in (1, 3, 5))


class _FourierConv(torch.autograd.Function):
    """A product of real Fourier transforms; written out, because the derivative of a transform pads and copies more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        T = x.shape[1]
        ctx.n = n = fast_length(2 * T - 1)  # room for every product of a lag and a position: nothing wraps around
        # Time last and contiguous: the transform along a strided axis takes up to three times as long.
        spectrum, response = fft.rfft(x.transpose(1, 2).contiguous(), n=n), fft.rfft(taps, n=n)
        ctx.save_for_backward(spectrum, response)
        return fft.irfft(spectrum * response, n=n)[..., :T].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        (spectrum, response), n, T = ctx.saved_tensors, ctx.n, dy.shape[1]
        d_spectrum = fft.rfft(dy.transpose(1, 2).contiguous(), n=n)
        dx = fft.irfft(d_spectrum * response.conj(), n=n)[..., :T].transpose(1, 2)
        d_taps = fft.irfft((d_spectrum * spectrum.conj()).sum(0), n=n)[..., :T]
        return dx, d_taps


class _ToeplitzConv(torch.autograd.Function):
    """One product of [B, T] with a triangular [T, T] for every channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        D, T = taps.shape
        # Row s of channel d holds taps[d, t - s] at column t: the padded taps, read from a start that moves with s.
        padded = F.pad(taps, (T - 1, 0))  # [D, 2 T - 1]
        matrices = padded.as_strided((D, T, T), (2 * T - 1, 1, 1)).flip(1)
        inputs = x.transpose(1, 2).contiguous()  # [B, D, T]
        ctx.save_for_backward(inputs, matrices)
        return _apply(inputs, matrices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        inputs, matrices = ctx.saved_tensors
        T = dy.shape[1]
        dy = dy.transpose(1, 2).contiguous()  # [B, D, T]
        pairs = torch.bmm(inputs.permute(1, 2, 0), dy.transpose(0, 1))  # [D, T, T]: x_s dy_t, summed over B
        # Padded and cut by one row's length, row s starts s columns further to the right: diagonals become columns.
        skewed = F.pad(pairs.flip(1), (0, T)).flatten(1)[:, :-T].unflatten(1, (T, 2 * T - 1))
        return _apply(dy, matrices.transpose(1, 2)), skewed.sum(1)[:, T - 1 :]


def _apply(x: Tensor, matrices: Tensor) -> Tensor:
    """Returns x_d M_d of every channel d, [B, T, D], from x [B, D, T] and M [D, T, T]."""
    y = torch.empty_like(x)
    torch.bmm(x.transpose(0, 1), matrices, out=y.transpose(0, 1))
    return y.transpose(1, 2)
