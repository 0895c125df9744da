"""Causal multi-head softmax attention on xformers; parameters are named as in attention/torch."""

import torch
from torch import Tensor, nn

from harness import InputError
from harness_xformers.availability import import_operators

ROTARY_BASE = 10_000.0
KVCache = tuple[Tensor, Tensor]  # keys and values so far, [B, t, H, D / H] each: the layout xformers reads


class XformersAttention(nn.Module):
    """Attention through memory_efficient_attention with a LowerTriangularMask."""

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
        return self.out_proj(self.attend(*self.project(x, 0), causal=True).flatten(2))

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> KVCache:
        """Returns an empty cache of keys and values."""
        empty = torch.empty(B, 0, self.heads, self.out_proj.in_features // self.heads, device=device, dtype=dtype)
        return empty, empty.clone()

    def step(self, x_t: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Returns ([B, D], the cache grown by one position) from x_t [B, D]."""
        past_k, past_v = state
        q, k, v = self.project(x_t.unsqueeze(1), past_k.shape[1])
        k, v = torch.cat((past_k, k), dim=1), torch.cat((past_v, v), dim=1)
        return self.out_proj(self.attend(q, k, v, causal=False).flatten(1)), (k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """Returns the heads' outputs [B, T, H, D / H]."""
        operators = import_operators()
        mask = operators.LowerTriangularMask() if causal else None
        return operators.memory_efficient_attention(q, k, v, attn_bias=mask)

    def project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q, k, v [B, T, H, D / H] of x [B, T, D], whose first row is at position `start`."""
        B, T, D = x.shape
        if self.positions is not None:
            if start + T > self.max_len:
                raise InputError(
                    f"attention with learned positions got T = {start + T} tokens but was built for "
                    f"max_len = {self.max_len}; shorten the sequence, or choose positions=rotary or positions=none"
                )
            x = x + self.positions[start : start + T]
        q, k, v = (part.view(B, T, self.heads, -1) for part in self.qkv(x).split(D, dim=2))
        return (*self.rotate(q, k, start), v) if self.rotary else (q, k, v)

    def rotate(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Returns q and k [B, T, H, hd] with each pair (i, i + hd/2) turned by t * base^(-2 i / hd)."""
        T, hd = q.shape[1], q.shape[-1]
        t = torch.arange(start, start + T, dtype=torch.float64, device=q.device)
        i = torch.arange(hd // 2, dtype=torch.float64, device=q.device)
        angles = torch.outer(t, ROTARY_BASE ** (-2 * i / hd)).unsqueeze(1)  # [T, 1, hd / 2]
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)

        def turn(x: Tensor) -> Tensor:
            a, b = x.chunk(2, dim=-1)
            return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)

        return turn(q), turn(k)
