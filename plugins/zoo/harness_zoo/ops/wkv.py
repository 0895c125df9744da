"""The weighted average of RWKV-4 (arXiv:2305.13048)."""

import torch
from torch import Tensor

State = tuple[Tensor, Tensor, Tensor]  # numerator, denominator, running maximum of the exponents, [B, D] each


def wkv(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Returns (y [B, T, D], the state after the last position).

    y_t = (A_{t-1} + e^(bonus + k_t) v_t) / (B_{t-1} + e^(bonus + k_t)), where A_t = e^(-decay) A_{t-1} + e^(k_t) v_t
    and B_t = e^(-decay) B_{t-1} + e^(k_t). k and v [B, T, D]; decay > 0 and bonus [D]. The state holds A e^(-m),
    B e^(-m) and m; without one, A = B = 0 and m = -inf.
    """
    numerator, denominator, largest = initial_state(k.shape[0], bonus, k.dtype) if state is None else state
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        now = bonus + k_t
        m = torch.maximum(largest, now).detach()
        old, new = torch.exp(largest - m), torch.exp(now - m)
        outputs.append((old * numerator + new * v_t) / (old * denominator + new))
        m = torch.maximum(largest - decay, k_t).detach()
        old, new = torch.exp(largest - decay - m), torch.exp(k_t - m)
        numerator, denominator, largest = old * numerator + new * v_t, old * denominator + new, m
    return torch.stack(outputs, dim=1), (numerator, denominator, largest)


def initial_state(B: int, bonus: Tensor, dtype: torch.dtype) -> State:
    """Returns the state before the first token: nothing seen."""
    zero = torch.zeros(B, bonus.numel(), device=bonus.device, dtype=dtype)
    return zero, zero.clone(), torch.full_like(zero, -torch.inf)
