import gc
import time

import numpy as np
import pytest

from harness.errors import InputError
from harness.spec import Measure
from harness.timing.sample import quartiles, sample, summarise


def test_a_sleep_is_measured_at_its_length():
    ms = sample(lambda: time.sleep(0.005), device="cpu", samples=5, warmup=1)
    assert ms.shape == (5,)
    assert (ms >= 5.0).all()  # never shorter; how much longer is up to the machine


def test_warm_up_calls_are_made_and_not_timed():
    calls = []
    assert len(sample(lambda: calls.append(gc.isenabled()), device="cpu", samples=4, warmup=3)) == 4
    assert calls == [True] * 3 + [False] * 4
    assert gc.isenabled()


def test_the_collector_is_back_on_after_an_error():
    def fail():
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        sample(fail, device="cpu", samples=1, warmup=0)
    assert gc.isenabled()


@pytest.mark.parametrize(("samples", "warmup"), [(0, 0), (-1, 3), (5, -1)])
def test_a_result_is_never_empty(samples, warmup):
    with pytest.raises(InputError, match="at least 1"):
        sample(lambda: None, device="cpu", samples=samples, warmup=warmup)


def test_the_summary_is_the_median_with_its_quartiles():
    assert summarise(np.array([5.0, 1.0, 2.0, 4.0, 3.0])) == Measure(
        value=3.0, unit="ms", n=5, low=2.0, high=4.0, spread="quartiles of 5 samples"
    )
    one = quartiles(np.array([7]), "tokens/s")
    assert (one.low, one.value, one.high, one.n, one.unit) == (7.0, 7.0, 7.0, 1, "tokens/s")
