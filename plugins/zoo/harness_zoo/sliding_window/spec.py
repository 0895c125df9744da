"""What `sliding_window` declares."""

from typing import Any

from harness import MixerConfig, MixerSpec, SlidingWindowOptions, attention_bytes, check_window


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness_zoo.sliding_window.layer import SlidingWindow

    return SlidingWindow(config.d_model, config.max_len, *check_window(config))


def reference(config: MixerConfig) -> Any:
    """Returns the layer position by position."""
    from harness_zoo.sliding_window.reference import reference_window

    return reference_window(config.d_model, config.max_len, *check_window(config))


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the float32 keys and values that the window of one sequence holds after T tokens."""
    heads, window = check_window(config)
    return attention_bytes(config.d_model, heads, min(T, window))


def flops(config: MixerConfig, T: int) -> int:
    """Returns the operations of one forward pass over T tokens: four projections, and the pairs within the window."""
    D, W = config.d_model, min(check_window(config)[1], T)
    return 8 * T * D * D + 4 * D * (T * W - W * (W - 1) // 2)


SLIDING_WINDOW = MixerSpec(
    name="sliding_window",
    summary="softmax attention to the last positions",
    source="arXiv:1904.10509",
    build=build,
    reference=reference,
    options=SlidingWindowOptions,
    dtypes=("float32", "bfloat16"),
    # Relative to the largest output, as for attention: float32 sums; bfloat16 keeps 8 bits, rounded at each stage.
    max_error={"float32": 1e-5, "bfloat16": 3e-2},
    state_bytes=state_bytes,
    flops=flops,
)
