"""Which positions attend: the selections of arXiv:2312.04927, section 5, in a form that never looks ahead.

A selection is called with x [B, T, D] and token ids [B, T] and returns (chosen [B, T], or None for all; what the output
is scaled by [B, T], or None). `step` does the same for the position t of each sequence, with a state.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from harness import InputError

SPARSITY_WEIGHT = 1e-3  # of the auxiliary loss, as in the published code
LEAST_BLOCK = 64  # positions ranked together
Chosen = tuple[Tensor | None, Tensor | None]


class Everything(nn.Module):
    """Every position."""

    def forward(self, x: Tensor, tokens: Tensor) -> Chosen:
        """Returns (None, None)."""
        return None, None

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> Any:
        """Returns nothing."""
        return ()

    def step(self, x_t: Tensor, tokens_t: Tensor, t: int, state: Any) -> tuple[Tensor | None, Tensor | None, Any]:
        """Returns (None, None, nothing)."""
        return None, None, state


class Random(Everything):
    """The control: position t by a coin of chance min(1, k / (t + 1)), thrown once, the same for every sequence.

    These are the chances of `Learned` where the gates come in random order, and they are then independent as well
    (Renyi 1962), so both select equally many.
    """

    coins: Tensor

    def __init__(self, k: int, max_len: int, seed: int) -> None:
        super().__init__()
        draws = torch.rand(max_len, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("coins", draws * torch.arange(1, max_len + 1) < k, persistent=False)

    def forward(self, x: Tensor, tokens: Tensor) -> Chosen:
        """Returns (coins [B, T], None)."""
        B, T, _ = x.shape
        self._check_length(T)
        return self.coins[:T].expand(B, T), None

    def step(self, x_t: Tensor, tokens_t: Tensor, t: int, state: Any) -> tuple[Tensor, None, Any]:
        """Returns (the coin of t for each sequence [B], None, nothing)."""
        self._check_length(t + 1)
        return self.coins[t].expand(x_t.shape[0]), None, state

    def _check_length(self, T: int) -> None:
        if self.coins.numel() < T:
            raise InputError(
                f"selective_attention(selection=random) got T = {T} tokens but coins were thrown for max_len = "
                f"{self.coins.numel()}; shorten the sequence, or build the layer with a larger max_len"
            )


class Programmatic(Everything):
    """A position whose token occurred earlier in the context."""

    def forward(self, x: Tensor, tokens: Tensor) -> Chosen:
        """Returns (whether tokens [B, T] were seen before, None)."""
        ordered, at = tokens.sort(dim=1, stable=True)  # equal ids stand together, the earliest first
        again = torch.zeros_like(tokens, dtype=torch.bool)
        again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        return torch.zeros_like(again).scatter(1, at, again), None

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Returns the ids so far: none, [B, 0]."""
        return torch.empty(B, 0, device=device, dtype=torch.int32)

    def step(self, x_t: Tensor, tokens_t: Tensor, t: int, state: Tensor) -> tuple[Tensor, None, Tensor]:
        """Returns (whether tokens_t [B] are among the ids so far, None, the ids with these)."""
        now = tokens_t.to(torch.int32).unsqueeze(1)
        return (state == now).any(dim=1), None, torch.cat((state, now), dim=1)


