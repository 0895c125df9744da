"""Hyena as the paper writes it (arXiv:2302.10866, definition 3.1 and section 3.3), by position and by lag."""

import math

import torch
from torch import Tensor

from harness_zoo.hyena.layer import FAST, FLOOR, LOWEST_FREQUENCY, SLOW, Hyena


class ReferenceHyena(Hyena):
    """The recurrence of definition 3.1, its first filter being the identity, as in the authors' released layer."""

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        T, D = u.shape[1:]
        projected = convolve(self.in_proj(u), list(self.short.T), self.short_bias)  # [B, T, (N + 1) D]
        *x, v = projected.split(D, dim=2)
        h = torch.stack([self.tap(lag) for lag in range(T)])  # [T, (N - 1) D]
        z = x[0] * v
        for n in range(1, self.order):
            own = slice((n - 1) * D, n * D)
            z = x[n] * (convolve(z, list(h[:, own]), torch.zeros_like(v[0, 0])) + self.skip[own] * z)
        return self.out_proj(z)

    def tap(self, lag: int) -> Tensor:
        """Returns the taps [(N - 1) D] of one lag: Window(t) * FFN(PositionalEncoding(t))."""
        f, D = self.filter, self.out_proj.in_features
        t, bands = lag / max(1, self.max_len - 1), (f.first.shape[0] - 1) // 2
        waves = torch.linspace(LOWEST_FREQUENCY, bands - 1, bands, dtype=torch.float64, device=f.first.device)
        encoding = torch.exp(-2j * math.pi * lag / self.max_len * waves)
        z = torch.cat((waves.new_tensor([t]), encoding.real, encoding.imag)).to(f.first.dtype)
        z = torch.sin(f.frequency * (z @ f.first + f.first_bias))
        for weight, bias in zip(f.hidden, f.hidden_bias, strict=True):
            z = torch.sin(f.frequency * (z @ weight + bias))
        rates = torch.linspace(math.log(FLOOR) / SLOW, math.log(FLOOR) / FAST, D, dtype=z.dtype, device=z.device)
        return z @ f.last * torch.exp(t * rates).repeat(self.order - 1)


def convolve(x: Tensor, taps: list[Tensor], bias: Tensor) -> Tensor:
    """Returns y [B, T, D]: y_t = bias + sum over j of taps_j * x_{t-j}, x = 0 before the first position."""
    outputs = []
    for t in range(x.shape[1]):
        y_t = bias
        for j in range(min(t + 1, len(taps))):
            y_t = y_t + taps[j] * x[:, t - j]
        outputs.append(y_t)
    return torch.stack(outputs, dim=1)
