"""Guarded buffers, and the comparison of a kernel with its definition in float64."""

import os
import warnings

import pytest
import torch
import triton
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
BAND = 512  # elements of NaN before and after each buffer; keeps the buffer aligned to 16 bytes
# Relative to the norm: output and gradients. The half types keep 8 and 11 bits, rounded at each stage.
TOLERANCE = {torch.float32: (1e-5, 5e-5), torch.bfloat16: (8e-3, 2e-2), torch.float16: (1e-3, 3e-3)}


@triton.jit
def counting_kernel(n):
    """Counts to n."""
    for _ in range(0, n):
        pass


def counts() -> bool:
    """Returns whether loops with run-time bounds work here: not in the interpreter of old Triton on new numpy."""
    if not INTERPRETED:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            counting_kernel[(1,)](1)
    except triton.runtime.errors.InterpreterError:
        return False
    return True


needs_loops = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),  # Triton 3.6
    pytest.mark.skipif(not counts(), reason="this Triton interprets such loops only with numpy < 2.4"),
]


class Guards:
    """Hands out tensors that lie between bands of NaN, and remembers the bands."""

    def __init__(self, empty) -> None:
        self.plain_empty = empty
        self.bands: list[Tensor] = []

    def empty(self, *size: int, device=None, dtype=None) -> Tensor:
        """Returns a contiguous tensor of NaN, as `torch.empty` would be called for."""
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        n = shape.numel()
        whole = self.plain_empty(n + 2 * BAND, device=device, dtype=dtype).fill_(float("nan"))
        self.bands += [whole[:BAND], whole[BAND + n :]]
        return whole[BAND : BAND + n].view(shape)

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns a copy between bands, on the device under test."""
        return self.empty(tensor.shape, device=DEVICE, dtype=dtype).copy_(tensor)

    def check(self) -> None:
        """Fails where a kernel wrote into a band."""
        assert self.bands, "no buffer was guarded"
        assert all(band.isnan().all() for band in self.bands), "a kernel wrote outside its buffer"


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Returns normal numbers in float64 that depend on shape and seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(op, tensors: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    """Returns the output and the gradient of each tensor."""
    y = op(**tensors)
    given = list(tensors.values())
    gradients = torch.autograd.grad(y, given, dy.to(y.dtype), allow_unused=True, materialize_grads=True)
    return {"y": y.detach(), **dict(zip(tensors, gradients, strict=True))}


def assert_equal_to_definition(guards: Guards, op, definition, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Compares op in `dtype` with the definition in float64 on the same rounded numbers; on a GPU, twice to the bit."""
    rounded = {name: guards.copy(tensor, dtype).requires_grad_() for name, tensor in tensors.items()}
    exact = {name: tensor.detach().cpu().double().requires_grad_() for name, tensor in rounded.items()}
    dy = guards.copy(draw(*definition(**exact).shape, seed=9), dtype)
    got, wanted = results(op, rounded, dy), results(definition, exact, dy.cpu())
    for name in wanted:
        limit = TOLERANCE[dtype][name != "y"]
        assert relative_error(got[name], wanted[name]) <= limit, name
    if not INTERPRETED:
        again = results(op, rounded, dy)
        assert all(torch.equal(again[name], got[name]) for name in got), "two runs differ"


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Returns ||got - wanted|| / ||wanted||, the latter at least 0.01; NaN becomes infinity and passes no limit."""
    assert got.shape == wanted.shape
    error = (got.cpu().double() - wanted).norm() / wanted.norm().clamp(min=1e-2)
    return float("inf") if error.isnan() else float(error)
