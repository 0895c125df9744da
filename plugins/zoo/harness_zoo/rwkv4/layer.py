"""RWKV-4's time mixing (arXiv:2305.13048)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness_zoo.inputs import check_input
from harness_zoo.ops.wkv import State, initial_state, wkv

RWKV4State = tuple[Tensor, State]  # the input before [B, D], and the state of the average


class RWKV4(nn.Module):
    """Keys, values and receptance see this input and the one before; the average runs through `wkv`."""

    def __init__(self, d_model: int, layer: int, n_layers: int, wkv: Callable[..., Any] = wkv) -> None:
        super().__init__()
        self.wkv = wkv  # an operator with the signature of `wkv`
        depth, left = layer / max(1, n_layers - 1), 1 - layer / n_layers
        i = torch.arange(d_model)
        self.mix_key = nn.Parameter((i / d_model) ** left)
        self.mix_value = nn.Parameter((i / d_model) ** left + 0.3 * depth)
        self.mix_receptance = nn.Parameter((i / d_model) ** (0.5 * left))
        self.log_decay = nn.Parameter(-5 + 8 * (i / max(1, d_model - 1)) ** (0.7 + 1.3 * depth))
        self.bonus = nn.Parameter(math.log(0.3) + 0.5 * ((i + 1) % 3 - 1))
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        check_input("rwkv4", x, self.bonus.numel())
        k, v, r = self.project(x, F.pad(x, (0, 0, 1, -1)))
        y, _ = self.wkv(k, v, self.log_decay.exp(), self.bonus)
        return self.out_proj(torch.sigmoid(r) * y)

    def project(self, x: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """Returns k, v and r [..., D] from the inputs x [..., D] and the ones before them.

        W (mix * x + (1 - mix) * before) = (W mix) x + (W (1 - mix)) before: mixing the weights is one product with
        both inputs side by side, where mixing the inputs is three passes over them, and more backward.
        """
        mixed = (self.key, self.mix_key), (self.value, self.mix_value), (self.receptance, self.mix_receptance)
        now = torch.cat([linear.weight * mix for linear, mix in mixed])  # [3 D, D]
        past = torch.cat([linear.weight * (1 - mix) for linear, mix in mixed])
        both = torch.cat((x, before), dim=-1)
        return F.linear(both, torch.cat((now, past), dim=1)).chunk(3, dim=-1)

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> RWKV4State:
        """Returns zero as the input before the first, and an average of nothing."""
        D = self.bonus.numel()
        return torch.zeros(B, D, device=device, dtype=dtype), initial_state(B, D, device, dtype)

    def step(self, x_t: Tensor, state: RWKV4State) -> tuple[Tensor, RWKV4State]:
        """Returns ([B, D], the new state) from x_t [B, D] and the state so far."""
        before, average = state
        k, v, r = (part.unsqueeze(1) for part in self.project(x_t, before))
        y, average = self.wkv(k, v, self.log_decay.exp(), self.bonus, average)
        return self.out_proj(torch.sigmoid(r) * y).squeeze(1), (x_t.clone(), average)
