"""Causal multi-head softmax attention: the fast layer, and the same layer one position at a time."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import InputError

ROTARY_BASE = 10_000.0
KVCache = tuple[Tensor, Tensor]  # keys and values so far, [B, H, t, D / H] each


class SelfAttention(nn.Module):
    """Attention through torch's scaled_dot_product_attention, which picks the kernel for the device."""

    positions: nn.Parameter | None

    def __init__(self, d_model: int, heads: int, positions: str, max_len: int) -> None:
        super().__init__()
        self.heads, self.rotary, self.max_len = heads, positions == "rotary", max_len
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        learned = nn.Parameter(0.02 * torch.randn(max_len, d_model)) if positions == "learned" else None
        self.register_parameter("positions", learned)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        q, k, v = self.project(x, 0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, H, T, D / H]
        return self.merge(y)

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> KVCache:
        """Returns an empty cache of keys and values."""
        empty = torch.empty(B, self.heads, 0, self.out_proj.in_features // self.heads, device=device, dtype=dtype)
        return empty, empty.clone()

    def step(self, x_t: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Returns ([B, D], the cache grown by one position) from x_t [B, D]."""
        past_k, past_v = state
        q, k, v = self.project(x_t.unsqueeze(1), past_k.shape[2])
        k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
        y = F.scaled_dot_product_attention(q, k, v)  # the newest position sees everything
        return self.merge(y).squeeze(1), (k, v)

    def project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q, k, v [B, H, T, D / H] of x [B, T, D], whose first row is at position `start`."""
        B, T, D = x.shape
        if self.positions is not None:
            self._check_length(start + T)
            x = x + self.positions[start : start + T]
        # Strided views of the three thirds: faster than one contiguous copy, forward and backward.
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(D, dim=2))
        if self.rotary:
            cos, sin = rotary_tables(start, T, D // self.heads, x)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, k, v

    def merge(self, y: Tensor) -> Tensor:
        """Returns the projected output [B, T, D] from the heads [B, H, T, D / H]."""
        return self.out_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _check_length(self, T: int) -> None:
        if self.max_len < T:
            raise InputError(
                f"attention with learned positions got T = {T} tokens but was built for max_len = {self.max_len}; "
                "shorten the sequence, or choose positions=rotary or positions=none"
            )


class ReferenceAttention(SelfAttention):
    """The definition, position by position: softmax(q_t K^T / sqrt(D / H)) V over the keys up to t."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        B, T, D = x.shape
        hd = D // self.heads
        if self.positions is not None:
            self._check_length(T)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        outputs = []
        for t in range(T):
            x_t = x[:, t] if self.positions is None else x[:, t] + self.positions[t]
            q, k, v = self.qkv(x_t).view(B, 3, self.heads, hd).unbind(1)  # [B, H, hd] each
            if self.rotary:
                q, k = turn(q, t), turn(k, t)
            keys.append(k)
            values.append(v)
            scores = torch.stack([(q * key).sum(-1) for key in keys]) / math.sqrt(hd)  # [t + 1, B, H]
            weights = scores.exp() / scores.exp().sum(0)
            y_t = sum(w.unsqueeze(-1) * value for w, value in zip(weights, values, strict=True))
            outputs.append(self.out_proj(torch.as_tensor(y_t).reshape(B, D)))
        return torch.stack(outputs, dim=1)


def rotary_tables(start: int, T: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cos and sin [T, head_dim / 2] of the angles t * base^(-2 i / head_dim), in the dtype of `like`."""
    # In float64: at t = 2,000 a float32 angle is already off by 1e-4.
    t = torch.arange(start, start + T, dtype=torch.float64, device=like.device)
    i = torch.arange(head_dim // 2, dtype=torch.float64, device=like.device)
    angles = torch.outer(t, ROTARY_BASE ** (-2 * i / head_dim))
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x [..., T, hd] with each pair (x_i, x_{i + hd/2}) turned by the angle of its position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def turn(x: Tensor, t: int) -> Tensor:
    """Returns what `rotate` does to one position x [..., hd], written as a product of complex numbers."""
    a, b = x.chunk(2, dim=-1)
    i = torch.arange(a.shape[-1], dtype=torch.float64, device=x.device)
    phase = torch.polar(torch.ones_like(i), t * ROTARY_BASE ** (-i / a.shape[-1]))
    turned = torch.complex(a, b) * phase
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)
