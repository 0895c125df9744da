"""What the compilers make of the kernels of `wkv`: run by `test_compiled.py`."""

import pytest
from compile_support import TARGETS, cross_compile
from harness_zoo.ops.wkv_kernel import OPTIONS, backward_kernel, forward_kernel


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", [forward_kernel, backward_kernel], ids=["forward", "backward"])
def test_it_keeps_all_states_of_a_chunk_in_registers(kernel, target: str) -> None:
    floats = ("DECAY", "BONUS", "AFTER", "DA", "DB", "SAVED", "SUMS")
    types = {
        **dict.fromkeys(("K", "V", "Y", "DY", "DK", "DV"), "*bf16"),
        **dict.fromkeys(floats, "*fp32"),
        **dict.fromkeys(("B", "T", "D", "K_ROW", "V_ROW"), "i32"),
    }
    cross_compile(kernel, target, types, OPTIONS, aligned=("D", "K_ROW", "V_ROW"))
