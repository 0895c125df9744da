"""What the compilers make of the Triton kernels for GPUs that need not be here: sm_90, sm_80 and gfx942."""

import pytest
from kernel_process import run_cases

OPS = ["short_conv", "long_conv", "wkv", "sliding_window", "block_sparse"]


@pytest.mark.parametrize("op", OPS)
def test_the_kernel_fits_the_devices_without_spills(op: str) -> None:
    run_cases(f"{op}_compile_cases.py", interpret=False)
