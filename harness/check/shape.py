"""What goes in and out: shapes, dtypes, lengths, memory layout."""

import torch
from torch import Tensor

from harness.check.compare import require_close
from harness.check.promise import BrokenPromise
from harness.check.subject import LENGTHS, MAX_LEN, D, Inputs, Subject

BEYOND = 9  # positions past max_len


def shape(subject: Subject) -> str:
    """Returns the lengths tried: [B, T, D] comes back as a plain finite tensor of the same dtype and device."""
    module = subject.build()
    lengths = [subject.length(T) for T in (*LENGTHS, MAX_LEN) if subject.length(T) <= MAX_LEN]
    for T in lengths:
        for training in (False, True):
            module.train(training)
            inputs = subject.inputs(T, subject.dtype)
            _require_plain(subject.value(module, inputs), inputs.x)
    return f"T = {', '.join(map(str, lengths))}"


def _require_plain(y: object, x: Tensor) -> None:
    mode = f"for input {tuple(x.shape)}"
    if type(y) is not Tensor:
        raise BrokenPromise(f"forward returned a {type(y).__name__} {mode}; return a plain torch.Tensor")
    if y.shape != x.shape:
        raise BrokenPromise(f"forward returned shape {tuple(y.shape)} {mode}; [B, T, D] must stay")
    if y.dtype != x.dtype or y.device != x.device:
        raise BrokenPromise(f"forward returned {y.dtype} on {y.device} {mode} in {x.dtype} on {x.device}")
    if not bool(torch.isfinite(y).all()):
        raise BrokenPromise(f"forward returned values that are not finite {mode}")


def layout(subject: Subject) -> str:
    """Returns the layouts tried: how the input lies in memory does not change the output."""
    module, inputs = subject.build(subject.exact), subject.inputs(63)
    wanted, x = subject.value(module, inputs), inputs.x
    B, T, _ = x.shape
    wide = torch.full((B, T, 2 * D), 7.0, dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    layouts = {
        "time first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "channels before time": x.transpose(1, 2).contiguous().transpose(1, 2),
        "every other channel of a wider tensor": wide[..., ::2],
        "a slice of a longer sequence": torch.cat((x + 1, x), dim=1)[:, T:],
    }
    for name, same in layouts.items():
        got = subject.value(module, Inputs(same, inputs.tokens))
        require_close(got, wanted, subject.exact_error, f"input laid out as {name}")
    return f"{len(layouts)} non-contiguous layouts"


def beyond_max_len(subject: Subject) -> str:
    """Returns what happens past max_len: an error that says something, or the right answer, never another one."""
    module, long = subject.build(subject.exact), subject.inputs(MAX_LEN + BEYOND)
    try:
        got = subject.value(module, long)
    except Exception as error:
        if not str(error).strip():
            raise BrokenPromise(f"T = {MAX_LEN + BEYOND} raised {type(error).__name__} without a message") from error
        return f"refused: {' '.join(str(error).split())[:80]}"
    if got.shape != long.x.shape:
        raise BrokenPromise(f"T = {long.x.shape[1]} beyond max_len = {MAX_LEN} gave shape {tuple(got.shape)}; raise")
    if subject.spec.causal:
        within = subject.value(module, long.cut(0, subject.length(MAX_LEN) // 2))
        T = within.shape[1]
        require_close(got[:, :T], within, subject.exact_error, f"beyond max_len = {MAX_LEN}, the first {T} positions")
    return f"T = {long.x.shape[1]} works"
