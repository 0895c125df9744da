"""Sliding-window attention: the core's attention layer, with an operator that looks back `window` positions."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from harness import AttentionOptions, SelfAttention
from harness_zoo.inputs import check_input
from harness_zoo.ops.sliding_window import sliding_window


class SlidingWindow(SelfAttention):
    """Keeps the keys and values of the window, and no more, while decoding."""

    def __init__(
        self,
        d_model: int,
        max_len: int,
        options: AttentionOptions,
        window: int,
        operator: Callable[..., Tensor] = sliding_window,
    ) -> None:
        super().__init__(d_model, max_len, options, partial(operator, window=window), window)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D]."""
        check_input("sliding_window", x, self.heads.out_proj.in_features)
        return super().forward(x)
