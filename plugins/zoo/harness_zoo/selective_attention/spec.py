"""What `selective_attention` and `selective_attention_published` declare."""

from dataclasses import dataclass
from typing import Any

from harness import AttentionOptions, InputError, MixerConfig, MixerSpec, attention_bytes, check_attention
from harness_zoo.options import FLOAT_BYTES, at_least, one_of

PUBLISHED = "selective_attention_published"
SELECTIONS = ("learned", "programmatic", "random", "full")
ID_BYTES, COUNT_BYTES = 4, 8


@dataclass(frozen=True)
class SelectiveAttentionOptions:
    """The options of `selective_attention`."""

    selection: str = "learned"  # or "programmatic" (tokens seen before), "random" (the control), "full" (all)
    k: int | None = None  # learned and random: how many of the positions so far are selected; none: sqrt(max_len)
    heads: int = 1
    positions: str = "none"  # or "learned" (added to the input), or "rotary" (turns queries and keys)
    seed: int = 0  # of the random selection, which differs from layer to layer


@dataclass(frozen=True)
class PublishedOptions:
    """The options of `selective_attention_published`."""

    k: int | None = None  # positions selected of the whole sequence in evaluation; none: sqrt(T)
    heads: int = 1
    positions: str = "none"


def selection_of(config: MixerConfig) -> Any:
    """Returns the selection of the layer, freshly initialised."""
    from harness_zoo.selective_attention import selection

    options = config.options or SelectiveAttentionOptions()
    kind = one_of("selective_attention", "selection", options.selection, SELECTIONS)
    if kind == "learned":
        return selection.Learned(config.d_model, k_of(config), config.max_len)
    if kind == "random":
        seed = at_least("selective_attention", "seed", options.seed, 0)
        return selection.Random(k_of(config), config.max_len, 1_000_003 * seed + config.layer)
    return selection.Programmatic() if kind == "programmatic" else selection.Everything()


def k_of(config: MixerConfig) -> int:
    """Returns k, of max_len positions at most; where none was chosen, the root of max_len, rounded up."""
    from harness_zoo.selective_attention.selection import root

    k = (config.options or SelectiveAttentionOptions()).k
    return root(config.max_len) if k is None else _checked("selective_attention", k, config.max_len)


def _checked(mixer: str, k: int, max_len: int) -> int:
    if at_least(mixer, "k", k, 1) > max_len:
        raise InputError(
            f"{mixer}: k = {k}; it takes 1 to max_len = {max_len}, the longest sequence of the task: with as much "
            "everything is selected (selection=full)"
        )
    return k


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness_zoo.selective_attention.layer import SteppedSelectiveAttention

    heads = check_attention("selective_attention", config.d_model, config.options or SelectiveAttentionOptions())
    return SteppedSelectiveAttention(config.d_model, config.max_len, heads, selection_of(config))


def reference(config: MixerConfig) -> Any:
    """Returns the layer that attends everywhere and selects afterwards."""
    from harness_zoo.selective_attention.reference import ReferenceSelectiveAttention

    heads = check_attention("selective_attention", config.d_model, config.options or SelectiveAttentionOptions())
    return ReferenceSelectiveAttention(config.d_model, config.max_len, heads, selection_of(config))


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of keys and values of T tokens, and of what the selection remembers of one sequence."""
    options = config.options or SelectiveAttentionOptions()
    selected = {"learned": k_of(config) * FLOAT_BYTES + COUNT_BYTES, "programmatic": T * ID_BYTES}
    heads = check_attention("selective_attention", config.d_model, options)
    return attention_bytes(config.d_model, heads, T) + selected.get(options.selection, 0)


def flops(config: MixerConfig, T: int) -> int:
    """Returns the operations of one forward pass over T tokens: M selected queries meet T keys.

    M is what gates in random order select; for a programmatic selection, which text decides, it is all T.
    """
    D, options = config.d_model, config.options or SelectiveAttentionOptions()
    if options.selection == "full":
        return 8 * T * D * D + 2 * D * T * (T + 1)
    k = T if options.selection == "programmatic" else k_of(config)
    M = round(sum(min(1.0, k / (t + 1)) for t in range(T)))
    return _operations(T, D, M)


def flops_published(config: MixerConfig, T: int) -> int:
    """Returns the operations of one forward pass over T tokens in evaluation: k selected queries meet T keys."""
    from harness_zoo.selective_attention.selection import root

    k = _published_k(config)
    return _operations(T, config.d_model, min(T, root(T) if k is None else k))


def _operations(T: int, D: int, M: int) -> int:
    return 6 * T * D * D + 2 * M * D * D + 4 * M * T * D


def build_published(config: MixerConfig) -> Any:
    """Returns the layer as published: selected over the whole sequence, so without steps."""
    from harness_zoo.selective_attention.layer import SelectiveAttention

    return SelectiveAttention(config.d_model, config.max_len, *_published(config))


def reference_published(config: MixerConfig) -> Any:
    """Returns the published layer that attends everywhere and selects afterwards."""
    from harness_zoo.selective_attention.reference import ReferenceSelectiveAttention

    return ReferenceSelectiveAttention(config.d_model, config.max_len, *_published(config))


def _published(config: MixerConfig) -> tuple[AttentionOptions, Any]:
    from harness_zoo.selective_attention.selection import WholeSequence

    options: PublishedOptions = config.options or PublishedOptions()
    heads = check_attention(PUBLISHED, config.d_model, options)
    return heads, WholeSequence(config.d_model, _published_k(config), config.max_len)


def _published_k(config: MixerConfig) -> int | None:
    k = (config.options or PublishedOptions()).k
    return None if k is None else _checked(PUBLISHED, k, config.max_len)


SELECTIVE_ATTENTION = MixerSpec(
    name="selective_attention",
    summary="softmax attention of selected positions only",
    source="arXiv:2312.04927",
    build=build,
    reference=reference,
    options=SelectiveAttentionOptions,
    dtypes=("float32", "bfloat16"),
    # Relative to the largest output, as for attention: float32 sums; bfloat16 keeps 8 bits, rounded at each stage.
    max_error={"float32": 1e-5, "bfloat16": 3e-2},
    needs_tokens=True,
    state_bytes=state_bytes,
    flops=flops,
)
SELECTIVE_ATTENTION_PUBLISHED = MixerSpec(
    name=PUBLISHED,
    summary="the learned selection as published: over the whole sequence, not causal",
    source="arXiv:2312.04927",
    build=build_published,
    reference=reference_published,
    options=PublishedOptions,
    causal=False,  # in evaluation a position is selected by comparison with later ones
    dtypes=("float32", "bfloat16"),
    max_error={"float32": 1e-5, "bfloat16": 3e-2},
    needs_tokens=True,
    flops=flops_published,
)
