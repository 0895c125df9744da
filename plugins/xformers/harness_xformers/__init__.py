"""Adds `attention/xformers`: the softmax attention of the core, computed by xformers. Imports it only when used."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness import InputError, MixerConfig, MixerSpec, hookimpl

POSITIONS = ("none", "learned", "rotary")
FLOAT_BYTES = 4


@dataclass(frozen=True)
class AttentionOptions:
    """The options of `attention`: the same fields as those of `attention/torch`."""

    heads: int = 1
    positions: str = "none"  # or "learned" (added to the input), or "rotary" (turns queries and keys)


def check_options(config: MixerConfig) -> AttentionOptions:
    """Returns the options of the config, or raises InputError where they do not fit it."""
    options: AttentionOptions = config.options or AttentionOptions()
    D = config.d_model
    if options.heads < 1 or D % options.heads:
        divisors = ", ".join(str(n) for n in range(1, D + 1) if D % n == 0)
        raise InputError(f"attention: heads = {options.heads} does not divide d_model = {D}; choose one of {divisors}")
    if options.positions not in POSITIONS:
        raise InputError(f"attention: positions = {options.positions!r}; choose one of {', '.join(POSITIONS)}")
    if options.positions == "rotary" and (D // options.heads) % 2:
        raise InputError(
            f"attention: rotary positions need an even head width, but d_model / heads = {D} / {options.heads} = "
            f"{D // options.heads}; choose another number of heads"
        )
    return options


def build(config: MixerConfig) -> Any:
    """Returns the layer."""
    from harness_xformers.layer import XformersAttention

    options = check_options(config)
    return XformersAttention(config.d_model, options.heads, options.positions, config.max_len)


def build_reference(config: MixerConfig) -> Any:
    """Returns the same layer written as the definition."""
    from harness_xformers.reference import DefinedAttention

    options = check_options(config)
    return DefinedAttention(config.d_model, options.heads, options.positions, config.max_len)


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 key-value cache of one sequence after T tokens."""
    return 2 * T * config.d_model * FLOAT_BYTES


def unavailable() -> str | None:
    """Returns why xformers cannot run here and the command that helps, or None where it can."""
    from harness_xformers.availability import reason

    return reason()


@hookimpl
def harness_mixers() -> Iterable[MixerSpec]:
    """Yields `attention/xformers`."""
    yield MixerSpec(
        name="attention",
        implementation="xformers",
        summary="causal multi-head softmax attention, memory-efficient kernels",
        source="arXiv:1706.03762",
        build=build,
        reference=build_reference,  # a function named as the submodule would be replaced by it on import
        options=AttentionOptions,
        dtypes=("float32", "bfloat16", "float16"),
        # Relative to the largest output. float32: sums of up to T terms (measured 9e-7 at T = 300); the half types
        # keep 8 and 11 bits, rounded at each stage (measured 1.5e-2 and 1.7e-3).
        max_error={"float32": 1e-5, "bfloat16": 3e-2, "float16": 5e-3},
        devices=("cuda",),
        preference=0,  # on an H200 never clearly faster than SDPA at the sizes tried, so it is taken only by name
        state_bytes=state_bytes,
        unavailable=unavailable,
    )
