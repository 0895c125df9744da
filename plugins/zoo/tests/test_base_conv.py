"""What `base_conv` promises."""

import copy
import subprocess
import sys

import pytest
import torch
from harness_zoo.base_conv.spec import BASE_CONV, BaseConvOptions, taps_of
from harness_zoo.ops.long_conv import fast_length

from harness import InputError, MixerConfig

D, MAX_LEN = 12, 160
FILTERS = ("explicit", "implicit")


def config(kernel: str = "long", filter: str = "explicit", layer: int = 0) -> MixerConfig:
    options = BaseConvOptions(kernel=kernel, filter=filter)
    return MixerConfig(d_model=D, max_len=MAX_LEN, layer=layer, n_layers=4, options=options)


def build(chosen: MixerConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return BASE_CONV.build(chosen)


def results(module: torch.nn.Module, u: torch.Tensor) -> list[torch.Tensor]:
    """Returns the output, and the gradients of the input and of every parameter."""
    module.zero_grad()
    u = u.clone().requires_grad_()
    y = module(u)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    (y * weights).sum().backward()
    return [y.detach(), u.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("T", [1, 63, 129])
@pytest.mark.parametrize("filter", FILTERS)
def test_the_layer_and_its_gradients_equal_the_sum_over_taps(T: int, filter: str) -> None:
    fast = build(config(filter=filter))
    exact = BASE_CONV.reference(config(filter=filter)).double()
    exact.load_state_dict({name: value.double() for name, value in fast.state_dict().items()})
    u = torch.randn(2, T, D)
    expected = results(exact, u.double())
    for got, wanted in zip(results(fast, u), expected, strict=True):
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1e-3)
    for got, wanted in zip(results(copy.deepcopy(fast).double(), u.double()), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("filter", FILTERS)
def test_future_tokens_do_not_change_the_past(filter: str) -> None:
    module, u = build(config(filter=filter)), torch.randn(2, 20, D)
    changed = u.clone()
    changed[:, 11:] += 10.0
    torch.testing.assert_close(module(u)[:, :11], module(changed)[:, :11], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("filter", FILTERS)
def test_no_gradient_flows_back_from_the_past_to_the_future(filter: str) -> None:
    u = torch.randn(2, 20, D, dtype=torch.float64, requires_grad=True)
    build(config(filter=filter)).double()(u)[:, :11].sum().backward()
    assert u.grad[:, 11:].abs().max() < 1e-14
    assert u.grad[:, :11].abs().min() > 1e-8


@pytest.mark.parametrize("filter", FILTERS)
def test_stepping_token_by_token_gives_what_the_whole_sequence_gives(filter: str) -> None:
    module, u = build(config(filter=filter)), torch.randn(2, 33, D)
    state, outputs = module.initial_state(2, u.device, u.dtype), []
    for u_t in u.unbind(1):
        y_t, state = module.step(u_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), module(u), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["long", "3"])
@pytest.mark.parametrize("T", [1, 17])
def test_the_measured_state_has_the_declared_size(kernel: str, T: int) -> None:
    module = build(config(kernel=kernel))
    state = module.initial_state(1, "cpu", torch.float32)
    for _ in range(T):
        _, state = module.step(torch.randn(1, D), state)
    assert state.untyped_storage().nbytes() == BASE_CONV.state_bytes(config(kernel=kernel), T)


def test_the_published_order_alternates_three_taps_and_a_long_filter() -> None:
    assert [taps_of(config(kernel="published", layer=layer)) for layer in range(4)] == [3, None, 3, None]


def test_implicit_filters_do_not_grow_with_the_length() -> None:
    sizes = []
    for max_len in (64, 512):
        chosen = MixerConfig(d_model=D, max_len=max_len, options=BaseConvOptions(filter="implicit"))
        sizes.append(sum(p.numel() for p in build(chosen).parameters()))
    assert sizes[0] == sizes[1]


def test_a_sequence_beyond_the_filter_is_refused_naming_both_lengths() -> None:
    with pytest.raises(InputError, match=f"T = {MAX_LEN + 1} .*max_len = {MAX_LEN}"):
        build(config())(torch.randn(1, MAX_LEN + 1, D))


@pytest.mark.parametrize("kernel", ["0", "-1", "3.5", "wide", "²", ""])
def test_an_unknown_kernel_is_refused_with_the_choices(kernel: str) -> None:
    with pytest.raises(InputError, match="choose long, published, or a number of taps"):
        build(config(kernel=kernel))


def test_an_unknown_filter_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match="filter = 'fast'; choose one of explicit, implicit"):
        build(config(filter="fast"))


def test_transform_lengths_are_long_enough_and_at_most_half_again_as_long() -> None:
    assert all(n <= fast_length(n) <= 1.5 * n for n in range(1, 5000))


def test_listing_the_zoo_imports_no_torch() -> None:
    code = "import sys, harness_zoo; list(harness_zoo.harness_mixers()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
