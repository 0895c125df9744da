"""What `hyena` declares."""

from dataclasses import dataclass
from typing import Any

from harness import MixerConfig, MixerSpec
from harness_zoo.options import FLOAT_BYTES, at_least


@dataclass(frozen=True)
class HyenaOptions:
    """The options of `hyena`; as published where not said otherwise."""

    order: int = 2  # gates; one long filter fewer
    kernel: int = 3  # taps of the short filter on every projection
    filter_width: int = 64  # of the network that gives the long filters
    filter_depth: int = 2  # its hidden layers between the first and the last
    bands: int = 1  # frequencies among the features of a lag
    frequency: float = 1.0  # initial factor inside its sines


def options_of(config: MixerConfig) -> HyenaOptions:
    """Returns the options of the config, or raises InputError where one is out of range."""
    options: HyenaOptions = config.options or HyenaOptions()
    least = {"order": 2, "kernel": 1, "filter_width": 1, "filter_depth": 0, "bands": 1}
    for name, bound in least.items():
        at_least("hyena", name, getattr(options, name), bound)
    return options


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness_zoo.hyena.layer import Hyena

    return _layer(Hyena, config)


def reference(config: MixerConfig) -> Any:
    """Returns the layer as sums over lags, each tap on its own."""
    from harness_zoo.hyena.reference import ReferenceHyena

    return _layer(ReferenceHyena, config)


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the short filter's last inputs and of all inputs of each long filter, of one sequence."""
    options = options_of(config)
    short = (options.kernel - 1) * (options.order + 1)
    return (short + (options.order - 1) * T) * config.d_model * FLOAT_BYTES


def _layer(layer: type, config: MixerConfig) -> Any:
    from harness_zoo.hyena.layer import FilterShape

    options = options_of(config)
    shape = FilterShape(
        width=options.filter_width, depth=options.filter_depth, bands=options.bands, frequency=options.frequency
    )
    return layer(config.d_model, config.max_len, options.order, options.kernel, shape)


HYENA = MixerSpec(
    name="hyena",
    summary="gated long convolutions with implicit filters",
    source="arXiv:2302.10866",
    build=build,
    reference=reference,
    options=HyenaOptions,
    max_error={"float32": 1e-5},  # of the largest output: Fourier transforms add T float32 terms
    state_bytes=state_bytes,
)
