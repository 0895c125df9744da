"""RWKV-4's time mixing as the paper writes it (arXiv:2305.13048), one position at a time, each a sum."""

import torch
from torch import Tensor

from harness_zoo.rwkv4.layer import RWKV4


class ReferenceRWKV4(RWKV4):
    """The formulas of section 3.1, with exponents kept in range by the largest one of each sum."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        decay = self.log_decay.exp()
        before = torch.zeros_like(x[:, 0])
        keys: list[Tensor] = []
        values: list[Tensor] = []
        outputs = []
        for t, x_t in enumerate(x.unbind(1)):
            r_t = self.receptance(self.mix_receptance * x_t + (1 - self.mix_receptance) * before)
            keys.append(self.key(self.mix_key * x_t + (1 - self.mix_key) * before))
            values.append(self.value(self.mix_value * x_t + (1 - self.mix_value) * before))
            # wkv_t: weights exp(-(t - 1 - i) w + k_i) of the past, exp(u + k_t) of the present
            exponents = [keys[i] - (t - 1 - i) * decay for i in range(t)] + [self.bonus + keys[t]]
            weights = torch.softmax(torch.stack(exponents), dim=0)  # [t + 1, B, D]
            wkv_t = (weights * torch.stack(values)).sum(0)
            outputs.append(self.out_proj(torch.sigmoid(r_t) * wkv_t))
            before = x_t
        return torch.stack(outputs, dim=1)
