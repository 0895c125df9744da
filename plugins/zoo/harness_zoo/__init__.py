"""The mixers that come with Mixer Harness. Listing them does not import torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness import InputError, MixerConfig, MixerSpec, hookimpl

FLOAT_BYTES = 4
FILTERS = ("explicit", "implicit")
PUBLISHED_SHORT = 3  # the paper's layers alternate: 3 taps, long, 3 taps, long
SOURCE = "arXiv:2312.04927"


@dataclass(frozen=True)
class ShortConvOptions:
    """The options of `short_conv`."""

    kernel: int = 3  # taps of the filter


@dataclass(frozen=True)
class BaseConvOptions:
    """The options of `base_conv`."""

    kernel: str = "long"  # or a number of taps, or "published": 3 taps in even layers, long in odd ones
    filter: str = "explicit"  # long filters: one weight a lag, or "implicit": a small network of the lag


def short_kernel(config: MixerConfig) -> int:
    """Returns the number of taps of a `short_conv` layer."""
    options = config.options or ShortConvOptions()
    if options.kernel < 1:
        raise InputError(f"short_conv: kernel = {options.kernel}; it takes a number of taps of at least 1")
    return int(options.kernel)


def base_kernel(config: MixerConfig) -> int | None:
    """Returns the number of taps of a `base_conv` layer, or None where its filter is long."""
    options = config.options or BaseConvOptions()
    if options.filter not in FILTERS:
        raise InputError(f"base_conv: filter = {options.filter!r}; choose one of {', '.join(FILTERS)}")
    if options.kernel == "published":
        return PUBLISHED_SHORT if config.layer % 2 == 0 else None
    if options.kernel == "long":
        return None
    if not (options.kernel.isascii() and options.kernel.isdecimal() and int(options.kernel) >= 1):
        raise InputError(
            f"base_conv: kernel = {options.kernel!r}; choose long, published, or a number of taps of at least 1"
        )
    return int(options.kernel)


def build_short(config: MixerConfig) -> Any:
    """Returns the fast `short_conv` layer."""
    from harness_zoo.short_conv.layer import ShortConv

    return ShortConv(config.d_model, short_kernel(config))


def reference_short(config: MixerConfig) -> Any:
    """Returns `short_conv` as a sum over taps."""
    from harness_zoo.short_conv.reference import ReferenceShortConv

    return ReferenceShortConv(config.d_model, short_kernel(config))


def build_base(config: MixerConfig) -> Any:
    """Returns the fast `base_conv` layer: long, or the short convolution of that many taps."""
    from harness_zoo.base_conv.layer import LongConv
    from harness_zoo.short_conv.layer import ShortConv

    kernel = base_kernel(config)
    if kernel is not None:
        return ShortConv(config.d_model, kernel)
    return LongConv(config.d_model, config.max_len, _is_implicit(config))


def reference_base(config: MixerConfig) -> Any:
    """Returns `base_conv` as a sum over taps."""
    from harness_zoo.base_conv.reference import ReferenceLongConv
    from harness_zoo.short_conv.reference import ReferenceShortConv

    kernel = base_kernel(config)
    if kernel is not None:
        return ReferenceShortConv(config.d_model, kernel)
    return ReferenceLongConv(config.d_model, config.max_len, _is_implicit(config))


def short_state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the last k - 1 inputs of one sequence."""
    return (short_kernel(config) - 1) * config.d_model * FLOAT_BYTES


def base_state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the inputs one sequence must keep: the last k - 1, or all T where the filter is long."""
    kernel = base_kernel(config)
    kept = T if kernel is None else kernel - 1
    return kept * config.d_model * FLOAT_BYTES


def _is_implicit(config: MixerConfig) -> bool:
    return bool(config.options) and config.options.filter == "implicit"


@hookimpl
def harness_mixers() -> Iterable[MixerSpec]:
    """Yields the mixers of the zoo."""
    yield MixerSpec(
        name="short_conv",
        summary="projection gated by a short causal convolution",
        source=SOURCE,
        build=build_short,
        reference=reference_short,
        options=ShortConvOptions,
        max_error={"float32": 1e-5},  # of the largest output: sums of k and D float32 products
        state_bytes=short_state_bytes,
    )
    yield MixerSpec(
        name="base_conv",
        summary="projection gated by a long causal convolution",
        source=SOURCE,
        build=build_base,
        reference=reference_base,
        options=BaseConvOptions,
        max_error={"float32": 1e-5},  # of the largest output: the Fourier transform adds T float32 terms
        state_bytes=base_state_bytes,
    )
