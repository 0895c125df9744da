"""The yardstick every mixer is compared with: causal softmax attention. Listing it does not import torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.errors import InputError
from harness.hookspecs import hookimpl
from harness.spec import MixerConfig, MixerSpec

POSITIONS = ("none", "learned", "rotary")
FLOAT_BYTES = 4


@dataclass(frozen=True)
class AttentionOptions:
    """The options of `attention`."""

    heads: int = 1
    kv_heads: int | None = None  # heads of keys and values, each shared by a group of queries' heads; none: as many
    positions: str = "none"  # or "learned" (added to the input), or "rotary" (turns queries and keys)


@dataclass(frozen=True)
class SlidingWindowOptions:
    """The options of `sliding_window`, whatever computes it."""

    window: int = 16  # keys a position sees, itself among them
    heads: int = 1
    positions: str = "none"  # or "learned" (added to the input), or "rotary" (turns queries and keys)


@dataclass(frozen=True)
class DocumentAttentionOptions(AttentionOptions):
    """The options of `document_attention`, whatever computes it: those of `attention`, and where a document ends."""

    separator: int = 0  # the token id that ends a document; one that never occurs makes it `attention`


def check_attention(mixer: str, d_model: int, options: Any) -> AttentionOptions:
    """Returns the options of the heads; where they do not fit the width, it raises InputError in the mixer's name.

    `options` has the fields `heads` and `positions`, and `kv_heads` where heads may share keys.
    """
    heads, kv_heads = options.heads, getattr(options, "kv_heads", None)
    if heads < 1 or d_model % heads:
        raise InputError(
            f"{mixer}: heads = {heads} does not divide d_model = {d_model}; choose one of {_divisors(d_model)}"
        )
    if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        raise InputError(f"{mixer}: kv_heads = {kv_heads} does not divide heads = {heads}; choose {_divisors(heads)}")
    if options.positions not in POSITIONS:
        raise InputError(f"{mixer}: positions = {options.positions!r}; choose one of {', '.join(POSITIONS)}")
    if options.positions == "rotary" and (d_model // heads) % 2:
        raise InputError(
            f"{mixer}: rotary positions need an even head width, but d_model / heads = {d_model} / {heads} = "
            f"{d_model // heads}; choose another number of heads"
        )
    return AttentionOptions(heads=heads, kv_heads=kv_heads, positions=options.positions)


def check_window(config: MixerConfig) -> tuple[AttentionOptions, int]:
    """Returns (options of the heads, window) of a `sliding_window`; what does not fit the model raises InputError."""
    options: SlidingWindowOptions = config.options or SlidingWindowOptions()
    if not 1 <= options.window <= config.max_len:
        raise InputError(
            f"sliding_window: window = {options.window}; it takes 1 to max_len = {config.max_len}, the longest "
            "sequence of the task: with as much it is attention"
        )
    return check_attention("sliding_window", config.d_model, options), options.window


def attention_bytes(d_model: int, options: AttentionOptions, tokens: int) -> int:
    """Returns the bytes of the float32 keys and values of that many tokens of one sequence."""
    kept = d_model // options.heads * (options.kv_heads or options.heads)
    return 2 * tokens * kept * FLOAT_BYTES


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness.attention import CausalAttention

    return CausalAttention(config.d_model, config.max_len, _options(config))


def reference(config: MixerConfig) -> Any:
    """Returns the same layer one position at a time."""
    from harness.attention import ReferenceAttention

    return ReferenceAttention(config.d_model, config.max_len, _options(config))


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 key-value cache of one sequence after T tokens."""
    return attention_bytes(config.d_model, _options(config), T)


def flops(config: MixerConfig, T: int) -> int:
    """Returns the operations of one forward pass over T tokens: the projections, and T (T + 1) / 2 pairs."""
    D, options = config.d_model, _options(config)
    kept = D // options.heads * (options.kv_heads or options.heads)
    return 4 * T * D * (D + kept) + 2 * T * (T + 1) * D


def _options(config: MixerConfig) -> AttentionOptions:
    return check_attention("attention", config.d_model, config.options or AttentionOptions())


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


@hookimpl
def harness_mixers() -> Iterable[MixerSpec]:
    """Yields `attention/torch`."""
    yield MixerSpec(
        name="attention",
        summary="causal multi-head softmax attention",
        source="arXiv:1706.03762",
        build=build,
        reference=reference,
        options=AttentionOptions,
        dtypes=("float32", "bfloat16"),
        # Relative to the largest output: float32 sums of up to T terms; bfloat16 keeps 8 bits, rounded at each stage.
        max_error={"float32": 1e-5, "bfloat16": 3e-2},
        state_bytes=state_bytes,
        flops=flops,
    )
