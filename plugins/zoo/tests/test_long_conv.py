"""What is special to `long_conv`."""

import torch
from harness_zoo.long_conv.spec import LONG_CONV

from harness import MixerConfig


def test_without_its_filter_the_layer_acts_on_each_position_alone() -> None:
    layer, u = LONG_CONV.build(MixerConfig(d_model=6, max_len=16)), torch.randn(2, 16, 6)
    with torch.no_grad():
        layer.filter.zero_()
        layer.skip.fill_(2.0)
    wanted = layer.out_proj(torch.nn.functional.gelu(2 * u))
    torch.testing.assert_close(layer(u), wanted, rtol=1e-5, atol=1e-5)


def test_the_last_lag_reaches_from_the_first_position_to_the_last() -> None:
    layer, u = LONG_CONV.build(MixerConfig(d_model=6, max_len=16)), torch.randn(2, 16, 6, requires_grad=True)
    with torch.no_grad():
        layer.filter[:, :-1] = 0
    layer(u)[:, -1].sum().backward()
    assert u.grad[:, 0].abs().min() > 1e-6 > u.grad[:, 1:-1].abs().max()
