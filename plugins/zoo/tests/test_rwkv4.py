"""What is special to `rwkv4`."""

import math

import pytest
import torch
from harness_zoo.rwkv4.spec import RWKV4

from harness import MixerConfig

D = 6


def layer(index: int = 1, n_layers: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return RWKV4.build(MixerConfig(d_model=D, max_len=8, layer=index, n_layers=n_layers))


def test_the_initial_values_depend_on_the_layer_as_in_the_paper() -> None:
    rwkv, i = layer(index=1, n_layers=3), 4
    assert float(rwkv.mix_key[i].detach()) == pytest.approx((i / D) ** (1 - 1 / 3))
    assert float(rwkv.mix_value[i].detach()) == pytest.approx((i / D) ** (1 - 1 / 3) + 0.3 / 2)
    assert float(rwkv.mix_receptance[i].detach()) == pytest.approx((i / D) ** (0.5 * (1 - 1 / 3)))
    assert float(rwkv.log_decay[i].detach()) == pytest.approx(-5 + 8 * (i / (D - 1)) ** (0.7 + 1.3 / 2), abs=1e-5)
    assert float(rwkv.bonus[i].detach()) == pytest.approx(math.log(0.3) + 0.5 * ((i + 1) % 3 - 1))


def test_a_model_of_one_layer_has_finite_initial_values() -> None:
    assert all(p.isfinite().all() for p in layer(index=0, n_layers=1).parameters())


@pytest.mark.parametrize("log_decay", [-80.0, 0.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_no_key_and_no_decay_is_too_extreme(log_decay: float, scale: float) -> None:
    rwkv = layer()
    with torch.no_grad():
        rwkv.log_decay.fill_(log_decay)
        rwkv.key.weight.mul_(scale)
    exact = RWKV4.reference(MixerConfig(d_model=D, max_len=8, layer=1, n_layers=3)).double()
    exact.load_state_dict({name: value.double() for name, value in rwkv.state_dict().items()})
    u = torch.randn(2, 40, D, requires_grad=True)
    y = rwkv(u)
    y.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (u, *rwkv.parameters()))
    wanted = exact(u.double())
    # A key's rounding error is its exponent's: 1e4 keys are known to 1e-3.
    assert (y - wanted).abs().max() <= (1e-5 if scale == 1.0 else 2e-2) * wanted.abs().max()


def test_an_output_is_an_average_of_the_values_so_far() -> None:
    rwkv = layer().double()
    u = torch.randn(2, 30, D, dtype=torch.float64)
    k, v, _ = rwkv.project(u, torch.nn.functional.pad(u, (0, 0, 1, -1)))
    y, _ = rwkv.wkv(k, v, rwkv.log_decay.exp(), rwkv.bonus)
    assert (y <= v.cummax(1).values + 1e-12).all()
    assert (y >= v.cummin(1).values - 1e-12).all()


def test_the_first_input_has_nothing_before_it() -> None:
    rwkv = layer().double()
    u = torch.randn(1, 1, D, dtype=torch.float64)
    wanted = rwkv.value(rwkv.mix_value * u) * torch.sigmoid(rwkv.receptance(rwkv.mix_receptance * u))
    torch.testing.assert_close(rwkv(u), rwkv.out_proj(wanted))
