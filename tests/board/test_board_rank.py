from harness.board.cells import Column, fill, one_precision
from harness.board.rank import Score, ranked
from harness.spec import Measure


def ranks(rows):
    """rows: name -> (accuracy, half, AR perplexity or None)."""
    found = ranked(
        list(rows),
        lambda name: Score(rows[name][0], rows[name][1], True),
        lambda name: Score(rows[name][2], 0.5, False) if rows[name][2] is not None else None,
    )
    return [(rank, name) for rank, name in found]


def test_the_best_accuracy_is_first():
    assert ranks({"a": (0.3, 0.01, 9), "b": (0.9, 0.01, 99)}) == [(1, "b"), (2, "a")]


def test_overlapping_intervals_are_decided_by_the_second_score():
    assert ranks({"a": (0.99, 0.01, 30), "b": (0.98, 0.01, 20)}) == [(1, "b"), (2, "a")]


def test_what_overlaps_in_both_scores_shares_a_rank_and_the_next_one_is_counted_on():
    rows = {"a": (0.99, 0.01, 20.4), "b": (0.98, 0.01, 20.0), "c": (0.5, 0.0, 1)}
    assert ranks(rows) == [(1, "b"), (1, "a"), (3, "c")]


def test_a_tie_in_which_one_has_no_second_score_stays_a_tie():
    assert ranks({"a": (0.99, 0.01, None), "b": (0.98, 0.01, 20)}) == [(1, "b"), (1, "a")]


def test_a_chain_of_overlaps_does_not_make_its_ends_equal():
    rows = {"a": (0.9, 0.02, None), "b": (0.87, 0.02, None), "c": (0.84, 0.02, None)}
    assert ranks(rows) == [(1, "a"), (1, "b"), (3, "c")]


def test_diverged_models_rank_last_and_equal():
    inf = float("inf")
    scores = {"nan": float("nan"), "inf": inf, "also": inf, "good": 20.0}
    found = ranked(list(scores), lambda name: Score(scores[name], 0.0, False), lambda name: None)
    assert found == [(1, "good"), (2, "nan"), (2, "inf"), (2, "also")]


def measure(value, low=None, high=None, n=10):
    return Measure(value=value, unit="", n=n, low=low, high=high)


def test_a_column_has_one_precision():
    assert one_precision([measure(0.354), measure(12.41)]) == 2
    assert one_precision([measure(41_234.0), measure(1_200.0)]) == 0
    assert one_precision([None, measure(0.0), measure(float("inf"))]) == 0


def test_the_shown_spread_is_never_smaller_than_the_measured_one():
    (cell,) = fill(Column("k", "t", "task", "m", decimals=3), [measure(0.99812, 0.99801, 0.99813)], [None])
    assert cell.text == "0.998 ±0.001"
    (exact,) = fill(Column("k", "t", "task", "m", decimals=3), [measure(1.0, 1.0, 1.0)], [None])
    assert exact.text == "1.000 ±0.000"


def test_n_stands_in_the_cells_where_the_rows_differ_in_it():
    cells = fill(
        Column("k", "t", "task", "m", decimals=1), [measure(1, 0.5, 1.2, n=2000), measure(2, 2, 2, n=20)], [None, None]
    )
    assert [cell.text for cell in cells] == ["1.0 ±0.5 (n=2,000)", "2.0 ±0.0 (n=20)"]
