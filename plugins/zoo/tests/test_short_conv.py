"""What `short_conv` promises."""

import copy

import pytest
import torch
from harness_zoo.short_conv.spec import SHORT_CONV, ShortConvOptions

from harness import InputError, MixerConfig

D = 12


def config(kernel: int = 3) -> MixerConfig:
    return MixerConfig(d_model=D, max_len=160, options=ShortConvOptions(kernel=kernel))


def layer(kernel: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return SHORT_CONV.build(config(kernel))


def results(module: torch.nn.Module, u: torch.Tensor) -> list[torch.Tensor]:
    """Returns the output, and the gradients of the input and of every parameter."""
    module.zero_grad()
    u = u.clone().requires_grad_()
    y = module(u)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    (y * weights).sum().backward()
    return [y.detach(), u.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("T", [1, 63, 129])
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_the_layer_and_its_gradients_equal_the_sum_over_taps(T: int, kernel: int) -> None:
    fast = layer(kernel)
    exact = SHORT_CONV.reference(config(kernel)).double()
    exact.load_state_dict({name: value.double() for name, value in fast.state_dict().items()})
    u = torch.randn(2, T, D)
    expected = results(exact, u.double())
    for got, wanted in zip(results(fast, u), expected, strict=True):
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1e-3)
    for got, wanted in zip(results(copy.deepcopy(fast).double(), u.double()), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_future_tokens_do_not_change_the_past() -> None:
    module, u = layer(), torch.randn(2, 20, D)
    changed = u.clone()
    changed[:, 11:] += 10.0
    assert torch.equal(module(u)[:, :11], module(changed)[:, :11])


def test_no_gradient_flows_back_from_the_past_to_the_future() -> None:
    u = torch.randn(2, 20, D, requires_grad=True)
    layer()(u)[:, :11].sum().backward()
    assert u.grad[:, 11:].abs().max() == 0 < u.grad[:, 10].abs().min()


@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_stepping_token_by_token_gives_what_the_whole_sequence_gives(kernel: int) -> None:
    module, u = layer(kernel), torch.randn(2, 7, D)
    state, outputs = module.initial_state(2, u.device, u.dtype), []
    for u_t in u.unbind(1):
        y_t, state = module.step(u_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), module(u), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3, 9])
@pytest.mark.parametrize("T", [1, 17])
def test_the_measured_state_has_the_declared_size(kernel: int, T: int) -> None:
    module = layer(kernel)
    state = module.initial_state(1, "cpu", torch.float32)
    for _ in range(T):
        _, state = module.step(torch.randn(1, D), state)
    assert state.untyped_storage().nbytes() == SHORT_CONV.state_bytes(config(kernel), T)


def test_a_kernel_without_taps_is_refused() -> None:
    with pytest.raises(InputError, match=r"kernel = 0.*at least 1"):
        SHORT_CONV.build(config(kernel=0))
