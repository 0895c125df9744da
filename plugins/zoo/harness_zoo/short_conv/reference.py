"""The gated short convolution as the paper writes it (arXiv:2312.04927, eq. 1), one position and one tap at a time."""

import torch
from torch import Tensor

from harness_zoo.short_conv.layer import ShortConv


class ReferenceShortConv(ShortConv):
    """y_t = (u_t W + b1) * (sum over j < k of h_j * u_{t-j} + b2), with u = 0 before the first token."""

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        outputs = []
        for t in range(u.shape[1]):
            convolved = self.bias
            for j in range(min(self.taps.shape[1], t + 1)):
                convolved = convolved + self.taps[:, j] * u[:, t - j]
            outputs.append(self.projection(u[:, t]) * convolved)
        return torch.stack(outputs, dim=1)
