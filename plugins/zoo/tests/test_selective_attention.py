"""What `selective_attention` and `selective_attention_published` promise."""

import copy
import math

import pytest
import torch
from harness_zoo.selective_attention.selection import Programmatic, Random, budget, leads, logistic_noise, root
from harness_zoo.selective_attention.spec import (
    SELECTIONS,
    SELECTIVE_ATTENTION,
    SELECTIVE_ATTENTION_PUBLISHED,
    PublishedOptions,
    SelectiveAttentionOptions,
)
from torch.nn import functional as F

from harness import AttentionOptions, InputError, MixerConfig, SelfAttention
from harness.testing import mixer_contract

D, MAX_LEN = 12, 160

test_learned_keeps_the_contract = mixer_contract("selective_attention(heads=4,positions=rotary)")
test_programmatic_keeps_the_contract = mixer_contract("selective_attention(selection=programmatic,positions=learned)")
test_random_keeps_the_contract = mixer_contract("selective_attention(selection=random)")
test_published_keeps_the_contract = mixer_contract("selective_attention_published")


def config(selection: str = "learned", k: int | None = None, layer: int = 0, seed: int = 0) -> MixerConfig:
    options = SelectiveAttentionOptions(selection=selection, k=k, heads=2, seed=seed)
    return MixerConfig(d_model=D, max_len=MAX_LEN, layer=layer, n_layers=2, options=options)


def build(selection: str = "learned", k: int | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    return SELECTIVE_ATTENTION.build(config(selection, k)).eval()


def inputs(T: int, B: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, T, D, generator=generator), torch.randint(9, (B, T), generator=generator)


@pytest.mark.parametrize("selection", ["learned", "programmatic", "random"])
def test_selected_positions_get_attention_and_the_others_exactly_nothing(selection: str) -> None:
    module, (x, tokens) = build(selection), inputs(100)
    everywhere = SelfAttention(D, MAX_LEN, AttentionOptions(heads=2))
    everywhere.heads.load_state_dict(module.heads.state_dict())
    chosen, scale = module.selection(x, tokens)
    wanted = everywhere(x) * (1 if scale is None else scale.unsqueeze(2))
    y = module(x, tokens)
    assert 0 < chosen.sum() < chosen.numel()
    torch.testing.assert_close(y[chosen], wanted[chosen], rtol=1e-5, atol=1e-6)
    assert not y[~chosen].any()


def test_a_full_selection_is_attention() -> None:
    module, (x, tokens) = build("full"), inputs(50)
    other = SelfAttention(D, MAX_LEN, AttentionOptions(heads=2))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x, tokens), other(x))


@pytest.mark.parametrize("k", [1, 3, 70, 200])
@pytest.mark.parametrize("T", [1, 64, 65, 150])
def test_a_position_leads_where_fewer_than_k_earlier_ones_are_as_large(T: int, k: int) -> None:
    scores = torch.randint(20, (2, T), generator=torch.Generator().manual_seed(2)).double()  # many are equal
    naive = [[sum(s >= row[t] for s in row[:t]) < k for t in range(T)] for row in scores.tolist()]
    assert leads(scores, k).tolist() == naive


def test_gates_that_rise_for_ever_select_no_more_than_the_budget() -> None:
    module, (x, tokens) = build(k=4), inputs(MAX_LEN)
    with torch.no_grad():
        module.selection.gate.fill_(1.0)
    rising = x * 0 + torch.arange(MAX_LEN).view(1, -1, 1)
    chosen, _ = module.selection(rising, tokens)
    assert chosen.sum(1).tolist() == [budget(4, MAX_LEN)] * 3
    assert budget(4, MAX_LEN) == math.ceil(8 * (1 + math.log(40)))


def test_gates_in_random_order_select_half_the_budget_on_average() -> None:
    scores = torch.rand(400, 2000, generator=torch.Generator().manual_seed(3))
    number = leads(scores, 45).sum(1).double().mean()
    assert abs(number / (budget(45, 2000) / 2) - 1) < 0.02


