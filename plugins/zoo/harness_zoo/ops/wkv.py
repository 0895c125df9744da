"""The weighted average of RWKV-4 (arXiv:2305.13048): weights e^k that decay with distance, one decay a channel."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness_zoo.inputs import widened

State = tuple[Tensor, Tensor, Tensor]  # numerator, denominator, running maximum of the exponents, [B, D] each


def wkv(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Returns (y [B, T, D], the state after the last position).

    y_t = (A_{t-1} + e^(bonus + k_t) v_t) / (B_{t-1} + e^(bonus + k_t)), where A_t = e^(-decay) A_{t-1} + e^(k_t) v_t
    and B_t = e^(-decay) B_{t-1} + e^(k_t). k and v [B, T, D]; decay > 0 and bonus [D]. The state holds A e^(-m),
    B e^(-m) and m; without one, A = B = 0 and m = -inf. Gradients flow through A and B; m is only their scale.
    """
    B, _, D = k.shape
    if state is None:
        state = initial_state(B, D, k.device, widened(k).dtype)
    y, numerator, denominator, largest = _WKV.apply(*map(widened, (k, v, decay, bonus, *state)))
    return y.to(v.dtype), (numerator, denominator, largest)


def initial_state(B: int, D: int, device: torch.device | str, dtype: torch.dtype) -> State:
    """Returns the state before the first token: nothing seen."""
    zero = torch.zeros(B, D, device=device, dtype=dtype)
    return zero, zero.clone(), torch.full_like(zero, -torch.inf)


class _WKV(torch.autograd.Function):
    """Every sum is kept relative to the largest exponent m_t so far, as the state is: no factor exceeds one.

    With m known, what is left is the linear recurrence h_t = carry_t h_{t-1} + new_t, and its adjoint backward.
    """

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        m = _running_max(k, decay, state[2])
        m_before = _after(state[2], m)
        carry, new = torch.exp(m_before - decay - m), torch.exp(k - m)
        h = torch.stack((new * v, new))  # [2, B, T, D]: numerator and denominator
        first = torch.stack(state[:2])
        h[:, :, 0].addcmul_(carry[:, 0], first)
        _scan(carry, h)
        past, now = m_before, bonus + k
        top = torch.maximum(past, now)
        past, now = torch.exp(past - top), torch.exp(now - top)
        a, b = _after(state[0], h[0]), _after(state[1], h[1])
        total = torch.addcmul(now, past, b)
        y = torch.addcmul(now * v, past, a).div_(total)
        ctx.save_for_backward(v, y, carry, new, past.div_(total), now.div_(total), a, b)
        return y, h[0, :, -1].clone(), h[1, :, -1].clone(), m[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, da: Tensor, db: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        v, y, carry, new, past, now, a, b = ctx.saved_tensors
        past, now = past * dy, now * dy
        d_own = now * (v - y)  # of the bonus' and the key's own term
        into = torch.stack((past, -past * y))  # [2, B, T, D]: adjoints of A_{t-1} and B_{t-1} from y_t alone
        after = torch.cat((into[:, :, 1:], torch.stack((da, db)).unsqueeze(2)), dim=2)  # ... of A_t and B_t
        _scan_back(carry, after)
        decayed = carry * torch.addcmul(after[0] * a, after[1], b)
        dk = torch.addcmul(d_own, new, torch.addcmul(after[1], after[0], v))
        dv = torch.addcmul(now, new, after[0])
        d_first = torch.addcmul(into[:, :, 0], carry[:, 0], after[:, :, 0])
        return dk, dv, -decayed.sum((0, 1)), d_own.sum((0, 1)), d_first[0], d_first[1], None


def _chunk(T: int) -> int:
    """Returns how many positions are one chunk: about as many as there are chunks, so that loops are short."""
    return max(1, math.isqrt(T))


def _after(first: Tensor, rest: Tensor) -> Tensor:
    """Returns `rest` [B, T, D] one position later, `first` [B, D] before it."""
    return torch.cat((first.unsqueeze(1), rest[:, :-1]), dim=1)


def _running_max(k: Tensor, decay: Tensor, first: Tensor) -> Tensor:
    """Returns m [B, T, D]: m_t = max(m_{t-1} - decay, k_t), where m before the first position is `first`.

    Position j of every chunk at once, then what comes in from the chunk before, chunk by chunk; so in the scans below.
    """
    T = k.shape[1]
    C, m = _chunk(T), k.clone()
    m[:, 0] = torch.maximum(k[:, 0], first - decay)
    for j in range(1, C):
        now = m[:, j::C]  # the last chunk may be shorter
        torch.maximum(now, m[:, j - 1 :: C][:, : now.shape[1]] - decay, out=now)
    fall = decay * torch.arange(1, C + 1, device=k.device).unsqueeze(1)  # [C, D]
    for s in range(C, T, C):
        now = m[:, s : s + C]
        torch.maximum(now, m[:, s - 1 : s] - fall[: now.shape[1]], out=now)
    return m


def _scan(carry: Tensor, h: Tensor) -> None:
    """Turns h [2, B, T, D] into h_t + carry_t h_{t-1}, in place; carry [B, T, D]."""
    T = h.shape[2]
    C, product = _chunk(T), carry.clone()
    for j in range(1, C):
        now, through = h[:, :, j::C], product[:, j::C]
        now.addcmul_(carry[:, j::C], h[:, :, j - 1 :: C][:, :, : now.shape[2]])
        through.mul_(product[:, j - 1 :: C][:, : through.shape[1]])
    for s in range(C, T, C):
        h[:, :, s : s + C].addcmul_(product[:, s : s + C], h[:, :, s - 1 : s])


def _scan_back(carry: Tensor, h: Tensor) -> None:
    """Turns h [2, B, T, D] into h_t + carry_{t+1} h_{t+1}, in place; carry [B, T, D]."""
    T = h.shape[2]
    C, carry = _chunk(T), carry[:, 1:]
    product = carry.clone()
    for j in reversed(range(C - 1)):
        later = h[:, :, j + 1 :: C]
        h[:, :, j::C][:, :, : later.shape[2]].addcmul_(carry[:, j::C][:, : later.shape[2]], later)
        through = product[:, j + 1 :: C]
        product[:, j::C][:, : through.shape[1]].mul_(through)
    for s in reversed(range(C, T, C)):
        h[:, :, s - C : s].addcmul_(product[:, s - C : s], h[:, :, s : s + 1])
