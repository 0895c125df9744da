"""A training step that is recorded once and replayed does what the plain step does, or says that it is not recorded."""

import pytest
import torch
from torch import nn

from harness.capture import EAGER, MOST_SHAPES, WARM_UP, StepMismatchError, Stepper

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def make(device, layer=None, lr=1e-2):
    """Returns (stepper, weights) of a small regression trained with AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), layer or nn.Tanh(), nn.Linear(8, 1)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True, capturable=device == "cuda")

    def loss(inputs):
        x, y = inputs
        return (model(x).squeeze(1) - y).square().mean()

    def step(inputs):
        found = loss(inputs)
        found.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found.detach()

    return Stepper(model, step, loss, device), model


def batches(device, count, B=16):
    draws = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(B, 4, generator=draws)
        yield x.to(device), x.sum(1).to(device)


def losses(stepper, device, count=12):
    return [float(stepper(batch)) for batch in batches(device, count)]


class Waits(nn.Module):
    """Draws noise and asks the device for a number, which a recording cannot."""

    def forward(self, x):
        noisy = x + 1e-6 * torch.randn_like(x)
        return noisy * (1.0 if float(noisy.detach().abs().max()) > 0 else 2.0)


class Counts(nn.Module):
    """Does something else at every call, and only Python knows."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_on_a_cpu_every_step_is_plain():
    stepper, model = make("cpu")
    found = losses(stepper, "cpu")
    assert found[-1] < found[0]
    assert stepper.facts == {"replayed_steps": 0, "not_captured": None}
    before = model[0].weight.detach().clone()
    stepper.checked(next(batches("cpu", 1)))
    assert not torch.equal(before, model[0].weight), "a checked step is a step"


@needs_cuda
def test_replayed_steps_give_the_losses_of_plain_ones(monkeypatch):
    recorded, _ = make("cuda")
    found = losses(recorded, "cuda")
    assert recorded.facts == {"replayed_steps": 12 - WARM_UP, "not_captured": None}
    monkeypatch.setenv(EAGER, "1")
    plain, _ = make("cuda")
    assert found == pytest.approx(losses(plain, "cuda"), rel=1e-5)
    assert plain.facts == {"replayed_steps": 0, "not_captured": f"{EAGER} is set"}


@needs_cuda
def test_dropout_draws_anew_at_every_replay_and_as_a_plain_step_does(monkeypatch):
    recorded, _ = make("cuda", nn.Dropout(0.5), lr=0.0)
    batch = next(batches("cuda", 1))
    found = [float(recorded(batch)) for _ in range(WARM_UP + 4)]
    assert len(set(found)) == len(found)
    recorded.checked(batch)
    monkeypatch.setenv(EAGER, "1")
    plain, _ = make("cuda", nn.Dropout(0.5), lr=0.0)
    assert found == pytest.approx([float(plain(batch)) for _ in found], rel=1e-5)


@needs_cuda
def test_each_shape_has_its_own_recording_and_beyond_a_few_shapes_steps_stay_plain():
    stepper, _ = make("cuda")
    for _ in range(WARM_UP + 1):
        for B in range(1, MOST_SHAPES + 3):
            stepper(next(batches("cuda", 1, B)))
    assert stepper.facts["replayed_steps"] == MOST_SHAPES


@needs_cuda
def test_a_step_that_waits_for_the_device_stays_plain_and_says_why():
    stepper, _ = make("cuda", Waits())
    found = losses(stepper, "cuda")
    assert stepper.facts["replayed_steps"] == 0
    assert "captur" in stepper.facts["not_captured"]
    plain, _ = make("cpu", Waits())
    assert found == pytest.approx(losses(plain, "cpu"), rel=1e-3)


@needs_cuda
def test_a_layer_that_changes_from_call_to_call_is_found_when_it_is_checked():
    stepper, _ = make("cuda", Counts())
    losses(stepper, "cuda")
    with pytest.raises(StepMismatchError, match="changes from call to call"):
        stepper.checked(next(batches("cuda", 1)))
