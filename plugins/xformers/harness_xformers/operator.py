"""Causal softmax attention, of everything or of a window, through xformers' memory_efficient_attention."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from harness import InputError
from harness_xformers.availability import import_operators


class MemoryEfficientAttention:
    """What a layer attends with. It decides once a kind of input which kernels run, and never takes others instead."""

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.kernels: dict[tuple[Any, ...], Any] = {}  # by device, dtype, head width, mask, gradient
        self.operator: str | None = None  # the kernels of the last call, as xformers names them

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns [B, H, T, hd] from q of the last T of S positions and k, v [B, Hkv, S, hd]; T is S or 1."""
        group = q.shape[1] // k.shape[1]
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [B, T, H, hd]: the layout xformers reads
        operators = import_operators()
        bias = mask(operators, q.shape[1], self.window)
        trained = torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v))
        key = (q.device, q.dtype, q.shape[-1], type(bias), trained)
        if key not in self.kernels:
            self.kernels[key] = choose(operators, q, k, v, bias, trained)
        kernels = self.kernels[key]
        self.operator = " + ".join(kernel.NAME for kernel in (kernels if trained else kernels[:1]))
        return operators.memory_efficient_attention(q, k, v, attn_bias=bias, op=kernels).transpose(1, 2)


def mask(operators: ModuleType, T: int, window: int | None) -> Any:
    """Returns the library's own mask for T queries: none for the newest alone, which sees all that it is given."""
    biases = operators.fmha.attn_bias
    if T == 1:
        return None
    if window is None:
        return biases.LowerTriangularMask()
    return biases.LowerTriangularFromBottomRightLocalAttentionMask(window)


def choose(operators: ModuleType, q: Tensor, k: Tensor, v: Tensor, bias: Any, trained: bool) -> Any:
    """Returns the first (forward, backward) kernels that take these inputs, or raises InputError with their reasons."""
    inputs = operators.fmha.Inputs(query=q, key=k, value=v, attn_bias=bias)
    reasons: list[str] = []
    for kernels in (operators.MemoryEfficientAttentionFlashAttentionOp, operators.MemoryEfficientAttentionCutlassOp):
        needed = kernels if trained else kernels[:1]
        refused = [f"{kernel.NAME}: {why}" for kernel in needed for why in kernel.not_supported_reasons(inputs)]
        if not refused:
            return kernels
        reasons += refused
    kind = "no mask" if bias is None else type(bias).__name__
    raise InputError(
        f"xformers has no {'trainable ' if trained else ''}operator for {q.dtype} on {q.device.type}, head width "
        f"{q.shape[-1]}, {kind}: {'; '.join(reasons)}. Train in bfloat16 (--set training.dtype=bfloat16), choose heads "
        "of a width that is a multiple of 8 and at most 256, or pin the implementation /torch"
    )
