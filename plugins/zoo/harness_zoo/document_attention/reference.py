"""Document attention by its definition: a position sees those of its document up to itself."""

from functools import partial

from harness import DocumentAttentionOptions, ReferenceTokenAttention


def reference_documents(d_model: int, max_len: int, options: DocumentAttentionOptions) -> ReferenceTokenAttention:
    """Returns y_t = W_o sum over s of softmax_s(q_t k_s / sqrt(hd)) v_s, s from the start of t's document to t."""
    return ReferenceTokenAttention(d_model, max_len, options, partial(seen, separator=options.separator))


def seen(ids: list[int], t: int, separator: int) -> range:
    """Returns the positions from behind the last separator before t, up to t."""
    first = t
    while first > 0 and ids[first - 1] != separator:
        first -= 1
    return range(first, t + 1)
