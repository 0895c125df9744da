"""One update of a training run: on CUDA the whole step is recorded once and replayed, so that launches cost nothing."""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError

EAGER = "HARNESS_EAGER"  # set to 1, nothing is recorded
WARM_UP = 3  # plain steps of a shape before it is recorded: kernels are tuned and buffers made in them
MOST_SHAPES = 4  # each recording holds the memory of a step
TOLERANCE = 1e-3  # relative, between the loss of a recording and that of the same step launched again

Inputs = tuple[Tensor, ...]


class StepMismatchError(HarnessError):
    """A recorded step is not what the layer computes now."""


class Recording:
    """A captured step: its inputs, its loss, and the graph that turns one into the other."""

    def __init__(self, step: Callable[[Inputs], Tensor], inputs: Inputs, stream: "torch.cuda.Stream") -> None:
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.loss = step(self.inputs)

    def replay(self, inputs: Inputs) -> Tensor:
        """Returns the loss of the step on these inputs; the next replay overwrites it."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.loss


class Stepper:
    """Calls a step, `inputs` to loss, again and again; what it does outside the device must be the same every time.

    The first calls of each shape of inputs are plain. Then the step is captured as one CUDA graph and replayed. A step
    that cannot be captured (it waits for the device, or copies from the host) stays plain, and `facts` says why.
    """

    def __init__(
        self, model: nn.Module, step: Callable[[Inputs], Tensor], loss: Callable[[Inputs], Tensor], device: str
    ) -> None:
        self.model, self.step, self.loss = model, step, loss
        self.stream = torch.cuda.Stream(device) if torch.device(device).type == "cuda" else None  # type: ignore[no-untyped-call]
        self.why_not = f"{EAGER} is set" if self.stream and os.environ.get(EAGER) == "1" else None
        self.seen: dict[tuple[torch.Size, ...], int] = {}
        self.recordings: dict[tuple[torch.Size, ...], Recording] = {}
        self.replays = 0

    def __call__(self, inputs: Inputs) -> Tensor:
        """Returns the loss of one update on the inputs."""
        if self.stream is None or self.why_not is not None:
            return self.step(inputs)
        shape = tuple(tensor.shape for tensor in inputs)
        self.seen[shape] = self.seen.get(shape, 0) + 1
        if shape not in self.recordings:
            if self.seen[shape] <= WARM_UP or len(self.recordings) >= MOST_SHAPES:
                return self._plain(inputs)
            if not self._record(shape, inputs):
                return self.step(inputs)
        self.replays += 1
        return self.recordings[shape].replay(inputs)

    def checked(self, inputs: Inputs) -> Tensor:
        """Returns the loss of one update; raises StepMismatchError where a plain forward pass gives another.

        So a layer is found that changes what it does from call to call in Python, which a recording cannot.
        """
        if tuple(tensor.shape for tensor in inputs) not in self.recordings:
            return self(inputs)
        draws = torch.cuda.get_rng_state(self.stream.device)  # type: ignore[union-attr]
        with torch.no_grad():
            plain = float(self.loss(inputs))
        torch.cuda.set_rng_state(draws, self.stream.device)  # type: ignore[union-attr]
        recorded = self(inputs)
        if math.isfinite(plain) and not abs(float(recorded) - plain) <= TOLERANCE * max(1.0, abs(plain)):
            raise StepMismatchError(
                f"the recorded training step has loss {float(recorded):.6g} where the layer now gives {plain:.6g}: its "
                f"Python code changes from call to call, which a CUDA graph cannot hold; train it with {EAGER}=1"
            )
        return recorded

    @property
    def facts(self) -> dict[str, Any]:
        """Returns how many updates were replayed, and why none were where the step could not be captured."""
        return {"replayed_steps": self.replays, "not_captured": self.why_not}

    def _plain(self, inputs: Inputs) -> Tensor:
        """Runs on the stream of the recording: autograd remembers which stream a parameter's gradient belongs to."""
        assert self.stream is not None
        now = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            loss = self.step(inputs)
        now.wait_stream(self.stream)
        return loss

    def _record(self, shape: tuple[torch.Size, ...], inputs: Inputs) -> bool:
        assert self.stream is not None
        draws = torch.cuda.default_generators[self.stream.device.index]
        before = draws.clone_state()  # an attempt that fails leaves the generator believing that it is recorded
        try:
            self.recordings[shape] = Recording(self.step, inputs, self.stream)
        except Exception as error:  # whatever a layer does that a graph cannot hold
            torch.cuda.synchronize(self.stream.device)  # an error of the device itself is not excused
            cause = str(error).strip().splitlines()
            self.why_not = f"{type(error).__name__}: {cause[0] if cause else ''}"[:200]
            self.recordings.clear()
            draws.graphsafe_set_state(before)
            self.model.zero_grad(set_to_none=True)  # those of the attempt were never computed
            return False
        return True
