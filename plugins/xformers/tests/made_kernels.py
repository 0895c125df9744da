"""Kernels as xformers describes them, made up: choosing one needs no GPU."""

from types import SimpleNamespace

import torch


def kernel(name: str, *refusals: str, deterministic: bool = True) -> type:
    class Kernel:
        NAME, IS_DETERMINISTIC = name, deterministic

        @classmethod
        def not_supported_reasons(cls, inputs: object) -> list[str]:
            refused = torch.are_deterministic_algorithms_enabled() and not cls.IS_DETERMINISTIC
            return [*refusals, *(["operator is non-deterministic"] if refused else [])]

        @classmethod
        def apply(cls) -> tuple[bool, bool]:
            return (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            )

    return Kernel


def stand_in(flash: tuple, cutlass: tuple) -> SimpleNamespace:
    fmha = SimpleNamespace(Inputs=lambda **inputs: inputs)
    return SimpleNamespace(
        fmha=fmha, MemoryEfficientAttentionFlashAttentionOp=flash, MemoryEfficientAttentionCutlassOp=cutlass
    )
