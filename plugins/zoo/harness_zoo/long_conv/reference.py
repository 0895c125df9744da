"""The long convolution layer as a sum (arXiv:2302.06646, section 2), one position and one lag at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

from harness_zoo.long_conv.layer import LongConv


class ReferenceLongConv(LongConv):
    """y_t = W gelu(sum over j <= t of h_j * u_{t-j} + s * u_t) + c."""

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        outputs = []
        for t in range(u.shape[1]):
            convolved = self.skip * u[:, t]
            for j in range(t + 1):
                convolved = convolved + self.filter[:, j] * u[:, t - j]
            outputs.append(self.out_proj(F.gelu(convolved)))
        return torch.stack(outputs, dim=1)
