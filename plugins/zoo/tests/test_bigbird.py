"""What `bigbird` promises."""

import pytest
import torch
from harness_zoo.bigbird.pattern import BlockPattern
from harness_zoo.bigbird.spec import BIGBIRD, BigBirdOptions, checked
from torch.nn import functional as F

from harness import AttentionOptions, InputError, MixerConfig, SelfAttention
from harness.testing import mixer_contract

D, MAX_LEN = 12, 160

test_the_contract_is_kept = mixer_contract("bigbird(heads=4,positions=rotary)")


def config(layer: int = 0, **options: object) -> MixerConfig:
    return MixerConfig(d_model=D, max_len=MAX_LEN, layer=layer, n_layers=2, options=BigBirdOptions(**options))


def pattern(**options: object) -> BlockPattern:
    return checked(config(**options))[1]


@pytest.mark.parametrize(
    "options",
    [{}, {"block": 1}, {"block": 7, "heads": 2}, {"random_blocks": 0, "global_blocks": 0}, {"random_blocks": 99}],
    ids=str,
)
@pytest.mark.parametrize("T", [1, 8, 50, 160])
def test_blocks_give_what_a_large_mask_of_the_pattern_gives(T: int, options: dict) -> None:
    torch.manual_seed(0)
    module, x = BIGBIRD.build(config(**options)).double(), torch.randn(2, T, D, dtype=torch.float64)
    chosen = pattern(**options)
    rows, sees = chosen.rows(MAX_LEN), torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        sees[t, chosen.seen(rows, t)] = True
    masked = SelfAttention(
        D,
        MAX_LEN,
        AttentionOptions(heads=options.get("heads", 1)),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=sees),
    ).double()
    masked.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x), masked(x), rtol=1e-10, atol=1e-12)


def test_every_block_sees_itself_those_before_it_the_first_and_random_earlier_ones() -> None:
    rows = pattern(window_blocks=3, random_blocks=2, global_blocks=2).rows(MAX_LEN)
    assert rows[0] == [0]
    assert rows[4] == [0, 1, 2, 3, 4]
    for i, row in enumerate(rows):
        assert row == sorted(set(row))
        assert {0, *range(max(0, i - 2), i + 1)} <= set(row)
        assert max(row) == i
        assert len(row) == min(i + 1, 7)


def test_a_longer_sequence_begins_with_the_blocks_of_a_shorter_one() -> None:
    assert pattern().rows(MAX_LEN)[:9] == pattern().rows(72)


def test_random_blocks_are_the_same_again_and_others_in_another_layer_or_under_another_seed() -> None:
    drawn = [checked(config(**given))[1].rows(MAX_LEN) for given in ({}, {}, {"layer": 1}, {"seed": 1})]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert drawn[0] != drawn[3]
    assert drawn[2] != drawn[3]


def test_only_the_blocks_of_the_pattern_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, attention = [], F.scaled_dot_product_attention

    def counted(q, k, v, **mask):
        pairs.append(q.shape[1] * q.shape[2] * k.shape[2])
        return attention(q, k, v, **mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    BIGBIRD.build(config())(torch.randn(1, MAX_LEN, D))
    assert pairs == [MAX_LEN * 4 * 8]


def test_the_layer_names_no_kernel() -> None:
    assert BIGBIRD.build(config()).operator is None


def test_operations_are_counted_for_the_pairs_that_are_seen() -> None:
    seen = sum(range(1, 33)) + 16 * (24 * 8 + 36)  # four blocks of all so far, then 24 whole keys and the own block
    assert BIGBIRD.flops(config(), MAX_LEN) == 8 * MAX_LEN * D * D + 4 * D * seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, f"bigbird: block = 0; it takes 1 to max_len = {MAX_LEN}"),
        ({"block": MAX_LEN + 1}, "bigbird: block = 161; it takes 1 to"),
        ({"window_blocks": 0}, "window_blocks = 0; it takes a number of at least 1"),
        ({"random_blocks": -1}, "random_blocks = -1; it takes a number of at least 0"),
        ({"global_blocks": -1}, "global_blocks = -1; it takes a number of at least 0"),
        ({"heads": 5}, "bigbird: heads = 5 does not divide d_model = 12"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    for make in (BIGBIRD.build, BIGBIRD.reference):
        with pytest.raises(InputError, match=message):
            make(config(**options))


def test_a_sequence_beyond_the_drawn_blocks_is_refused_naming_both_lengths() -> None:
    with pytest.raises(InputError, match=f"T = {MAX_LEN + 1} .*max_len = {MAX_LEN}"):
        BIGBIRD.build(config())(torch.randn(1, MAX_LEN + 1, D))
