"""What each mode calls: one mixer in one model at one shape, on synthetic tokens."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.capture import WARM_UP
from harness.config import ModelConfig, RunConfig
from harness.errors import InputError, UnavailableError
from harness.model import LanguageModel, build_model
from harness.pattern import parse_layers
from harness.plugins import Registry
from harness.timing.cuda import graphed
from harness.timing.memory import state_bytes_by_layer
from harness.timing.sample import Call
from harness.train import DTYPES, autocast, make_optimizer, seed_everything, stepper, train_step

VOCAB = 256
LABEL_EVERY = 16  # of the positions, one is labelled: as many as in recall tasks, so that the head is not what is timed
GRAPHED = ("forward", "train", "prefill")  # decode restores a state: it stays with plain launches
DECODE_STEPS = 16  # steps in one sample, from a state that is copied before each


@dataclass
class Workload:
    """One mixer at one shape on one device."""

    registry: Registry
    mixer: str
    config: RunConfig
    device: str
    seed: int = 0
    by_steps: bool = False  # whether decode comes to its context by steps alone
    state_bytes: list[int] = field(default_factory=list)  # by layer, of the whole batch; known once decode was built

    def __post_init__(self) -> None:
        self.B, self.T = self.config.timing.batch_size, self.config.timing.T
        self.D, self.dtype = self.config.model.d_model, self.config.training.dtype
        (choice,) = set(parse_layers("MIXER", self.mixer))
        multiple = self.registry.spec(choice).len_multiple
        if self.T % multiple:
            raise InputError(f"{self.mixer} takes lengths that are multiples of {multiple}, got T = {self.T}")

    @cached_property
    def model(self) -> LanguageModel:
        """Returns the model, its weights drawn from the seed."""
        seed_everything(self.seed)
        return build_model(self.config.model, self.mixer, VOCAB, self.T, self.registry).to(self.device)

    @cached_property
    def layer(self) -> LanguageModel:
        """Returns a model of the one layer under test: `forward` times its mixer alone."""
        seed_everything(self.seed)
        alone = ModelConfig(d_model=self.D)
        return build_model(alone, self.mixer, VOCAB, self.T, self.registry).to(self.device)

    @cached_property
    def tokens(self) -> Tensor:
        """Returns int64 [B, T]."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(VOCAB, (self.B, self.T), generator=generator).to(self.device)

    def call(self, mode: str, rotations: int = 1) -> Call:
        """Returns the call of a mode; `rotations` inputs take turns, so that none is still in a cache."""
        made: dict[str, Callable[[int], Call]] = {
            "forward": self._forward,
            "train": self._train,
            "prefill": self._prefill,
            "decode": self._decode,
        }
        return made[mode](rotations)

    def _forward(self, rotations: int) -> Call:
        block: Any = self.layer.eval().layers[0]
        generator = torch.Generator(self.device).manual_seed(self.seed)
        shape = (self.B, self.T, self.D)
        inputs = [torch.randn(shape, generator=generator, device=self.device) for _ in range(rotations)]
        extra = (self.tokens,) if block.needs_tokens else ()
        turn = _turns(inputs)
        return self._without_grad(lambda: block.mixer(turn(), *extra))

    def _prefill(self, rotations: int) -> Call:
        model = self.model.eval()
        last = torch.arange(self.T - 1, self.B * self.T, self.T, device=self.device)
        turn = _turns([self.tokens.roll(shift, dims=1) for shift in range(rotations)])
        return self._without_grad(lambda: model.logits(model(turn(), last)))

    def _train(self, rotations: int) -> Call:
        model, training = self.model.train(), self.config.training
        # a learning rate of 0 does the same work and leaves the weights: no step drifts towards denormal numbers
        optimizer = make_optimizer(model, training, lr=0.0)
        turn = self._batches(rotations)
        return Call(fn=lambda: train_step(model, turn(), optimizer, training))

    def _batches(self, rotations: int) -> Callable[[], Any]:
        rows = torch.arange(LABEL_EVERY - 1, self.B * self.T, LABEL_EVERY, device=self.device)
        if not rows.numel():
            rows = torch.tensor([self.B * self.T - 1], device=self.device)
        batches = [self.tokens.roll(shift, dims=1) for shift in range(rotations)]
        return _turns([(tokens, rows, tokens.flatten()[rows]) for tokens in batches])

    def replayed(self, mode: str) -> Call:
        """Returns the call of one of GRAPHED as one CUDA graph: what is left when launches cost nothing.

        A training step is recorded as `harness run` does it. Raises whatever says that the call cannot be captured.
        """
        return self._recorded_train() if mode == "train" else graphed(self.call(mode), self.device)

    def _recorded_train(self) -> Call:
        model, training = self.model.train(), self.config.training
        step = stepper(model, make_optimizer(model, training, lr=0.0), training, self.device)
        turn = self._batches(1)
        for _ in range(WARM_UP + 1):  # the last one is recorded
            step(turn())
        if step.why_not is not None:
            raise UnavailableError(step.why_not)
        return Call(fn=lambda: step(turn()))

    def _decode(self, rotations: int) -> Call:
        if not self.model.can_step:
            raise UnavailableError(f"{self.mixer} has no step() and initial_state()")
        call, self.state_bytes = decode_call(self.model, self.tokens, DECODE_STEPS, self.dtype, self.by_steps)
        return call

    def _without_grad(self, fn: Callable[[], object]) -> Call:
        return without_grad(fn, self.device, self.dtype)


def without_grad(fn: Callable[[], object], device: str, dtype: str) -> Call:
    """Returns the call of `fn` as in evaluation: no gradients, and the dtype's autocast."""

    def run() -> object:
        with torch.no_grad(), autocast(device, dtype):
            return fn()

    return Call(fn=run)


def decode_call(
    model: LanguageModel, tokens: Tensor, most_steps: int, dtype: str, by_steps: bool = False
) -> tuple[Call, list[int]]:
    """Returns (the last steps through tokens [B, T], bytes of each layer's state after all of them).

    A copy of the state before those steps is made for each sample, so that every sample meets the same context. With
    `by_steps` steps lead there too, where one pass would leave its own traces in the memory of the process.
    """
    B, T = tokens.shape
    device, steps, each = str(tokens.device), min(most_steps, T), tokens.unbind(1)
    model.eval()
    with torch.no_grad(), autocast(device, dtype):
        state = model.initial_state(B, device, DTYPES[dtype])
        if by_steps:
            for token in each[: T - steps]:
                _, state = model.step(token, state)
        elif steps < T:
            _, state = model.prefill(tokens[:, : T - steps], DTYPES[dtype])
    held = [copy.deepcopy(state)]

    def restore() -> None:
        held[0] = copy.deepcopy(state)

    def run() -> Any:
        now = held[0]
        for token in each[T - steps :]:
            _, now = model.step(token, now)
        return now

    call = without_grad(run, device, dtype)
    return Call(fn=call.fn, before=restore, units=steps), state_bytes_by_layer(call.fn(), model)


def _turns(items: list[Any]) -> Callable[[], Any]:
    """Returns a function that gives the items in turn."""
    at = 0

    def take() -> Any:
        nonlocal at
        at = (at + 1) % len(items)
        return items[at]

    return take