def test_the_published_share_of_a_sequence_is_the_root_of_its_length_rounded_up() -> None:
    assert [root(T) for T in (1, 2, 4, 5, 16, 17, 2048)] == [1, 2, 2, 3, 4, 5, 46]


def test_only_selected_queries_meet_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    module, (x, tokens) = build(k=5), inputs(MAX_LEN)
    queries, attention = [], F.scaled_dot_product_attention

    def counted(q, k, v, **mask):
        queries.append(q.shape[2])
        return attention(q, k, v, **mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    module(x, tokens)
    assert queries == [int(module.selection(x, tokens)[0].sum(1).max())]
    assert queries[0] <= budget(5, MAX_LEN) < MAX_LEN / 2


def test_a_programmatic_selection_takes_tokens_seen_before() -> None:
    tokens = torch.tensor([[3, 5, 3, 7, 5, 3], [1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]])
    chosen, _ = Programmatic()(torch.zeros(3, 6, D), tokens)
    assert chosen.int().tolist() == [[0, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]


def test_where_nothing_is_selected_the_output_is_zero_and_a_gradient_still_flows() -> None:
    x = torch.randn(2, 6, D, requires_grad=True)
    y = build("programmatic")(x, torch.arange(6).expand(2, 6))
    y.sum().backward()
    assert not y.any()
    assert not x.grad.any()


def test_the_random_control_selects_as_a_learned_one_with_gates_in_random_order() -> None:
    coins = torch.stack([Random(5, 80, seed).coins for seed in range(3000)]).double().mean(0)
    chances = (5 / torch.arange(1, 81)).clamp(max=1.0)
    assert (coins - chances).abs().max() < 5 * (0.25 / 3000) ** 0.5
    assert coins[:5].tolist() == [1.0] * 5


def test_the_random_control_is_the_same_again_and_another_one_in_another_layer_or_under_another_seed() -> None:
    coins = [
        SELECTIVE_ATTENTION.build(config("random", layer=layer, seed=seed)).selection.coins
        for layer, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(coins[0], coins[1])
    assert not torch.equal(coins[0], coins[2])
    assert not torch.equal(coins[0], coins[3])


def test_a_position_that_is_not_selected_leaves_its_key_behind() -> None:
    module, tokens = build("programmatic"), torch.tensor([[4, 4]])
    x = torch.randn(1, 2, D)
    changed = torch.cat((x[:, :1] + 1, x[:, 1:]), dim=1)
    assert not torch.equal(module(x, tokens)[:, 1], module(changed, tokens)[:, 1])


@pytest.mark.parametrize("selection", SELECTIONS)
def test_stepping_gives_what_the_whole_sequence_gives(selection: str) -> None:
    module, (x, tokens) = build(selection, k=3), inputs(60)
    state, outputs = module.initial_state(3, "cpu", torch.float32), []
    for t in range(60):
        y_t, state = module.step(x[:, t], state, tokens[:, t])
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), module(x, tokens), rtol=1e-4, atol=1e-5)


def test_the_sparsity_loss_is_what_the_mean_gate_exceeds_and_is_asked_for_once() -> None:
    module, (x, tokens) = build(k=4).train(), inputs(100)
    module(x, tokens)
    gates = (x @ module.selection.gate).sigmoid()
    loss = module.auxiliary_loss()
    torch.testing.assert_close(loss, 1e-3 * (gates.mean() - 4 / 100))
    loss.backward()
    assert module.selection.gate.grad.any()
    assert module.auxiliary_loss() == 0
    copy.deepcopy(module)  # nothing with a graph is kept in the layer


@pytest.mark.parametrize("selection", ["programmatic", "random", "full"])
def test_a_selection_without_gates_has_no_sparsity_loss(selection: str) -> None:
    module = build(selection).train()
    module(*inputs(20))
    assert module.auxiliary_loss() == 0


def test_training_ranks_with_noise_and_evaluation_without() -> None:
    torch.manual_seed(1)
    module, (x, tokens) = build(), inputs(100)
    first, again = (module.train().selection(x, tokens)[0] for _ in range(2))
    assert not torch.equal(first, again)
    first, again = (module.eval().selection(x, tokens)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_the_noise_opens_a_gate_as_often_as_the_gate_says() -> None:
    torch.manual_seed(0)
    scores = torch.linspace(-3, 3, 7).expand(20_000, 7)
    opened = (scores + logistic_noise(scores) > 0).double().mean(0)
    assert (opened - scores[0].sigmoid()).abs().max() < 5 * (0.25 / 20_000) ** 0.5


def test_the_published_selection_depends_on_later_positions_and_says_so() -> None:
    module = SELECTIVE_ATTENTION_PUBLISHED.build(MixerConfig(d_model=D, max_len=MAX_LEN)).eval()
    x, tokens = inputs(64)
    later = torch.cat((x[:, :32], 10 * x[:, 32:]), dim=1)
    before, after = module.selection(x, tokens)[0], module.selection(later, tokens)[0]
    assert before.sum(1).tolist() == after.sum(1).tolist() == [8, 8, 8]
    assert not torch.equal(before[:, :32], after[:, :32])
    assert not SELECTIVE_ATTENTION_PUBLISHED.causal
    assert not hasattr(module, "step")


def test_the_published_selection_scales_every_position_in_training() -> None:
    module = SELECTIVE_ATTENTION_PUBLISHED.build(MixerConfig(d_model=D, max_len=MAX_LEN)).train()
    x, tokens = inputs(64)
    assert module(x, tokens).abs().sum(2).min() > 0
    assert module.selection(x, tokens)[0] is None


def test_a_k_of_the_whole_sequence_selects_everything() -> None:
    assert build(k=MAX_LEN).selection(*inputs(100))[0].all()
    options = PublishedOptions(k=MAX_LEN)
    module = SELECTIVE_ATTENTION_PUBLISHED.build(MixerConfig(d_model=D, max_len=MAX_LEN, options=options)).eval()
    assert module.selection(*inputs(100))[0].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SelectiveAttentionOptions(k=0), "selective_attention: k = 0; it takes a number of at least 1"),
        (SelectiveAttentionOptions(k=MAX_LEN + 1), f"k = {MAX_LEN + 1}; it takes 1 to max_len = {MAX_LEN}"),
        (SelectiveAttentionOptions(selection="best"), "selection = 'best'; choose one of learned, programmatic, rand"),
        (SelectiveAttentionOptions(selection="random", seed=-1), "seed = -1; it takes a number of at least 0"),
        (SelectiveAttentionOptions(heads=5), "selective_attention: heads = 5 does not divide d_model = 12"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: SelectiveAttentionOptions, message: str) -> None:
    for make in (SELECTIVE_ATTENTION.build, SELECTIVE_ATTENTION.reference):
        with pytest.raises(InputError, match=message):
            make(MixerConfig(d_model=D, max_len=MAX_LEN, options=options))


def test_the_published_selection_refuses_a_k_beyond_the_sequence() -> None:
    made = MixerConfig(d_model=D, max_len=MAX_LEN, options=PublishedOptions(k=MAX_LEN + 1))
    for ask in (SELECTIVE_ATTENTION_PUBLISHED.build, lambda config: SELECTIVE_ATTENTION_PUBLISHED.flops(config, 64)):
        with pytest.raises(InputError, match=f"_published: k = {MAX_LEN + 1}; it takes 1 to max_len"):
            ask(made)


def test_a_sequence_beyond_the_coins_is_refused_naming_both_lengths() -> None:
    with pytest.raises(InputError, match=f"T = {MAX_LEN + 1} .*max_len = {MAX_LEN}"):
        build("random")(*inputs(MAX_LEN + 1))


def test_operations_grow_with_the_selected_queries() -> None:
    few, full = (SELECTIVE_ATTENTION.flops(config(name, k=4), 128) for name in ("learned", "full"))
    assert SELECTIVE_ATTENTION.flops(config("random", k=4), 128) == few < full
    made = MixerConfig(d_model=D, max_len=MAX_LEN, options=PublishedOptions(k=4))
    assert SELECTIVE_ATTENTION_PUBLISHED.flops(made, 128) == 6 * 128 * D * D + 8 * D * D + 16 * 128 * D
    assert full == 8 * 128 * D * D + 4 * D * 128 * 129 // 2
