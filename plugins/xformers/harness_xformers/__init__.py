"""Adds `attention/xformers` and `sliding_window/xformers`. Imports xformers only when one is used."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness import (
    AttentionOptions,
    InputError,
    MixerConfig,
    MixerSpec,
    attention_bytes,
    check_attention,
    hookimpl,
)

HALVES = ("bfloat16", "float16")
# Relative to the largest output. float32: sums of up to T terms (measured 9e-7 at T = 300); the half types
# keep 8 and 11 bits, rounded at each stage (measured 1.5e-2 and 1.7e-3).
MAX_ERROR = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 5e-3}


@dataclass(frozen=True)
class SlidingWindowOptions:
    """The options of `sliding_window`: the same fields as those of `sliding_window/torch`."""

    window: int = 16  # keys a position sees, itself among them
    heads: int = 1
    positions: str = "none"  # or "learned" (added to the input), or "rotary" (turns queries and keys)


def build(config: MixerConfig) -> Any:
    """Returns the layer of `attention`."""
    from harness import SelfAttention
    from harness_xformers.operator import MemoryEfficientAttention

    return SelfAttention(config.d_model, config.max_len, _options(config), MemoryEfficientAttention())


def reference(config: MixerConfig) -> Any:
    """Returns the layer of `attention` written as the definition."""
    from harness import ReferenceAttention

    return ReferenceAttention(config.d_model, config.max_len, _options(config))


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 keys and values of one sequence after T tokens."""
    return attention_bytes(config.d_model, _options(config), T)


def build_window(config: MixerConfig) -> Any:
    """Returns the layer of `sliding_window`."""
    from harness import SelfAttention
    from harness_xformers.operator import MemoryEfficientAttention

    heads, window = _window(config)
    return SelfAttention(config.d_model, config.max_len, heads, MemoryEfficientAttention(window), window)


def reference_window(config: MixerConfig) -> Any:
    """Returns the layer of `sliding_window` written as the definition."""
    from harness import ReferenceAttention

    heads, window = _window(config)
    return ReferenceAttention(
        config.d_model, config.max_len, heads, lambda t: range(max(0, t - window + 1), t + 1), window
    )


def window_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 keys and values that the window of one sequence holds after T tokens."""
    heads, window = _window(config)
    return attention_bytes(config.d_model, heads, min(T, window))


def unavailable() -> str | None:
    """Returns why `attention/xformers` cannot run here and the command that helps, or None where it can."""
    from harness_xformers.availability import reason

    return reason("attention")


def window_unavailable() -> str | None:
    """Returns why `sliding_window/xformers` cannot run here and the command that helps, or None where it can."""
    from harness_xformers.availability import reason

    return reason("sliding_window")


def _options(config: MixerConfig) -> AttentionOptions:
    return check_attention("attention", config.d_model, config.options or AttentionOptions())


def _window(config: MixerConfig) -> tuple[AttentionOptions, int]:
    options: SlidingWindowOptions = config.options or SlidingWindowOptions()
    if not 1 <= options.window <= config.max_len:
        raise InputError(
            f"sliding_window: window = {options.window}; it takes 1 to max_len = {config.max_len}, the longest "
            "sequence of the task: with as much it is attention"
        )
    heads = AttentionOptions(heads=options.heads, positions=options.positions)
    return check_attention("sliding_window", config.d_model, heads), options.window


@hookimpl
def harness_mixers() -> Iterable[MixerSpec]:
    """Yields `attention/xformers` and `sliding_window/xformers`."""
    yield MixerSpec(
        name="attention",
        implementation="xformers",
        summary="causal multi-head softmax attention, memory-efficient kernels",
        source="arXiv:1706.03762",
        build=build,
        reference=reference,
        options=AttentionOptions,
        dtypes=("float32", *HALVES),
        max_error=MAX_ERROR,
        devices=("cuda",),
        preference=0,  # on an H200 never clearly faster than SDPA at the sizes tried, so it is taken only by name
        state_bytes=state_bytes,
        unavailable=unavailable,
    )
    yield MixerSpec(
        name="sliding_window",
        implementation="xformers",
        summary="softmax attention to the last positions, memory-efficient kernels",
        source="arXiv:1904.10509",
        build=build_window,
        reference=reference_window,
        options=SlidingWindowOptions,
        dtypes=HALVES,  # in float32 no operator of xformers 0.0.35 has a backward pass for a local mask
        max_error={dtype: MAX_ERROR[dtype] for dtype in HALVES},
        devices=("cuda",),
        state_bytes=window_bytes,
        unavailable=window_unavailable,
    )
