"""What the compilers make of the kernels of `wkv`: run by `test_compiled.py`."""

import pytest
from compile_support import TARGETS, TRITON_TYPES, cross_compile
from harness_zoo.ops.wkv_kernel import OPTIONS, backward_kernel, forward_kernel


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kernel", [forward_kernel, backward_kernel], ids=["forward", "backward"])
def test_it_keeps_all_states_of_a_chunk_in_registers(kernel, dtype: str, target: str) -> None:
    floats = ("DECAY", "BONUS", "AFTER", "DA", "DB", "SAVED", "SUMS")
    types = {
        **dict.fromkeys(("K", "V", "Y", "DY", "DK", "DV"), TRITON_TYPES[dtype]),
        **dict.fromkeys(floats, "*fp32"),
        **dict.fromkeys(("B", "T", "D", "K_ROW", "V_ROW"), "i32"),
    }
    cross_compile(kernel, target, types, OPTIONS, aligned=("D", "K_ROW", "V_ROW"))
