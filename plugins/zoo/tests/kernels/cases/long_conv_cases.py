"""What the kernels of `long_conv` compute: run by `test_results.py`."""

import pytest
import torch
from harness_zoo.ops.long_conv_kernel import FULL_ROWS, MAX_LEN, long_conv, path
from kernel_support import DEVICE, INTERPRETED, assert_equal_to_definition, draw, needs_loops

from harness import InputError

pytestmark = needs_loops
SHAPES = [(1, 1, 5), (2, 2, 1), (3, 63, 4), (2, 65, 3), (17, 70, 2), (1, 192, 2)]


def definition(x, taps, bias=None, gate=None, factor=None):
    """The plain sum: y_t = gate_t * (bias + sum over s <= t of taps_s * factor_{t-s} * x_{t-s})."""
    D, outputs = x.shape[2], []
    x = x if factor is None else x * factor.repeat(1, 1, D // factor.shape[2])
    gate = gate if gate is None else gate.repeat(1, 1, D // gate.shape[2])
    for t in range(x.shape[1]):
        z = (taps[:, : t + 1].T * x[:, : t + 1].flip(1)).sum(1)
        z = z if bias is None else z + bias
        outputs.append(z if gate is None else z * gate[:, t])
    return torch.stack(outputs, 1)


def tensors(B: int, T: int, D: int, names=("bias", "gate")):
    taps = draw(D, T, seed=1) * T**-0.5
    drawn = {"x": draw(B, T, D), "taps": taps, "bias": draw(D, seed=2), "gate": draw(B, T, D, seed=3)}
    return {name: drawn[name] for name in ("x", "taps", *names)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_sum_over_taps(guards, shape) -> None:
    assert_equal_to_definition(guards, long_conv, definition, tensors(*shape), torch.float32)


@pytest.mark.parametrize("names", [(), ("bias",), ("gate",)], ids=str)
def test_bias_and_gate_may_be_left_out(guards, names) -> None:
    assert_equal_to_definition(guards, long_conv, definition, tensors(2, 66, 3, names), torch.float32)


def narrow(W: int, names=("gate", "factor")):
    """Returns x of 6 channels with a gate and a factor of W columns, or one of them."""
    drawn = {"gate": draw(2, 66, W, seed=3), "factor": draw(2, 66, W, seed=4)}
    return tensors(2, 66, 6, ("bias",)) | {name: drawn[name] for name in names}


@pytest.mark.parametrize(("W", "names"), [(6, ("factor",)), (3, ("factor", "gate")), (2, ("gate",)), (1, ("factor",))])
def test_a_factor_and_a_gate_may_be_narrower_than_x(guards, W: int, names) -> None:
    assert_equal_to_definition(guards, long_conv, definition, narrow(W, names), torch.float32)


# the interpreter cuts what it stores in bfloat16 off, where torch and a GPU round
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])], ids=str)
def test_a_factor_is_the_product_beforehand_to_the_bit(dtype) -> None:
    case = {name: tensor.to(DEVICE, dtype) for name, tensor in narrow(3).items()}
    x, taps, bias, gate, factor = (case[name] for name in ("x", "taps", "bias", "gate", "factor"))
    wide, product = gate.repeat(1, 1, 2), factor.repeat(1, 1, 2) * x
    assert torch.equal(long_conv(**case), long_conv(product, taps, bias, wide))


def test_of_a_factor_the_factor_is_kept_and_not_the_product() -> None:
    x, taps, factor = (
        draw(*shape).float().to(DEVICE).requires_grad_() for shape in ((16, 64, 6), (6, 64), (16, 64, 3))
    )
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        long_conv(x, taps, factor=factor)
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() >= x.numel()] == [x.data_ptr()]


@pytest.mark.skipif(INTERPRETED, reason="too much for the interpreter")
@pytest.mark.parametrize("shape", [(64, 512, 24), (100, 129, 70), (16, MAX_LEN, 8), (5, MAX_LEN // 2, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_equals_the_sum_over_taps_at_real_sizes(guards, shape, dtype) -> None:
    assert_equal_to_definition(guards, long_conv, definition, tensors(*shape), dtype)


def test_it_runs_in_float16(guards) -> None:
    assert_equal_to_definition(guards, long_conv, definition, tensors(2, 70, 3), torch.float16)


def test_slices_and_other_strides_give_what_copies_give() -> None:
    case = {name: tensor.to(DEVICE, torch.float32) for name, tensor in tensors(2, 9, 6).items()}
    x, gate = torch.cat((case["x"], case["gate"]), -1).chunk(2, -1)
    assert not x.is_contiguous()
    assert torch.equal(long_conv(**{**case, "x": x, "gate": gate}), long_conv(**case))
    strided = {name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in case.items()}
    assert torch.equal(long_conv(**strided), long_conv(**case))


def test_gradients_that_nobody_asks_for_are_left_out() -> None:
    case = {name: tensor.to(DEVICE, torch.float32) for name, tensor in tensors(2, 9, 6).items()}
    case["gate"].requires_grad_()
    long_conv(**case).sum().backward()
    assert case["gate"].grad is not None
    assert case["x"].grad is None


def test_beyond_the_longest_length_the_fourier_path_runs() -> None:
    assert (path(FULL_ROWS, MAX_LEN), path(FULL_ROWS, MAX_LEN + 1)) == ("toeplitz", "fourier")
    assert (path(1, MAX_LEN // 2), path(1, MAX_LEN)) == ("toeplitz", "fourier")
    T = MAX_LEN + 1
    x, taps = draw(1, T, 1).float().to(DEVICE), torch.zeros(1, T, device=DEVICE)
    taps[0, 7] = 1
    torch.testing.assert_close(long_conv(x, taps)[:, 7:], x[:, :-7], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taps": torch.zeros(4, 6)}, r"taps has shape \[4, 6\]; it must be \[4, 5\]"),
        ({"gate": torch.zeros(1, 5, 3)}, r"gate has shape \[1, 5, 3\]; it must be \[1, 5, 4\], or narrower by a whole"),
        ({"factor": torch.zeros(1, 4, 2)}, r"factor has shape \[1, 4, 2\]; it must be \[1, 5, 4\], or narrower"),
        ({"x": torch.zeros(1, 5, 4, dtype=torch.float64)}, "x is torch.float64; .* float32, bfloat16 or float16"),
    ],
)
def test_what_it_does_not_take_is_named_with_what_it_takes(change, message: str) -> None:
    given = {"x": torch.zeros(1, 5, 4), "taps": torch.zeros(4, 5), **change}
    with pytest.raises(InputError, match=message):
        long_conv(**{name: tensor.to(DEVICE) for name, tensor in given.items()})
