"""Document attention: the core's attention layer, with an operator that stays inside the document of each position."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import DocumentAttentionOptions, TokenAttention
from harness_zoo.inputs import check_input


class DocumentAttention(TokenAttention):
    """Keeps the keys, values and token ids of every position while decoding."""

    def __init__(self, d_model: int, max_len: int, options: DocumentAttentionOptions) -> None:
        super().__init__(d_model, max_len, options, partial(inside_document, separator=options.separator))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D] and token ids [B, T]."""
        check_input("document_attention", x, self.heads.out_proj.in_features)
        return super().forward(x, tokens)


def inside_document(q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, separator: int) -> Tensor:
    """Returns [B, H, T, hd]: each position's softmax over its document, up to itself.

    q is [B, H, T, hd] of the last T of S positions, k and v are [B, Hkv, S, hd], tokens [B, S]. One mask [B, 1, T, S]
    serves all heads.
    """
    T, S = q.shape[2], k.shape[2]
    of = torch.arange(S, device=q.device)
    at, first = of[S - T :].unsqueeze(1), document_starts(tokens, separator)[:, S - T :].unsqueeze(2)
    sees = (of >= first) & (of <= at)  # [B, T, S]
    shared = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees.unsqueeze(1), enable_gqa=shared)


def document_starts(tokens: Tensor, separator: int) -> Tensor:
    """Returns for each position of tokens [B, S] the first one of its document; a separator ends the one it is in."""
    begins = F.pad(tokens[:, :-1] == separator, (1, 0))
    at = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(begins, at, 0).cummax(dim=1).values
