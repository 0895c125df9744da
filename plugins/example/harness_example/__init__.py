"""A whole plugin: one mixer, `ema`. Copy this folder to start your own."""

from collections.abc import Iterable
from typing import Any

from harness import MixerConfig, MixerSpec, hookimpl


def build(config: MixerConfig) -> Any:
    """Returns the fast layer. The import is in here because listing mixers must not import torch."""
    from harness_example.layer import ParallelEMA

    return ParallelEMA(config.d_model)


def reference(config: MixerConfig) -> Any:
    """Returns the layer as its definition says it: same parameter names, one position at a time."""
    from harness_example.layer import StepwiseEMA

    return StepwiseEMA(config.d_model)


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes one sequence carries after T tokens: D averages in float32, whatever T is."""
    return 4 * config.d_model


@hookimpl
def harness_mixers() -> Iterable[MixerSpec]:
    """Yields `ema/torch`."""
    yield MixerSpec(
        name="ema",
        summary="per-channel moving average with a learned decay",
        source="arXiv:2209.10655",
        build=build,
        reference=reference,
        state_bytes=state_bytes,
        max_error={"float32": 1e-5},  # of the largest output; the Fourier transform sums T float32 terms
    )
