"""The mixers that come with Mixer Harness. Listing them does not import torch."""

from collections.abc import Iterable

from harness import MixerSpec, hookimpl
from harness_zoo.base_conv.spec import BASE_CONV
from harness_zoo.bigbird.spec import BIGBIRD
from harness_zoo.document_attention.spec import DOCUMENT_ATTENTION
from harness_zoo.h3.spec import H3
from harness_zoo.hyena.spec import HYENA
from harness_zoo.kernel_specs import with_kernels
from harness_zoo.long_conv.spec import LONG_CONV
from harness_zoo.rwkv4.spec import RWKV4
from harness_zoo.selective_attention.spec import SELECTIVE_ATTENTION, SELECTIVE_ATTENTION_PUBLISHED
from harness_zoo.short_conv.spec import SHORT_CONV
from harness_zoo.sliding_window.spec import SLIDING_WINDOW


@hookimpl
def harness_mixers() -> Iterable[MixerSpec]:
    """Yields the mixers of the zoo; each is described in its own folder."""
    mixers = (SHORT_CONV, BASE_CONV, LONG_CONV, HYENA, H3, RWKV4, SLIDING_WINDOW, BIGBIRD)
    yield from mixers
    yield from map(with_kernels, mixers)
    yield from (DOCUMENT_ATTENTION, SELECTIVE_ATTENTION, SELECTIVE_ATTENTION_PUBLISHED)
