"""The mixers of the zoo with Triton kernels: the same layers, each operator replaced by its twin."""

import ctypes
import importlib.util
import os
from dataclasses import replace
from functools import partial
from typing import Any

from harness import MixerConfig, MixerSpec

DRIVERS = ("libcuda.so.1", "libamdhip64.so")
BFLOAT16_ERROR = 3e-2  # 8 bits, rounded at each stage


def with_kernels(spec: MixerSpec) -> MixerSpec:
    """Returns the mixer's implementation on Triton, declared as `spec` is.

    Under TRITON_INTERPRET=1 it runs on a CPU too, slowly, so that it can be checked where there is no GPU; the
    interpreter does not compute in bfloat16.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"

    errors = {"float32": spec.max_error["float32"], **({} if interpreted else {"bfloat16": BFLOAT16_ERROR})}

    def build(config: MixerConfig) -> Any:
        return replace_operators(spec.build(config))

    def unavailable() -> str | None:
        return None if interpreted else reason(spec.name)

    return replace(
        spec,
        implementation="triton",
        build=build,
        devices=("cpu", "cuda") if interpreted else ("cuda",),
        preference=-1 if interpreted else 10,
        dtypes=tuple(errors),
        max_error=errors,
        unavailable=unavailable,
    )


def replace_operators(layer: Any) -> Any:
    """Returns the layer with each torch operator that it holds replaced by its twin on Triton.

    It, or a module inside it, holds an operator as it is, or with some of its arguments bound by `functools.partial`.
    """
    from harness_zoo.ops import (
        block_sparse,
        block_sparse_kernel,
        long_conv,
        long_conv_kernel,
        short_conv,
        short_conv_kernel,
        sliding_window,
        sliding_window_kernel,
        wkv,
        wkv_kernel,
    )

    twins = {
        short_conv.short_conv: short_conv_kernel.short_conv,
        long_conv.long_conv: long_conv_kernel.long_conv,
        wkv.wkv: wkv_kernel.wkv,
        sliding_window.sliding_window: sliding_window_kernel.sliding_window,
        block_sparse.block_sparse: block_sparse_kernel.block_sparse,
    }
    for module in layer.modules():
        for name, value in vars(module).items():
            bound = isinstance(value, partial)
            twin = twins.get(value.func if bound else value) if callable(value) else None
            if twin is not None:
                setattr(module, name, partial(twin, *value.args, **value.keywords) if bound else twin)
    return layer


def reason(mixer: str) -> str | None:
    """Returns why the Triton implementation cannot run here and what helps, or None; cheap questions come first."""
    instead = f"or use {mixer}/torch: `harness run --mixer {mixer}/torch`"
    if importlib.util.find_spec("triton") is None:
        return f"triton is not installed; install it with `pip install triton` (Linux only), {instead}"
    if not has_driver():
        return f"no CUDA or HIP driver can be loaded, and Triton needs a GPU; check it with `nvidia-smi`, {instead}"
    import torch

    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} sees no CUDA device; install a build of torch for this driver "
            f"(`python -m torch.utils.collect_env` shows both), {instead}"
        )
    return None


def has_driver() -> bool:
    """Returns whether a GPU driver can be loaded: the question that needs no torch, so that listings stay quick."""
    for name in DRIVERS:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
