import math

import numpy as np
import pytest

from harness.tasks.pile.scores import SPREAD, score


def raw(R=1000, threshold=100, **changes):
    draw = np.random.default_rng(0)
    made = {
        "nll": draw.exponential(3, R).astype(np.float32),
        "predicted": np.zeros(R, np.int32),
        "targets": np.zeros(R, np.int32),
        "subset": draw.integers(0, 2, R).astype(np.int16),
        "repeated": draw.random(R) < 0.3,
        "train_count": draw.integers(0, 3000, R).astype(np.int32),
        "subset_names": np.array(["made:A", "made:B", "made:None"]),
        "threshold": np.array(threshold, np.int32),
    }
    return made | changes


def test_perplexity_is_the_exponential_of_the_mean_nll_with_its_interval():
    data = raw()
    measure = score(data)["perplexity"]
    nll = data["nll"].astype(np.float64)
    half = 1.959964 * nll.std(ddof=1) / math.sqrt(len(nll))
    assert measure.value == pytest.approx(math.exp(nll.mean()))
    assert measure.low == pytest.approx(math.exp(nll.mean() - half))
    assert measure.high == pytest.approx(math.exp(nll.mean() + half))
    assert (measure.n, measure.unit, measure.spread) == (1000, "perplexity", SPREAD)


def test_the_nll_of_the_slices_adds_up_to_the_total():
    found = score(raw())

    def total(name):
        return math.log(found[name].value) * found[name].n

    assert total("perplexity_ar") + total("perplexity_other") == pytest.approx(total("perplexity"), rel=1e-6)
    assert found["perplexity_ar"].n + found["perplexity_other"].n == 1000
    assert total("perplexity/made:A") + total("perplexity/made:B") == pytest.approx(total("perplexity"), rel=1e-6)
    assert found["nll"].value * 1000 == pytest.approx(total("perplexity"), rel=1e-6)


def test_the_threshold_is_strict_and_the_fixed_thresholds_stand_beside_it():
    data = raw(
        R=6,
        threshold=50,
        repeated=np.array([True, True, True, True, True, False]),
        train_count=np.array([0, 19, 20, 50, 5000, 0], np.int32),
        subset=np.zeros(6, np.int16),
    )
    found = score(data)
    assert found["perplexity_ar"].n == 3
    assert found["perplexity_other"].n == 3
    assert [found[f"perplexity_ar@{name}"].n for name in (20, 100, 1250, "any")] == [2, 4, 4, 5]
    assert found["ar_share"].value == 0.5
    assert found["ar_share@any"].value == pytest.approx(5 / 6)


def test_each_subset_has_its_own_measures_with_its_count():
    data = raw()
    inside = data["subset"] == 1
    hit = inside & data["repeated"] & (data["train_count"] < 100)
    found = score(data)
    assert found["perplexity/made:B"].n == inside.sum()
    assert found["perplexity_ar/made:B"].n == hit.sum()
    assert found["perplexity_ar/made:B"].value == pytest.approx(math.exp(data["nll"][hit].astype(float).mean()))


def test_slices_without_tokens_are_left_out():
    found = score(raw(repeated=np.zeros(1000, bool)))
    assert "perplexity_ar" not in found
    assert "perplexity_ar@any" not in found
    assert "perplexity/made:None" not in found
    assert found["ar_share"].value == 0
    assert all(math.isfinite(measure.value) for measure in found.values())


def test_one_token_has_a_value_and_no_interval():
    found = score(raw(R=1))
    assert found["perplexity"].n == 1
    assert found["perplexity"].low is None


def test_a_diverged_model_scores_infinity_without_a_warning():
    assert score(raw(nll=np.full(1000, 1e6, np.float32)))["perplexity"].value == math.inf
