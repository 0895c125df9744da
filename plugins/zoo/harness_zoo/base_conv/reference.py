"""BaseConv as the paper writes it (arXiv:2312.04927, eq. 1), one position at a time, each a sum over all taps."""

import torch
from torch import Tensor

from harness_zoo.base_conv.layer import BaseConv


class ReferenceBaseConv(BaseConv):
    """y_t = (u_t W + b1) * (sum over j <= t of h_j * u_{t-j} + b2)."""

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        h = self.taps(u.shape[1])
        outputs = []
        for t in range(u.shape[1]):
            convolved = self.bias
            for j in range(t + 1):
                convolved = convolved + h[:, j] * u[:, t - j]
            outputs.append(self.projection(u[:, t]) * convolved)
        return torch.stack(outputs, dim=1)
