"""What the compilers make of the kernels of `sliding_window`: run by `test_compiled.py`."""

import harness_zoo.ops.sliding_window_kernel as kernels
import pytest
import torch
from compile_support import TARGETS, TRITON_TYPES, assembly, cross_compile

KERNELS = [kernels.forward_kernel, kernels.query_gradient_kernel, kernels.key_gradient_kernel]
APART = ("q_apart", "k_apart", "v_apart", "dy_apart")


def compile_kernel(kernel, target: str, dtype: str, hd: int, window: int) -> str:
    tensors = dict.fromkeys(("Q", "K", "V", "Y", "DY", "DQ", "DK", "DV"), TRITON_TYPES[dtype])
    sums = dict.fromkeys(("LOG_SUM", "DELTA"), "*fp32")
    sizes = {**dict.fromkeys(APART, ("i32", "i32", "i32")), **dict.fromkeys(("H", "T", "window"), "i32")}
    options = kernels.launch_options(kernel, window, hd, getattr(torch, dtype))
    # What dot_precision gives depends on the machine it is asked on.
    options["PRECISION"] = "tf32x3" if dtype == "float32" and target != "gfx942" else "ieee"
    types = {**tensors, **sums, **sizes, "scale": "fp32"}
    types = {name: kind for name, kind in types.items() if name in kernel.arg_names}
    return assembly(cross_compile(kernel, target, types, options, aligned=APART))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("hd", [64, 128])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_it_runs_on_tensor_cores_and_nothing_spills(kernel, hd: int, dtype: str, target: str) -> None:
    # wgmma takes no fewer than 64 rows; in float32 so many would spill, or take eight warps, which are slower
    on_sm_90 = "mma.sync" if dtype == "float32" else "wgmma.mma_async"
    instruction = {"sm_90": on_sm_90, "sm_80": "mma.sync", "gfx942": "v_mfma"}
    assert instruction[target] in compile_kernel(kernel, target, dtype, hd, window=128)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_the_tiles_of_a_long_window_spill_nothing(kernel, target: str) -> None:
    compile_kernel(kernel, target, "bfloat16", 64, window=kernels.LONG_WINDOW)
