"""A long convolution layer without gates: y = W gelu(h (*) u + s * u) + c (arXiv:2302.06646)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness_zoo.inputs import check_input, check_length
from harness_zoo.ops.long_conv import add_skip, long_conv, newest_output


class LongConv(nn.Module):
    """One free weight for every channel and lag, and nothing that depends on the input."""

    def __init__(self, d_model: int, max_len: int, conv: Callable[..., Tensor] = long_conv) -> None:
        super().__init__()
        self.conv = conv  # an operator with the signature of `long_conv`
        self.filter = nn.Parameter(torch.randn(d_model, max_len) * max_len**-0.5)  # h, lag 0 first
        self.skip = nn.Parameter(torch.ones(d_model))  # s
        self.out_proj = nn.Linear(d_model, d_model)  # W, c

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        check_input("long_conv", u, self.skip.numel())
        return self.out_proj(F.gelu(self.conv(u, self.taps(u.shape[1]))))

    def taps(self, T: int) -> Tensor:
        """Returns the filter [D, T] of lags 0 to T - 1, the skip in lag 0; InputError where T is beyond its last."""
        check_length("long_conv", T, self.filter.shape[1])
        return add_skip(self.filter[:, :T], self.skip)

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Returns the inputs so far: none, [B, 0, D]."""
        return torch.empty(B, 0, self.skip.numel(), device=device, dtype=dtype)

    def prefill(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ([B, T, D], all inputs) from u [B, T, D]."""
        return self(u), u.clone()

    def step(self, u_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ([B, D], all inputs so far) from u_t [B, D]: a general long filter has no smaller exact state."""
        state = torch.cat((state, u_t.unsqueeze(1)), dim=1)  # [B, t, D]
        return self.out_proj(F.gelu(newest_output(state, self.taps(state.shape[1])))), state
