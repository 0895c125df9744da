"""What `bigbird` declares."""

from dataclasses import dataclass
from typing import Any

from harness import AttentionOptions, InputError, MixerConfig, MixerSpec, attention_bytes, check_attention
from harness_zoo.bigbird.pattern import BlockPattern
from harness_zoo.options import at_least


@dataclass(frozen=True)
class BigBirdOptions:
    """The options of `bigbird`."""

    block: int = 8  # positions in a block
    window_blocks: int = 2  # the block itself and those before it
    random_blocks: int = 1  # drawn once for each block out of all other earlier ones
    global_blocks: int = 1  # the first blocks of the sequence, which every later one sees
    heads: int = 1
    positions: str = "none"  # or "learned" (added to the input), or "rotary" (turns queries and keys)
    seed: int = 0  # of the random blocks, which differ from layer to layer


def checked(config: MixerConfig) -> tuple[AttentionOptions, BlockPattern]:
    """Returns (options of the heads, pattern), or raises InputError where they do not fit the model."""
    options: BigBirdOptions = config.options or BigBirdOptions()
    if not 1 <= options.block <= config.max_len:
        raise InputError(f"bigbird: block = {options.block}; it takes 1 to max_len = {config.max_len}")
    pattern = BlockPattern(
        block=options.block,
        window=at_least("bigbird", "window_blocks", options.window_blocks, 1),
        random=at_least("bigbird", "random_blocks", options.random_blocks, 0),
        first=at_least("bigbird", "global_blocks", options.global_blocks, 0),
        seed=1_000_003 * at_least("bigbird", "seed", options.seed, 0) + config.layer,
    )
    return check_attention("bigbird", config.d_model, options), pattern


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness_zoo.bigbird.layer import BigBird

    return BigBird(config.d_model, config.max_len, *checked(config))


def reference(config: MixerConfig) -> Any:
    """Returns the layer position by position."""
    from harness_zoo.bigbird.reference import reference_bigbird

    return reference_bigbird(config.d_model, config.max_len, *checked(config))


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 keys and values of T tokens of one sequence."""
    return attention_bytes(config.d_model, checked(config)[0], T)


def flops(config: MixerConfig, T: int) -> int:
    """Returns the operations of one forward pass over T tokens: four projections, and the pairs that are seen."""
    D, pattern = config.d_model, checked(config)[1]
    rows = pattern.rows(T)
    return 8 * T * D * D + 4 * D * sum(len(pattern.seen(rows, t)) for t in range(T))


BIGBIRD = MixerSpec(
    name="bigbird",
    summary="softmax attention to blocks: the last, the first and random ones",
    source="arXiv:2007.14062",
    build=build,
    reference=reference,
    options=BigBirdOptions,
    dtypes=("float32", "bfloat16"),
    # Relative to the largest output, as for attention: float32 sums; bfloat16 keeps 8 bits, rounded at each stage.
    max_error={"float32": 1e-5, "bfloat16": 3e-2},
    state_bytes=state_bytes,
    flops=flops,
)
