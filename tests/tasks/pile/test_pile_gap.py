"""The gap formulas reproduce the published tables of arXiv:2312.04927 from their own perplexities."""

import pytest

from harness import InputError
from harness.tasks.pile.gap import SlicePerplexity, share_closed, share_from_recall

SHARE = 0.070  # of AR hits: what the rows of table 1 imply; the printed 6.4 % does not reproduce its last column
ATTENTION_125M, ATTENTION_360M = SlicePerplexity(11.01, 2.16, SHARE), SlicePerplexity(9.44, 1.98, SHARE)


@pytest.mark.parametrize(
    ("overall", "ar", "attention", "percent"),
    [
        (16.98, 25.62, ATTENTION_125M, 40.1),  # long convolution
        (12.06, 6.75, ATTENTION_125M, 87.8),  # H3; printed 88.4
        (13.13, 13.27, ATTENTION_360M, 40.4),  # long convolution; printed 40.5
        (10.38, 4.81, ATTENTION_360M, 65.6),  # H3; printed 65.8
    ],
)
def test_the_share_from_recall_is_that_of_table_1(overall: float, ar: float, attention, percent: float) -> None:
    share = share_from_recall(SlicePerplexity(overall, ar, SHARE), attention)
    assert share == pytest.approx(percent / 100, abs=3e-3)  # the printed perplexities are rounded


def test_a_model_that_is_ahead_on_other_tokens_has_more_than_the_whole_gap_in_recall() -> None:
    share = share_from_recall(SlicePerplexity(11.64, 5.70, SHARE), ATTENTION_125M)  # RWKV; printed 100.0
    assert share is not None
    assert share > 1


def test_a_model_without_a_gap_has_no_share() -> None:
    assert share_from_recall(ATTENTION_360M, ATTENTION_360M) is None
    assert share_from_recall(SlicePerplexity(8.59, 5.0, SHARE), ATTENTION_360M) is None


@pytest.mark.parametrize(
    ("hybrid", "percent"),
    [(2.35, 84.5), (2.61, 75.0)],  # programmatic, printed 85; learned, printed 72
)
def test_the_share_closed_is_that_of_table_2(hybrid: float, percent: float) -> None:
    assert share_closed(hybrid, base=5.98, attention=1.98) == pytest.approx(percent / 100, abs=2e-3)


def test_a_hybrid_worse_than_its_base_closes_less_than_nothing() -> None:
    assert share_closed(6.17, base=5.98, attention=1.98) < 0  # the random selection


def test_without_a_gap_there_is_nothing_to_close() -> None:
    with pytest.raises(InputError, match=r"no gap to close.*1\.9.*1\.98"):
        share_closed(1.9, base=1.9, attention=1.98)
