import dataclasses
import textwrap
import time

import numpy as np
import pytest
import torch

from harness.config import ModelConfig, RunConfig, TimingConfig
from harness.errors import InputError, UnavailableError
from harness.plugins import load_registry
from harness.timing.duel import duel, planted
from harness.timing.floor import COUNTER, DECLARED, counted_flops, flops, least_bytes
from harness.timing.memory import state_bytes_by_layer
from harness.timing.sample import Call, measure, once
from harness.timing.settings import MODES, SpeedOptions
from harness.timing.stop import StopRule
from harness.timing.visit import Visit
from harness.timing.workload import DECODE_STEPS, VOCAB, Workload

B, T, D = 2, 32, 16
CONFIG = RunConfig(
    task="timing", model=ModelConfig(d_model=D, layers="MIXER*2"), timing=TimingConfig(batch_size=B, T=T)
)
SHORT = StopRule(min_samples=3, min_s=0.0, max_s=0.01)
PLUGIN = """
    import torch
    from harness import MixerSpec, hookimpl

    class Even(torch.nn.Module):  # no step: only whole sequences
        def __init__(self, d):
            super().__init__()
            self.linear = torch.nn.Linear(d, d)

        def forward(self, x, tokens):
            assert tokens.shape == x.shape[:2]
            return self.linear(x)

    class Scores(torch.nn.Module):
        def __init__(self, d):
            super().__init__()
            self.qkv = torch.nn.Linear(d, 3 * d)

        def forward(self, x):
            q, k, v = (part.unsqueeze(1) for part in self.qkv(x).chunk(3, -1))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)

    @hookimpl
    def harness_mixers():
        yield MixerSpec(name="scores", summary="s", source="here", build=lambda config: Scores(config.d_model))
        yield MixerSpec(name="even", summary="s", source="here", build=lambda config: Even(config.d_model),
                        len_multiple=8, needs_tokens=True, flops=lambda config, T: 1000 * T)
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    plugin = tmp_path_factory.mktemp("plugin") / "even.py"
    plugin.write_text(textwrap.dedent(PLUGIN))
    return load_registry([str(plugin)])


@pytest.fixture
def work(registry):
    return Workload(registry, "attention/torch", CONFIG, "cpu")


def test_forward_is_one_layer_without_a_graph(work):
    y = work.call("forward").fn()
    assert (y.shape, y.requires_grad) == ((B, T, D), False)


def test_prefill_gives_the_logits_of_the_last_position_of_the_whole_model(work):
    assert work.call("prefill").fn().shape == (B, VOCAB)
    assert len(work.model.layers) == 2


def test_a_train_step_leaves_the_weights_as_they_were(work):
    call = work.call("train")
    before = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    once(call)
    once(call)
    assert all(torch.equal(tensor, before[name]) for name, tensor in work.model.state_dict().items())


def test_every_decode_sample_ends_at_the_same_context(work):
    call = work.call("decode")
    assert call.units == DECODE_STEPS
    for _ in range(2):
        call.before()
        assert state_bytes_by_layer(call.fn(), work.model) == [2 * B * T * D * 4] * 2
    assert work.state_bytes == [2 * B * T * D * 4] * 2


def test_inputs_take_turns(work):
    outputs = [work.call("forward", rotations=3).fn() for _ in range(2)]
    assert torch.equal(*outputs)
    call = work.call("forward", rotations=3)
    first, second, third, again = (call.fn() for _ in range(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_mixer_without_step_has_no_decode_and_one_that_takes_tokens_gets_them(registry):
    work = Workload(registry, "even/torch", CONFIG, "cpu")
    assert work.call("forward").fn().shape == (B, T, D)
    with pytest.raises(UnavailableError, match=r"even/torch has no step\(\)"):
        work.call("decode")


def test_a_length_the_mixer_does_not_take_is_an_error(registry):
    odd = dataclasses.replace(CONFIG, timing=TimingConfig(batch_size=B, T=33))
    with pytest.raises(InputError, match="multiples of 8, got T = 33"):
        Workload(registry, "even/torch", odd, "cpu")


def test_operations_that_nobody_declares_are_counted(registry):
    work = Workload(registry, "scores/torch", CONFIG, "cpu")
    layer = 2 * B * T * D * 3 * D + 2 * 2 * B * T * T * D  # causal attention counts as if it were full
    assert flops(work, "forward", work.call("forward").fn, 1) == (layer, COUNTER)
    counted, _ = flops(work, "prefill", work.call("prefill").fn, 1)
    assert counted == 2 * layer + 2 * B * D * VOCAB
    training, _ = flops(work, "train", work.call("train").fn, 1)
    assert 2.5 * counted < training < 4 * counted


def test_the_specs_own_formula_goes_before_the_counter(registry):
    work = Workload(registry, "even/torch", CONFIG, "cpu")
    assert flops(work, "forward", lambda: None, 1) == (B * 1000 * T, DECLARED)
    whole = 2 * B * 1000 * T + 2 * B * D * VOCAB
    assert flops(work, "prefill", lambda: None, 1) == (whole, DECLARED)


def test_nothing_counted_is_not_zero():
    assert counted_flops(lambda: torch.ones(3) + 1) is None

    def fails():
        raise RuntimeError("planted")

    assert counted_flops(fails) is None


def test_the_least_bytes_hold_weights_and_state(work):
    weights = 4 * (4 * D * D + 4 * D)
    assert least_bytes(work, "forward") == weights + 2 * B * T * D * 4
    before = least_bytes(work, "decode")
    work.call("decode")
    assert least_bytes(work, "decode") == before + 2 * 2 * B * T * D * 4


def test_a_visit_times_every_mode_between_two_readings_of_the_probe(registry):
    options = SpeedOptions(process=1, max_s=0.01)
    raw, facts = Visit(Workload(registry, "even/torch", CONFIG, "cpu"), options, "cpu").run(lambda *said: None)
    timed = [mode for mode in facts["order"] if mode != "decode"]
    assert sorted(facts["order"]) == sorted(MODES)
    assert len(raw["probe_ms"]) == len(timed) + 1
    for number, mode in enumerate(timed):
        assert raw[f"{mode}_probe"].tolist() == [number, number + 1]
        assert len(raw[f"{mode}_ms"]) == len(raw[f"{mode}_flags"]) >= 1
        assert (raw[f"{mode}_ms"] > 0).all()
    assert facts["not_timed"] == {"decode": "even/torch has no step() and initial_state()"}
    assert set(facts["conditions"]) == {"before", "after"}
    assert facts["conditions"]["before"]["gpu"]["throttle"] is None


def test_the_order_of_modes_differs_between_processes(registry):
    def order(process):
        options = SpeedOptions(process=process, max_s=0.0)
        return Visit(Workload(registry, "even/torch", CONFIG, "cpu"), options, "cpu").run(lambda *said: None)[1]

    assert len({tuple(order(process)["order"]) for process in range(4)}) > 1


def test_what_comes_before_a_call_is_not_in_the_sample():
    log = []
    call = Call(fn=lambda: log.append("call"), before=lambda: log.append("before"), units=2)
    found = measure(call, "cpu", SHORT)
    assert log[:2] == ["before", "call"]
    assert log.count("before") == log.count("call") == 1 + found.warmup + len(found.ms)
    assert found.first_ms >= 0


class Coin:
    """Falls as it is told to."""

    def __init__(self, *sides):
        self.sides, self.at = sides, 0

    def random(self):
        self.at += 1
        return self.sides[(self.at - 1) % len(self.sides)]


def test_a_coin_decides_who_goes_first_and_the_times_stay_with_their_call():
    log = []
    a, b = Call(fn=lambda: log.append("a")), Call(fn=lambda: log.append("b"), units=1000)
    found = duel(a, b, "cpu", SHORT, Coin(0.1, 0.9))
    played = "".join(log)[-2 * len(found.a_ms) :]
    assert played.startswith("abba")
    assert found.a_first[:2].tolist() == [True, False]
    assert len(found.a_ms) == len(found.b_ms) == len(found.flags)
    assert np.median(found.b_ms) < np.median(found.a_ms)  # divided by its units


def test_a_planted_slowdown_is_at_least_as_long_as_planted():
    a, b = Call(fn=lambda: time.sleep(0.002)), Call(fn=lambda: None, units=2)
    slowed = planted(a, b, 0.5, "cpu")
    started = time.perf_counter()
    slowed.fn()
    assert time.perf_counter() - started >= 0.001  # a sleep is never shorter, so neither is its half
    assert slowed.units == 2
    assert planted(a, b, 0.0, "cpu") is b
