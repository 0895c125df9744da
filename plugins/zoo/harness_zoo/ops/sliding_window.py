"""Softmax attention to a window of the last positions."""

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_BLOCK = 32  # queries computed together; with 16 there are too many small products, with 64 more is masked


def sliding_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Returns [B, H, T, hd]: each position's softmax over the keys of the last `window` positions, itself included.

    q is [B, H, T, hd] and k, v are [B, H, S, hd]. T is S, or 1: the newest alone, and then S is at most the window.
    Queries are taken in blocks of C = max(window, LEAST_BLOCK). A block sees itself and the end of the block before,
    so time and memory are T * (C + window), and no T x T mask is made where T > C.
    """
    T, C = q.shape[2], max(window, LEAST_BLOCK)
    if T == 1:
        return F.scaled_dot_product_attention(q, k, v)
    if T <= C:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=_band(T, T, window, q.device))
    q, k, v = (_in_blocks(part, C) for part in (q, k, v))  # [B, H, n, C, hd]
    first = F.scaled_dot_product_attention(q[:, :, 0], k[:, :, 0], v[:, :, 0], attn_mask=_band(C, C, window, q.device))
    k, v = (torch.cat((part[:, :, :-1, C - window + 1 :], part[:, :, 1:]), dim=3) for part in (k, v))
    B, H, n, C, _ = q[:, :, 1:].shape
    q, k, v = (part.flatten(1, 2) for part in (q[:, :, 1:], k, v))  # [B, H * n, C or C + window - 1, hd]
    rest = F.scaled_dot_product_attention(q, k, v, attn_mask=_band(C, C + window - 1, window, q.device))
    return torch.cat((first, rest.reshape(B, H, n * C, -1)), dim=2)[:, :, :T]


def _in_blocks(x: Tensor, C: int) -> Tensor:
    """Returns [B, H, n, C, hd] from x [B, H, T, hd], with zeros behind its end: no position sees what comes later."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % C)).unflatten(2, (-1, C))


def _band(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Returns which of `keys` positions each of the last `queries` of them sees, [queries, keys]."""
    at = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    of = torch.arange(keys, device=device)
    return (of <= at) & (of > at - window)
