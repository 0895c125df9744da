"""What `short_conv` declares."""

from dataclasses import dataclass
from typing import Any

from harness import MixerConfig, MixerSpec
from harness_zoo.options import FLOAT_BYTES, at_least


@dataclass(frozen=True)
class ShortConvOptions:
    """The options of `short_conv`."""

    kernel: int = 3  # taps of the filter


def taps_of(config: MixerConfig) -> int:
    """Returns the number of taps of the layer."""
    return at_least("short_conv", "kernel", (config.options or ShortConvOptions()).kernel, 1)


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness_zoo.short_conv.layer import ShortConv

    return ShortConv(config.d_model, taps_of(config))


def reference(config: MixerConfig) -> Any:
    """Returns the layer as a sum over taps."""
    from harness_zoo.short_conv.reference import ReferenceShortConv

    return ReferenceShortConv(config.d_model, taps_of(config))


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the last k - 1 inputs of one sequence."""
    return (taps_of(config) - 1) * config.d_model * FLOAT_BYTES


SHORT_CONV = MixerSpec(
    name="short_conv",
    summary="projection gated by a short causal convolution",
    source="arXiv:2312.04927",
    build=build,
    reference=reference,
    options=ShortConvOptions,
    max_error={"float32": 1e-5},  # of the largest output: sums of k and D float32 products
    state_bytes=state_bytes,
)
