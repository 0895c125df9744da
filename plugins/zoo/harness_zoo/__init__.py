"""The mixers that come with Mixer Harness. Listing them does not import torch."""

from collections.abc import Iterable

from harness import MixerSpec, hookimpl
from harness_zoo.base_conv.spec import BASE_CONV
from harness_zoo.rwkv4.spec import RWKV4
from harness_zoo.short_conv.spec import SHORT_CONV


@hookimpl
def harness_mixers() -> Iterable[MixerSpec]:
    """Yields the mixers of the zoo; each is described in its own folder."""
    yield SHORT_CONV
    yield BASE_CONV
    yield RWKV4
