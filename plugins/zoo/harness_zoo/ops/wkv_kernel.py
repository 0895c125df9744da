"""The weighted average of RWKV-4 (arXiv:2305.13048) as Triton kernels: one thread a channel, one step after another.

Both kernels take STEPS positions at a time and load the next ones before they compute. Where gradients will be asked
for, the forward pass saves the state before each such chunk; the backward pass goes through the chunks from the last to
the first, recomputes the states inside a chunk and keeps them in registers. No atomics: gradients agree to the bit.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness import InputError
from harness_zoo.ops.common_kernel import FUSION, check_shapes, check_tensors, even_rows, row_stride

State = tuple[Tensor, Tensor, Tensor]  # numerator, denominator, running maximum of the exponents, [B, D] each
OPTIONS = {"STEPS": 8, "BD": 32, "num_warps": 1}


def wkv(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Returns (y [B, T, D], the state after the last position).

    y_t = (A_{t-1} + e^(bonus + k_t) v_t) / (B_{t-1} + e^(bonus + k_t)), where A_t = e^(-decay) A_{t-1} + e^(k_t) v_t
    and B_t = e^(-decay) B_{t-1} + e^(k_t). k and v [B, T, D]; decay > 0 and bonus [D]; float32, bfloat16 or float16, in
    any mix. The state holds A e^(-m), B e^(-m) and m in float32; without one, A = B = 0 and m = -inf. Gradients flow
    through A and B; m is only their scale. k and v may be slices of a wider tensor; other strides are copied.
    """
    if k.dim() != 3 or k.shape[1] < 1:
        raise InputError(f"wkv: k has shape {list(k.shape)}; it must be [B, T, D] with T of at least 1")
    B, T, D = k.shape
    numerator, denominator, largest = state or (None, None, None)
    given = {"decay": decay, "bonus": bonus}
    carried = {"numerator": numerator, "denominator": denominator, "largest": largest}
    check_tensors("wkv", k=k, v=v, **given, **carried)
    shapes = {name: (tensor, (B, D)) for name, tensor in carried.items()}
    check_shapes("wkv", {"v": (v, (B, T, D)), **{name: (tensor, (D,)) for name, tensor in given.items()}, **shapes})
    y, *after = WKVFunction.apply(k, v, decay, bonus, numerator, denominator, largest)
    return y, tuple(after)


