"""What a user chose for one task of a run: frozen, strict, the same in memory and in JSON.

Standard library only. Strict by hand: a dataclass converter that guesses (bool("false") is True) would hide typos.
"""

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from harness.errors import InputError, nearest

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model around the mixer."""

    d_model: int = 64
    layers: str = "MIXER"  # comma-separated mixers, first layer first; MIXER is the one under test
    channel_mixer: str = "none"  # or "swiglu"
    expansion: int = 2  # hidden width of the channel mixer, in units of d_model
    embedding_dropout: float = 0.0
    init_std: float = 0.02  # of every linear layer's weights; the embedding is always drawn with 0.02


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training protocol, equal for every mixer."""

    steps: int = 500
    batch_size: int = 64
    lrs: tuple[float, ...] = (3e-3,)
    seeds: tuple[int, ...] = (0,)
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: str = "cosine"  # "cosine" by step, "cosine-epoch" by epoch, or "constant"
    clip: float | None = None  # gradient norm
    eval_every: int = 250  # steps between validation scores
    stop_at: float | None = None  # end early once the validation score is at least this good
    select: str = "validation"  # split that chooses the learning rate; the paper's protocol uses "test"
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True)
class TimingConfig:
    """What is timed, and for how long."""

    batch_size: int = 8
    T: int = 256
    samples: int = 20  # timed repetitions of each measure in one process, at least, while its time lasts
    warmup: int = 3  # untimed repetitions before them, at least
    decode_tokens: int = 64  # steps in one sample of decoding
    processes: int = 3  # fresh ones that repeat all of it; ± is between them


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """When a trial is stopped: a plugin may hang or eat the memory."""

    trial_minutes: float = 60.0
    memory_gib: float = 16.0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One task of a run: the task and its options, the model, the training, the timing, the limits."""

    task: str
    options: Any = None  # an instance of the task's own options dataclass
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    timing: TimingConfig = field(default_factory=TimingConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)


def to_json(config: Any) -> dict[str, Any]:
    """Returns the dataclass as plain JSON values: tuples become lists."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def from_json(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Returns an instance of the dataclass `cls`; unknown keys and wrong types raise InputError."""
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise InputError(f"unknown setting {where}{key}: {nearest(key, known)}")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _fit(hints[key], value, f"{where}{key}") for key, value in data.items()})


def run_config_from_json(data: Mapping[str, Any], options: type | None) -> RunConfig:
    """Returns the RunConfig stored in `data`, its options read as the task's own dataclass."""
    rest = {key: value for key, value in data.items() if key != "options"}
    config = from_json(RunConfig, rest)
    given = data.get("options")
    return dataclasses.replace(config, options=from_json(options, given, "options.") if options and given else None)


def with_setting(config: T, path: str, text: str, where: str = "") -> T:
    """Returns a copy of the dataclass with the dotted `path` set to the value written in `text`."""
    head, _, rest = path.partition(".")
    known = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    if head not in known:
        raise InputError(f"unknown setting {where}{head}: {nearest(head, known)}")
    current = getattr(config, head)
    if dataclasses.is_dataclass(current) and not isinstance(current, type):
        if not rest:
            inner = ", ".join(f"{where}{head}.{f.name}" for f in dataclasses.fields(current))
            raise InputError(f"{where}{head} is a group of settings; choose from: {inner}")
        value: Any = with_setting(current, rest, text, f"{where}{head}.")
    elif rest:
        raise InputError(f"{where}{head} is a single setting, it has no {rest!r} inside")
    else:
        kind = typing.get_type_hints(type(config))[head]
        value = _fit(kind, text if kind is str and not _quoted(text) else _literal(text), f"{where}{head}")
    return dataclasses.replace(config, **{head: value})  # type: ignore[type-var]


def _quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


def _literal(text: str) -> Any:
    lowered = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _fit(kind: Any, value: Any, where: str) -> Any:
    """Returns `value` as the annotated type `kind`, without guessing."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else from_json(kind, value, f"{where}.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _fit(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        return _fit_tuple(args, value, where)
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where} takes a value of type {kind.__name__}, got {value!r}")
    return value


def _fit_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if len(args) == 2 and args[1] is Ellipsis:
        if typing.get_origin(args[0]) is tuple and items and not isinstance(items[0], (list, tuple)):
            items = (items,)  # one row may be written without the outer brackets
        return tuple(_fit(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if len(items) != len(args):
        raise InputError(f"{where} takes {len(args)} values, got {value!r}")
    return tuple(_fit(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(args, items, strict=True)))
