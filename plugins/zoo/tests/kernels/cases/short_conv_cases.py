"""What the kernels of `short_conv` compute: run by `test_results.py`."""

import pytest
import torch
from harness_zoo.ops.short_conv_kernel import short_conv
from kernel_support import DEVICE, INTERPRETED, assert_equal_to_definition, draw

from harness import InputError

SHAPES = [(1, 1, 5), (2, 2, 1), (2, 70, 20), (1, 64, 64), (1, 67, 70)]


def definition(x, taps, bias=None, gate=None, activation="none"):
    """The plain sum: y_t = gate_t * act(bias + sum over j <= t of taps_j * x_{t-j})."""
    outputs = []
    for t in range(x.shape[1]):
        z = sum(taps[:, j] * x[:, t - j] for j in range(min(taps.shape[1], t + 1)))
        z = z if bias is None else z + bias
        z = z * torch.sigmoid(z) if activation == "silu" else z
        outputs.append(z if gate is None else z * gate[:, t])
    return torch.stack(outputs, 1)


def tensors(B: int, T: int, D: int, K: int, names=("bias", "gate")):
    drawn = {"x": draw(B, T, D), "taps": draw(D, K, seed=1), "bias": draw(D, seed=2), "gate": draw(B, T, D, seed=3)}
    return {name: drawn[name] for name in ("x", "taps", *names)}


def in_mode(op, activation: str):
    return lambda **given: op(**given, activation=activation)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("K", [1, 3, 8])
def test_it_equals_the_sum_over_taps(guards, shape, K: int, activation: str) -> None:
    case = tensors(*shape, K)
    assert_equal_to_definition(
        guards, in_mode(short_conv, activation), in_mode(definition, activation), case, torch.float32
    )


@pytest.mark.parametrize("names", [(), ("bias",), ("gate",)], ids=str)
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_bias_and_gate_may_be_left_out(guards, names, activation: str) -> None:
    case = tensors(2, 35, 12, 4, names)
    assert_equal_to_definition(
        guards, in_mode(short_conv, activation), in_mode(definition, activation), case, torch.float32
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_runs_in_the_half_types(guards, dtype) -> None:
    case = tensors(2, 70, 24, 4)
    assert_equal_to_definition(guards, in_mode(short_conv, "silu"), in_mode(definition, "silu"), case, dtype)


def test_slices_and_other_strides_give_what_copies_give() -> None:
    case = {name: tensor.to(DEVICE, torch.float32) for name, tensor in tensors(2, 9, 6, 3).items()}
    x, gate = torch.cat((case["x"], case["gate"]), -1).chunk(2, -1)
    assert not x.is_contiguous()
    assert torch.equal(short_conv(**{**case, "x": x, "gate": gate}), short_conv(**case))
    strided = {name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in case.items()}
    assert torch.equal(short_conv(**strided), short_conv(**case))


def test_under_autocast_the_result_has_its_dtype() -> None:
    case = {name: tensor.to(DEVICE, torch.float32) for name, tensor in tensors(1, 5, 4, 2).items()}
    with torch.autocast(DEVICE, torch.bfloat16):
        y = short_conv(**case)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), short_conv(**case), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taps": torch.zeros(4, 9)}, "K = 9; the Triton kernel takes 1 to 8"),
        ({"activation": "relu"}, "activation = 'relu'; choose one of none, silu"),
        ({"x": torch.zeros(1, 5, 4, dtype=torch.float64)}, "x is torch.float64; .* float32, bfloat16 or float16"),
        ({"gate": torch.zeros(1, 4, 4)}, r"gate has shape \[1, 4, 4\]; it must be \[1, 5, 4\]"),
    ],
)
def test_what_it_does_not_take_is_named_with_what_it_takes(change, message: str) -> None:
    given = {"x": torch.zeros(1, 5, 4), "taps": torch.zeros(4, 2), **change}
    given = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in given.items()}
    with pytest.raises(InputError, match=message):
        short_conv(**given)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs on any device")
def test_tensors_that_are_not_on_the_device_are_refused() -> None:
    with pytest.raises(InputError, match="x is on cpu; the Triton kernel needs a cuda device"):
        short_conv(torch.zeros(1, 5, 4), torch.zeros(4, 2))
