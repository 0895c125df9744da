"""Causal depthwise convolution with one tap for every lag, with bias and gate."""

from torch import Tensor, fft


def long_conv(x: Tensor, taps: Tensor, bias: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
    """Returns y [B, T, D]: y_t = gate_t * (bias + sum over s <= t of taps[:, s] * x_{t-s}).

    x and gate [B, T, D], taps [D, T] with lag 0 first, bias [D].
    """
    T = x.shape[1]
    n = fast_length(2 * T - 1)  # room for every product of a lag and a position: nothing wraps around
    # Time last and contiguous: the transform along a strided axis takes up to three times as long.
    spectrum = fft.rfft(x.transpose(1, 2).contiguous(), n=n) * fft.rfft(taps, n=n)
    y = fft.irfft(spectrum, n=n)[..., :T].transpose(1, 2)  # [B, T, D]
    if bias is not None:
        y = y + bias
    return y if gate is None else gate * y


def fast_length(n: int) -> int:
    """Returns the smallest length of at least n of the form 2^a, 3 * 2^a or 5 * 2^a: fast to transform."""
    return min(m << max(0, (-(-n // m) - 1).bit_length()) for m in (1, 3, 5))
