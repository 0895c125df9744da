"""What every mixer of the zoo promises, each with the options that change what it computes."""

import copy
import subprocess
import sys

import pytest
import torch
from harness_zoo import harness_mixers
from harness_zoo.base_conv.spec import BASE_CONV, BaseConvOptions
from harness_zoo.h3.spec import H3, H3Options
from harness_zoo.hyena.spec import HYENA, HyenaOptions
from harness_zoo.long_conv.spec import LONG_CONV
from harness_zoo.rwkv4.spec import RWKV4
from harness_zoo.short_conv.spec import SHORT_CONV, ShortConvOptions
from torch import Tensor, nn

from harness import InputError, MixerConfig, MixerSpec

MAX_LEN = 131
CASES = {  # name: spec, d_model, options
    "short_conv": (SHORT_CONV, 7, None),
    "short_conv, 1 tap": (SHORT_CONV, 12, ShortConvOptions(kernel=1)),
    "short_conv, 9 taps": (SHORT_CONV, 12, ShortConvOptions(kernel=9)),
    "base_conv": (BASE_CONV, 7, None),
    "base_conv, implicit": (BASE_CONV, 12, BaseConvOptions(filter="implicit")),
    "base_conv, 3 taps": (BASE_CONV, 12, BaseConvOptions(kernel="3")),
    "long_conv": (LONG_CONV, 7, None),
    "hyena": (HYENA, 7, None),
    "hyena, order 3": (HYENA, 6, HyenaOptions(order=3, kernel=2, filter_width=8, filter_depth=1, bands=3, frequency=4)),
    "h3": (H3, 7, None),
    "h3, as published": (H3, 6, H3Options(d_state="length", head_dim=2)),
    "h3, smallest": (H3, 12, H3Options(d_state="2", head_dim=4)),
    "rwkv4": (RWKV4, 7, None),
    "rwkv4, one channel": (RWKV4, 1, None),
}
BOUNDED = ["base_conv", "base_conv, implicit", "long_conv", "hyena", "hyena, order 3"]
every_case = pytest.mark.parametrize("case", CASES)


def config(case: str) -> MixerConfig:
    _, D, options = CASES[case]
    return MixerConfig(d_model=D, max_len=MAX_LEN, layer=1, n_layers=2, options=options)


def spec(case: str) -> MixerSpec:
    return CASES[case][0]


def build(case: str) -> nn.Module:
    torch.manual_seed(0)
    return spec(case).build(config(case))


def inputs(case: str, T: int, B: int = 2) -> Tensor:
    return torch.randn(B, T, CASES[case][1], generator=torch.Generator().manual_seed(1))


def results(module: nn.Module, u: Tensor) -> dict[str, Tensor]:
    """Returns the output, and the gradients of the input and of every parameter."""
    module.zero_grad()
    u = u.clone().requires_grad_()
    y = module(u)
    weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    (y * weights).sum().backward()
    unused = y.new_zeros(())  # a decay has nothing to do at the first position
    gradients = {name: unused if p.grad is None else p.grad for name, p in module.named_parameters()}
    return {"output": y.detach(), "input": u.grad, **gradients}


@pytest.mark.parametrize("T", [1, 63, 129])
@every_case
def test_the_layer_and_its_gradients_equal_the_reference(case: str, T: int) -> None:
    fast = build(case)
    exact = spec(case).reference(config(case)).double()
    exact.load_state_dict({name: value.double() for name, value in fast.state_dict().items()})
    u = inputs(case, T)
    expected = results(exact, u.double())
    wide, narrow = results(copy.deepcopy(fast).double(), u.double()), results(fast, u)
    for name, wanted in expected.items():
        torch.testing.assert_close(wide[name], wanted.expand_as(wide[name]), rtol=1e-8, atol=1e-8, msg=name)
        bound = spec(case).max_error["float32"] * (1 if name == "output" else 5)
        assert (narrow[name] - wanted).abs().max() <= bound * wanted.abs().max().clamp(min=1e-2), name


@every_case
def test_future_tokens_do_not_change_the_past(case: str) -> None:
    module, u = build(case).double(), inputs(case, 20).double()
    changed = u.clone()
    changed[:, 11:] += 10.0
    torch.testing.assert_close(module(u)[:, :11], module(changed)[:, :11], rtol=1e-10, atol=1e-10)


