"""BaseConv with a long filter: y = (u W + b1) * (h (*) u + b2), one tap for every lag up to max_len."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness_zoo.inputs import check_input, check_length
from harness_zoo.ops.long_conv import add_skip, long_conv, newest_output

BANDS = 8  # frequencies among the positional features of an implicit filter
HIDDEN = 16  # width of its network


class ExplicitFilter(nn.Module):
    """One free weight for every channel and lag."""

    def __init__(self, d_model: int, max_len: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_model, max_len) * max_len**-0.5)
        with torch.no_grad():
            self.weight[:, 0] += 1  # the published layers add the input itself to what the filter gives

    def forward(self, T: int) -> Tensor:
        """Returns the taps [D, T] of lags 0 to T - 1."""
        return self.weight[:, :T]


class ImplicitFilter(nn.Module):
    """The taps are the output of a small sine network whose input is the lag: its size does not grow with max_len."""

    features: Tensor

    def __init__(self, d_model: int, max_len: int) -> None:
        super().__init__()
        # Bare parameters, not nn.Linear: a filter drawn as small as the model draws its linear layers would be silent.
        self.inner = nn.Parameter(torch.randn(2 * BANDS + 1, HIDDEN) * (2 * BANDS + 1) ** -0.5)
        self.inner_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.middle = nn.Parameter(torch.randn(HIDDEN, HIDDEN) * HIDDEN**-0.5)
        self.middle_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.outer = nn.Parameter(torch.randn(HIDDEN, d_model) * (HIDDEN * max_len) ** -0.5)
        self.register_buffer("features", lag_features(max_len), persistent=False)

    def forward(self, T: int) -> Tensor:
        """Returns the taps [D, T] of lags 0 to T - 1."""
        hidden = torch.sin(self.features[:T] @ self.inner + self.inner_bias)  # [T, HIDDEN]
        hidden = torch.sin(hidden @ self.middle + self.middle_bias)
        h = (hidden @ self.outer).T  # [D, T]
        return add_skip(h, torch.ones_like(h[:, 0]))  # plus the input itself, as in the explicit filter


class BaseConv(nn.Module):
    """A projection gated by a long convolution."""

    def __init__(self, d_model: int, max_len: int, implicit: bool, conv: Callable[..., Tensor] = long_conv) -> None:
        super().__init__()
        self.conv = conv  # an operator with the signature of `long_conv`
        self.max_len = max_len
        self.projection = nn.Linear(d_model, d_model)  # W, b1
        self.filter = (ImplicitFilter if implicit else ExplicitFilter)(d_model, max_len)  # h
        self.bias = nn.Parameter(torch.zeros(d_model))  # b2

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        check_input("base_conv", u, self.bias.numel())
        return self.conv(u, self.taps(u.shape[1]), self.bias, self.projection(u))

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Returns the inputs so far: none, [B, 0, D]."""
        return torch.empty(B, 0, self.bias.numel(), device=device, dtype=dtype)

    def prefill(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ([B, T, D], all inputs) from u [B, T, D]."""
        return self(u), u.clone()

    def step(self, u_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ([B, D], all inputs so far) from u_t [B, D]: a general long filter has no smaller exact state."""
        state = torch.cat((state, u_t.unsqueeze(1)), dim=1)  # [B, t, D]
        convolved = newest_output(state, self.taps(state.shape[1]))
        return self.projection(u_t) * (convolved + self.bias), state

    def taps(self, T: int) -> Tensor:
        """Returns the filter [D, T], lag 0 first, or raises InputError where T is beyond its last lag."""
        check_length("base_conv", T, self.max_len)
        return self.filter(T)


def lag_features(max_len: int) -> Tensor:
    """Returns [max_len, 1 + 2 BANDS]: t / max_len, and cosine and sine of 1 to BANDS turns over the whole length."""
    t = torch.arange(max_len, dtype=torch.float64).unsqueeze(1) / max_len
    angles = 2 * math.pi * t * torch.arange(1, BANDS + 1)
    return torch.cat((t, angles.cos(), angles.sin()), dim=1).to(torch.get_default_dtype())
