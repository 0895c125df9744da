"""What every layer of the zoo asks of its input."""

import torch
from torch import Tensor

from harness import InputError


def check_input(mixer: str, x: Tensor, d_model: int, max_len: int | None = None) -> None:
    """Raises InputError unless x is [B, T, d_model], of a floating dtype, with 1 <= T <= max_len."""
    if x.dim() != 3 or x.shape[2] != d_model or x.shape[1] < 1:
        raise InputError(f"{mixer} got shape {tuple(x.shape)}; it takes [B, T, {d_model}] with T of at least 1")
    if not x.is_floating_point():
        raise InputError(
            f"{mixer} got {x.dtype} input; it takes float32, float64, bfloat16 or float16: convert with x.float(), "
            "or embed token ids first"
        )
    if max_len is not None and max_len < x.shape[1]:
        raise InputError(
            f"{mixer} got T = {x.shape[1]} tokens but its filter was built for max_len = {max_len}; "
            "shorten the sequence or build the layer with a larger max_len"
        )


def widened(x: Tensor) -> Tensor:
    """Returns x in float32 where it has 16 bits: sums over many positions need more, and Fourier transforms refuse."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
