"""BigBird's attention by its definition (arXiv:2007.14062, eq. 1): position t sees N(t), those of its blocks."""

from harness import AttentionOptions, ReferenceAttention
from harness_zoo.bigbird.pattern import BlockPattern


def reference_bigbird(
    d_model: int, max_len: int, options: AttentionOptions, pattern: BlockPattern
) -> ReferenceAttention:
    """Returns y_t = W_o sum over s in N(t) of softmax_s(q_t k_s / sqrt(hd)) v_s."""
    rows = pattern.rows(max_len)
    return ReferenceAttention(d_model, max_len, options, lambda t: pattern.seen(rows, t))
