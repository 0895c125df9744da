"""What a plugin declares: mixers, tasks, suites; and the one shape in which a number is reported.

Standard library only: listing plugins must import neither torch nor numpy.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.config import RunConfig
from harness.errors import SpecError

if TYPE_CHECKING:
    import numpy as np

API_VERSION = 1
NAME = re.compile(r"[a-z][a-z0-9_]*")
DTYPES = ("float64", "float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps", "xpu")


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
    max_error: Mapping[str, float] = field(default_factory=dict)  # dtype -> share of the largest output
    len_multiple: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")
    preference: int = 0  # the highest that is available here is taken
    needs_tokens: bool = False
    state_bytes: Callable[[MixerConfig, int], int] | None = None
    flops: Callable[[MixerConfig, int], int] | None = None
    unavailable: Callable[[], str | None] | None = None
    expected_failures: Mapping[str, str] = field(default_factory=dict)  # promise not kept -> the reason

    def __post_init__(self) -> None:
        _check_names(self, "name", "implementation")
        _check_lines(self, "summary", "source")
        _check_callables(self, "build")
        _check_callables(self, "reference", "state_bytes", "flops", "unavailable", optional=True)
        _check_types(self, bool, "causal", "needs_tokens")
        _check_types(self, int, "len_multiple", "preference")
        _check_chosen(self, "dtypes", DTYPES)
        _check_chosen(self, "devices", DEVICES)
        if self.options is not None:
            _check_options(self)
        if self.len_multiple < 1:
            raise _wrong(self, "len_multiple", "an int of at least 1")
        _check_errors(self)
        _check_reasons(self)

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
        _check_names(self, "name")
        _check_lines(self, "summary", "source", "primary")
        _check_options(self)
        _check_callables(self, "load", "score")
        _check_callables(self, "floor", optional=True)
        _check_types(self, bool, "higher_is_better")
        _check_types(self, int, "version")


@dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """A named set of task runs, chosen with --preset."""

    name: str
    summary: str
    runs: tuple[RunConfig, ...]
    default_on: tuple[str, ...] = ()  # device types on which this suite is the default

    def __post_init__(self) -> None:
        _check_names(self, "name")
        _check_lines(self, "summary")
        if type(self.runs) is not tuple or not self.runs or not all(isinstance(run, RunConfig) for run in self.runs):
            raise _wrong(self, "runs", "a tuple of one or more RunConfig")
        if self.default_on:
            _check_chosen(self, "default_on", DEVICES)


def _wrong(spec: Any, what: str, allowed: str) -> SpecError:
    return SpecError(f"{type(spec).__name__} {spec.name!r}: {what} must be {allowed}, got {getattr(spec, what)!r}")


def _check_names(spec: Any, *fields: str) -> None:
    for what in fields:
        value = getattr(spec, what)
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise _wrong(spec, what, "lower-case letters, digits and _, a letter first")


def _check_lines(spec: Any, *fields: str) -> None:
    for what in fields:
        value = getattr(spec, what)
        if not isinstance(value, str) or "\n" in value:
            raise _wrong(spec, what, "one line of text")


def _check_callables(spec: Any, *fields: str, optional: bool = False) -> None:
    for what in fields:
        value = getattr(spec, what)
        if not callable(value) and not (optional and value is None):
            raise _wrong(spec, what, "callable")


def _check_types(spec: Any, kind: type, *fields: str) -> None:
    for what in fields:
        if type(getattr(spec, what)) is not kind:  # True is no number, 1 is no truth
            raise _wrong(spec, what, f"of type {kind.__name__}")


def _check_chosen(spec: Any, what: str, allowed: Iterable[str]) -> None:
    value = getattr(spec, what)
    if type(value) is not tuple or not value or not all(item in allowed for item in value):
        raise _wrong(spec, what, f"a tuple out of {', '.join(allowed)}")


def _check_options(spec: Any) -> None:
    cls = spec.options
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise _wrong(spec, "options", "a dataclass with frozen=True, the class itself")
    for item in dataclasses.fields(cls):
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise _wrong(spec, "options", f"a dataclass whose fields all have defaults ({item.name!r} has none)")


def _check_errors(spec: MixerSpec) -> None:
    value = spec.max_error
    if not isinstance(value, Mapping) or not all(
        dtype in spec.dtypes and type(error) in (int, float) and 0 < error < 1 for dtype, error in value.items()
    ):
        raise _wrong(spec, "max_error", f"a mapping from {', '.join(spec.dtypes)} to an error between 0 and 1")


def _check_reasons(spec: MixerSpec) -> None:
    value = spec.expected_failures
    if not isinstance(value, Mapping) or not all(
        isinstance(promise, str) and isinstance(reason, str) and reason.strip() for promise, reason in value.items()
    ):
        raise _wrong(spec, "expected_failures", "a mapping from the name of a promise to the reason why it is not kept")
