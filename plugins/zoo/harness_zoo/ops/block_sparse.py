"""Softmax attention to chosen blocks of keys."""

import torch
from torch import Tensor
from torch.nn import functional as F


def block_sparse(q: Tensor, k: Tensor, v: Tensor, table: Tensor, block: int) -> Tensor:
    """Returns [B, H, T, hd]: each position's softmax over the keys of its block's blocks, up to its own position.

    q is [B, H, T, hd] and k, v are [B, H, S, hd]; T is S, or 1: the newest alone. Row i of `table` [blocks, K] names
    the key blocks of query block i, -1 where there are fewer than K. K gathered blocks meet each query block, so time
    and memory are T * K * block.
    """
    if q.shape[2] == 1:
        seen = _positions(table[(k.shape[2] - 1) // block], k.shape[2], block)
        return F.scaled_dot_product_attention(q, k.index_select(2, seen), v.index_select(2, seen))
    B, H, T, hd = q.shape
    q, k, v = (F.pad(part, (0, 0, 0, -T % block)).reshape(B * H, -1, block, hd) for part in (q, k, v))
    n = q.shape[1]
    table = table[:n]
    k, v = (_gathered(part, table) for part in (k, v))  # [B * H, n, K * block, hd]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=_mask(table, block))
    return y.reshape(B, H, n * block, hd)[:, :, :T]


def _gathered(x: Tensor, table: Tensor) -> Tensor:
    """Returns [B * H, n, K * block, hd], the blocks of x [B * H, n, block, hd] that each row of the table names."""
    return x.index_select(1, table.clamp(min=0).flatten()).unflatten(1, table.shape).flatten(2, 3)


def _mask(table: Tensor, block: int) -> Tensor:
    """Returns which gathered keys each query sees, [n, block, K * block]: of a named block, and none later than it."""
    inside = torch.arange(block, device=table.device)
    at = torch.arange(table.shape[0], device=table.device).unsqueeze(1) * block + inside  # [n, block]
    of = (table.unsqueeze(2) * block + inside).flatten(1)  # [n, K * block], negative where no block is named
    return (of.unsqueeze(1) >= 0) & (of.unsqueeze(1) <= at.unsqueeze(2))


def _positions(row: Tensor, S: int, block: int) -> Tensor:
    """Returns the positions below S of the blocks that the row [K] names."""
    positions = (row[row >= 0].unsqueeze(1) * block + torch.arange(block, device=row.device)).flatten()
    return positions[positions < S]
