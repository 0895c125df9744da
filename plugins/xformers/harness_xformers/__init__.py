"""Adds `attention`, `sliding_window` and `document_attention` by xformers. Imports xformers only when one is used."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from harness import (
    AttentionOptions,
    DocumentAttentionOptions,
    MixerConfig,
    MixerSpec,
    SlidingWindowOptions,
    attention_bytes,
    check_attention,
    check_window,
    hookimpl,
)

HALVES = ("bfloat16", "float16")
ID_BYTES = 4
# Relative to the largest output. float32: sums of up to T terms (measured 9e-7 at T = 300); the half types
# keep 8 and 11 bits, rounded at each stage (measured 1.5e-2 and 1.7e-3).
MAX_ERROR = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 5e-3}


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

    heads, window = check_window(config)
    return SelfAttention(config.d_model, config.max_len, heads, MemoryEfficientAttention(window), window)


def reference_window(config: MixerConfig) -> Any:
    """Returns the layer of `sliding_window` written as the definition."""
    from harness import ReferenceAttention

    heads, window = check_window(config)
    return ReferenceAttention(
        config.d_model, config.max_len, heads, lambda t: range(max(0, t - window + 1), t + 1), window
    )


def window_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 keys and values that the window of one sequence holds after T tokens."""
    heads, window = check_window(config)
    return attention_bytes(config.d_model, heads, min(T, window))


def build_documents(config: MixerConfig) -> Any:
    """Returns the layer of `document_attention`."""
    from harness import TokenAttention
    from harness_xformers.operator import PackedDocuments

    options = _documents(config)
    return TokenAttention(config.d_model, config.max_len, options, PackedDocuments(options.separator))


def reference_documents(config: MixerConfig) -> Any:
    """Returns the layer of `document_attention` written as the definition."""
    from harness import ReferenceTokenAttention

    options = _documents(config)

    def sees(ids: list[int], t: int) -> range:
        ends = [s for s in range(t) if ids[s] == options.separator]
        return range(ends[-1] + 1 if ends else 0, t + 1)

    return ReferenceTokenAttention(config.d_model, config.max_len, options, sees)


def documents_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 keys and values and of the ids of one sequence after T tokens."""
    return attention_bytes(config.d_model, _documents(config), T) + ID_BYTES * T


def unavailable(mixer: str) -> str | None:
    """Returns why mixer/xformers cannot run here and the command that helps, or None where it can."""
    from harness_xformers.availability import reason

    return reason(mixer)


def _options(config: MixerConfig) -> AttentionOptions:
    return check_attention("attention", config.d_model, config.options or AttentionOptions())


def _documents(config: MixerConfig) -> DocumentAttentionOptions:
    options: DocumentAttentionOptions = config.options or DocumentAttentionOptions()
    check_attention("document_attention", config.d_model, options)
    return options


@hookimpl
def harness_mixers() -> Iterable[MixerSpec]:
    """Yields `attention/xformers`, `sliding_window/xformers` and `document_attention/xformers`."""
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
        unavailable=partial(unavailable, "attention"),
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
        unavailable=partial(unavailable, "sliding_window"),
    )
    yield MixerSpec(
        name="document_attention",
        implementation="xformers",
        summary="softmax attention inside a document of packed text, memory-efficient kernels",
        source="arXiv:2402.13991",
        build=build_documents,
        reference=reference_documents,
        options=DocumentAttentionOptions,
        dtypes=("float32", *HALVES),
        max_error=MAX_ERROR,
        devices=("cuda",),
        needs_tokens=True,
        state_bytes=documents_bytes,
        unavailable=partial(unavailable, "document_attention"),
    )
