"""The mixer under test: how it is built for a check, what it is fed, and what it computes in float64."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from harness.check.promise import BrokenPromise, NotApplicable
from harness.model import initialise
from harness.pattern import MixerChoice
from harness.plugins import Registry
from harness.spec import MixerConfig, MixerSpec

B, D, MAX_LEN, VOCAB = 2, 64, 256, 12
LENGTHS = (1, 63, 129)
HALVES = ("bfloat16", "float16")
NUDGE = 0.02  # added to every parameter: a projection that starts at zero would hide all that happens before it
EXACT_ERROR = 1e-6  # in float64: a table of angles or a norm in float32 is allowed, a half-precision product is not
DEFAULT_ERROR = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2, "float64": EXACT_ERROR}
LARGEST_ERROR = {"float32": 1e-3, "bfloat16": 6e-2, "float16": 2e-2}  # beyond it the dtype is not what is computed in
# By the names that specs use; the kit computes in the first of them that a spec declares.
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}


@dataclass(frozen=True)
class Inputs:
    """What a mixer is called with."""

    x: Tensor  # [B, T, D]
    tokens: Tensor  # [B, T] int64

    def cut(self, start: int, stop: int) -> "Inputs":
        """Returns positions `start` to `stop` - 1."""
        return Inputs(self.x[:, start:stop], self.tokens[:, start:stop])

    def rows(self, start: int, stop: int) -> "Inputs":
        """Returns sequences `start` to `stop` - 1."""
        return Inputs(self.x[start:stop], self.tokens[start:stop])

    def steps(self) -> Iterator["Inputs"]:
        """Yields (x_t [B, D], tokens_t [B]) one position at a time."""
        for t in range(self.x.shape[1]):
            yield Inputs(self.x[:, t], self.tokens[:, t])


@dataclass(frozen=True)
class Subject:
    """One pinned mixer implementation on one device."""

    registry: Registry
    choice: MixerChoice
    device: str = "cpu"

    @property
    def spec(self) -> MixerSpec:
        """Returns what the plugin declared."""
        return self.registry.spec(self.choice)

    def config(self, layer: int = 0) -> MixerConfig:
        """Returns what the mixer is built from: the second of two layers, or another."""
        options = self.registry.options(self.choice)
        return MixerConfig(d_model=D, max_len=MAX_LEN, layer=layer, n_layers=2, options=options)

    def build(self, dtype: torch.dtype | None = None, *, seed: int = 0, layer: int = 0) -> nn.Module:
        """Returns a freshly built layer in evaluation mode, in `dtype` or the kit's; equal seeds give equal weights."""
        return self.prepared(self.spec.build, dtype or self.dtype, seed, layer)

    def reference(self, layer: int = 0) -> nn.Module:
        """Returns the declared reference in float64; a spec without one breaks the promise."""
        if self.spec.reference is None:
            raise BrokenPromise(
                "no reference is declared, so nobody can tell right from wrong; add reference= to the MixerSpec: "
                "the definition, one position at a time, with the same parameter names"
            )
        return self.prepared(self.spec.reference, torch.float64, 0, layer)

    def prepared(self, build: Any, dtype: torch.dtype, seed: int, layer: int) -> nn.Module:
        """Returns the built module, its weights drawn wide enough that every part of it shows in the output."""
        torch.manual_seed(seed)
        module = build(self.config(layer))
        if not isinstance(module, nn.Module):
            raise BrokenPromise(f"build() must return a torch.nn.Module, got {type(module).__name__}")
        initialise(module, D**-0.5)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    parameter.add_(NUDGE * torch.randn_like(parameter))
        return module.to(self.device, dtype).eval()

    def twin(self, module: nn.Module, layer: int = 0) -> nn.Module:
        """Returns the reference in float64 with the weights of `module`."""
        exact = self.reference(layer)
        load_weights(exact, module, "the reference")
        return exact

    @property
    def widest(self) -> str:
        """Returns the name of the dtype that the kit computes in: float32 where it is declared."""
        return widest(self.spec.dtypes)

    @property
    def dtype(self) -> torch.dtype:
        """Returns the dtype that the kit computes in."""
        return DTYPES[self.widest]  # type: ignore[no-any-return]

    @cached_property
    def exact(self) -> torch.dtype:
        """Returns float64 where the mixer computes in it, else `dtype`; what declares only half precision may round."""
        if self.device == "mps" or self.widest in HALVES:
            return self.dtype
        try:
            with torch.no_grad():
                self.call(self.build(torch.float64), self.inputs(2, torch.float64))
        except Exception:  # whatever a kernel says to a dtype it does not take
            return self.dtype
        return torch.float64

    @property
    def exact_error(self) -> float:
        """Returns how far two ways to compute the same may differ in `exact`, relative to the largest value."""
        return 1e-9 if self.exact == torch.float64 else self.twice_error

    @property
    def twice_error(self) -> float:
        """Returns how far two ways to compute the same may differ in `dtype`, relative to the largest value."""
        return (2 if self.widest in HALVES else 10) * self.max_error(self.widest)

    def max_error(self, dtype: str) -> float:
        """Returns the error the spec allows in the dtype, relative to the largest value."""
        allowed = float(self.spec.max_error.get(dtype, DEFAULT_ERROR[dtype]))
        most = LARGEST_ERROR.get(dtype, allowed)
        if allowed > most:
            raise BrokenPromise(
                f"max_error[{dtype!r}] = {allowed:g} is declared, but an error above {most:g} is not {dtype}; "
                "compute in that dtype, or leave it out of dtypes"
            )
        return allowed

    def length(self, T: int) -> int:
        """Returns T, rounded up to the multiple the spec asks for."""
        return -(-T // self.spec.len_multiple) * self.spec.len_multiple

    def inputs(self, T: int, dtype: torch.dtype | None = None, *, batch: int = B, seed: int = 1) -> Inputs:
        """Returns `batch` random sequences of T positions (rounded up to len_multiple) on the device."""
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, self.length(T))
        x = torch.randn(*shape, D, generator=generator, dtype=torch.float64)
        tokens = torch.randint(VOCAB, shape, generator=generator)
        return Inputs(x.to(self.device, self.exact if dtype is None else dtype), tokens.to(self.device))

    def call(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """Returns the output [B, T, D]."""
        if self.spec.needs_tokens:
            return module(inputs.x, inputs.tokens)  # type: ignore[no-any-return]
        return module(inputs.x)  # type: ignore[no-any-return]

    def value(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """Returns the output [B, T, D], without a graph."""
        with torch.no_grad():
            return self.call(module, inputs)

    def at(self, module: Any, inputs: Inputs, positions: Tensor) -> Tensor:
        """Returns the output [B, Q, D] at positions [B, Q], of a layer that computes no others."""
        tokens = (inputs.tokens,) if self.spec.needs_tokens else ()
        return module.forward_at(inputs.x, positions, *tokens)  # type: ignore[no-any-return]

    def gradients(
        self, module: nn.Module, inputs: Inputs, output: Callable[[nn.Module, Inputs], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Returns the gradients of a fixed weighted sum of the output: of the input (`x`) and of each parameter.

        The output is that of `call` unless said. A parameter that was not used has zeros.
        """
        module.zero_grad(set_to_none=True)
        x = inputs.x.detach().clone().requires_grad_()
        weighted_sum((output or self.call)(module, Inputs(x, inputs.tokens))).backward()  # type: ignore[no-untyped-call]
        if x.grad is None:
            raise BrokenPromise("no gradient reaches the input: the output does not depend on x, or was detached")
        found = {"x": x.grad}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:  # without a gradient: at T = 1 a decay, say, has nothing to act on
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                found[name] = gradient.detach().clone()
        return found

    def require_step(self, module: nn.Module) -> Any:
        """Returns the module, typed loosely; one that cannot decode token by token is not concerned."""
        if not (hasattr(module, "step") and hasattr(module, "initial_state")):
            raise NotApplicable("no step() and initial_state(): decode time and state bytes stay a dash")
        return module

    def decode(self, module: Any, inputs: Inputs, state: Any) -> tuple[Tensor, Any]:
        """Returns (outputs [B, T, D], state) of one step a position."""
        outputs = []
        with torch.no_grad():
            for now in inputs.steps():
                y_t, state = self.step(module, now, state)
                outputs.append(y_t)
        return torch.stack(outputs, dim=1), state

    def prefill(self, module: Any, inputs: Inputs) -> tuple[Tensor, Any]:
        """Returns (outputs [B, T, D], state) of the one pass that a layer may have in place of steps."""
        with torch.no_grad():
            if self.spec.needs_tokens:
                return module.prefill(inputs.x, inputs.tokens)  # type: ignore[no-any-return]
            return module.prefill(inputs.x)  # type: ignore[no-any-return]

    def step(self, module: Any, now: Inputs, state: Any) -> tuple[Tensor, Any]:
        """Returns (y_t [B, D], state) of one step."""
        if self.spec.needs_tokens:
            return module.step(now.x, state, now.tokens)  # type: ignore[no-any-return]
        return module.step(now.x, state)  # type: ignore[no-any-return]


def widest(dtypes: Iterable[str]) -> str:
    """Returns float32 where it is among the dtypes, else the one of the finest steps."""
    return next(name for name in DTYPES if name in tuple(dtypes))


def weighted_sum(y: Tensor) -> Tensor:
    """Returns sum(y * w) with fixed weights w that differ everywhere."""
    weights = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).to(y.device, torch.float64)
    return (y.to(torch.float64) * weights.view(y.shape)).sum()


def load_weights(into: nn.Module, source: nn.Module, what: str) -> None:
    """Copies the weights by name; other names or shapes break the promise."""
    try:
        into.load_state_dict(source.state_dict(), strict=True)
    except RuntimeError as error:
        raise BrokenPromise(
            f"the weights of the layer do not fit {what}: {' '.join(str(error).split())}; use the same parameter names"
        ) from error
