"""What the kernels of `wkv` compute: run by `test_results.py`."""

import pytest
import torch
from harness_zoo.ops.wkv_kernel import wkv
from kernel_support import DEVICE, assert_equal_to_definition, draw, needs_loops

from harness import InputError

pytestmark = needs_loops
SHAPES = [(1, 1, 3), (2, 7, 1), (2, 8, 40), (1, 9, 33), (2, 43, 20)]


def definition(k, v, decay, bonus, numerator=None, denominator=None, largest=None):
    """The plain sums: weights e^(k_i - (t - 1 - i) decay) of the past, e^(bonus + k_t) of the present."""
    T = k.shape[1]
    top = k.amax(1) if largest is None else torch.maximum(k.amax(1), largest)
    scale = 0 if largest is None else (largest - top).exp()
    a, b = (0 if part is None else scale * part for part in (numerator, denominator))
    outputs = []
    for t in range(T):
        past, own = (k[:, t] - top).exp(), (bonus + k[:, t] - top).exp()
        outputs.append((a + own * v[:, t]) / (b + own))
        a, b = (-decay).exp() * a + past * v[:, t], (-decay).exp() * b + past
    return torch.stack(outputs, 1), a, b, top


def output(**given):
    return definition(**given)[0]


def kernel_output(k, v, decay, bonus, numerator=None, denominator=None, largest=None):
    state = None if numerator is None else (numerator, denominator, largest)
    return wkv(k, v, decay, bonus, state)[0]


def tensors(B: int, T: int, D: int, spread: float = 1.0):
    decay = draw(D, seed=2).exp()
    return {"k": spread * draw(B, T, D), "v": draw(B, T, D, seed=1), "decay": decay, "bonus": draw(D, seed=3)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_plain_sums(guards, shape) -> None:
    assert_equal_to_definition(guards, kernel_output, output, tensors(*shape), torch.float32)


@pytest.mark.parametrize("spread", [0.0, 30.0])
def test_equal_keys_and_keys_far_apart_stay_exact(guards, spread: float) -> None:
    assert_equal_to_definition(guards, kernel_output, output, tensors(1, 29, 8, spread), torch.float32)


@pytest.mark.parametrize("decay", [1e-6, 20.0])
def test_no_decay_and_full_decay_stay_exact(guards, decay: float) -> None:
    case = {**tensors(1, 29, 8), "decay": torch.full((8,), decay, dtype=torch.float64)}
    assert_equal_to_definition(guards, kernel_output, output, case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_runs_in_the_half_types(guards, dtype) -> None:
    assert_equal_to_definition(guards, kernel_output, output, tensors(2, 19, 20), dtype)


def test_a_state_goes_in_with_its_gradients(guards) -> None:
    case = {**tensors(2, 18, 5), "numerator": draw(2, 5, seed=5), "denominator": 1 + draw(2, 5, seed=6).square()}
    largest = draw(2, 5, seed=7).float().to(DEVICE)

    def kernel(**given):
        return kernel_output(**given, largest=largest)

    def exact(**given):
        return output(**given, largest=largest.cpu().double())

    assert_equal_to_definition(guards, kernel, exact, case, torch.float32)


def test_the_state_that_comes_out_has_gradients(guards) -> None:
    def kernel(**given):
        _, (numerator, denominator, largest) = wkv(**given)
        return (numerator + 3 * denominator) * largest.exp()

    def exact(**given):
        _, numerator, denominator, largest = definition(**given)
        return (numerator + 3 * denominator) * largest.exp()

    case = tensors(2, 18, 5)
    del case["bonus"]
    bonus = torch.zeros(5, device=DEVICE)
    assert_equal_to_definition(
        guards, lambda **given: kernel(**given, bonus=bonus), lambda **given: exact(**given, bonus=0.0), case,
        torch.float32,
    )  # fmt: skip


def test_two_halves_with_the_state_between_equal_the_whole() -> None:
    case = {name: tensor.to(DEVICE, torch.float32) for name, tensor in tensors(2, 21, 6).items()}
    k, v = case.pop("k"), case.pop("v")
    whole, state = wkv(k, v, **case)
    first, between = wkv(k[:, :10], v[:, :10], **case)
    second, after = wkv(k[:, 10:], v[:, 10:], **case, state=between)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(after, state)


def test_slices_of_a_wider_tensor_give_what_copies_give() -> None:
    case = {name: tensor.to(DEVICE, torch.float32) for name, tensor in tensors(2, 20, 6).items()}
    k, v = torch.cat((case.pop("k"), case.pop("v")), -1).chunk(2, -1)
    assert not k.is_contiguous()
    assert torch.equal(wkv(k, v, **case)[0], wkv(k.contiguous(), v.contiguous(), **case)[0])
    assert torch.equal(wkv(k.mT.contiguous().mT, v, **case)[0], wkv(k.contiguous(), v.contiguous(), **case)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(1, 5, 3)}, r"v has shape \[1, 5, 3\]; it must be \[1, 5, 4\]"),
        ({"k": torch.zeros(1, 0, 4)}, r"k has shape \[1, 0, 4\]; .* at least 1"),
        ({"decay": torch.zeros(4, dtype=torch.float64)}, "decay is torch.float64; .* float32, bfloat16 or float16"),
    ],
)
def test_what_it_does_not_take_is_named_with_what_it_takes(change, message: str) -> None:
    given = {**dict.fromkeys("kv", torch.zeros(1, 5, 4)), **dict.fromkeys(("decay", "bonus"), torch.zeros(4)), **change}
    with pytest.raises(InputError, match=message):
        wkv(**{name: tensor.to(DEVICE) for name, tensor in given.items()})
