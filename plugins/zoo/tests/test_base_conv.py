"""What is special to `base_conv`."""

import pytest
import torch
from harness_zoo.base_conv.spec import BASE_CONV, BaseConvOptions, taps_of

from harness import InputError, MixerConfig


def config(kernel: str = "long", filter: str = "explicit", layer: int = 0, max_len: int = 64) -> MixerConfig:
    options = BaseConvOptions(kernel=kernel, filter=filter)
    return MixerConfig(d_model=12, max_len=max_len, layer=layer, n_layers=4, options=options)


def test_the_published_order_alternates_three_taps_and_a_long_filter() -> None:
    assert [taps_of(config(kernel="published", layer=layer)) for layer in range(4)] == [3, None, 3, None]


@pytest.mark.parametrize("filter", ["explicit", "implicit"])
def test_a_filter_starts_near_the_identity(filter: str) -> None:
    torch.manual_seed(0)
    taps = BASE_CONV.build(config(filter=filter)).taps(64)
    assert taps[:, 0].mean() > 0.8
    assert taps[:, 1:].abs().mean() < 0.2


def test_implicit_filters_do_not_grow_with_the_length() -> None:
    layers = [BASE_CONV.build(config(filter="implicit", max_len=max_len)) for max_len in (64, 512)]
    assert len({sum(p.numel() for p in layer.parameters()) for layer in layers}) == 1


@pytest.mark.parametrize("kernel", ["0", "-1", "3.5", "wide", "²", ""])
def test_an_unknown_kernel_is_refused_with_the_choices(kernel: str) -> None:
    with pytest.raises(InputError, match="choose long, published, or a number of taps"):
        BASE_CONV.build(config(kernel=kernel))


def test_an_unknown_filter_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match="filter = 'fast'; choose one of explicit, implicit"):
        BASE_CONV.build(config(filter="fast"))
