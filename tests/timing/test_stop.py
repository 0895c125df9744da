import itertools

import numpy as np
import pytest

from harness.timing.stop import QUIET, SETTLED, TIME, Stopper, StopRule, median_error, noise, stop_rule

RULE = StopRule(target=0.005, min_samples=10, min_s=0.2, max_s=1.5)


class Machine:
    """Draws samples from a distribution; its clock moves by what the samples take."""

    def __init__(self, draw):
        self.draw, self.s, self.taken = draw, 0.0, []

    def __call__(self):
        return self.s

    def sample(self, count):
        for _ in range(count):
            ms = self.draw(len(self.taken))
            self.taken.append(ms)
            self.s += ms / 1e3


def run(draw, rule=RULE):
    machine = Machine(draw)
    stopper = Stopper(rule, machine)
    while count := stopper.more(np.array(machine.taken)):
        machine.sample(count)
    return machine, stopper.ended


def normal(ms, spread, seed=0):
    rng = np.random.default_rng(seed)
    return lambda index: max(1e-6, ms * (1 + spread * rng.standard_normal()))


def test_quiet_samples_end_at_the_target_and_not_before_the_least_time():
    machine, ended = run(normal(1.0, 0.01))
    assert ended == QUIET
    assert 0.2 <= machine.s < 0.5
    assert median_error(np.array(machine.taken)) <= RULE.target


def test_noise_that_has_settled_too_high_ends_before_the_budget_is_gone():
    machine, ended = run(normal(20.0, 0.3))
    assert ended == SETTLED
    assert machine.s < 1.2
    assert len(machine.taken) >= RULE.min_samples


@pytest.mark.parametrize("ms", [2_000.0, 60_000.0])
def test_one_call_longer_than_the_budget_is_one_sample(ms):
    machine, ended = run(normal(ms, 0.1))
    assert (len(machine.taken), ended) == (1, TIME)


@pytest.mark.parametrize("seed", range(5))
def test_a_machine_that_grows_slower_and_slower_is_stopped_by_the_clock(seed):
    rng = np.random.default_rng(seed)
    machine, ended = run(lambda index: 30.0 * 1.2**index * (1 + rng.random()))
    assert ended == TIME
    assert machine.s < 1.5 * RULE.max_s  # the last batch of samples was planned at the pace of those before


def test_drift_by_a_factor_of_two_does_not_pass_for_quiet():
    machine, ended = run(lambda index: 1.0 + min(index, 2000) / 2000)
    assert ended != QUIET or len(machine.taken) > 200


def test_constant_samples_are_quiet():
    assert run(lambda index: 1.0)[1] == QUIET


def test_samples_of_no_length_end_at_the_clock_and_never_divide_by_zero():
    ticks = itertools.count()
    stopper = Stopper(RULE, lambda: next(ticks) * 0.1)
    assert stopper.more(np.empty(0)) == 1
    samples = np.zeros(1)
    while count := stopper.more(samples):
        samples = np.zeros(len(samples) + min(count, 1000))
    assert stopper.ended == TIME


def test_an_outlier_hardly_moves_the_noise():
    samples = 1 + 0.01 * np.random.default_rng(0).standard_normal(200)
    assert noise(samples) == pytest.approx(0.01, rel=0.2)
    assert noise(np.append(samples, 100.0)) == pytest.approx(noise(samples), rel=0.05)
    assert noise(np.array([1.0])) == np.inf


def test_a_gpu_is_sampled_half_as_long() -> None:
    cpu, gpu = stop_rule("cpu", 1.2, 20), stop_rule("cuda:1", 1.2, 20)
    assert (cpu.max_s, cpu.min_s, cpu.min_samples) == (1.2, 0.2, 20)
    assert (gpu.max_s, gpu.min_s, gpu.min_samples) == (0.6, 0.1, 20)
