"""Kernels that sum in one order, for a process that asked for them, and what is done where an operation has none."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

NO_KERNEL = "does not have a deterministic implementation"  # what torch says of such an operation
T = TypeVar("T")


@contextlib.contextmanager
def deterministic(strictly: bool) -> Iterator[None]:
    """Where the process asked for deterministic kernels, lets no others run; warns only where not `strictly`.

    It is the difference between asking and getting: with warnings only, torch's attention sums gradients in any order.
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    before = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=not strictly)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=before)


def as_trained(run: Callable[[], T]) -> T:
    """Returns what `run` gives with deterministic kernels, as in a training step; where one is missing, without."""
    try:
        with deterministic(strictly=True):
            return run()
    except RuntimeError as error:
        if NO_KERNEL not in str(error):
            raise
    return run()
