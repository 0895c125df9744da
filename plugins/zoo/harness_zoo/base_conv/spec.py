"""What `base_conv` declares."""

from dataclasses import dataclass
from typing import Any

from harness import InputError, MixerConfig, MixerSpec
from harness_zoo.options import FLOAT_BYTES, one_of

FILTERS = ("explicit", "implicit")
PUBLISHED_SHORT = 3  # the paper's layers alternate: 3 taps, long, 3 taps, long


@dataclass(frozen=True)
class BaseConvOptions:
    """The options of `base_conv`."""

    kernel: str = "long"  # or a number of taps, or "published": 3 taps in even layers, long in odd ones
    filter: str = "explicit"  # long filters: one weight a lag, or "implicit": a small network of the lag


def taps_of(config: MixerConfig) -> int | None:
    """Returns the number of taps of the layer, or None where its filter is long."""
    options = config.options or BaseConvOptions()
    one_of("base_conv", "filter", options.filter, FILTERS)
    if options.kernel == "published":
        return PUBLISHED_SHORT if config.layer % 2 == 0 else None
    if options.kernel == "long":
        return None
    if not (options.kernel.isascii() and options.kernel.isdecimal() and int(options.kernel) >= 1):
        raise InputError(
            f"base_conv: kernel = {options.kernel!r}; choose long, published, or a number of taps of at least 1"
        )
    return int(options.kernel)


def build(config: MixerConfig) -> Any:
    """Returns the fast layer: long, or the short convolution of that many taps."""
    from harness_zoo.base_conv.layer import BaseConv
    from harness_zoo.short_conv.layer import ShortConv

    kernel = taps_of(config)
    if kernel is not None:
        return ShortConv(config.d_model, kernel)
    return BaseConv(config.d_model, config.max_len, _is_implicit(config))


def reference(config: MixerConfig) -> Any:
    """Returns the layer as a sum over taps."""
    from harness_zoo.base_conv.reference import ReferenceBaseConv
    from harness_zoo.short_conv.reference import ReferenceShortConv

    kernel = taps_of(config)
    if kernel is not None:
        return ReferenceShortConv(config.d_model, kernel)
    return ReferenceBaseConv(config.d_model, config.max_len, _is_implicit(config))


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the inputs one sequence must keep: the last k - 1, or all T where the filter is long."""
    kernel = taps_of(config)
    kept = T if kernel is None else kernel - 1
    return kept * config.d_model * FLOAT_BYTES


def _is_implicit(config: MixerConfig) -> bool:
    return bool(config.options) and config.options.filter == "implicit"


BASE_CONV = MixerSpec(
    name="base_conv",
    summary="projection gated by a long causal convolution",
    source="arXiv:2312.04927",
    build=build,
    reference=reference,
    options=BaseConvOptions,
    max_error={"float32": 1e-5},  # of the largest output: the Fourier transform adds T float32 terms
    state_bytes=state_bytes,
)
