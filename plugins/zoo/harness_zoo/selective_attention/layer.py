"""Input-dependent sparse attention: only selected positions attend (arXiv:2312.04927, section 5)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import AttentionHeads, AttentionOptions
from harness_zoo.inputs import check_input
from harness_zoo.selective_attention.selection import Learned


class SelectiveAttention(nn.Module):
    """y_t = scale_t * attention(x)_t where t is selected, else exactly 0. Every position is a key."""

    def __init__(self, d_model: int, max_len: int, options: AttentionOptions, selection: nn.Module) -> None:
        super().__init__()
        self.heads = AttentionHeads(d_model, max_len, options)
        self.selection = selection

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D] and token ids [B, T]."""
        check_input("selective_attention", x, self.heads.out_proj.in_features)
        chosen, scale = self.selection(x, tokens)
        q, k, v = self.heads(x)
        if chosen is None:
            y = self.heads.merge(F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1))
        else:
            y = self._attend(q, k, v, chosen)
        return y if scale is None else y * scale.unsqueeze(2).to(y.dtype)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor) -> Tensor:
        """Returns [B, T, D], 0 where nothing was chosen [B, T]: M gathered queries meet T keys, not T queries.

        M is the largest number chosen in a sequence of the batch; the others are filled up with positions whose
        output is then set to 0.
        """
        B, H, T, hd = q.shape
        M = max(1, int(chosen.sum(dim=1).max()))  # at least one, so that a gradient of 0 flows where none is chosen
        at = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :M]  # [B, M]
        q = q.gather(2, at[:, None, :, None].expand(B, H, M, hd))
        sees = torch.arange(T, device=q.device) <= at.unsqueeze(2)  # [B, M, T]
        y = self.heads.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=sees.unsqueeze(1)))  # [B, M, D]
        y = y * chosen.gather(1, at).unsqueeze(2)
        return y.new_zeros(B, T, y.shape[2]).scatter(1, at.unsqueeze(2).expand_as(y), y)

    def auxiliary_loss(self) -> Tensor:
        """Returns the sparsity loss of a learned selection, else 0."""
        if isinstance(self.selection, Learned):
            return self.selection.auxiliary_loss()
        return self.heads.out_proj.weight.new_zeros(())


class SteppedSelectiveAttention(SelectiveAttention):
    """A selection that does not look ahead also decodes: a position that is not selected only leaves its key behind."""

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> tuple[Any, Any]:
        """Returns an empty cache of keys and values, and the state of the selection."""
        return self.heads.empty_cache(B, device, dtype), self.selection.initial_state(B, device, dtype)

    def step(self, x_t: Tensor, state: tuple[Any, Any], tokens_t: Tensor) -> tuple[Tensor, tuple[Any, Any]]:
        """Returns ([B, D], state) from x_t [B, D] and token ids [B]."""
        (past_k, past_v, t), selected = state
        chosen, scale, selected = self.selection.step(x_t, tokens_t, t, selected)
        q, k, v = self.heads(x_t.unsqueeze(1), t)
        k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
        y_t = self._attend_newest(q, k, v, chosen)
        return y_t if scale is None else y_t * scale.unsqueeze(1).to(y_t.dtype), ((k, v, t + 1), selected)

    def _attend_newest(self, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor | None) -> Tensor:
        """Returns [B, D]: attention in the chosen sequences, 0 in the others."""
        if chosen is None:
            return self.heads.merge(F.scaled_dot_product_attention(q, k, v)).squeeze(1)
        y_t = q.new_zeros(q.shape[0], self.heads.out_proj.out_features)
        rows = chosen.nonzero().squeeze(1)
        if rows.numel():
            y = F.scaled_dot_product_attention(q[rows], k[rows], v[rows])
            y_t[rows] = self.heads.merge(y).squeeze(1).to(y_t.dtype)
        return y_t
