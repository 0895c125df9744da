"""What `document_attention` declares."""

from typing import Any

from harness import DocumentAttentionOptions, MixerConfig, MixerSpec, attention_bytes, check_attention

ID_BYTES = 4


def checked(config: MixerConfig) -> DocumentAttentionOptions:
    """Returns the options, or raises InputError where they do not fit the model."""
    options: DocumentAttentionOptions = config.options or DocumentAttentionOptions()
    check_attention("document_attention", config.d_model, options)
    return options


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness_zoo.document_attention.layer import DocumentAttention

    return DocumentAttention(config.d_model, config.max_len, checked(config))


def reference(config: MixerConfig) -> Any:
    """Returns the layer position by position."""
    from harness_zoo.document_attention.reference import reference_documents

    return reference_documents(config.d_model, config.max_len, checked(config))


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 keys and values and of the ids of T tokens of one sequence."""
    return attention_bytes(config.d_model, checked(config), T) + ID_BYTES * T


def flops(config: MixerConfig, T: int) -> int:
    """Returns the operations of one forward pass over T tokens of one document: how many there are, text decides."""
    D, options = config.d_model, checked(config)
    kept = D // options.heads * (options.kv_heads or options.heads)
    return 4 * T * D * (D + kept) + 2 * T * (T + 1) * D


DOCUMENT_ATTENTION = MixerSpec(
    name="document_attention",
    summary="softmax attention inside a document of packed text",
    source="arXiv:2402.13991",
    build=build,
    reference=reference,
    options=DocumentAttentionOptions,
    dtypes=("float32", "bfloat16"),
    # Relative to the largest output, as for attention: float32 sums; bfloat16 keeps 8 bits, rounded at each stage.
    max_error={"float32": 1e-5, "bfloat16": 3e-2},
    needs_tokens=True,
    state_bytes=state_bytes,
    flops=flops,
)
