"""What `rwkv4` declares."""

from typing import Any

from harness import MixerConfig, MixerSpec
from harness_zoo.options import FLOAT_BYTES


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness_zoo.rwkv4.layer import RWKV4

    return RWKV4(config.d_model, config.layer, config.n_layers)


def reference(config: MixerConfig) -> Any:
    """Returns the layer as a weighted sum at every position."""
    from harness_zoo.rwkv4.reference import ReferenceRWKV4

    return ReferenceRWKV4(config.d_model, config.layer, config.n_layers)


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of numerator, denominator, largest exponent and the input before, D each, whatever T is."""
    return 4 * config.d_model * FLOAT_BYTES


RWKV4 = MixerSpec(
    name="rwkv4",
    summary="average with exponential weights that decay by channel, gated (RWKV-4 time mixing)",
    source="arXiv:2305.13048",
    build=build,
    reference=reference,
    max_error={"float32": 1e-5},  # of the largest output: every factor is at most one, sums of T and D float32 products
    state_bytes=state_bytes,
)
