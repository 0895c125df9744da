"""What the compilers make of the kernels of `long_conv`: run by `test_compiled.py`."""

import harness_zoo.ops.long_conv_kernel as kernels
import pytest
import torch
from compile_support import TARGETS, TRITON_TYPES, assembly, cross_compile

D = 128
ALIGNED = ("D", "P", "X_ROW", "Y_ROW", "GATE_ROW", "W")
SIZES = dict.fromkeys(("B", "T", *ALIGNED), "i32")


def compile_product(kernel, target: str, B: int, dtype: str, **constants):
    types = {**dict.fromkeys(("X", "TAPS", "Z", "DZ"), TRITON_TYPES[dtype]), "SUMS": "*fp32", **SIZES}
    options = kernels.launch_options(B, getattr(torch, dtype))
    # What dot_precision gives depends on the machine it is asked on.
    options["PRECISION"] = "tf32x3" if dtype == "float32" and target != "gfx942" else "ieee"
    return assembly(cross_compile(kernel, target, types, {**options, **constants}, aligned=ALIGNED))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("B", [8, 64])
def test_the_products_run_on_tensor_cores_and_nothing_spills(B: int, dtype: str, target: str) -> None:
    # wgmma takes no fewer than 64 rows; a smaller batch runs on mma, and so does float32, which is faster on 32 rows.
    wide = B == 64 and dtype != "float32"
    instruction = {"sm_90": "wgmma.mma_async" if wide else "mma.sync", "sm_80": "mma.sync", "gfx942": "v_mfma"}
    assert instruction[target] in compile_product(kernels.toeplitz_kernel, target, B, dtype, ANTI=False)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_products_of_the_tap_gradients_run_on_tensor_cores_and_nothing_spills(dtype: str, target: str) -> None:
    instruction = {"sm_90": "wgmma.mma_async", "sm_80": "mma.sync", "gfx942": "v_mfma"}
    assert instruction[target] in compile_product(kernels.correlate_kernel, target, 64, dtype)


@pytest.mark.parametrize("target", TARGETS)
def test_the_anticausal_direction_compiles_without_spills(target: str) -> None:
    compile_product(kernels.toeplitz_kernel, target, 64, "bfloat16", ANTI=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", [kernels.to_channels_kernel, kernels.from_channels_kernel], ids=["to", "from"])
def test_the_layout_kernels_use_wide_loads_only(kernel, target: str) -> None:
    types = {**dict.fromkeys(("X", "GATE", "OUT", "Z", "Y"), "*bf16"), **SIZES}
    compiled = cross_compile(kernel, target, types, kernels.transpose_options(D), aligned=ALIGNED)
    if target != "gfx942":
        loads = [line for line in assembly(compiled).splitlines() if "ld.global" in line]
        assert loads
        assert all(".v4.b32" in line for line in loads)
