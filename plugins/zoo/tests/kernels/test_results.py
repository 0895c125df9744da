"""What the Triton kernels compute: on the CUDA device, or in Triton's interpreter where there is none."""

import pytest
from kernel_process import has_cuda, run_cases

CASES = ["short_conv", "long_conv", "wkv", "sliding_window", "block_sparse", "mixers"]


@pytest.mark.parametrize("op", CASES)
def test_the_kernel_and_its_gradients_equal_the_definition(op: str) -> None:
    run_cases(f"{op}_cases.py", interpret=not has_cuda())
