"""H3 (arXiv:2212.14052): keys through a shift SSM, key-value products through a diagonal SSM, gated by queries."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness_zoo.inputs import check_input
from harness_zoo.ops.long_conv import add_skip, gated, long_conv, newest_output
from harness_zoo.ops.short_conv import short_conv

SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1  # the steps of the diagonal SSMs are drawn between these, evenly in log
FEW_LAGS = 8  # up to this many the shift filter is a short convolution, beyond it a long one
H3State = tuple[Tensor, Tensor]  # the last keys [B, N - 1, D], and the diagonal SSMs' states [B, hd, hd, H, N / 2]


class DiagonalSSM(nn.Module):
    """x_t = A x_{t-1} + B u_t, y_t = 2 Re(C x_t) + s u_t, A complex and diagonal (S4D, arXiv:2206.11893).

    One SSM for each of H heads, with N / 2 conjugate pairs. The input matrix is one: C absorbs it.
    """

    def __init__(self, H: int, N: int) -> None:
        super().__init__()
        low, high = math.log(SHORTEST_STEP), math.log(LONGEST_STEP)
        self.log_step = nn.Parameter(torch.empty(H).uniform_(low, high))
        self.log_decay = nn.Parameter(torch.full((H, N // 2), math.log(0.5)))  # the real part is -e^(log_decay)
        self.frequency = nn.Parameter(math.pi * torch.arange(N // 2).repeat(H, 1))  # S4D-Lin: -1/2 + i pi n
        self.readout = nn.Parameter(torch.randn(H, N // 2, 2) * 0.5**0.5)  # C, real and imaginary part
        self.skip = nn.Parameter(torch.randn(H))  # s

    def discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns A, B and C [H, N / 2] of one position (bilinear rule), complex with 64 bits a part.

        In float64 because the phase of A^t is t times the rounding error of A's.
        """
        step = self.log_step.double().exp().unsqueeze(1)
        z = step / 2 * torch.complex(-self.log_decay.double().exp(), self.frequency.double())
        return (1 + z) / (1 - z), step / (1 - z), torch.view_as_complex(self.readout.double())

    def taps(self, T: int) -> Tensor:
        """Returns the impulse response [H, T], with the skip in lag 0."""
        A, B, C = self.discrete()
        # A^(a P + b) = (A^P)^a A^b: two short tables of powers and one product of them, not N / 2 powers a lag.
        P = max(1, math.isqrt(T))
        fine, coarse = powers(A, P), powers(A**P, -(-T // P))
        response = 2 * ((coarse * (B * C).unsqueeze(1)) @ fine.transpose(1, 2)).real  # [H, T / P, P]
        return add_skip(response.flatten(1)[:, :T].to(self.skip.dtype), self.skip)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (y [..., H], the new state) from u [..., H] and the state [..., H, N / 2]."""
        A, B, C = self.discrete()
        state = (A * state + B * u.unsqueeze(-1)).to(state.dtype)
        return 2 * (C * state).real.sum(-1).to(u.dtype) + self.skip * u, state


class H3(nn.Module):
    """Head h of H = D / hd is made of the channels h, h + H, ...: products over heads then run along memory."""

    def __init__(
        self,
        d_model: int,
        d_state: int,
        head_dim: int,
        convs: tuple[Callable[..., Tensor], Callable[..., Tensor]] = (short_conv, long_conv),
    ) -> None:
        super().__init__()
        self.short_conv, self.long_conv = convs  # operators with the signatures of `short_conv` and `long_conv`
        self.head_dim = head_dim
        self.qkv = nn.Linear(d_model, 3 * d_model)
        bound = d_state**-0.5
        self.shift = nn.Parameter(torch.empty(d_model, d_state).uniform_(-bound, bound))  # C of the shift SSM
        self.shift_skip = nn.Parameter(torch.randn(d_model))
        self.diagonal = DiagonalSSM(d_model // head_dim, d_state)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, T, D] from u [B, T, D]."""
        check_input("h3", u, self.out_proj.in_features)
        q, k, v = self.qkv(u).chunk(3, dim=2)
        k, taps = self.shifted(k), self.taps(u.shape[1])
        rows = zip(self.rows(q), self.rows(k), strict=True)  # row i of every head's k v^T
        y = [self.long_conv(v, taps, gate=q_i, factor=k_i) for q_i, k_i in rows]
        return self.out_proj(sum(y[1:], start=y[0]))

    def forward_at(self, u: Tensor, positions: Tensor) -> Tensor:
        """Returns [B, Q, D], what `forward` returns at positions int64 [B, Q] of u [B, T, D]."""
        check_input("h3", u, self.out_proj.in_features)
        B, T, D = u.shape
        each, weight, bias = torch.arange(B, device=u.device)[:, None], self.qkv.weight, self.qkv.bias
        q = F.linear(u[each, positions], weight[:D], bias[:D])  # [B, Q, D]
        k, v = F.linear(u, weight[D:], bias[D:]).chunk(2, dim=2)
        k, taps = self.shifted(k), self.taps(T)
        rows = zip(self.rows(q), self.rows(k), strict=True)
        y = [gated(self.long_conv(v, taps, factor=k_i)[each, positions], q_i) for q_i, k_i in rows]
        return self.out_proj(sum(y[1:], start=y[0]))

    def taps(self, T: int) -> Tensor:
        """Returns the taps [D, T] of the diagonal SSMs, the same for every component of a head."""
        return self.diagonal.taps(T).repeat(self.head_dim, 1)

    def shifted(self, k: Tensor) -> Tensor:
        """Returns the keys [B, T, D] after the shift SSM: a filter of d_state free taps."""
        T, taps = k.shape[1], self.shift_taps()
        if taps.shape[1] <= FEW_LAGS:
            return self.short_conv(k, taps)
        return self.long_conv(k, F.pad(taps, (0, T - taps.shape[1])))  # a negative pad cuts

    def shift_taps(self) -> Tensor:
        """Returns the taps [D, d_state] of the shift SSM, with the skip in lag 0."""
        return add_skip(self.shift, self.shift_skip)

    def rows(self, x: Tensor) -> list[Tensor]:
        """Returns hd times [B, T, H]: component i of every head, which meets each component of the other factor."""
        return list(x.chunk(self.head_dim, dim=2))

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> H3State:
        """Returns zeros: the last d_state - 1 keys, and the states of the diagonal SSMs."""
        D, N = self.shift.shape
        hd = self.head_dim
        complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        ssm = torch.zeros(B, hd, hd, D // hd, N // 2, device=device, dtype=complex_dtype)
        return torch.zeros(B, N - 1, D, device=device, dtype=dtype), ssm

    def step(self, u_t: Tensor, state: H3State) -> tuple[Tensor, H3State]:
        """Returns ([B, D], the new state) from u_t [B, D]: both SSMs by their own recurrence."""
        keys, ssm = state
        q, k, v = (part.unflatten(1, (self.head_dim, -1)) for part in self.qkv(u_t).chunk(3, dim=1))  # [B, hd, H]
        keys = torch.cat((keys, k.flatten(1).unsqueeze(1)), dim=1)  # [B, N, D]
        k = newest_output(keys, self.shift_taps()).view_as(k)
        y, ssm = self.diagonal.step(k.unsqueeze(2) * v.unsqueeze(1), ssm)  # [B, hd, hd, H]: k along 1, v along 2
        return self.out_proj((q.unsqueeze(2) * y).sum(1).flatten(1)), (keys[:, 1:].clone(), ssm)


def powers(a: Tensor, n: int) -> Tensor:
    """Returns [H, n, N / 2]: a^0 to a^(n - 1) of a [H, N / 2].

    By doubling: the gradient of a cumulative product asks the device for zeros, which no CUDA graph can hold.
    """
    table, factor = torch.ones_like(a).unsqueeze(1), a.unsqueeze(1)
    while table.shape[1] < n:
        table, factor = torch.cat((table, table * factor), dim=1), factor * factor
    return table[:, :n]
