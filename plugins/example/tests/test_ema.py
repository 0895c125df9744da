"""What `ema` promises. A plugin of your own can start from these."""

import copy

import pytest
import torch
from harness_example import build, reference, state_bytes

from harness import MixerConfig

D = 12
CONFIG = MixerConfig(d_model=D, max_len=2048)


def results(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Returns the output, and the gradients of the input and of every parameter."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    (y * weights).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("T", [1, 63, 129])
def test_the_layer_and_its_gradients_equal_the_definition(T: int) -> None:
    torch.manual_seed(0)
    fast, x = build(CONFIG), torch.randn(2, T, D)
    exact = reference(CONFIG).double()
    exact.load_state_dict({name: value.double() for name, value in fast.state_dict().items()})
    expected = results(exact, x.double())
    for got, wanted in zip(results(fast, x), expected, strict=True):
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1e-3)
    for got, wanted in zip(results(copy.deepcopy(fast).double(), x.double()), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("logit", [-30.0, 0.0, 30.0])
def test_extreme_decays_stay_finite_over_two_thousand_tokens(logit: float) -> None:
    module = build(CONFIG)
    torch.nn.init.constant_(module.decay_logit, logit)
    assert all(value.isfinite().all() for value in results(module, torch.randn(1, 2048, D)))


def test_future_tokens_do_not_change_the_past() -> None:
    module, x = build(CONFIG), torch.randn(2, 20, D)
    changed = x.clone()
    changed[:, 11:] += 10.0
    torch.testing.assert_close(module(x)[:, :11], module(changed)[:, :11], rtol=1e-5, atol=1e-5)


def test_no_gradient_flows_back_from_the_past_to_the_future() -> None:
    x = torch.randn(2, 20, D, dtype=torch.float64, requires_grad=True)
    build(CONFIG).double()(x)[:, :11].sum().backward()
    assert x.grad[:, 11:].abs().max() < 1e-14 < x.grad[:, :11].abs().min()


def test_stepping_token_by_token_gives_what_the_whole_sequence_gives() -> None:
    module, x = build(CONFIG), torch.randn(2, 33, D)
    state, outputs = module.initial_state(2, x.device, x.dtype), []
    for x_t in x.unbind(1):
        y_t, state = module.step(x_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("T", [1, 17])
def test_the_measured_state_has_the_declared_size(T: int) -> None:
    module = build(CONFIG)
    state = module.initial_state(1, "cpu", torch.float32)
    for _ in range(T):
        _, state = module.step(torch.randn(1, D), state)
    assert state.untyped_storage().nbytes() == state_bytes(CONFIG, T)
