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
    """Returns the fast layer."""
    from harness.attention import SelfAttention

    options = check_options(config)
    return SelfAttention(config.d_model, options.heads, options.positions, config.max_len)


def reference(config: MixerConfig) -> Any:
    """Returns the same layer one position at a time."""
    from harness.attention import ReferenceAttention

    options = check_options(config)
    return ReferenceAttention(config.d_model, options.heads, options.positions, config.max_len)


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 key-value cache of one sequence after T tokens."""
    return 2 * T * config.d_model * FLOAT_BYTES


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
    )
