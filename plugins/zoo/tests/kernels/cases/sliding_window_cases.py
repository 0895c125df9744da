"""What the kernels of `sliding_window` compute: run by `test_results.py`."""

import pytest
import torch
from harness_zoo.ops.attention_kernel import MAX_WIDTH, path
from harness_zoo.ops.sliding_window import sliding_window as blockwise
from harness_zoo.ops.sliding_window_kernel import sliding_window
from kernel_support import DEVICE, INTERPRETED, assert_equal_to_definition, draw, needs_loops

from harness import InputError

pytestmark = needs_loops
SHAPES = [(1, 1, 2, 5), (2, 2, 63, 8), (1, 3, 70, 20), (1, 1, 130, 64)]  # B, H, T, hd
WINDOWS = [2, 16, 65, 200]


def definition(q, k, v, window: int):
    """The plain sum: y_t = sum of v_s by the softmax of q_t k_s / sqrt(hd), over the `window` last s up to t."""
    t = torch.arange(q.shape[2])
    back = t[:, None] - t
    scores = (q @ k.mT) * q.shape[3] ** -0.5
    return scores.masked_fill((back < 0) | (back >= window), -torch.inf).softmax(3) @ v


def with_window(op, window: int):
    return lambda **given: op(**given, window=window)


def tensors(*shape: int, spread: float = 1.0):
    return {"q": spread * draw(*shape), "k": draw(*shape, seed=1), "v": draw(*shape, seed=2)}


def check(guards, case, window: int, dtype=torch.float32) -> None:
    assert_equal_to_definition(
        guards, with_window(sliding_window, window), with_window(definition, window), case, dtype
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
def test_it_equals_the_plain_sum(guards, shape, window: int) -> None:
    check(guards, tensors(*shape), window)


def test_a_window_of_one_gives_the_values_and_no_gradient_to_queries_and_keys() -> None:
    q, k, v = (draw(1, 2, 70, 20, seed=i).float().to(DEVICE).requires_grad_() for i in range(3))
    y = sliding_window(q, k, v, 1)
    dq, dk, dv = torch.autograd.grad(y, (q, k, v), dy := torch.ones_like(y))
    torch.testing.assert_close(y, v)
    torch.testing.assert_close(dv, dy)
    torch.testing.assert_close(dq, torch.zeros_like(q), rtol=0, atol=1e-5)
    torch.testing.assert_close(dk, torch.zeros_like(k), rtol=0, atol=1e-5)


def test_scores_far_apart_stay_exact(guards) -> None:
    check(guards, tensors(1, 1, 70, 16, spread=30.0), 40)


@pytest.mark.parametrize("hd", [1, 100, MAX_WIDTH])
def test_heads_of_any_width_up_to_the_limit_are_taken(guards, hd: int) -> None:
    check(guards, tensors(1, 1, 35, hd), 20)


@pytest.mark.skipif(INTERPRETED, reason="too much for the interpreter")
@pytest.mark.parametrize("window", [16, 128, 333])
@pytest.mark.parametrize("shape", [(4, 2, 1000, 64), (1, 2, 700, 128), (2, 3, 513, 24)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_equals_the_plain_sum_at_real_sizes(guards, shape, window: int, dtype) -> None:
    check(guards, tensors(*shape), window, dtype)


def test_it_runs_in_float16(guards) -> None:
    check(guards, tensors(1, 2, 70, 20), 33, torch.float16)


def test_heads_that_are_slices_of_one_projection_get_their_gradients(guards) -> None:
    def through_heads(op):
        def run(qkv):
            parts = qkv.chunk(3, dim=2)
            return op(*(part.unflatten(2, (3, -1)).transpose(1, 2) for part in parts), window=20)

        return run

    case = {"qkv": draw(2, 37, 3 * 3 * 8)}
    assert_equal_to_definition(guards, through_heads(sliding_window), through_heads(definition), case, torch.float32)


def test_other_strides_give_what_copies_give() -> None:
    case = {name: tensor.to(DEVICE, torch.float32) for name, tensor in tensors(2, 2, 37, 6).items()}
    strided = {name: tensor.mT.contiguous().mT for name, tensor in case.items()}
    assert torch.equal(sliding_window(**strided, window=9), sliding_window(**case, window=9))


def test_the_result_merges_its_heads_without_a_copy() -> None:
    y = sliding_window(*(torch.zeros(1, 2, 3, 4, device=DEVICE) for _ in "qkv"), window=2)
    assert y.transpose(1, 2).is_contiguous()


def test_what_lies_outside_the_window_does_not_count() -> None:
    case = {name: tensor.to(DEVICE, torch.float32) for name, tensor in tensors(1, 1, 200, 8).items()}
    before = sliding_window(**case, window=10)
    for name in "kv":
        case[name][:, :, :91] = case[name][:, :, 101:] = 1e4
    assert torch.equal(sliding_window(**case, window=10)[:, :, 100], before[:, :, 100])


@pytest.mark.parametrize(("S", "hd", "T"), [(5, 8, 1), (40, MAX_WIDTH + 1, 40)])
def test_one_query_and_heads_beyond_the_limit_go_the_way_of_torch(S: int, hd: int, T: int) -> None:
    assert path(T, hd) == "torch"
    q, k, v = (draw(1, 2, n, hd).float().to(DEVICE) for n in (T, S, S))
    assert torch.equal(sliding_window(q, k, v, 5), blockwise(q, k, v, 5))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not multiply in bfloat16")
def test_under_autocast_the_result_has_its_dtype_and_gradients_that_of_the_inputs() -> None:
    case = {name: tensor.to(DEVICE, torch.float32).requires_grad_() for name, tensor in tensors(1, 2, 70, 16).items()}
    with torch.autocast(DEVICE, torch.bfloat16):
        y = sliding_window(**case, window=20)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), sliding_window(**case, window=20), rtol=2e-2, atol=2e-2)
    y.sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in case.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window = 0; it takes at least 1"),
        ({"q": torch.zeros(5, 4)}, r"q has shape \[5, 4\] .* must be \[B, H, T, hd\]"),
        ({"k": torch.zeros(1, 2, 5, 3)}, r"k has shape \[1, 2, 5, 3\]; it must be \[1, 2, 5, 4\]"),
        ({"v": torch.zeros(1, 1, 5, 4)}, r"v has shape \[1, 1, 5, 4\]; it must be \[1, 2, 5, 4\]"),
        ({"q": torch.zeros(1, 2, 5, 4).double()}, "q is torch.float64; .* float32, bfloat16 or float16"),
        ({"k": torch.zeros(1, 2, 5, 4).half()}, "torch.float32, torch.float16, torch.float32; .* one dtype"),
    ],
)
def test_what_it_does_not_take_is_named_with_what_it_takes(change, message: str) -> None:
    given = {**{name: torch.zeros(1, 2, 5, 4) for name in "qkv"}, "window": 3, **change}
    given = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in given.items()}
    with pytest.raises(InputError, match=message):
        sliding_window(**given)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs on any device")
def test_tensors_that_are_not_on_the_device_are_refused() -> None:
    with pytest.raises(InputError, match="q is on cpu; the Triton kernel needs a cuda device"):
        sliding_window(*(torch.zeros(1, 1, 5, 4) for _ in "qkv"), window=3)
