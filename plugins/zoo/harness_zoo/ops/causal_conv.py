"""Causal depthwise convolution: y[b, t, d] = sum over lags j <= t of taps[d, j] * x[b, t - j, d]."""

from torch import Tensor, fft
from torch.nn import functional as F


def short_causal_conv(x: Tensor, taps: Tensor) -> Tensor:
    """Returns [B, T, D] from x [B, T, D] and a few taps [D, k]; lag 0 first."""
    k = taps.shape[1]
    # An image of height 1 whose channels come last is x as it lies in memory, and oneDNN has a fast kernel for it.
    # Padding beforehand, on the left only, is faster than padding both sides inside and cutting the end off.
    image = F.pad(x, (0, 0, k - 1, 0)).unsqueeze(1).permute(0, 3, 1, 2)  # [B, D, 1, T + k - 1]
    y = F.conv2d(image, taps.flip(1)[:, None, None, :], groups=x.shape[2])  # [B, D, 1, T]
    return y.squeeze(2).transpose(1, 2)


def long_causal_conv(x: Tensor, taps: Tensor) -> Tensor:
    """Returns [B, T, D] from x [B, T, D] and taps [D, T]; lag 0 first."""
    T = x.shape[1]
    n = fast_length(2 * T - 1)  # room for every product of a lag and a position: nothing wraps around
    # Time last and contiguous: the transform along a strided axis takes up to three times as long.
    spectrum = fft.rfft(x.transpose(1, 2).contiguous(), n=n) * fft.rfft(taps, n=n)
    return fft.irfft(spectrum, n=n)[..., :T].transpose(1, 2)


def fast_length(n: int) -> int:
    """Returns the smallest length of at least n of the form 2^a, 3 * 2^a or 5 * 2^a: fast to transform."""
    return min(m << max(0, (-(-n // m) - 1).bit_length()) for m in (1, 3, 5))
