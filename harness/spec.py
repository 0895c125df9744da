"""What a plugin declares: mixers, tasks, suites; and the one shape in which a number is reported.

Standard library only: listing plugins must import neither torch nor numpy.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.config import RunConfig
from harness.errors import SpecError

if TYPE_CHECKING:
    import numpy as np

API_VERSION = 1
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number as it is shown: value, unit, count and spread, and what low and high are."""

    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    spread: str = ""  # e.g. "min–max of 2 seeds", "quartiles of 20 samples", "95 % Wilson interval"


@dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """What a mixer is built from: `build(config)` returns a module that maps [B, T, D] to [B, T, D]."""

    d_model: int
    max_len: int
    layer: int = 0  # index of this layer in the model
    n_layers: int = 1
    options: Any = None  # an instance of the spec's options dataclass


@dataclass(frozen=True, kw_only=True)
class MixerSpec:
    """One implementation of one mixer."""

    name: str
    summary: str
    source: str  # where it comes from, e.g. "arXiv:2312.04927"
    build: Callable[[MixerConfig], Any]
    implementation: str = "torch"
    reference: Callable[[MixerConfig], Any] | None = None
    options: type | None = None  # a frozen dataclass; every field has a default
    causal: bool = True
    dtypes: tuple[str, ...] = ("float32",)
    max_error: Mapping[str, float] = field(default_factory=dict)
    len_multiple: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")
    preference: int = 0  # the highest that is available here is taken
    needs_tokens: bool = False
    state_bytes: Callable[[MixerConfig, int], int] | None = None
    flops: Callable[[MixerConfig, int], int] | None = None
    unavailable: Callable[[], str | None] | None = None

    def __post_init__(self) -> None:
        for what in ("name", "implementation"):
            if not NAME.fullmatch(getattr(self, what)):
                raise SpecError(f"{what} {getattr(self, what)!r}: use lower-case letters, digits and _")
        for what in ("build", "reference", "state_bytes", "flops", "unavailable"):
            value = getattr(self, what)
            if value is not None and not callable(value):
                raise SpecError(f"{self.name}: {what} must be callable, got {value!r}")

    @property
    def full_name(self) -> str:
        """Returns `name/implementation`."""
        return f"{self.name}/{self.implementation}"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tokens and what is asked of them."""

    tokens: "np.ndarray"  # [B, T] int64
    rows: "np.ndarray"  # [R] int64: b * T + t of each labelled position, ascending
    targets: "np.ndarray"  # [R] int64: the token to predict at each of them


class Task(Protocol):
    """A loaded task. Splits are "train", "validation" and "test"; they never share a sequence."""

    vocab_size: int
    max_len: int  # T of the longest sequence of any split

    def train(self, batch_size: int, steps: int, seed: int) -> Iterator[Batch]:
        """Yields `steps` training batches that depend on (options, seed) alone."""

    def epoch_steps(self, batch_size: int) -> int:
        """Returns the number of batches in one pass over the training data."""

    def evaluate(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Yields every batch of the split once, in a fixed order."""

    def labels(self, split: str) -> "dict[str, np.ndarray]":
        """Returns what `TaskSpec.score` needs beside the predictions, [R] each, in `evaluate` order."""

    def data_sha256(self) -> dict[str, str]:
        """Returns the SHA-256 of the bytes of each evaluation split and what identifies the training data."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task: what is asked, and how the answers are scored."""

    name: str
    summary: str
    source: str
    options: type  # a frozen dataclass; every field has a default
    load: Callable[[Any, Callable[[str, float], None]], Task]  # (options, progress(what, fraction)) -> Task
    score: "Callable[[Mapping[str, np.ndarray]], dict[str, Measure]]"
    """From raw arrays alone (`labels(split)` plus `predicted` [R] int32 and `nll` [R] float32) to named measures."""
    primary: str  # the measure that chooses the learning rate
    higher_is_better: bool
    version: int = 1  # raise it when the data or the score of the same options change
    floor: Callable[[Any], float] | None = None  # (options) -> what guessing scores on the primary measure

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise SpecError(f"task name {self.name!r}: use lower-case letters, digits and _")


@dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """A named set of task runs, chosen with --preset."""

    name: str
    summary: str
    runs: tuple[RunConfig, ...]
    default_on: tuple[str, ...] = ()  # device types on which this suite is the default