class Learned(Everything):
    """A position whose gate sigmoid(u w) is among the k largest so far; the output is scaled by the gate.

    A running budget closes after `budget(k, max_len)` positions, so that even gates that rise for ever select no more.
    In training the scores u w are ranked with noise: without it what is not selected never learns that it should be.
    """

    def __init__(self, d_model: int, k: int, max_len: int) -> None:
        super().__init__()
        self.k, self.budget = k, budget(k, max_len)
        # A bare parameter, and products that autocast leaves in float32: in bfloat16 gates would tie.
        self.gate = nn.Parameter(torch.randn(d_model) * d_model**-0.5)
        self.excess: Tensor | None = None

    def forward(self, x: Tensor, tokens: Tensor) -> Chosen:
        """Returns (chosen, gates), [B, T] each."""
        scores, gates = self.gates(x, self.k)
        chosen = leads(scores + logistic_noise(scores) if self.training else scores, self.k)
        return chosen & (chosen.cumsum(dim=1) <= self.budget), gates

    def gates(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns (scores, gates = sigmoid(scores)) [B, T]; in training it keeps how far their mean is above k / T."""
        scores = (x * self.gate).sum(dim=2)
        gates = scores.sigmoid()
        if self.training and torch.is_grad_enabled():
            self.excess = (gates.mean() - k / x.shape[1]).relu()
        return scores.detach(), gates

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the k largest scores so far, minus infinity, and how many positions were chosen, 0."""
        used = torch.zeros(B, device=device, dtype=torch.int64)
        return torch.full((B, self.k), -math.inf, device=device, dtype=dtype), used

    def step(self, x_t: Tensor, tokens_t: Tensor, t: int, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Returns (chosen [B], gates [B], the k largest scores and the count with this position)."""
        best, used = state
        scores = (x_t * self.gate).sum(dim=1, keepdim=True)  # [B, 1]
        chosen = ((best >= scores).sum(dim=1) < self.k) & (used < self.budget)
        best = torch.cat((best, scores), dim=1).topk(self.k, dim=1).values
        return chosen, scores.squeeze(1).sigmoid(), (best, used + chosen)

    def auxiliary_loss(self) -> Tensor:
        """Returns 0.001 relu(mean gate - k / T) of the last forward pass in training, and forgets it."""
        excess, self.excess = self.excess, None
        return self.gate.new_zeros(()) if excess is None else SPARSITY_WEIGHT * excess


class WholeSequence(Learned):
    """As published: training scales all positions by their gates, evaluation takes the k largest of the sequence."""

    def __init__(self, d_model: int, k: int | None, max_len: int) -> None:
        super().__init__(d_model, k or 1, max_len)
        self.chosen_k = k

    def forward(self, x: Tensor, tokens: Tensor) -> Chosen:
        """Returns (None in training, else chosen; gates), [B, T] each. What is chosen depends on later positions."""
        T = x.shape[1]
        k = min(T, self.chosen_k or root(T))
        scores, gates = self.gates(x, k)
        if self.training:
            return None, gates
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(k, dim=1).indices, True), gates


def leads(scores: Tensor, k: int) -> Tensor:
    """Returns whether each of scores [B, T] is among the k largest up to it; of equal ones the earlier lead.

    Blocks of C = max(k, LEAST_BLOCK) positions are compared with themselves and with the k largest before them, so it
    takes T * (C + k) comparisons.
    """
    best, found = scores.new_full((scores.shape[0], k), -math.inf), []
    for block in scores.split(max(k, LEAST_BLOCK), dim=1):  # [B, C]
        mine = block.unsqueeze(2)
        ahead = (block.unsqueeze(1) >= mine).tril(-1).sum(dim=2) + (best.unsqueeze(1) >= mine).sum(dim=2)
        found.append(ahead < k)
        best = torch.cat((best, block), dim=1).topk(k, dim=1).values
    return torch.cat(found, dim=1)


def logistic_noise(like: Tensor) -> Tensor:
    """Returns draws n with P(n < s) = sigmoid(s): a score with noise is positive as often as its gate is open."""
    tiny = torch.finfo(like.dtype).tiny
    draws = torch.rand_like(like).clamp(min=tiny)
    return draws.log() - torch.log1p(-draws)


def budget(k: int, max_len: int) -> int:
    """Returns twice as many positions as gates in random order select of max_len: k (1 + ln(max_len / k))."""
    return max_len if k >= max_len else min(max_len, math.ceil(2 * k * (1 + math.log(max_len / k))))


def root(T: int) -> int:
    """Returns the square root of T, rounded up."""
    return math.isqrt(T - 1) + 1
