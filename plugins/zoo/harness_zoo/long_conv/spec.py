"""What `long_conv` declares."""

from typing import Any

from harness import MixerConfig, MixerSpec
from harness_zoo.options import FLOAT_BYTES


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness_zoo.long_conv.layer import LongConv

    return LongConv(config.d_model, config.max_len)


def reference(config: MixerConfig) -> Any:
    """Returns the layer as a sum over lags."""
    from harness_zoo.long_conv.reference import ReferenceLongConv

    return ReferenceLongConv(config.d_model, config.max_len)


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of all T inputs of one sequence."""
    return T * config.d_model * FLOAT_BYTES


LONG_CONV = MixerSpec(
    name="long_conv",
    summary="long causal convolution without gates",
    source="arXiv:2302.06646",
    build=build,
    reference=reference,
    max_error={"float32": 1e-5},  # of the largest output: the Fourier transform adds T float32 terms
    state_bytes=state_bytes,
)
