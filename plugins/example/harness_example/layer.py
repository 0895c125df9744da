"""The exponential moving average of each channel: s_t = a s_{t-1} + (1 - a) x_t, y_t = W s_t + c."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StepwiseEMA(nn.Module):
    """The definition, one position at a time."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.decay_logit = nn.Parameter(torch.linspace(0.0, 5.0, d_model))  # a from 0.5 to 0.993
        self.out_proj = nn.Linear(d_model, d_model)

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Returns the average before the first token: zero."""
        return torch.zeros(B, self.decay_logit.numel(), device=device, dtype=dtype)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ([B, D], the new average) from x_t [B, D] and the average so far."""
        a = self.decay_logit.sigmoid()
        state = a * state + (1 - a) * x_t
        return self.out_proj(state), state

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        state = self.initial_state(x.shape[0], x.device, x.dtype)
        outputs = []
        for x_t in x.unbind(1):
            y_t, state = self.step(x_t, state)
            outputs.append(y_t)
        return torch.stack(outputs, dim=1)


class ParallelEMA(StepwiseEMA):
    """The same average of all positions at once: a causal convolution with the filter h_t = (1 - a) a^t."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        T = x.shape[1]
        log_a = F.logsigmoid(self.decay_logit).unsqueeze(1)  # powers of a as exponentials: no overflow at any T
        h = -torch.expm1(log_a) * torch.exp(log_a * torch.arange(T, device=x.device))  # [D, T]
        spectrum = torch.fft.rfft(x.transpose(1, 2), n=2 * T) * torch.fft.rfft(h, n=2 * T)  # padded: no wrap-around
        s = torch.fft.irfft(spectrum, n=2 * T)[..., :T].transpose(1, 2)
        return self.out_proj(s)
