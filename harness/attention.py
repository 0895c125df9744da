"""Multi-head softmax attention: what its mixers share, the fast layer, and the same layer one position at a time."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.baselines import AttentionOptions
from harness.errors import InputError

ROTARY_BASE = 10_000.0
Operator = Callable[..., Tensor]  # of q, k, v, and of the token ids where the layer is told them
KVCache = tuple[Tensor, Tensor, int]  # keys and values kept, [B, Hkv, S, D / H] each, and how many tokens were seen


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns [B, H, T, hd] from q of the last T of S positions and k, v [B, Hkv, S, hd]; T is S or 1."""
    T, shared = q.shape[2], q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, enable_gqa=shared)


def causal_at(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Returns [B, H, Q, hd] from q at positions [B, Q] of the T that k and v [B, Hkv, T, hd] are of."""
    seen = torch.arange(k.shape[2], device=k.device) <= positions[:, None, :, None]  # [B, 1, Q, T]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=q.shape[1] != k.shape[1])


class AttentionHeads(nn.Module):
    """The projections around attention: queries, keys and values of each head with their positions, and back."""

    positions: nn.Parameter | None

    def __init__(self, d_model: int, max_len: int, options: AttentionOptions) -> None:
        super().__init__()
        H, hd, Hkv = options.heads, d_model // options.heads, options.kv_heads or options.heads
        self.head_dim, self.kv_heads, self.max_len = hd, Hkv, max_len
        self.rotary = options.positions == "rotary"
        self.qkv = nn.Linear(d_model, (H + 2 * Hkv) * hd)
        self.out_proj = nn.Linear(d_model, d_model)
        learned = nn.Parameter(0.02 * torch.randn(max_len, d_model)) if options.positions == "learned" else None
        self.register_parameter("positions", learned)

    def forward(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q [B, H, T, hd] and k, v [B, Hkv, T, hd] of x [B, T, D], whose first row is at position `start`."""
        T, D = x.shape[1:]
        x = self._placed(x, start)
        # Strided views of the three parts: faster than one contiguous copy, forward and backward.
        parts = self.qkv(x).split((D, *[self.kv_heads * self.head_dim] * 2), dim=2)
        q, k, v = map(self._heads, parts)
        if self.rotary:
            cos, sin = rotary_tables(start, T, self.head_dim, x)
            q, k = (rotate(part, cos, sin).to(v.dtype) for part in (q, k))  # under autocast x is wider than they are
        return q, k, v

    def forward_at(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q [B, H, Q, hd] of the positions int64 [B, Q] of x [B, T, D], and k, v [B, Hkv, T, hd] of all."""
        B, T, D = x.shape
        x, weight, bias = self._placed(x, 0), self.qkv.weight, self.qkv.bias
        asked = x[torch.arange(B, device=x.device)[:, None], positions]  # [B, Q, D]
        q = self._heads(F.linear(asked, weight[:D], bias[:D]))
        k, v = map(self._heads, F.linear(x, weight[D:], bias[D:]).chunk(2, dim=2))
        if self.rotary:
            cos, sin = rotary_tables(0, T, self.head_dim, x)
            q = rotate(q, cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)).to(v.dtype)
            k = rotate(k, cos, sin).to(v.dtype)
        return q, k, v

    def _placed(self, x: Tensor, start: int) -> Tensor:
        """Returns x [B, T, D] with what was learned of its positions, the first of which is `start`."""
        if self.positions is None:
            return x
        T = x.shape[1]
        self.check_length(start + T)
        return x + self.positions[start : start + T]

    def _heads(self, part: Tensor) -> Tensor:
        """Returns [B, heads, T, hd] of a part [B, T, heads * hd]."""
        return part.view(*part.shape[:2], -1, self.head_dim).transpose(1, 2)

    def merge(self, y: Tensor) -> Tensor:
        """Returns the projected output [B, T, D] from the heads [B, H, T, hd]."""
        return self.out_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def empty_cache(self, B: int, device: torch.device | str, dtype: torch.dtype) -> KVCache:
        """Returns a cache of no keys and values."""
        empty = torch.empty(B, self.kv_heads, 0, self.head_dim, device=device, dtype=dtype)
        return empty, empty.clone(), 0

    def check_length(self, T: int) -> None:
        """Raises InputError where learned positions end before T."""
        if self.positions is not None and self.max_len < T:
            raise InputError(
                f"attention with learned positions got T = {T} tokens but was built for max_len = {self.max_len}; "
                "shorten the sequence, or choose positions=rotary or positions=none"
            )


class SelfAttention(nn.Module):
    """Attention through an operator, by default torch's scaled_dot_product_attention.

    The operator gets q of the last T of S positions and k, v of all S, where T is S or 1. With a `window` it is given
    no more than that many keys in a step, and no more are kept.
    """

    def __init__(
        self,
        d_model: int,
        max_len: int,
        options: AttentionOptions,
        attend: Operator = causal,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.attend, self.window = attend, window
        self.heads = AttentionHeads(d_model, max_len, options)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        return self.heads.merge(self.attend(*self.heads(x)))

    @property
    def operator(self) -> str | None:
        """Returns the name of the kernel that ran last, where the operator tells it."""
        return getattr(self.attend, "operator", None)

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> KVCache:
        """Returns an empty cache of keys and values."""
        return self.heads.empty_cache(B, device, dtype)

    def prefill(self, x: Tensor) -> tuple[Tensor, KVCache]:
        """Returns ([B, T, D], the cache after x) from x [B, T, D]: what as many steps leave, in one pass."""
        q, k, v = self.heads(x)
        return self.heads.merge(self.attend(q, k, v)), self.kept(k, v)

    def kept(self, k: Tensor, v: Tensor) -> KVCache:
        """Returns the cache of k and v [B, Hkv, T, hd]: copies, since these are slices of a wider product."""
        first = 0 if self.window is None else max(0, k.shape[2] - self.window)
        copies = (part[:, :, first:].clone(memory_format=torch.contiguous_format) for part in (k, v))
        return *copies, k.shape[2]  # type: ignore[return-value]

    def step(self, x_t: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Returns ([B, D], the cache with this position) from x_t [B, D]."""
        q, state = self.remember(x_t, state)
        return self.heads.merge(self.attend(q, *state[:2])).squeeze(1), state

    def remember(self, x_t: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        """Returns (q [B, H, 1, hd], the cache with this position) from x_t [B, D]."""
        past_k, past_v, t = state
        q, k, v = self.heads(x_t.unsqueeze(1), t)
        drop = 0 if self.window is None else max(0, past_k.shape[2] + 1 - self.window)
        k, v = torch.cat((past_k[:, :, drop:], k), dim=2), torch.cat((past_v[:, :, drop:], v), dim=2)
        return q, (k, v, t + 1)


class CausalAttention(SelfAttention):
    """Attention to everything so far, through torch's scaled_dot_product_attention."""

    def forward_at(self, x: Tensor, positions: Tensor) -> Tensor:
        """Returns [B, Q, D], what `forward` returns at positions int64 [B, Q] of x [B, T, D]."""
        return self.heads.merge(causal_at(*self.heads.forward_at(x, positions), positions))


class TokenAttention(SelfAttention):
    """Attention whose operator is also told the token ids [B, S] of the positions that k and v are of."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """Returns [B, T, D] from x [B, T, D] and token ids [B, T]."""
        return self.heads.merge(self.attend(*self.heads(x), tokens))

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> Any:
        """Returns an empty cache of keys and values, and of the ids, which take 4 bytes each."""
        ids = torch.empty(B, 0, device=device, dtype=torch.int32)
        return super().initial_state(B, device, dtype), ids

    def prefill(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Any]:  # type: ignore[override]
        """Returns ([B, T, D], the state after x) from x [B, T, D] and token ids [B, T]."""
        q, k, v = self.heads(x)
        return self.heads.merge(self.attend(q, k, v, tokens)), (self.kept(k, v), tokens.to(torch.int32, copy=True))

    def step(self, x_t: Tensor, state: Any, tokens_t: Tensor) -> tuple[Tensor, Any]:  # type: ignore[override]
        """Returns ([B, D], the state with this position) from x_t [B, D] and token ids [B]."""
        cache, ids = state
        q, cache = self.remember(x_t, cache)
        ids = torch.cat((ids, tokens_t.to(ids.dtype).unsqueeze(1)), dim=1)
        return self.heads.merge(self.attend(q, *cache[:2], ids)).squeeze(1), (cache, ids)


class ReferenceAttention(SelfAttention):
    """The definition, position by position: softmax(q_t K^T / sqrt(D / H)) V over the keys that t sees.

    `sees(t)` are their positions, all up to t unless said. Its steps are those of the fast layer.
    """

    def __init__(
        self,
        d_model: int,
        max_len: int,
        options: AttentionOptions,
        sees: Callable[[int], Iterable[int]] | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__(d_model, max_len, options, window=window)
        self.sees = sees or (lambda t: range(t + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        return self.over(x, self.sees)

    def over(self, x: Tensor, sees: Callable[[int], Iterable[int]]) -> Tensor:
        """Returns [B, T, D] from x [B, T, D], where position t sees the positions `sees(t)`."""
        B, T, D = x.shape
        self.heads.check_length(T)
        q, k, v = (torch.stack(parts) for parts in zip(*(self._project(x[:, t], t) for t in range(T)), strict=True))
        outputs = []
        for t in range(T):
            seen = list(sees(t))  # S positions
            scores = (q[t] * k[seen]).sum(-1) / math.sqrt(q.shape[-1])  # [S, B, H]
            weights = scores.exp() / scores.exp().sum(0)
            y_t = (weights.unsqueeze(-1) * v[seen]).sum(0)  # [B, H, hd]
            outputs.append(self.heads.out_proj(y_t.reshape(B, D)))
        return torch.stack(outputs, dim=1)

    def _project(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q, k and v [B, H, hd] of x_t [B, D]; heads of one group are given equal keys and values."""
        heads, (B, D) = self.heads, x_t.shape
        if heads.positions is not None:
            x_t = x_t + heads.positions[t]
        parts = heads.qkv(x_t).view(B, -1, heads.head_dim)  # [B, H + 2 Hkv, hd]
        H, Hkv = D // heads.head_dim, heads.kv_heads
        group = torch.arange(H, device=x_t.device) // (H // Hkv)
        q, k, v = parts[:, :H], parts[:, H + group], parts[:, H + Hkv + group]
        return (turn(q, t), turn(k, t), v) if heads.rotary else (q, k, v)


class ReferenceTokenAttention(ReferenceAttention):
    """The definition where the ids decide: `sees_in(ids, t)` are what t sees in a sequence of those token ids."""

    def __init__(
        self, d_model: int, max_len: int, options: AttentionOptions, sees_in: Callable[[list[int], int], Iterable[int]]
    ) -> None:
        super().__init__(d_model, max_len, options)
        self.sees_in = sees_in

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """Returns [B, T, D] from x [B, T, D] and token ids [B, T], one sequence after the other."""
        rows = zip(torch.split(x, 1), tokens.tolist(), strict=True)
        return torch.cat([self.over(x_b, partial(self.sees_in, ids)) for x_b, ids in rows])


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
