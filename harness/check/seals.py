"""Whether a plugin replaced what measures it: clocks, synchronisation, losses, the harness' own functions."""

import sys
import time
from types import BuiltinFunctionType, FunctionType
from typing import Any

from harness.errors import HarnessError

Seals = dict[str, tuple[Any, Any]]

CLOCKS = ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "time", "time_ns", "process_time", "sleep")
TORCH = (
    ("torch", ("equal", "allclose", "no_grad", "isfinite", "argmax", "save", "load")),
    ("torch.nn.functional", ("cross_entropy", "linear", "embedding", "scaled_dot_product_attention")),
    ("torch.cuda", ("synchronize", "Event", "current_stream", "max_memory_allocated", "reset_peak_memory_stats")),
    ("torch.Tensor", ("backward", "argmax", "clone", "to", "cpu", "numpy", "untyped_storage")),
    ("torch.cuda.Event", ("record", "elapsed_time", "synchronize")),
    ("torch.nn.Module", ("__call__", "state_dict", "load_state_dict", "parameters")),
)


def seal() -> Seals:
    """Returns what is there now; call it after torch and the harness are imported, and before any plugin is."""
    found = {f"time.{name}": _mark(getattr(time, name)) for name in CLOCKS}
    for path, names in TORCH:
        holder = _holder(path)
        found.update({f"{path}.{name}": _mark(getattr(holder, name)) for name in names if hasattr(holder, name)})
    for module in [m for name, m in sorted(sys.modules.items()) if name.split(".")[0] == "harness" and m]:
        for name, value in vars(module).items():
            if isinstance(value, (FunctionType, BuiltinFunctionType)):
                found[f"{module.__name__}.{name}"] = _mark(value)
            elif isinstance(value, type) and value.__module__ == module.__name__:
                methods = {n: v for n, v in vars(value).items() if isinstance(v, FunctionType)}
                found.update({f"{module.__name__}.{name}.{n}": _mark(v) for n, v in methods.items()})
    return found


def broken_seals(before: Seals) -> list[str]:
    """Returns the names of what was replaced since."""
    now = seal()
    return [name for name, mark in before.items() if not _same(now.get(name), mark)]


def require_unbroken(before: Seals) -> None:
    """Raises HarnessError where a plugin replaced something: nothing that was measured since then counts."""
    replaced = broken_seals(before)
    if replaced:
        more = f" and {len(replaced) - 3} more" if len(replaced) > 3 else ""
        raise HarnessError(f"a plugin replaced {', '.join(replaced[:3])}{more}: what was measured does not count")


def _holder(path: str) -> Any:
    parts = path.split(".")
    value: Any = sys.modules.get(parts[0])
    for part in parts[1:]:
        value = getattr(value, part, None)
    return value


def _mark(value: Any) -> tuple[Any, Any]:
    # the objects themselves, not their ids: an id is given again once its owner is gone
    return value, getattr(value, "__code__", None)


def _same(now: tuple[Any, Any] | None, before: tuple[Any, Any]) -> bool:
    return now is not None and now[0] is before[0] and now[1] is before[1]