class WKVFunction(torch.autograd.Function):
    """The two kernels as one differentiable operation."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, *state: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Returns y [B, T, D] and the three parts of the state after it, [B, D] each."""
        B, T, D = k.shape
        k, v, decay, bonus = even_rows(k), even_rows(v), decay.contiguous(), bonus.contiguous()
        before = tuple(None if part is None else part.contiguous() for part in state)
        y = torch.empty(B, T, D, device=k.device, dtype=v.dtype)
        after = torch.empty(3, B, D, device=k.device, dtype=torch.float32)
        chunks = triton.cdiv(T, OPTIONS["STEPS"])
        saved = (
            torch.empty(B, chunks, 3, D, device=k.device, dtype=torch.float32) if any(ctx.needs_input_grad) else None
        )
        launch(forward_kernel, (k, v, decay, bonus, *before, y, after, saved))
        ctx.save_for_backward(k, v, decay, bonus, saved, after)
        ctx.state_dtypes = None if state[0] is None else (state[0].dtype, state[1].dtype)
        numerator, denominator, largest = after[0], after[1], after[2]
        ctx.mark_non_differentiable(largest)
        return y, numerator, denominator, largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, da: Tensor, db: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of k, v, decay, bonus, and the numerator and denominator of the state."""
        k, v, decay, bonus, saved, after = ctx.saved_tensors
        B, T, D = k.shape
        dk = torch.empty(B, T, D, device=k.device, dtype=k.dtype)
        dv = torch.empty(B, T, D, device=k.device, dtype=v.dtype)
        sums = torch.empty(4, B, D, device=k.device, dtype=torch.float32)  # of decay, bonus, numerator, denominator
        upstream = (dy.contiguous(), da.contiguous(), db.contiguous())
        launch(backward_kernel, (k, v, decay, bonus, saved, after, *upstream, dk, dv, sums))
        d_decay, d_bonus = sums[0].sum(0).to(decay.dtype), sums[1].sum(0).to(bonus.dtype)
        if ctx.state_dtypes is None:
            return dk, dv, d_decay, d_bonus, None, None, None
        first, second = (part.to(dtype) for part, dtype in zip(sums[2:], ctx.state_dtypes, strict=True))
        return dk, dv, d_decay, d_bonus, first, second, None


def launch(kernel: Any, tensors: tuple[Tensor | None, ...]) -> None:
    """Runs a kernel over all sequences and channels of k and v, the first of its tensors."""
    k, v = tensors[:2]
    B, T, D = k.shape
    programs = B * triton.cdiv(D, OPTIONS["BD"])
    if programs:
        with torch.cuda.device_of(k):
            kernel[(programs,)](*tensors, B, T, D, row_stride(k), row_stride(v), **OPTIONS, **FUSION)


@triton.jit
def channels(D, BD: tl.constexpr):
    """Returns this program's sequence (64-bit) and channels [BD]."""
    b = (tl.program_id(0) // tl.cdiv(D, BD)).to(tl.int64)
    return b, tl.program_id(0) % tl.cdiv(D, BD) * BD + tl.arange(0, BD)


@triton.jit
def load_channels(P, d, D, empty):
    """Returns P at the channels in float32, [BD]; `empty` where P is None."""
    if P is None:
        return tl.full(d.shape, empty, tl.float32)
    else:
        return tl.load(P + d, mask=d < D, other=0.0).to(tl.float32)


@triton.jit
def load_rows(X, first, left, apart, d, D, ROWS: tl.constexpr):
    """Returns ROWS rows [BD] of x from the 64-bit row `first` on, as they are stored; zeros once none is left."""
    rows = ()
    for j in tl.static_range(ROWS):
        channels_left = tl.where(j < left, D, 0)
        rows = rows + (tl.load(X + first * apart + (j * apart + d), mask=d < channels_left, other=0.0),)  # noqa: RUF005
    return rows


@triton.jit
def weight_and_value(ks, vs, j: tl.constexpr, left, decay):
    """Returns (k, v, decay) of step j in float32; once none is left, a weight of zero and no decay."""
    k = tl.where(j < left, ks[j].to(tl.float32), float("-inf"))
    return k, vs[j].to(tl.float32), tl.where(j < left, decay, 0.0)


@triton.jit
def blend(a, b, m, k, v):
    """Returns (a, b, m) with v added at weight e^k: sums relative to e^m, where m becomes the larger exponent."""
    smaller = tl.exp(-tl.abs(m - k))
    past = tl.where(m > k, 1.0, smaller)
    now = tl.where(m > k, smaller, 1.0)
    return past * a + now * v, past * b + now, tl.maximum(m, k)


@triton.jit
def store_state(P, apart, d, D, a, b, m):
    """Writes the three parts of a state, `apart` from each other."""
    tl.store(P + d, a, mask=d < D)
    tl.store(P + apart + d, b, mask=d < D)
    tl.store(P + 2 * apart + d, m, mask=d < D)


@triton.jit
def forward_kernel(
    K, V, DECAY, BONUS, A0, B0, M0, Y, AFTER, SAVED, B, T, D, K_ROW, V_ROW, STEPS: tl.constexpr, BD: tl.constexpr
):
    """Writes y [B, T, D], the state after it [3, B, D], and saved [B, chunks, 3, D]: the state before each chunk.

    Grid: 1-D, B * cdiv(D, BD) programs. Tile: [BD], a thread a channel; a loop over chunks of STEPS positions.
    Reads k and v, K_ROW and V_ROW apart from row to row, and the state before, each once; writes each output once.
    64-bit: the number of a row of all sequences, and of a saved chunk.
    """
    b, d = channels(D, BD)
    decay, bonus = load_channels(DECAY, d, D, 0.0), load_channels(BONUS, d, D, 0.0)
    if A0 is not None:
        A0, B0, M0 = A0 + b * D, B0 + b * D, M0 + b * D
    above, below, m = load_channels(A0, d, D, 0.0), load_channels(B0, d, D, 0.0), load_channels(M0, d, D, float("-inf"))
    row, chunk = b * T, b * tl.cdiv(T, STEPS)
    ks, vs = load_rows(K, row, T, K_ROW, d, D, STEPS), load_rows(V, row, T, V_ROW, d, D, STEPS)
    next_ks = load_rows(K, row + STEPS, T - STEPS, K_ROW, d, D, STEPS)
    next_vs = load_rows(V, row + STEPS, T - STEPS, V_ROW, d, D, STEPS)
    for t in range(0, T, STEPS):
        ahead, left = row + (t + 2 * STEPS), T - (t + 2 * STEPS)
        later_ks, later_vs = (
            load_rows(K, ahead, left, K_ROW, d, D, STEPS),
            load_rows(V, ahead, left, V_ROW, d, D, STEPS),
        )
        if SAVED is not None:
            store_state(SAVED + (chunk + t // STEPS) * 3 * D, D, d, D, above, below, m)
        for j in tl.static_range(STEPS):
            k, v, fall = weight_and_value(ks, vs, j, T - t, decay)
            numerator, denominator, _ = blend(above, below, m, bonus + k, v)
            y = (numerator / denominator).to(Y.dtype.element_ty)
            tl.store(Y + (row + t) * D + (j * D + d), y, mask=d < tl.where(j < T - t, D, 0))
            above, below, m = blend(above, below, m - fall, k, v)
        ks, vs, next_ks, next_vs = next_ks, next_vs, later_ks, later_vs
    store_state(AFTER + b * D, B * D, d, D, above, below, m)


@triton.jit
def load_chunk(K, V, DY, SAVED, c, b, T, D, K_ROW, V_ROW, d, STEPS: tl.constexpr):
    """Returns the rows of k, v and dy in chunk c of sequence b, and the state before it; zeros before the first."""
    row, left = b * T + c * STEPS, tl.where(c >= 0, T - c * STEPS, 0)
    ks, vs = load_rows(K, row, left, K_ROW, d, D, STEPS), load_rows(V, row, left, V_ROW, d, D, STEPS)
    state = load_rows(SAVED, (b * tl.cdiv(T, STEPS) + c) * 3, left * 3, D, d, D, 3)
    return ks, vs, load_rows(DY, row, left, D, d, D, STEPS), state


@triton.jit
def recompute(ks, vs, state, left, decay, bonus, STEPS: tl.constexpr):
    """Returns for each step (A, B and m before it, y, and the logarithm of its denominator)."""
    above, below, m = state
    steps = ()
    for j in tl.static_range(STEPS):
        k, v, fall = weight_and_value(ks, vs, j, left, decay)
        numerator, denominator, top = blend(above, below, m, bonus + k, v)
        steps = steps + ((above, below, m, numerator / denominator, top + tl.log(denominator)),)  # noqa: RUF005
        above, below, m = blend(above, below, m - fall, k, v)
    return steps


@triton.jit
def backward_kernel(
    K, V, DECAY, BONUS, SAVED, AFTER, DY, DA, DB, DK, DV, SUMS, B, T, D, K_ROW, V_ROW,
    STEPS: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes dk and dv [B, T, D], and sums [4, B, D]: a sequence's gradients of decay, bonus, and the state before it.

    Grid, tile, reads and 64-bit indices as in `forward_kernel`, chunks from the last to the first; dy and saved are
    read once too. With g_t = dy_t / den_t, the gradient of A_t is G_t = g_{t+1} + e^(-decay) G_{t+1}, that of B_t is
    -H_t with g y in place of g; both are kept relative to e^r. No exponent below is positive but for rounding: r falls
    with the largest weight of the past, so that k_t + r <= 0 and m_{t-1} - decay + r <= 0.
    """
    b, d = channels(D, BD)
    decay, bonus = load_channels(DECAY, d, D, 0.0), load_channels(BONUS, d, D, 0.0)
    G, H = load_channels(DA + b * D, d, D, 0.0), -load_channels(DB + b * D, d, D, 0.0)
    r = -load_channels(AFTER + (2 * B + b) * D, d, D, 0.0)
    d_decay, d_bonus, m = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32), r
    last = tl.cdiv(T, STEPS) - 1
    ks, vs, dys, state = load_chunk(K, V, DY, SAVED, last, b, T, D, K_ROW, V_ROW, d, STEPS)
    for back in range(0, last + 1):
        following = load_chunk(K, V, DY, SAVED, last - back - 1, b, T, D, K_ROW, V_ROW, d, STEPS)
        left = T - (last - back) * STEPS
        steps = recompute(ks, vs, state, left, decay, bonus, STEPS)
        for j in tl.static_range(STEPS - 1, -1, -1):
            k, v, fall = weight_and_value(ks, vs, j, left, decay)
            above, below, m, y, log_denominator = steps[j]
            dy = dys[j].to(tl.float32)
            own, past = tl.exp(bonus + k - log_denominator) * dy, tl.exp(k + r)
            d_own = own * (v - y)
            inside = d < tl.where(j < left, D, 0)
            here = (b * T + (T - left)) * D + (j * D + d)
            tl.store(DK + here, (d_own + past * (v * G - H)).to(DK.dtype.element_ty), mask=inside)
            tl.store(DV + here, (own + past * G).to(DV.dtype.element_ty), mask=inside)
            d_bonus += d_own
            d_decay -= tl.where(j < left, tl.exp(r - fall + m) * (G * above - H * below), 0.0)
            faded = r - fall
            r = tl.maximum(faded, -log_denominator)
            carry, new = tl.exp(faded - r), tl.exp(-log_denominator - r) * dy
            G, H = carry * G + new, carry * H + new * y
        ks, vs, dys, state = following
    tl.store(SUMS + b * D + d, d_decay, mask=d < D)
    store_state(SUMS + (B + b) * D, B * D, d, D, d_bonus, tl.exp(r + m) * G, -tl.exp(r + m) * H)
