import gc
import time

import numpy as np
import pytest

from harness.spec import Measure
from harness.timing.sample import Call, draw, measure, quartiles, summarise
from harness.timing.stop import StopRule


def test_a_sleep_is_measured_at_its_length():
    ms = draw([Call(fn=lambda: time.sleep(0.005))] * 5, "cpu")[0]
    assert ms.shape == (5,)
    assert (ms >= 5.0).all()  # never shorter; how much longer is up to the machine


def test_the_first_call_and_the_warm_up_are_made_and_not_timed():
    calls = []
    found = measure(Call(fn=lambda: calls.append(gc.isenabled())), "cpu", StopRule(min_s=0.0), least=20_000)
    assert found.warmup >= 20_000
    assert calls.count(True) == 1 + found.warmup
    assert calls.count(False) == len(found.ms) >= StopRule().min_samples
    assert gc.isenabled()


def test_the_collector_is_back_on_after_an_error():
    made = []

    def fail():
        if not gc.isenabled():
            raise RuntimeError("planted")
        made.append(None)

    with pytest.raises(RuntimeError, match="planted"):
        measure(Call(fn=fail), "cpu", StopRule())
    assert made
    assert gc.isenabled()


def test_the_summary_is_the_median_with_its_quartiles():
    assert summarise(np.array([5.0, 1.0, 2.0, 4.0, 3.0])) == Measure(
        value=3.0, unit="ms", n=5, low=2.0, high=4.0, spread="quartiles of 5 samples"
    )
    one = quartiles(np.array([7]), "tokens/s")
    assert (one.low, one.value, one.high, one.n, one.unit) == (7.0, 7.0, 7.0, 1, "tokens/s")
