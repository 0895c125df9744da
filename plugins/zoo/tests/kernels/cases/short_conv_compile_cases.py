"""What the compilers make of the kernels of `short_conv`: run by `test_compiled.py`."""

import pytest
import torch
from compile_support import TARGETS, TRITON_TYPES, cross_compile, widest_load
from harness_zoo.ops.short_conv_kernel import backward_kernel, forward_kernel, launch_options

D = 128
INTEGERS = ("T", "D", "X_ROW", "GATE_ROW")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("K", "dtype"), [(3, "bfloat16"), (8, "float32")])
@pytest.mark.parametrize("kernel", [forward_kernel, backward_kernel], ids=["forward", "backward"])
def test_it_fits_the_device_without_spills_and_loads_sixteen_bytes_at_once(kernel, K, dtype, target) -> None:
    tensors = dict.fromkeys(("X", "GATE", "Y", "DY", "DZ", "DGATE"), TRITON_TYPES[dtype])
    types = {**tensors, **dict.fromkeys(("TAPS", "BIAS", "PARTIAL"), "*fp32"), **dict.fromkeys(INTEGERS, "i32")}
    constants = {"K": K, "STEP": 1, "SILU": True, **launch_options(D, K, getattr(torch, dtype))}
    compiled = cross_compile(kernel, target, types, constants, aligned=("D", "X_ROW", "GATE_ROW"))
    if target != "gfx942":
        assert widest_load(compiled) == 128
