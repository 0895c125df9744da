"""Sliding-window attention by its definition: position t sees t - window + 1 to t (arXiv:1904.10509)."""

from harness import AttentionOptions, ReferenceAttention


def reference_window(d_model: int, max_len: int, options: AttentionOptions, window: int) -> ReferenceAttention:
    """Returns y_t = W_o sum over s of softmax_s(q_t k_s / sqrt(hd)) v_s, s from max(0, t - window + 1) to t."""
    return ReferenceAttention(d_model, max_len, options, lambda t: range(max(0, t - window + 1), t + 1), window)
