"""What `sliding_window` promises."""

import pytest
import torch
from harness_zoo.ops.sliding_window import LEAST_BLOCK, sliding_window
from harness_zoo.sliding_window.spec import SLIDING_WINDOW, SlidingWindowOptions
from torch.nn import functional as F

from harness import AttentionOptions, InputError, MixerConfig, SelfAttention
from harness.testing import mixer_contract

D, MAX_LEN = 12, 160

test_the_contract_is_kept = mixer_contract("sliding_window(heads=4,positions=rotary,window=24)")


def config(window: int, heads: int = 2, positions: str = "none") -> MixerConfig:
    options = SlidingWindowOptions(window=window, heads=heads, positions=positions)
    return MixerConfig(d_model=D, max_len=MAX_LEN, options=options)


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """Returns the same with one T x T mask."""
    T = q.shape[2]
    sees = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees)


@pytest.mark.parametrize("window", [1, 2, 16, 31, 32, 33, 50, 160])
@pytest.mark.parametrize("T", [1, 31, 32, 33, 64, 65, 101, 160])
def test_blocks_give_what_one_large_mask_gives_forward_and_backward(T: int, window: int) -> None:
    parts = [torch.randn(2, 3, T, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = torch.randn(2, 3, T, 4, dtype=torch.float64)
    results = []
    for operator in (sliding_window, masked):
        y = operator(*parts, window)
        results.append((y, *torch.autograd.grad((y * weights).sum(), parts)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("window", [1, 16, 40])
def test_no_mask_or_product_of_t_by_t_is_made(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    T, pairs, attention = 400, [], F.scaled_dot_product_attention

    def counted(q, k, v, attn_mask=None):
        pairs.append(q.shape[1] * q.shape[2] * k.shape[2])
        return attention(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    sliding_window(*(torch.randn(1, 1, T, 4) for _ in range(3)), window)
    C = max(window, LEAST_BLOCK)
    assert sum(pairs) <= (T + C) * (C + window)


def test_a_window_of_the_whole_sequence_is_attention() -> None:
    mine, x = SLIDING_WINDOW.build(config(MAX_LEN)), torch.randn(2, MAX_LEN, D)
    other = SelfAttention(D, MAX_LEN, AttentionOptions(heads=2))
    other.load_state_dict(mine.state_dict())
    torch.testing.assert_close(mine(x), other(x), rtol=1e-5, atol=1e-6)


def test_what_left_the_window_does_not_matter() -> None:
    module, x = SLIDING_WINDOW.build(config(10)), torch.randn(1, 60, D)
    changed = x.clone()
    changed[:, :30] += 5
    assert torch.equal(module(x)[:, 39:], module(changed)[:, 39:])
    assert not torch.allclose(module(x)[:, 38], module(changed)[:, 38])


def test_operations_are_counted_within_the_window_only() -> None:
    pairs = sum(min(t + 1, 10) for t in range(50))
    assert SLIDING_WINDOW.flops(config(10), 50) == 8 * 50 * D * D + 4 * D * pairs
    assert SLIDING_WINDOW.flops(config(100), 50) == 8 * 50 * D * D + 4 * D * 50 * 51 // 2


def test_the_state_stops_growing_at_the_window() -> None:
    assert [SLIDING_WINDOW.state_bytes(config(10), T) for T in (1, 10, 11, 1000)] == [96, 960, 960, 960]


@pytest.mark.parametrize("window", [0, -1, MAX_LEN + 1])
def test_a_window_of_nothing_or_beyond_the_sequence_is_refused(window: int) -> None:
    for make in (SLIDING_WINDOW.build, SLIDING_WINDOW.reference):
        with pytest.raises(InputError, match=rf"sliding_window: window = {window}; it takes 1 to max_len = {MAX_LEN}"):
            make(config(window))


def test_heads_that_do_not_divide_the_width_are_refused_in_the_name_of_the_mixer() -> None:
    with pytest.raises(InputError, match="sliding_window: heads = 5 does not divide d_model = 12; choose one of 1, 2"):
        SLIDING_WINDOW.build(config(10, heads=5))


def test_an_implementation_elsewhere_has_the_same_options_and_parameters() -> None:
    bridge = pytest.importorskip("harness_xformers")
    other = next(spec for spec in bridge.harness_mixers() if spec.name == "sliding_window")
    assert vars(other.options()) == vars(SlidingWindowOptions())
    given = MixerConfig(d_model=D, max_len=MAX_LEN, options=other.options(heads=2, positions="learned"))
    mine, theirs = SLIDING_WINDOW.build(config(16, positions="learned")), other.reference(given)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 70, D, dtype=torch.float64)
    torch.testing.assert_close(mine.double()(x), theirs.double()(x), rtol=1e-9, atol=1e-9)
