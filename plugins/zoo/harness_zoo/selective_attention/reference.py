"""Selective attention as the paper writes it (arXiv:2312.04927, section 5): softmax(q_t K^T / sqrt(hd)) V f_t.

f_t is 0 or 1, times the gate of a learned selection. Each rule is its sentence, one position after the other.
"""

import torch
from torch import Tensor, nn

from harness import AttentionOptions, ReferenceAttention
from harness_zoo.selective_attention.selection import Learned, Programmatic, Random, WholeSequence, root


class ReferenceSelectiveAttention(ReferenceAttention):
    """Attention of every position, and then most of it is thrown away."""

    def __init__(self, d_model: int, max_len: int, options: AttentionOptions, selection: nn.Module) -> None:
        super().__init__(d_model, max_len, options)
        self.selection = selection

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D] and token ids [B, T]."""
        y = super().forward(x)
        chosen = [self._chosen(x_b, ids.tolist()) for x_b, ids in zip(x, tokens, strict=True)]
        y = y * torch.tensor(chosen, device=x.device).unsqueeze(2)
        if isinstance(self.selection, Learned):
            y = y * torch.sigmoid(x @ self.selection.gate).unsqueeze(2)
        return y

    def _chosen(self, x: Tensor, ids: list[int]) -> list[bool]:
        rule = self.selection
        if isinstance(rule, Random):
            return rule.coins[: len(ids)].tolist()
        if isinstance(rule, Programmatic):
            return [ids[t] in ids[:t] for t in range(len(ids))]
        if isinstance(rule, WholeSequence):
            return whole_sequence((x @ rule.gate).tolist(), rule)
        if isinstance(rule, Learned):
            return running((x @ rule.gate).tolist(), rule)
        return [True] * len(ids)


def running(scores: list[float], rule: Learned) -> list[bool]:
    """Returns whether fewer than k earlier scores are as large, as long as the budget lasts."""
    chosen: list[bool] = []
    for t, score in enumerate(scores):
        ahead = sum(earlier >= score for earlier in scores[:t])
        chosen.append(ahead < rule.k and sum(chosen) < rule.budget)
    return chosen


def whole_sequence(scores: list[float], rule: WholeSequence) -> list[bool]:
    """Returns whether a score is among the k largest of all; in training every position is."""
    k = rule.chosen_k or root(len(scores))
    smallest = sorted(scores, reverse=True)[:k][-1]
    return [rule.training or score >= smallest for score in scores]
