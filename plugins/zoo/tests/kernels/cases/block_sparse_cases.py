"""What the kernels of `block_sparse` compute: run by `test_results.py`."""

import pytest
import torch
from harness_zoo.ops.attention_kernel import MAX_WIDTH, path
from harness_zoo.ops.block_sparse import block_sparse as gathered_blocks
from harness_zoo.ops.block_sparse_kernel import block_sparse
from kernel_support import DEVICE, INTERPRETED, assert_equal_to_definition, draw, needs_loops

from harness import InputError

pytestmark = needs_loops
SHAPES = [((1, 1, 5, 8), 1), ((1, 1, 2, 5), 8), ((1, 2, 35, 8), 8), ((2, 1, 70, 64), 13), ((1, 1, 70, 20), 40)]


def rows(n: int) -> list[list[int]]:
    """Returns blocks for each of n blocks: the first, one of those between, the one before, and itself."""
    return [sorted({0, i // 2, max(0, i - 1), i}) for i in range(n)]


def table(n: int):
    """Returns those rows, filled up with -1."""
    return torch.tensor([row + [-1] * (4 - len(row)) for row in rows(n)], device=DEVICE)


def definition(q, k, v, block: int):
    """The plain sum: y_t = sum of v_s by the softmax of q_t k_s / sqrt(hd), over s <= t in the blocks of t's row."""
    T, hd = q.shape[2:]
    seen = torch.zeros(T, T, dtype=torch.bool)
    for i, row in enumerate(rows(-(-T // block))):
        for j in row:
            seen[i * block : (i + 1) * block, j * block : (j + 1) * block] = True
    scores = (q @ k.mT) * hd**-0.5
    return scores.masked_fill(~seen.tril(), -torch.inf).softmax(3) @ v


def check(guards, case, block: int, dtype=torch.float32) -> None:
    n = -(-case["q"].shape[2] // block)

    def op(**given):
        return block_sparse(**given, table=table(n + 1), block=block)  # drawn for a longer sequence

    assert_equal_to_definition(guards, op, lambda **given: definition(**given, block=block), case, dtype)


def tensors(*shape: int):
    return {"q": draw(*shape), "k": draw(*shape, seed=1), "v": draw(*shape, seed=2)}


@pytest.mark.parametrize(("shape", "block"), SHAPES, ids=str)
def test_it_equals_the_plain_sum(guards, shape, block: int) -> None:
    check(guards, tensors(*shape), block)


@pytest.mark.parametrize("hd", [1, MAX_WIDTH])
def test_heads_of_any_width_up_to_the_limit_are_taken(guards, hd: int) -> None:
    check(guards, tensors(1, 1, 35, hd), 16)


def test_it_runs_in_float16(guards) -> None:
    check(guards, tensors(1, 1, 40, 20), 8, torch.float16)


@pytest.mark.skipif(INTERPRETED, reason="too much for the interpreter")
@pytest.mark.parametrize("block", [8, 64, 100])
@pytest.mark.parametrize("shape", [(4, 2, 1000, 64), (1, 2, 700, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_equals_the_plain_sum_at_real_sizes(guards, shape, block: int, dtype) -> None:
    check(guards, tensors(*shape), block, dtype)


def test_strided_heads_give_what_copies_give() -> None:
    parts = draw(2, 37, 3 * 3 * 8).float().to(DEVICE).chunk(3, dim=2)
    q, k, v = (part.unflatten(2, (3, -1)).transpose(1, 2) for part in parts)
    y = block_sparse(q, k, v, table(5), 8)
    assert torch.equal(y, block_sparse(*(part.contiguous() for part in (q, k, v)), table(5), 8))
    assert y.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(("S", "hd", "T"), [(37, 8, 1), (40, MAX_WIDTH + 1, 40)])
def test_one_query_and_heads_beyond_the_limit_go_the_way_of_torch(S: int, hd: int, T: int) -> None:
    assert path(T, hd) == "torch"
    q, k, v = (draw(1, 2, n, hd).float().to(DEVICE) for n in (T, S, S))
    assert torch.equal(block_sparse(q, k, v, table(5), 8), gathered_blocks(q, k, v, table(5), 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 0}, "block = 0 .* at least 1"),
        ({"block": 2}, r"block = 2 and a table of \[2, 4\] for 5 positions; .* a row of the table for every block"),
        ({"k": torch.zeros(1, 2, 5, 3)}, r"k has shape \[1, 2, 5, 3\]; it must be \[1, 2, 5, 4\]"),
        ({"q": torch.zeros(1, 2, 5, 4).double()}, "q is torch.float64; .* float32, bfloat16 or float16"),
    ],
)
def test_what_it_does_not_take_is_named_with_what_it_takes(change, message: str) -> None:
    given = {**{name: torch.zeros(1, 2, 5, 4) for name in "qkv"}, "table": table(2), "block": 3, **change}
    given = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in given.items()}
    with pytest.raises(InputError, match=message):
        block_sparse(**given)
