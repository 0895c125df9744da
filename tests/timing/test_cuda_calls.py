"""The calls that only a GPU makes, with torch.cuda made up: order and lifetimes can be seen without one."""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.timing import cuda
from harness.timing.duel import PLAIN, REPLAYED, pair_of
from harness.timing.sample import Call


class Graph:
    """A CUDA graph that remembers what it was told."""

    def __init__(self):
        self.told = []

    def replay(self):
        self.told.append("replay")


@pytest.fixture
def told(monkeypatch):
    """Returns the list of what torch.cuda was asked, in order."""
    asked, graphs = [], []

    def stream(name):
        return SimpleNamespace(wait_stream=lambda other: asked.append(f"{name} waits for {other.name}"), name=name)

    @contextlib.contextmanager
    def within(what):
        asked.append(f"enter {what}")
        yield
        asked.append(f"leave {what}")

    def graph():
        graphs.append(Graph())
        return graphs[-1]

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda one: within(one.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda one: within("capture"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    generator = SimpleNamespace(clone_state=lambda: "as before", graphsafe_set_state=asked.append)
    monkeypatch.setattr(torch.cuda, "default_generators", [generator])
    return SimpleNamespace(asked=asked, graphs=graphs)


def test_a_capture_follows_warm_up_on_a_side_stream(told):
    cuda.graphed(Call(fn=lambda: told.asked.append("call")), "cuda")
    assert told.asked == [
        *("side waits for main", "enter side", "call", "call", "call", "leave side", "main waits for side"),
        *("enter capture", "call", "leave capture"),
    ]


def test_a_capture_that_fails_gives_the_generator_back(told):
    def waits():
        if "enter capture" in told.asked:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        cuda.graphed(Call(fn=waits), "cuda")
    assert told.asked[-1] == "as before"


class Inputs:
    """Something that can be watched."""


def test_a_replay_launches_the_graph_and_keeps_the_inputs_alive(told):
    inputs = Inputs()
    seen = weakref.ref(inputs)
    replay = cuda.graphed(Call(fn=lambda held=inputs: held, units=4), "cuda")
    del inputs
    gc.collect()
    assert seen() is not None
    replay.fn()
    assert told.graphs[0].told == ["replay"]
    assert replay.units == 4
    assert "call" not in told.asked


def test_what_is_restored_before_a_sample_is_restored_before_the_flush(monkeypatch):
    order = []
    monkeypatch.setattr(cuda, "flush", lambda device: lambda: order.append("flush"))
    monkeypatch.setattr(cuda, "draw", lambda calls, device: (None, None, np.full(len(calls), 300.0)))
    monkeypatch.setattr(cuda, "spin", lambda ms, device: lambda: order.append(f"spin of {ms} ms"))
    call = cuda.cold(Call(fn=lambda: None, before=lambda: order.append("restore"), units=2), "cuda")
    call.before()
    assert order == ["restore", "flush", "spin of 0.6 ms"]  # twice what the host takes to launch
    assert call.units == 2


@pytest.mark.parametrize("delay_ms", [3.0, 0.1, 0.0005])
def test_a_spin_lasts_as_long_as_it_is_told_with_its_launch(monkeypatch, delay_ms):
    asked = []

    def device_ms(calls, device):
        found = []  # half a million cycles a millisecond, 3 µs between two launches, 9 until the host made the first
        for call in calls:
            asked.clear()
            call.fn()
            found.append(0.009 + 0.003 * (len(asked) - 1) + sum(asked) / 5e5)
        return np.array(found), None, None

    monkeypatch.setattr(torch.cuda, "_sleep", asked.append)
    monkeypatch.setattr(cuda, "draw", device_ms)
    cuda.spin(delay_ms, "cuda")()
    assert 0.003 + asked[-1] / 5e5 == pytest.approx(max(delay_ms, 0.003), abs=1e-5)


@pytest.mark.parametrize(("n_bytes", "turns"), [(1, 64), (50 << 20, 3), (200 << 20, 1)])
def test_inputs_take_turns_until_they_fill_the_cache_three_times(monkeypatch, n_bytes, turns):
    monkeypatch.setattr(cuda, "cache_bytes", lambda device: 50 << 20)
    assert cuda.rotations("cuda", n_bytes) == turns
    assert cuda.rotations("cpu", n_bytes) == 1


class Work:
    """A layer that is called plainly, and as a graph unless something in it forbids that."""

    def __init__(self, refused=None):
        self.refused = refused

    def call(self, mode):
        return f"plain {mode}"

    def replayed(self, mode):
        if self.refused:
            raise RuntimeError(self.refused)
        return f"graph of {mode}"


def test_two_layers_are_compared_as_graphs_where_both_can_be_captured():
    assert pair_of([Work(), Work()], "forward", "cuda") == ("graph of forward", "graph of forward", REPLAYED)


def test_where_one_cannot_be_captured_both_are_launched_plainly_and_the_reason_is_told():
    a, b, launches = pair_of([Work(), Work("it waits\nfor the host")], "train", "cuda")
    assert (a, b) == ("plain train", "plain train")
    assert launches == f"{PLAIN}: one cannot be captured: RuntimeError: it waits"


@pytest.mark.parametrize(("mode", "device"), [("decode", "cuda"), ("forward", "cpu")])
def test_decoding_and_a_cpu_know_plain_launches_only(mode, device):
    assert pair_of([Work("never asked")] * 2, mode, device) == (f"plain {mode}", f"plain {mode}", PLAIN)
