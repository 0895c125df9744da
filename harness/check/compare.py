"""How far two tensors are apart, and what is said when it is too far."""

import torch
from torch import Tensor

from harness.check.promise import BrokenPromise


def relative_error(got: Tensor, want: Tensor, least: float = 0.0) -> float:
    """Returns max |got - want| over max(max |want|, least); a value that is not finite counts as infinitely far."""
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    if got.numel() == 0:
        return 0.0
    exact = want.detach().to(torch.float64)
    distance = (got.detach().to(torch.float64) - exact).abs().max()
    return float(distance / exact.abs().max().clamp(min=max(least, 1e-30)))


def require_close(got: Tensor, want: Tensor, allowed: float, what: str) -> float:
    """Returns the relative error of `got`; one above `allowed`, or another shape, breaks the promise."""
    if got.shape != want.shape:
        raise BrokenPromise(f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    error = relative_error(got, want)
    if not error <= allowed:
        raise BrokenPromise(
            f"{what}: error {error:.2g} of the largest value, allowed is {allowed:.2g}{_where(got, want)}"
        )
    return error


def require_equal_bits(got: Tensor, want: Tensor, what: str) -> None:
    """Breaks the promise unless both tensors hold the same bits."""
    if got.shape != want.shape or got.dtype != want.dtype or not torch.equal(got, want):
        raise BrokenPromise(f"{what}: not the same bits{_where(got, want)}")


def _where(got: Tensor, want: Tensor) -> str:
    """Returns where along time the difference begins."""
    if got.shape != want.shape or got.dim() != 3:
        return ""
    apart = (got.to(torch.float64) - want.to(torch.float64)).abs().nan_to_num(nan=float("inf")).amax(dim=(0, 2))
    worst = int(apart.argmax())
    return f"; the largest difference is at position {worst} of T = {got.shape[1]}"
