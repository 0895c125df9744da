"""Hyena (arXiv:2302.10866): long convolutions with implicit filters between gates, all from one projection."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness_zoo.inputs import check_input, check_length
from harness_zoo.ops.long_conv import add_skip, long_conv, newest_output
from harness_zoo.ops.short_conv import short_conv

FAST, SLOW, FLOOR = 0.3, 1.5, 1e-2  # the window is down to FLOOR after these shares of max_len; channels lie between
LOWEST_FREQUENCY = 1e-4
HyenaState = tuple[Tensor, ...]  # the last inputs of the short filter, then all inputs of each long one


@dataclass(frozen=True)
class FilterShape:
    """The size of the network that gives the filters."""

    width: int
    depth: int  # hidden layers between the first and the last
    bands: int  # frequencies among the features of the lag
    frequency: float  # initial factor inside the sines


class HyenaFilter(nn.Module):
    """Taps of a lag t: FFN(features of t) * exp(-rate t), with sine activations (section 3.3)."""

    features: Tensor
    window: Tensor

    def __init__(self, channels: int, d_model: int, max_len: int, shape: FilterShape) -> None:
        super().__init__()
        W, E = shape.width, 1 + 2 * shape.bands
        # Bare parameters, not nn.Linear: a filter drawn as small as the model draws its linear layers would be silent.
        self.first, self.first_bias = uniform(E, E, W), uniform(E, W)
        self.hidden, self.hidden_bias = uniform(W, shape.depth, W, W), uniform(W, shape.depth, W)
        self.last = uniform(W, W, channels * d_model)
        self.frequency = nn.Parameter(torch.full((W,), float(shape.frequency)))
        self.register_buffer("features", lag_features(max_len, shape.bands), persistent=False)
        self.register_buffer("window", decay_window(max_len, d_model).repeat(1, channels), persistent=False)

    def forward(self, T: int) -> Tensor:
        """Returns the taps [channels * D, T] of lags 0 to T - 1."""
        features, window = self.features[:T].to(self.first.dtype), self.window[:T].to(self.first.dtype)
        z = torch.sin(self.frequency * (features @ self.first + self.first_bias))  # [T, W]
        for weight, bias in zip(self.hidden, self.hidden_bias, strict=True):
            z = torch.sin(self.frequency * (z @ weight + bias))
        return ((z @ self.last) * window).T


class Hyena(nn.Module):
    """z = x_1 * v, then z = x_n * (h_n (*) z + s_n * z) for n = 2 to the order, then a projection."""

    def __init__(
        self,
        d_model: int,
        max_len: int,
        order: int,
        kernel: int,
        shape: FilterShape,
        convs: tuple[Callable[..., Tensor], Callable[..., Tensor]] = (short_conv, long_conv),
    ) -> None:
        super().__init__()
        self.short_conv, self.long_conv = convs  # operators with the signatures of `short_conv` and `long_conv`
        self.max_len, self.order = max_len, order
        self.in_proj = nn.Linear(d_model, (order + 1) * d_model)  # x_1 to x_N, and v
        self.short = uniform(kernel, (order + 1) * d_model, kernel)  # lag 0 first
        self.short_bias = uniform(kernel, (order + 1) * d_model)
        self.filter = HyenaFilter(order - 1, d_model, max_len, shape)  # h
        self.skip = nn.Parameter(torch.randn((order - 1) * d_model))  # s
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        check_input("hyena", u, self.out_proj.in_features)
        *gates, v = self.short_conv(self.in_proj(u), self.short, self.short_bias).chunk(self.order + 1, dim=2)
        z = gates[0] * v
        for gate, taps in zip(gates[1:], self.taps(u.shape[1]), strict=True):
            z = self.long_conv(z, taps, gate=gate)
        return self.out_proj(z)

    def taps(self, T: int) -> tuple[Tensor, ...]:
        """Returns the filters [D, T], one a long convolution, with the skip in lag 0; InputError beyond max_len."""
        check_length("hyena", T, self.max_len)
        return add_skip(self.filter(T), self.skip).chunk(self.order - 1)

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> HyenaState:
        """Returns zeros as the inputs of the short filter before the first, and no inputs of the long ones."""
        channels, kernel = self.short.shape
        none = torch.empty(B, 0, self.out_proj.in_features, device=device, dtype=dtype)
        return torch.zeros(B, kernel - 1, channels, device=device, dtype=dtype), *[none] * (self.order - 1)

    def step(self, u_t: Tensor, state: HyenaState) -> tuple[Tensor, HyenaState]:
        """Returns ([B, D], the inputs of every filter so far) from u_t [B, D]: long filters have no smaller state."""
        recent, *pasts = state
        recent = torch.cat((recent, self.in_proj(u_t).unsqueeze(1)), dim=1)  # [B, kernel, (N + 1) D]
        *gates, v = (newest_output(recent, self.short) + self.short_bias).chunk(self.order + 1, dim=1)
        z, seen = gates[0] * v, []
        taps_of_each = self.taps(pasts[0].shape[1] + 1)
        for gate, taps, past in zip(gates[1:], taps_of_each, pasts, strict=True):
            seen.append(torch.cat((past, z.unsqueeze(1)), dim=1))  # [B, t, D]
            z = gate * newest_output(seen[-1], taps)
        return self.out_proj(z), (recent[:, 1:].clone(), *seen)


def uniform(fan_in: int, *shape: int) -> nn.Parameter:
    """Returns a parameter uniform in +-1 / sqrt(fan_in)."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))


def lag_features(max_len: int, bands: int) -> Tensor:
    """Returns float64 [max_len, 1 + 2 bands]: t from 0 to 1, and the parts of e^(-i f 2 pi lag / max_len)."""
    lag = torch.arange(max_len, dtype=torch.float64).unsqueeze(1)
    angles = 2 * math.pi * lag / max_len * torch.linspace(LOWEST_FREQUENCY, bands - 1, bands, dtype=torch.float64)
    return torch.cat((lag / max(1, max_len - 1), angles.cos(), -angles.sin()), dim=1)


def decay_window(max_len: int, d_model: int) -> Tensor:
    """Returns float64 [max_len, D]: e^(-rate t), t from 0 to 1, the rates evenly spaced from slow to fast."""
    t = torch.arange(max_len, dtype=torch.float64).unsqueeze(1) / max(1, max_len - 1)
    rates = -math.log(FLOOR) * torch.linspace(1 / SLOW, 1 / FAST, d_model, dtype=torch.float64)
    return torch.exp(-t * rates)
