"""What every layer of the zoo asks of its input."""

import torch
from torch import Tensor

from harness import InputError


def check_input(mixer: str, x: Tensor, d_model: int) -> None:
    """Raises InputError unless x is [B, T, d_model] of a floating dtype, with at least one position."""
    if x.dim() != 3 or x.shape[2] != d_model or x.shape[1] < 1:
        raise InputError(f"{mixer} got shape {tuple(x.shape)}; it takes [B, T, {d_model}] with T of at least 1")
    if not x.is_floating_point():
        raise InputError(
            f"{mixer} got {x.dtype} input; it takes float32, float64, bfloat16 or float16: convert with x.float(), "
            "or embed token ids first"
        )


def check_length(mixer: str, T: int, max_len: int) -> None:
    """Raises InputError where T is beyond the last lag of a filter."""
    if max_len < T:
        raise InputError(
            f"{mixer} got T = {T} tokens but its filter was built for max_len = {max_len}; "
            "shorten the sequence or build the layer with a larger max_len"
        )


def widened(x: Tensor) -> Tensor:
    """Returns x in float32 where it has 16 bits: sums over many positions need more, and Fourier transforms refuse."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