@every_case
def test_gradients_flow_to_the_past_and_not_to_the_future(case: str) -> None:
    u = inputs(case, 20).double().requires_grad_()
    build(case).double()(u)[:, 10].sum().backward()
    assert u.grad[:, 11:].abs().max() < 1e-13 * u.grad.abs().max()
    assert u.grad[:, 10].abs().min() > 0


@every_case
def test_stepping_token_by_token_gives_what_the_whole_sequence_gives(case: str) -> None:
    module, u = build(case), inputs(case, 70)
    state, outputs = module.initial_state(2, u.device, u.dtype), []
    for u_t in u.unbind(1):
        y_t, state = module.step(u_t, state)
        outputs.append(y_t)
    y = module(u).detach()
    torch.testing.assert_close(torch.stack(outputs, 1).detach(), y, rtol=0, atol=1e-5 * float(y.abs().max()))


@pytest.mark.parametrize("T", [1, 17])
@every_case
def test_the_measured_state_has_the_declared_size(case: str, T: int) -> None:
    module = build(case)
    state = module.initial_state(1, "cpu", torch.float32)
    for u_t in inputs(case, T, B=1).unbind(1):
        _, state = module.step(u_t, state)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(state)}
    assert sum(storages.values()) == spec(case).state_bytes(config(case), T)


def tensors(state: object) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [t for part in state for t in tensors(part)]


@every_case
def test_a_strided_input_gives_what_a_contiguous_one_gives(case: str) -> None:
    module, u = build(case), inputs(case, 20)
    strided = u.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(module(strided), module(u))


@every_case
def test_16_bit_weights_and_inputs_give_a_16_bit_output_near_the_exact_one(case: str) -> None:
    module, u = build(case), inputs(case, 20)
    y = module(u)
    got = module.bfloat16()(u.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got - y).abs().max() <= 0.1 * y.abs().max()


@every_case
def test_token_ids_and_wrong_shapes_are_refused_with_what_is_allowed(case: str) -> None:
    module, D = build(case), CASES[case][1]
    with pytest.raises(InputError, match=r"int64 input; it takes float32.*embed"):
        module(torch.ones(2, 5, D, dtype=torch.int64))
    for shape in [(2, 5, D + 1), (5, D), (2, 0, D)]:
        with pytest.raises(InputError, match=rf"it takes \[B, T, {D}\] with T of at least 1"):
            module(torch.ones(shape))


@pytest.mark.parametrize("case", BOUNDED)
def test_a_sequence_beyond_the_filter_is_refused_naming_both_lengths(case: str) -> None:
    module = build(case)
    with pytest.raises(InputError, match=f"T = {MAX_LEN + 1} .*max_len = {MAX_LEN}"):
        module(inputs(case, MAX_LEN + 1))
    state = module.initial_state(1, "cpu", torch.float32)
    *fitting, one_more = inputs(case, MAX_LEN + 1, B=1).unbind(1)
    with torch.no_grad():
        for u_t in fitting:
            _, state = module.step(u_t, state)
    with pytest.raises(InputError, match=f"T = {MAX_LEN + 1} .*max_len = {MAX_LEN}"):
        module.step(one_more, state)


def test_every_mixer_of_the_zoo_is_among_the_cases() -> None:
    elsewhere = {"sliding_window", "bigbird", "document_attention", "selective_attention"}  # mixer_contract
    elsewhere.add("selective_attention_published")
    assert {spec.name for spec in harness_mixers()} == {spec.name for spec, _, _ in CASES.values()} | elsewhere


def test_listing_the_zoo_imports_no_torch() -> None:
    code = "import sys, harness_zoo; list(harness_zoo.harness_mixers()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@every_case
def test_a_training_step_asks_the_device_nothing_so_that_a_cuda_graph_can_hold_it(case: str) -> None:
    module, u = build(case), inputs(case, 40).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
        module(u).sum().backward()
    asked = {"aten::_local_scalar_dense", "aten::nonzero"}  # what waits for a value, and for a number of values
    assert not asked & {event.key for event in watched.key_averages()}
