"""What the operators promise that the mixers share, beyond what the mixers use of them."""

import pytest
import torch
from harness_zoo.ops.long_conv import MATRIX_BATCH, MATRIX_LEN, fast_length, long_conv
from harness_zoo.ops.short_conv import short_conv
from harness_zoo.ops.wkv import wkv
from torch import Tensor
from torch.nn import functional as F

from harness import InputError


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def convolve(x: Tensor, taps: Tensor) -> Tensor:
    """Returns the causal convolution as a sum over lags."""
    lags = range(min(taps.shape[1], x.shape[1]))
    return sum(taps[:, j] * F.pad(x, (0, 0, j, 0))[:, : x.shape[1]] for j in lags)


def assert_same(got: Tensor, wanted: Tensor, inputs: list[Tensor]) -> None:
    """Asserts that two results, and their gradients for the same inputs, are equal."""
    torch.testing.assert_close(got, wanted)
    weights = torch.randn_like(wanted)
    gradients = (torch.autograd.grad((y * weights).sum(), inputs) for y in (got, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("K", [1, 3, 30])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_short_conv_adds_a_bias_activates_and_gates_in_this_order(K: int, activation: str) -> None:
    x, taps, bias, gate = rand(2, 17, 5), rand(5, K), rand(5), rand(2, 17, 5)
    y = bias + convolve(x, taps)
    wanted = gate * (F.silu(y) if activation == "silu" else y)
    assert_same(short_conv(x, taps, bias, gate, activation), wanted, [x, taps, bias, gate])


def test_short_conv_refuses_an_unknown_activation_with_the_choices() -> None:
    with pytest.raises(InputError, match="activation = 'relu'; choose one of none, silu"):
        short_conv(rand(1, 4, 2), rand(2, 3), activation="relu")


@pytest.mark.parametrize("B", [1, MATRIX_BATCH])
@pytest.mark.parametrize("T", [1, 2, 31, MATRIX_LEN, MATRIX_LEN + 1])
def test_long_conv_is_the_sum_over_lags_through_matrices_and_through_fourier_transforms(B: int, T: int) -> None:
    x, taps, bias, gate = rand(B, T, 3), rand(3, T), rand(3), rand(B, T, 3)
    assert_same(long_conv(x, taps, bias, gate), gate * (bias + convolve(x, taps)), [x, taps, bias, gate])


@pytest.mark.parametrize("W", [1, 2, 6])
def test_long_conv_takes_a_factor_and_a_gate_that_are_narrower_than_x(W: int) -> None:
    x, taps, gate, factor = rand(2, 17, 6), rand(6, 17), rand(2, 17, W), rand(2, 17, W)
    wanted = gate.repeat(1, 1, 6 // W) * convolve(factor.repeat(1, 1, 6 // W) * x, taps)
    assert_same(long_conv(x, taps, gate=gate, factor=factor), wanted, [x, taps, gate, factor])


def test_long_conv_refuses_a_gate_that_does_not_divide_the_width() -> None:
    with pytest.raises(InputError, match=r"a gate has shape \[2, 8, 4\]; it must be \[2, 8, 6\], or narrower"):
        long_conv(rand(2, 8, 6), rand(6, 8), gate=rand(2, 8, 4))


@pytest.mark.parametrize("B", [1, MATRIX_BATCH])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_conv_of_16_bit_input_is_computed_in_more(B: int, dtype: torch.dtype) -> None:
    x, taps = torch.randn(B, 40, 3).to(dtype), torch.randn(3, 40).to(dtype)
    y = long_conv(x, taps)
    assert y.dtype == dtype
    assert torch.equal(y, long_conv(x.float(), taps.float()).to(dtype))


def test_long_conv_refuses_taps_of_another_length_showing_both_shapes() -> None:
    with pytest.raises(InputError, match=r"taps of shape \(3, 9\) for x \(2, 8, 3\)"):
        long_conv(rand(2, 8, 3), rand(3, 9))


def test_transform_lengths_are_long_enough_and_at_most_half_again_as_long() -> None:
    assert all(n <= fast_length(n) <= 1.5 * n for n in range(1, 5000))


def plain_wkv(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y and the sums A and B after it, without any care for the range of the exponentials."""
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        own = torch.exp(bonus + k_t)
        outputs.append((A + own * v_t) / (B + own))
        A = torch.exp(-decay) * A + torch.exp(k_t) * v_t
        B = torch.exp(-decay) * B + torch.exp(k_t)
    return torch.stack(outputs, dim=1), A, B


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 8, 15, 16, 17, 47])
@pytest.mark.parametrize("started", [False, True])
def test_wkv_and_its_state_equal_the_plain_recurrence_at_every_chunk_size(T: int, started: bool) -> None:
    k, v, bonus = rand(2, T, 3), rand(2, T, 3), rand(3)
    decay = torch.rand(3, dtype=torch.float64).requires_grad_()
    a, b, m = rand(2, 3), torch.rand(2, 3, dtype=torch.float64).requires_grad_(), torch.randn(2, 3).double()
    zero = torch.zeros(2, 3, dtype=torch.float64)
    y, (A, B, largest) = wkv(k, v, decay, bonus, (a, b, m) if started else None)
    wanted = plain_wkv(k, v, decay, bonus, *((a * m.exp(), b * m.exp()) if started else (zero, zero)))
    got = (y, A * largest.exp(), B * largest.exp())
    inputs = [k, v, decay, bonus, *((a, b) if started else ())]
    assert_same(*(torch.cat([r.flatten() for r in results]) for results in (got, wanted)), inputs)


def test_wkv_in_two_parts_gives_what_it_gives_in_one() -> None:
    k, v, decay, bonus = 10 * rand(2, 40, 3), rand(2, 40, 3), torch.rand(3).double(), rand(3)
    whole, state = wkv(k, v, decay, bonus)
    first, middle = wkv(k[:, :13], v[:, :13], decay, bonus)
    second, end = wkv(k[:, 13:], v[:, 13:], decay, bonus, middle)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    torch.testing.assert_close(end, state)


def test_wkv_keeps_old_keys_that_are_far_below_a_later_one() -> None:
    k = torch.full((1, 9, 1), -300.0)
    k[:, 8] = 300.0  # relative to this one, e^k of the others is zero in float32
    v = torch.arange(9.0).view(1, 9, 1)
    y, _ = wkv(k, v, torch.zeros(1), torch.zeros(1))
    torch.testing.assert_close(y[0, :8, 0], torch.arange(8.0) / 2)
    assert float(y[0, 8, 0]) == 8.0
