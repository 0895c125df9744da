"""What is special to `hyena`."""

import math

import pytest
import torch
from harness_zoo.hyena.spec import HYENA, HyenaOptions

from harness import InputError, MixerConfig

D, MAX_LEN = 5, 40


def layer(**options: float) -> torch.nn.Module:
    torch.manual_seed(0)
    return HYENA.build(MixerConfig(d_model=D, max_len=MAX_LEN, options=HyenaOptions(**options))).double()


def test_a_tap_is_the_network_of_its_lag_times_a_window_that_falls_exponentially() -> None:
    f = layer(bands=2, filter_width=4, filter_depth=1, frequency=3).filter.requires_grad_(False)
    lag, channel = 7, 3
    t = lag / (MAX_LEN - 1)
    waves = [1e-4, 1.0]
    features = [t, *(math.cos(2 * math.pi * lag / MAX_LEN * w) for w in waves)]
    features += [-math.sin(2 * math.pi * lag / MAX_LEN * w) for w in waves]
    hidden = [
        math.sin(3 * (sum(x * float(f.first[i, j]) for i, x in enumerate(features)) + float(f.first_bias[j])))
        for j in range(4)
    ]
    hidden = [
        math.sin(3 * (sum(x * float(f.hidden[0, i, j]) for i, x in enumerate(hidden)) + float(f.hidden_bias[0, j])))
        for j in range(4)
    ]
    slowest, fastest = math.log(100) / 1.5, math.log(100) / 0.3
    rate = slowest + (fastest - slowest) * channel / (D - 1)
    wanted = sum(x * float(f.last[i, channel]) for i, x in enumerate(hidden)) * math.exp(-rate * t)
    assert float(f(20)[channel, lag]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("order", "filters"), [(2, 1), (4, 3)])
def test_an_order_has_one_projection_more_and_one_long_filter_fewer(order: int, filters: int) -> None:
    hyena = layer(order=order)
    assert hyena.in_proj.out_features == (order + 1) * D
    assert [tuple(taps.shape) for taps in hyena.taps(9)] == [(D, 9)] * filters


def test_the_parameters_do_not_grow_with_the_length() -> None:
    layers = [HYENA.build(MixerConfig(d_model=D, max_len=max_len)) for max_len in (64, 512)]
    assert len({sum(p.numel() for p in layer.parameters()) for layer in layers}) == 1


def test_a_closed_last_gate_silences_the_layer() -> None:
    hyena = layer()
    with torch.no_grad():
        hyena.in_proj.weight[D : 2 * D] = 0
        hyena.in_proj.bias[D : 2 * D] = 0
        hyena.short_bias[D : 2 * D] = 0
    y = hyena(torch.randn(1, 9, D, dtype=torch.float64))
    torch.testing.assert_close(y, hyena.out_proj.bias.expand_as(y))


def test_one_position_is_enough() -> None:
    hyena = HYENA.build(MixerConfig(d_model=D, max_len=1))
    assert hyena(torch.randn(2, 1, D)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("order", 1, 2), ("kernel", 0, 1), ("filter_width", 0, 1), ("filter_depth", -1, 0), ("bands", 0, 1)],
)
def test_an_option_below_its_least_value_is_refused(name: str, value: int, least: int) -> None:
    with pytest.raises(InputError, match=f"hyena: {name} = {value}; it takes a number of at least {least}"):
        layer(**{name: value})
