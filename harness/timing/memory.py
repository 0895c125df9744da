"""Bytes: the peak of a call, and what a decoding state holds."""

import contextlib
import ctypes
import dataclasses
import gc
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESET_PEAK = "5"  # what proc(5) calls resetting the peak resident set size
ON_CUDA = "torch.cuda.max_memory_allocated, less what was allocated before the model"


def memory_baseline(device: str) -> int:
    """Returns the bytes this process holds before a model is built; on CUDA those that torch allocated on the device.

    What torch loads or takes on first use is nobody's model: on a CPU a generic training step runs first, on CUDA a
    product. No recorded step may be alive there: the workspaces that it writes to are given back.
    """
    gc.collect()  # the model before
    if torch.device(device).type == "cuda":
        return _cuda_baseline(device)
    return_pages()
    _generic_step()
    return resident_bytes()


def peak_bytes(fn: Callable[[], object], device: str, baseline: int) -> tuple[int | None, str]:
    """Returns the peak bytes while `fn` runs, over the baseline, and how they were measured; None if they were not.

    On CPU call it first thing in a process: what was freed before may not have gone back to the system. It leaves the
    allocator handing freed blocks back, which is slow; `harness.train.keep_pages` undoes that.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - baseline), ON_CUDA
    return_pages()
    was_reset = _reset_peak()
    fn()
    peak = _high_water_bytes() if was_reset else _process_peak_bytes()
    if peak is None:
        return None, f"no peak resident set size on {sys.platform}"
    method = "growth of VmHWM, reset first" if was_reset else "growth of ru_maxrss, which cannot be reset here"
    return max(0, peak - baseline), method


def return_pages() -> None:
    """Tells glibc to hand freed blocks back at once, so that resident bytes are the bytes in use.

    With kept pages the holes between blocks count too: the same train step then took 182 to 279 MiB, not 120 to 121.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another libc: its own policy stays
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_threshold, m_mmap_max = -1, -2, -3, -4
        libc.mallopt(m_mmap_max, 1 << 16)
        libc.mallopt(m_top_pad, 128 << 10)
        libc.mallopt(m_mmap_threshold, 128 << 10)
        libc.mallopt(m_trim_threshold, 128 << 10)
        libc.malloc_trim(0)


def resident_bytes() -> int:
    """Returns the resident set size of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def state_bytes_by_layer(state: Iterable[Any], model: nn.Module) -> list[int]:
    """Returns the bytes each layer's state holds: whole storages, each counted once, the model's own left out."""
    seen = _storages(model)
    return [_held_bytes(layer, seen, set()) for layer in state]


def held_bytes(value: Any, besides: nn.Module | None = None, *, halves_as: int = 2) -> int:
    """Returns the bytes reachable from `value`: whole storages, each counted once, those of `besides` left out.

    A number in half precision counts `halves_as` bytes: 4 gives what the same state takes in float32.
    """
    return _held_bytes(value, _storages(besides) if besides is not None else set(), set(), halves_as)


def _storages(module: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}


def _held_bytes(value: Any, seen: set[int], visited: set[int], halves_as: int = 2) -> int:
    """Returns the bytes of every tensor and array reachable from `value` whose storage is not in `seen` yet."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()  # a view of a larger buffer keeps all of the buffer alive
        times = halves_as // 2 if value.dtype in (torch.float16, torch.bfloat16) else 1
        return _once(storage.data_ptr(), times * storage.nbytes(), seen)
    if isinstance(value, np.ndarray):
        whole = value if value.base is None or not isinstance(value.base, np.ndarray) else value.base
        return _once(whole.__array_interface__["data"][0], whole.nbytes, seen)
    if id(value) in visited:
        return 0
    visited.add(id(value))
    return sum(_held_bytes(part, seen, visited, halves_as) for part in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, type) or callable(value):
        return ()
    return list(vars(value).values()) if hasattr(value, "__dict__") else ()


def _once(address: int, n_bytes: int, seen: set[int]) -> int:
    if n_bytes == 0 or address in seen:
        return 0
    seen.add(address)
    return n_bytes


def _cuda_baseline(device: str) -> int:
    # cuBLAS keeps a workspace for every stream that ever ran a product, 32 MiB in deterministic mode: those of an
    # earlier trial's streams would count as this one's
    torch.cuda.synchronize(device)
    clear: Callable[[], None] | None = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()
    small = torch.ones(64, 64, device=device)
    torch.mm(small, small)  # the workspace of this stream is nobody's model
    del small
    return torch.cuda.memory_allocated(device)


def _generic_step() -> None:
    B, T, D = 4, 64, 64
    with torch.random.fork_rng(devices=[]):  # the model's weights must not depend on whether memory was measured
        x = torch.zeros(B, T, D, requires_grad=True)
        layer = nn.Linear(D, D)
        y = layer(x).view(B, 1, T, D)
        y = F.scaled_dot_product_attention(y, y, y, is_causal=True)[:, 0]
        y = y + torch.fft.irfft(torch.fft.rfft(y, n=2 * T, dim=1), n=2 * T, dim=1)[:, :T]
        y = y + F.conv1d(y.transpose(1, 2), torch.zeros(D, 1, 3), padding=1, groups=D).transpose(1, 2)
        F.cross_entropy(y.flatten(0, 1), torch.zeros(B * T, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
        torch.optim.AdamW(layer.parameters(), fused=True).step()


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    except OSError:
        return False
    return _high_water_bytes() is not None


def _high_water_bytes() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return int(found[0][1]) * 1024 if found else None


def _process_peak_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
