"""The definition of causal softmax attention (arXiv:1706.03762, eq. 1), with the whole T x T matrix of weights."""

import math

import torch
from torch import Tensor

from harness_xformers.layer import XformersAttention


class DefinedAttention(XformersAttention):
    """softmax(Q K^T / sqrt(d_h) + mask) V, on any device and in any dtype."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Returns the heads' outputs [B, T, H, D / H]."""
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
        if causal:
            T = q.shape[1]
            future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
