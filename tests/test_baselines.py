"""What `attention/torch` promises."""

import copy
import subprocess
import sys

import pytest
import torch

from harness import InputError, MixerConfig
from harness.baselines import POSITIONS, AttentionOptions, build, harness_mixers, reference, state_bytes
from harness.testing import mixer_contract
from harness.timing.memory import held_bytes

D, MAX_LEN = 12, 160

test_grouped_queries_keep_the_contract = mixer_contract("attention/torch(heads=4,kv_heads=2,positions=rotary)")


def config(positions: str = "none", heads: int = 2, kv_heads: int | None = None) -> MixerConfig:
    options = AttentionOptions(heads=heads, kv_heads=kv_heads, positions=positions)
    return MixerConfig(d_model=D, max_len=MAX_LEN, options=options)


def layer(positions: str = "none", heads: int = 2, kv_heads: int | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(config(positions, heads, kv_heads))


def results(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Returns the output, and the gradients of the input and of every parameter."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x)
    weights = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view_as(y).to(y.dtype)
    (y * weights).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("T", [1, 63, 129])
@pytest.mark.parametrize(("positions", "kv_heads"), [*((name, None) for name in POSITIONS), ("rotary", 2)])
def test_the_layer_and_its_gradients_equal_the_definition(T: int, positions: str, kv_heads: int | None) -> None:
    heads = 2 if kv_heads is None else 3 * kv_heads
    fast, x = layer(positions, heads, kv_heads), torch.randn(2, T, D)
    exact = reference(config(positions, heads, kv_heads)).double()
    exact.load_state_dict({name: value.double() for name, value in fast.state_dict().items()})
    expected = results(exact, x.double())
    for got, wanted in zip(results(fast, x), expected, strict=True):
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1e-3)
    for got, wanted in zip(results(copy.deepcopy(fast).double(), x.double()), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("positions", POSITIONS)
def test_bfloat16_stays_within_its_declared_error(positions: str) -> None:
    (spec,) = harness_mixers()
    fast, x = layer(positions).bfloat16(), torch.randn(2, 63, D).bfloat16()
    exact = reference(config(positions)).double()
    exact.load_state_dict({name: value.double() for name, value in fast.state_dict().items()})
    got, wanted = fast(x), exact(x.double())
    assert got.dtype == torch.bfloat16
    assert (got - wanted).abs().max() <= spec.max_error["bfloat16"] * wanted.abs().max()


@pytest.mark.parametrize("positions", POSITIONS)
def test_future_tokens_do_not_change_the_past(positions: str) -> None:
    module, x = layer(positions), torch.randn(2, 20, D)
    changed = x.clone()
    changed[:, 11:] += 10.0
    torch.testing.assert_close(module(x)[:, :11], module(changed)[:, :11], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
def test_no_gradient_flows_back_from_the_past_to_the_future(positions: str) -> None:
    x = torch.randn(2, 20, D, requires_grad=True)
    layer(positions)(x)[:, :11].sum().backward()
    assert x.grad[:, 11:].abs().max() == 0 < x.grad[:, :11].abs().min()


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("positions", POSITIONS)
def test_stepping_token_by_token_gives_what_the_whole_sequence_gives(positions: str, kv_heads: int | None) -> None:
    module, x = layer(positions, kv_heads=kv_heads), torch.randn(2, 33, D)
    state, outputs = module.initial_state(2, x.device, x.dtype), []
    for x_t in x.unbind(1):
        y_t, state = module.step(x_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("T", [1, 17])
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_the_measured_state_has_the_declared_size(T: int, kv_heads: int | None) -> None:
    module = layer(kv_heads=kv_heads)
    state = module.initial_state(1, "cpu", torch.float32)
    for _ in range(T):
        _, state = module.step(torch.randn(1, D), state)
    assert held_bytes(state) == state_bytes(config(kv_heads=kv_heads), T)
    assert held_bytes(state) == 4 * T * 2 * D // (1 if kv_heads is None else 2)


def test_as_many_key_value_heads_as_heads_is_multi_head_attention() -> None:
    plain, grouped = layer(heads=4), layer(heads=4, kv_heads=4)
    grouped.load_state_dict(plain.state_dict())
    x = torch.randn(2, 9, D)
    assert torch.equal(plain(x), grouped(x))


def test_heads_of_one_group_read_the_same_keys_and_values() -> None:
    few, many, x = layer(heads=4, kv_heads=2), layer(heads=4), torch.randn(2, 9, D)
    q, k, v = few.heads.qkv.weight.split((D, D // 2, D // 2))  # the two key-value heads, 3 rows each
    twice = [part.view(2, 1, 3, D).expand(2, 2, 3, D).reshape(D, D) for part in (k, v)]
    biases = few.heads.qkv.bias.split((D, D // 2, D // 2))
    twice_biases = [part.view(2, 1, 3).expand(2, 2, 3).reshape(D) for part in biases[1:]]
    many.load_state_dict(
        {
            "heads.qkv.weight": torch.cat((q, *twice)),
            "heads.qkv.bias": torch.cat((biases[0], *twice_biases)),
            "heads.out_proj.weight": few.heads.out_proj.weight,
            "heads.out_proj.bias": few.heads.out_proj.bias,
        }
    )
    torch.testing.assert_close(few(x), many(x))


def test_without_positions_the_order_of_earlier_tokens_does_not_matter() -> None:
    x = torch.randn(1, 9, D)
    shuffled = torch.cat((x[:, :8].flip(1), x[:, 8:]), dim=1)
    torch.testing.assert_close(layer()(x)[:, 8], layer()(shuffled)[:, 8], rtol=1e-5, atol=1e-6)
    for positions in ("learned", "rotary"):
        difference = layer(positions)(x)[:, 8] - layer(positions)(shuffled)[:, 8]
        assert difference.abs().max() > 1e-4


def test_a_step_beyond_the_learned_positions_is_refused_naming_both_lengths() -> None:
    module = layer("learned")
    state = (*(torch.zeros(1, 2, MAX_LEN, D // 2) for _ in range(2)), MAX_LEN)
    message = f"T = {MAX_LEN + 1} .*max_len = {MAX_LEN}"
    with pytest.raises(InputError, match=message):
        module.step(torch.zeros(1, D), state)
    with pytest.raises(InputError, match=message):
        module(torch.zeros(1, MAX_LEN + 1, D))
    with pytest.raises(InputError, match=message):
        reference(config("learned"))(torch.zeros(1, MAX_LEN + 1, D))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AttentionOptions(heads=5), "heads = 5 does not divide d_model = 12; choose one of 1, 2, 3, 4, 6, 12"),
        (AttentionOptions(heads=0), "heads = 0 does not divide"),
        (AttentionOptions(heads=4, kv_heads=3), "kv_heads = 3 does not divide heads = 4; choose 1, 2, 4"),
        (AttentionOptions(heads=4, kv_heads=0), "kv_heads = 0 does not divide"),
        (AttentionOptions(positions="sine"), "positions = 'sine'; choose one of none, learned, rotary"),
        (AttentionOptions(heads=4, positions="rotary"), "even head width, but d_model / heads = 12 / 4 = 3"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_choices(options: AttentionOptions, message: str) -> None:
    for make in (build, reference):
        with pytest.raises(InputError, match=message):
            make(MixerConfig(d_model=D, max_len=MAX_LEN, options=options))


def test_listing_the_baseline_imports_no_torch() -> None:
    code = "import sys, harness.baselines as b; list(b.harness_mixers()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
