import json
import math

import numpy as np
import pytest

from harness.timing.verdict import (
    FASTER,
    LEVEL,
    MIN_PROCESSES,
    SAME,
    SLOWER,
    UNDECIDED,
    judge,
    median_interval,
    smallest_found,
)


def aa(rng, sigma, processes=MIN_PROCESSES):
    """Returns log ratios of a mixer against itself: heavy tails, as scheduling gives them."""
    return sigma * rng.standard_t(3, processes)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.05] * 8, SLOWER),
        ([0.95] * 8, FASTER),
        ([1.001, 0.999, 1.002, 0.998, 1.0, 1.001, 0.999, 1.0], SAME),
        ([1.02, 1.02, 1.02, 1.02, 1.02, 1.02, 1.02, 1.005], UNDECIDED),  # one process disagrees
        ([1.002] * 8, SAME),  # 0.2 % is nobody's business
        ([1.05] * 7, UNDECIDED),  # too few processes
    ],
)
def test_the_verdict_follows_from_the_interval(ratios, verdict):
    assert judge([math.log(r) for r in ratios]).verdict == verdict


def test_the_ratio_is_the_median_and_the_interval_is_open_where_nothing_is_known():
    found = judge([math.log(r) for r in (1.1, 1.2, 1.3)])
    assert found.ratio == pytest.approx(1.2)
    plain = json.loads(json.dumps(found.to_json()))
    assert (plain["low"], plain["high"], plain["processes"]) == (0.0, None, 3)


@pytest.mark.parametrize("n", [8, 9, 12, 20, 40])
def test_the_interval_covers_the_median_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    draws = rng.exponential(1.0, (4000, n))
    inside = [low <= math.log(2) <= high for low, high in map(median_interval, draws)]
    assert np.mean(inside) >= LEVEL - 0.005


def test_more_processes_narrow_the_interval():
    rng = np.random.default_rng(0)
    few, many = rng.standard_normal(8), rng.standard_normal(60)
    assert np.ptp(median_interval(many)) < np.ptp(median_interval(few))
    assert median_interval(few) == (few.min(), few.max())


@pytest.mark.parametrize("sigma", [0.001, 0.01, 0.05, 0.3])
def test_a_mixer_against_itself_is_hardly_ever_called_whatever_the_noise(sigma):
    rng = np.random.default_rng(1)
    verdicts = [judge(aa(rng, sigma)).verdict for _ in range(2000)]
    assert sum(verdict in (FASTER, SLOWER) for verdict in verdicts) <= 0.01 * len(verdicts)


@pytest.mark.parametrize("sigma", [0.0005, 0.003, 0.02])
def test_a_planted_fifth_of_a_percent_is_never_called_on_quiet_machines_and_hardly_on_noisy_ones(sigma):
    rng = np.random.default_rng(2)
    called = sum(judge(math.log(1.002) + aa(rng, sigma)).verdict == SLOWER for _ in range(1000))
    assert called == 0 if sigma < 0.01 else called <= 5


def test_a_planted_three_percent_is_found_on_a_quiet_machine():
    rng = np.random.default_rng(3)
    found = sum(judge(math.log(1.03) + aa(rng, 0.002)).verdict == SLOWER for _ in range(1000))
    assert found >= 950


def test_the_smallest_slowdown_found_is_what_shifting_the_pairs_shows():
    rng = np.random.default_rng(4)
    pairs = [aa(rng, 0.02) for _ in range(200)]
    least = smallest_found(pairs)
    assert sum(judge(math.log1p(least) + pair + 1e-9).verdict == SLOWER for pair in pairs) >= 190
    assert sum(judge(math.log1p(0.99 * least) + pair).verdict == SLOWER for pair in pairs) < 190


def test_the_verdict_does_not_depend_on_which_is_called_a():
    rng = np.random.default_rng(5)
    opposite = {FASTER: SLOWER, SLOWER: FASTER}
    for shift in (0.0, 0.02, 0.2):
        ratios = shift + aa(rng, 0.01)
        one, other = judge(ratios), judge(-ratios)
        assert other.verdict == opposite.get(one.verdict, one.verdict)
        assert other.low == pytest.approx(1 / one.high)
