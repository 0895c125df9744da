"""What the compilers make of the kernels of `block_sparse`: run by `test_compiled.py`."""

import harness_zoo.ops.block_sparse_kernel as kernels
import pytest
import torch
from compile_support import TARGETS, TRITON_TYPES, assembly, cross_compile

KERNELS = [kernels.forward_kernel, kernels.query_gradient_kernel, kernels.key_gradient_kernel]
APART = ("q_apart", "k_apart", "v_apart", "dy_apart")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("hd", "block"), [(64, 8), (64, 64), (128, 64)])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_it_runs_on_tensor_cores_and_nothing_spills(kernel, hd: int, block: int, dtype: str, target: str) -> None:
    tensors = dict.fromkeys(("Q", "K", "V", "Y", "DY", "DQ", "DK", "DV"), TRITON_TYPES[dtype])
    sums = dict.fromkeys(("LOG_SUM", "DELTA"), "*fp32")
    lists = dict.fromkeys(("BLOCKS", "STARTS"), "*i32")
    sizes = {**dict.fromkeys(APART, ("i32", "i32", "i32")), "H": "i32", "T": "i32", "scale": "fp32"}
    types = {name: kind for name, kind in {**tensors, **sums, **lists, **sizes}.items() if name in kernel.arg_names}
    options = kernels.launch_options(kernel, block, hd, getattr(torch, dtype))
    # What dot_precision gives depends on the machine it is asked on.
    options["PRECISION"] = "tf32x3" if dtype == "float32" and target != "gfx942" else "ieee"
    # wgmma takes no fewer than 64 rows: a block's.
    rows = options["BK" if kernel is kernels.key_gradient_kernel else "BQ"]
    instruction = {"sm_90": "wgmma.mma_async" if rows == 64 else "mma.sync", "sm_80": "mma.sync", "gfx942": "v_mfma"}
    assert instruction[target] in assembly(cross_compile(kernel, target, types, options, aligned=APART))
