"""Causal softmax attention, of everything, a window or a document, through xformers' memory_efficient_attention."""

from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import InputError
from harness_xformers.availability import import_operators


class Kernels:
    """Decides once a kind of input which kernels run, and never takes others instead."""

    def __init__(self) -> None:
        self.kernels: dict[tuple[Any, ...], Any] = {}  # by device, dtype, head width, mask, gradient, determinism
        self.operator: str | None = None  # the kernels of the last call, as xformers names them

    def run(self, operators: ModuleType, q: Tensor, k: Tensor, v: Tensor, bias: Any) -> Tensor:
        """Returns [B, T, H, hd] from q [B, T, H, hd] and k, v [B, S, H, hd] under the mask."""
        trained = torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v))
        strict = torch.are_deterministic_algorithms_enabled()
        key = (q.device, q.dtype, q.shape[-1], type(bias), trained, strict)
        if key not in self.kernels:
            self.kernels[key] = choose(operators, q, k, v, bias, trained)
        kernels = self.kernels[key]
        self.operator = " + ".join(kernel.NAME for kernel in (kernels if trained else kernels[:1]))
        return operators.memory_efficient_attention(q, k, v, attn_bias=bias, op=kernels)


class MemoryEfficientAttention(Kernels):
    """Attends to everything so far, or to a window."""

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns [B, H, T, hd] from q of the last T of S positions and k, v [B, Hkv, S, hd]; T is S or 1."""
        operators = import_operators()
        return self.run(operators, *time_first(q, k, v), mask(operators, q.shape[2], self.window)).transpose(1, 2)


class PackedDocuments(Kernels):
    """Attends inside documents: all sequences are packed into one row, with the library's block-diagonal mask.

    The mask is made of lengths that Python knows, so each call waits once for the device to tell them.
    """

    def __init__(self, separator: int) -> None:
        super().__init__()
        self.separator = separator

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
        """Returns [B, H, T, hd] from q of the last T of S positions, k, v [B, Hkv, S, hd] and token ids [B, S]."""
        operators = import_operators()
        B, H, T, hd = q.shape
        q, k, v = time_first(q, k, v)
        lengths = document_lengths(tokens, self.separator)
        if k.shape[1] == T:
            every = [length for row in lengths for length in row]
            k, v = k.reshape(1, B * T, H, hd), v.reshape(1, B * T, H, hd)
            bias = document_mask(operators, every, q.device)
        else:
            newest = [row[-1] for row in lengths]  # of each sequence, what the newest position sees
            k, v = (packed_ends(part, newest) for part in (k, v))
            bias = operators.fmha.attn_bias.BlockDiagonalMask.from_seqlens([1] * B, newest, device=q.device)
        y = self.run(operators, q.reshape(1, B * T, H, hd), k, v, bias)
        return y.view(B, T, H, hd).transpose(1, 2)


def time_first(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns q, k and v as [B, T, H, hd], the layout xformers reads; keys that heads share are repeated."""
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def document_lengths(tokens: Tensor, separator: int) -> list[list[int]]:
    """Returns the lengths of the documents of each sequence of tokens [B, S]; a separator ends the one it is in."""
    B, S = tokens.shape
    begins = F.pad(tokens[:, :-1] == separator, (1, 0), value=True).flatten().cpu()
    starts = begins.nonzero().squeeze(1).tolist()
    lengths: list[list[int]] = [[] for _ in range(B)]
    for start, end in pairwise([*starts, B * S]):
        lengths[start // S].append(end - start)
    return lengths


def document_mask(operators: ModuleType, lengths: list[int], device: torch.device) -> Any:
    """Returns the library's causal mask of documents of these lengths, packed one after the other."""
    return operators.fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(lengths, device=device)


def packed_ends(x: Tensor, lengths: list[int]) -> Tensor:
    """Returns [1, sum of lengths, H, hd]: of each sequence of x [B, S, H, hd] its last positions, so many."""
    return torch.cat([x[b, x.shape[1] - length :] for b, length in enumerate(lengths)]).unsqueeze(0)


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
    forward, backward = operators.MemoryEfficientAttentionFlashAttentionOp
    for kernels in ((forward, repeatable(backward)), operators.MemoryEfficientAttentionCutlassOp):
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


def repeatable(kernel: Any) -> Any:
    """Returns the backward kernel as it runs where gradients must be the same twice.

    In deterministic mode xformers refuses flash attention. But where the kernel is torch's own (its name ends in -pt),
    torch has an order of sums for it that is always the same, and takes it in strict mode; with warnings only it does
    not.
    """
    if kernel.IS_DETERMINISTIC or not torch.are_deterministic_algorithms_enabled() or not kernel.NAME.endswith("-pt"):
        return kernel

    class Repeatable(kernel):  # type: ignore[misc]
        IS_DETERMINISTIC = True
        NAME = f"{kernel.NAME}, deterministic"  # by another name: xformers would look up the class it knows

        @classmethod
        def apply(cls, *args: Any) -> Any:
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            torch.use_deterministic_algorithms(True)
            try:
                return super().apply(*args)
            finally:
                torch.use_deterministic_algorithms(True, warn_only=warn_only)

    return Repeatable
