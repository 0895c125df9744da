"""Short causal depthwise convolution with bias, activation and gate."""

from torch import Tensor
from torch.nn import functional as F

from harness import InputError

ACTIVATIONS = ("none", "silu")


def short_conv(
    x: Tensor, taps: Tensor, bias: Tensor | None = None, gate: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """Returns y [B, T, D]: y_t = gate_t * activation(bias + sum over j < K of taps[:, j] * x_{t-j}).

    x and gate [B, T, D], taps [D, K] with lag 0 first, bias [D]; activation is "none" or "silu". x = 0 before the
    first token.
    """
    if activation not in ACTIVATIONS:
        raise InputError(f"short_conv: activation = {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    D, K = taps.shape
    # An image of height 1 whose channels come last is x as it lies in memory, and oneDNN has a fast kernel for it.
    # Padding beforehand, on the left only, is faster than padding both sides inside and cutting the end off.
    image = F.pad(x, (0, 0, K - 1, 0)).unsqueeze(1).permute(0, 3, 1, 2)  # [B, D, 1, T + K - 1]
    y = F.conv2d(image, taps.flip(1)[:, None, None, :], bias, groups=D)  # [B, D, 1, T]
    y = y.squeeze(2).transpose(1, 2)  # [B, T, D]
    if activation == "silu":
        y = F.silu(y)
    return y if gate is None else gate * y
