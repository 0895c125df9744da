"""The gated short convolution: y = (u W + b1) * (h (*) u + b2), with k taps a channel."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness_zoo.inputs import check_input
from harness_zoo.ops.long_conv import newest_output
from harness_zoo.ops.short_conv import short_conv


class ShortConv(nn.Module):
    """Convolves with one oneDNN call on the layout the input already has."""

    def __init__(self, d_model: int, kernel: int, conv: Callable[..., Tensor] = short_conv) -> None:
        super().__init__()
        self.conv = conv  # an operator with the signature of `short_conv`
        bound = kernel**-0.5
        self.projection = nn.Linear(d_model, d_model)  # W, b1
        self.taps = nn.Parameter(torch.empty(d_model, kernel).uniform_(-bound, bound))  # h, lag 0 first
        self.bias = nn.Parameter(torch.empty(d_model).uniform_(-bound, bound))  # b2

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        check_input("short_conv", u, self.bias.numel())
        return self.conv(u, self.taps, self.bias, self.projection(u))

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Returns the k - 1 inputs before the first: zeros [B, k - 1, D]."""
        D, k = self.taps.shape
        return torch.zeros(B, k - 1, D, device=device, dtype=dtype)

    def prefill(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ([B, T, D], the last k - 1 inputs) from u [B, T, D]."""
        k = self.taps.shape[1]
        padded = F.pad(u, (0, 0, k - 1, 0))
        return self(u), padded[:, padded.shape[1] - (k - 1) :].clone()

    def step(self, u_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ([B, D], the last k - 1 inputs) from u_t [B, D] and the k - 1 inputs before it."""
        window = torch.cat((state, u_t.unsqueeze(1)), dim=1)  # [B, k, D], the newest last
        convolved = newest_output(window, self.taps)
        return self.projection(u_t) * (convolved + self.bias), window[:, 1:].clone()
