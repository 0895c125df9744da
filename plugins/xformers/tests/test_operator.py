"""Which kernels are chosen for an input, and how they run."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch
from harness_xformers.availability import import_operators
from harness_xformers.operator import choose, repeatable
from made_kernels import kernel, stand_in

from harness import InputError

needs_package = pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="xformers is not installed")


def test_a_forward_pass_takes_a_kernel_without_backward_and_training_does_not() -> None:
    flash = kernel("fa2F", "float32 is not supported"), kernel("fa2B", "float32 is not supported")
    cutlass = kernel("cutlassF"), kernel("cutlassB", "no local mask")
    operators, q = stand_in(flash, cutlass), torch.zeros(1, 4, 2, 32)
    assert choose(operators, q, q, q, None, trained=False) is cutlass
    with pytest.raises(InputError, match="cutlassB: no local mask"):
        choose(operators, q, q, q, None, trained=True)


@pytest.fixture
def warn_only() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("warn_only")
def test_in_deterministic_mode_torch_s_flash_attention_runs_in_its_strict_way() -> None:
    flash = kernel("fa2F"), kernel("fa2B@2.5-pt", deterministic=False)
    q = torch.zeros(1, 4, 2, 32)
    _, backward = choose(stand_in(flash, (kernel("cutlassF"), kernel("cutlassB"))), q, q, q, None, trained=True)
    assert backward.NAME == "fa2B@2.5-pt, deterministic"
    assert backward.apply() == (True, False)
    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.usefixtures("warn_only")
def test_in_deterministic_mode_another_build_of_flash_attention_is_not_taken() -> None:
    flash = kernel("fa2F"), kernel("fa2B@2.8", deterministic=False)
    cutlass, q = (kernel("cutlassF"), kernel("cutlassB")), torch.zeros(1, 4, 2, 32)
    assert choose(stand_in(flash, cutlass), q, q, q, None, trained=True) is cutlass


@needs_package
@pytest.mark.usefixtures("warn_only")
def test_the_kernel_of_the_package_can_be_made_repeatable() -> None:
    operators = import_operators()
    _, backward = operators.MemoryEfficientAttentionFlashAttentionOp
    if not backward.NAME.endswith("-pt"):
        pytest.skip(f"{backward.NAME} is not torch's own")
    made = repeatable(backward)
    assert made.IS_DETERMINISTIC
    assert issubclass(made, backward)
