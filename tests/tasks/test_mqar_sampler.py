import itertools
import math

import numpy as np
import pytest

from harness import MQAR
from harness.tasks import mqar_sampler
from harness.tasks.mqar import SPLITS
from harness.tasks.options import MQAROptions

VARIANTS = {
    "plain": {},
    "fillers": {"random_non_queries": True},
    "clean": {"random_non_queries": True, "avoid_keys": True},
    "two passes": {"num_passes": 2},
    "three passes": {"num_passes": 3, "random_non_queries": True},
}


def options(cell=(64, 4), counts=(300, 60, 100), **settings):
    cells = {f"{split}_cells": ((*cell, n),) for split, n in zip(SPLITS, counts, strict=True)}
    return MQAROptions(**{**cells, **settings})


def first(variant, cell=(64, 4)):
    """The first block of training examples of a cell, its options, and where its query region starts."""
    chosen = options(cell, vocab_size=128, **VARIANTS[variant])
    return MQAR(chosen).block("train", 0, 0), chosen, 2 * cell[1] * chosen.num_passes


# --- the definition


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_and_values_are_distinct_and_from_their_halves_of_the_vocabulary(variant):
    rows, chosen, start = first(variant)
    pairs = rows.tokens[:, : start // chosen.num_passes].reshape(len(rows), 4, 2)
    for which, low, high in ((0, 1, 63), (1, 64, 127)):
        ids = np.sort(pairs[:, :, which], axis=1)
        assert (np.diff(ids, axis=1) > 0).all()
        assert ids.min() == low
        assert ids.max() == high


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_key_is_asked_once_at_an_even_offset_and_its_value_is_the_label(variant):
    rows, _, start = first(variant)
    for tokens, positions, targets in zip(rows.tokens, rows.positions, rows.targets, strict=True):
        value = dict(zip(tokens[:8:2].tolist(), tokens[1:8:2].tolist(), strict=True))
        asked = tokens[positions].tolist()
        assert sorted(asked) == sorted(value)
        assert [value[key] for key in asked] == targets.tolist()
        assert (positions >= start).all()
        assert ((positions - start) % 2 == 0).all()
        assert (np.diff(positions) > 0).all()


@pytest.mark.parametrize(("variant", "passes"), [("two passes", 2), ("three passes", 3)])
def test_the_pairs_are_written_once_a_pass(variant, passes):
    rows, _, start = first(variant)
    assert start == 8 * passes
    for turn in range(1, passes):
        assert np.array_equal(rows.tokens[:, 8 * turn : 8 * turn + 8], rows.tokens[:, :8])


def region(variant):
    rows, _, start = first(variant)
    unasked = np.ones(rows.tokens.shape, bool)
    np.put_along_axis(unasked, rows.positions, False, axis=1)
    unasked[:, :start] = False
    return rows, rows.tokens[unasked].reshape(len(rows), -1)


def test_unused_positions_hold_token_0():
    assert (region("plain")[1] == 0).all()


def test_random_fillers_are_uniform_over_the_whole_vocabulary():
    counts = np.bincount(region("fillers")[1].ravel(), minlength=128)
    assert chi_square(counts, np.full(128, 1 / 128)) < limit(127)


def test_random_fillers_sometimes_equal_a_context_key_and_avoid_keys_prevents_it():
    for variant, expected in (("fillers", True), ("clean", False)):
        rows, fillers = region(variant)
        keys = rows.tokens[:, :8:2]
        assert (fillers[:, :, None] == keys[:, None, :]).any() == expected


def test_clean_fillers_are_uniform_over_what_is_left():
    _, fillers = region("clean")
    counts = np.bincount(fillers.ravel(), minlength=128)
    # Each of the 63 key ids is excluded from a row with probability 4/63.
    p = np.full(128, 1 / 124)
    p[1:64] *= 59 / 63
    assert chi_square(counts, p) < limit(127)


def test_avoiding_keys_in_a_large_vocabulary_works_a_few_rows_at_a_time():
    task = MQAR(options(vocab_size=2**20, random_non_queries=True, avoid_keys=True, counts=(4, 4, 4)))
    tokens = task.block("test", 0, 0).tokens
    assert not (tokens[:, 9::2, None] == tokens[:, None, :8:2]).any()


# --- the gap distribution


def chi_square(counts, probabilities):
    expected = counts.sum() * np.asarray(probabilities)
    return float(((counts - expected) ** 2 / expected).sum())


def limit(freedom):
    """The chi-square value exceeded with probability of about 1e-4 (Wilson and Hilferty's approximation)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


def slots_in_order_of_the_draw(cell, blocks, **settings):
    task, D = MQAR(options(cell, vocab_size=600, **settings)), cell[1]
    found = []
    for index in range(blocks):
        rows = task.block("train", 0, index)
        asked = np.take_along_axis(rows.tokens, rows.positions, axis=1)
        column = (rows.tokens[:, : 2 * D : 2, None] == asked[:, None, :]).argmax(axis=2)
        found.append((np.take_along_axis(rows.positions, column, axis=1) - 2 * D) // 2)
    return np.concatenate(found)  # [B, D]: slot of key 1, of key 2, ...


@pytest.mark.parametrize(("cell", "power_a"), [((64, 4), 0.01), ((512, 64), 0.01), ((64, 4), 1.0), ((64, 4), 0.5)])
def test_the_first_key_takes_slot_i_with_probability_proportional_to_its_power(cell, power_a):
    slots = slots_in_order_of_the_draw(cell, 12, power_a=power_a)
    n_slots = (cell[0] - 2 * cell[1]) // 2
    weights = np.arange(1, n_slots + 1) ** (power_a - 1)
    counts = np.bincount(slots[:, 0], minlength=n_slots)
    assert chi_square(counts, weights / weights.sum()) < limit(n_slots - 1)


def test_the_mass_of_slot_1_is_that_of_the_published_task():
    for cell, mass in (((64, 4), 0.25), ((128, 8), 0.21), ((256, 16), 0.19), ((512, 64), 0.17)):
        slots = slots_in_order_of_the_draw(cell, 12)
        assert np.mean(slots[:, 0] == 0) == pytest.approx(mass, abs=0.02)


def test_ordered_slots_follow_successive_sampling_without_replacement():
    slots = slots_in_order_of_the_draw((16, 3), 30)
    weights = np.arange(1, 6) ** (0.01 - 1)
    orders, probabilities = list(itertools.permutations(range(5), 3)), []
    for order in orders:
        left, p = weights.sum(), 1.0
        for slot in order:
            p *= weights[slot] / left
            left -= weights[slot]
        probabilities.append(p)
    code = slots @ np.array([25, 5, 1])
    counts = np.array([(code == np.dot(order, [25, 5, 1])).sum() for order in orders])
    assert counts.sum() == len(slots)
    assert chi_square(counts, probabilities) < limit(len(orders) - 1)


def test_ordered_keys_are_uniform_over_distinct_choices():
    # Of the test split, which leaves nothing out: 240 sequences are few enough for the other splits to show the gaps.
    rows = [MQAR(options((8, 2), vocab_size=9)).block("test", 0, i).tokens[:, :4:2] for i in range(10)]
    code = np.concatenate(rows) @ np.array([4, 1])
    allowed = [4 * a + b for a, b in itertools.permutations(range(1, 4), 2)]
    counts = np.array([(code == c).sum() for c in allowed])
    assert counts.sum() == len(code)
    assert chi_square(counts, np.full(6, 1 / 6)) < limit(5)


def test_exponential_times_are_the_logarithm_small_ones_included():
    raw = np.concatenate([np.random.Philox(1).random_raw(10_000), np.array([0, 2**64 - 1, 2**63], np.uint64)])
    exact = -np.log(((raw >> np.uint64(12)).astype(float) + 0.5) / 2**52)
    found = mqar_sampler._exponential(raw)
    assert np.abs(found / exact - 1).max() < 1e-13
    assert (found > 0).all()
