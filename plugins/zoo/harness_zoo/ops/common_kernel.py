"""What the Triton kernels share: which tensors they take, and how they are launched."""

import functools
import os

import torch
from torch import Tensor

from harness import InputError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it once, when it is first imported
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FUSION = {"enable_fp_fusion": True}  # said aloud, because its default changes between versions of Triton


def check_tensors(op: str, **tensors: Tensor | None) -> None:
    """Raises InputError unless all given tensors are on one device and in a dtype the kernels run on."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in given.items():
        if tensor.dtype not in DTYPES:
            raise InputError(
                f"{op}: {name} is {tensor.dtype}; the Triton kernel takes float32, bfloat16 or float16: "
                "convert it, or use the torch implementation"
            )
        if not (tensor.is_cuda or INTERPRETED):
            raise InputError(
                f"{op}: {name} is on {tensor.device}; the Triton kernel needs a cuda device: "
                "move it there, or use the torch implementation"
            )
    devices = {name: str(tensor.device) for name, tensor in given.items()}
    if len(set(devices.values())) > 1:
        raise InputError(f"{op}: the tensors must be on one device, got {devices}")


def check_shapes(op: str, shapes: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    """Raises InputError where a given tensor does not have its shape; `shapes` maps a name to (tensor, shape)."""
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise InputError(f"{op}: {name} has shape {list(tensor.shape)}; it must be {list(shape)}")


def output_dtype(x: Tensor, *gates: Tensor | None) -> torch.dtype:
    """Returns the dtype of conv(x) times the gates: that of autocast where it is on, as for torch's convolutions."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return functools.reduce(torch.promote_types, [gate.dtype for gate in gates if gate is not None], x.dtype)


def even_rows(x: Tensor) -> Tensor:
    """Returns x [B, T, D], copied unless its rows are contiguous and evenly spaced, as in a slice of the last axis."""
    T = x.shape[1]
    return x if x.stride(2) == 1 and x.stride(0) == T * x.stride(1) else x.contiguous()


def row_stride(x: Tensor | None) -> int:
    """Returns how many elements one row of x [B, T, D] is from the next; 0 where there is no x."""
    return 0 if x is None else x.stride(1)


def power_of_two(n: int) -> int:
    """Returns the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def dot_precision(dtype: torch.dtype) -> str:
    """Returns how products of float32 are formed: three TF32 products on NVIDIA, which lose nothing that counts."""
    return "ieee" if INTERPRETED or torch.version.hip or dtype != torch.float32 else "tf32x3"
