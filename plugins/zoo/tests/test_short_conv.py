"""What is special to `short_conv`."""

import pytest
import torch
from harness_zoo.short_conv.spec import SHORT_CONV, ShortConvOptions

from harness import InputError, MixerConfig


def test_the_state_does_not_grow_with_the_sequence() -> None:
    config = MixerConfig(d_model=12, max_len=8)
    assert SHORT_CONV.state_bytes(config, 1) == SHORT_CONV.state_bytes(config, 1000) == 2 * 12 * 4


def test_a_sequence_may_be_longer_than_the_model_was_built_for() -> None:
    layer = SHORT_CONV.build(MixerConfig(d_model=12, max_len=8))
    assert layer(torch.randn(1, 20, 12)).shape == (1, 20, 12)


def test_a_kernel_without_taps_is_refused() -> None:
    with pytest.raises(InputError, match=r"short_conv: kernel = 0.*at least 1"):
        SHORT_CONV.build(MixerConfig(d_model=12, max_len=8, options=ShortConvOptions(kernel=0)))
