"""The output is a function of the weights and of one sequence, and of nothing else."""

import threading
import time

import torch
from torch import Tensor

from harness.check.compare import require_close, require_equal_bits
from harness.check.promise import BrokenPromise
from harness.check.subject import Inputs, Subject
from harness.determinism import as_trained

SETTLE_S = 0.05  # what works on after forward has returned shows within it


def batch(subject: Subject) -> str:
    """Returns the batches compared: a sequence gives the same alone, with others, and in another place."""
    module, inputs = subject.build(subject.exact), subject.inputs(63, batch=4)
    for training in (False, True):
        module.train(training)
        torch.manual_seed(5)
        wanted = subject.value(module, inputs)
        if training and not torch.equal(wanted, subject.value(module, inputs)):
            continue  # dropout: masks are drawn for the whole batch, so sequences cannot be compared
        for b in range(4):
            got = subject.value(module, inputs.rows(b, b + 1))
            require_close(got, wanted[b : b + 1], subject.exact_error, f"sequence {b} alone and in a batch of 4")
        loud = Inputs(torch.cat((inputs.x[:1], 100 * inputs.x[1:])), inputs.tokens)
        require_close(subject.value(module, loud)[:1], wanted[:1], subject.exact_error, "louder neighbours")
        flipped = Inputs(inputs.x.flip(0), inputs.tokens.flip(0))
        require_close(subject.value(module, flipped).flip(0), wanted, subject.exact_error, "the batch in reverse")
    return "4 sequences alone, with louder neighbours, in reverse"


def determinism(subject: Subject) -> str:
    """Returns what was repeated: equal seeds give equal bits, in forward and in every gradient."""
    inputs = subject.inputs(129, subject.dtype)

    def run() -> dict[str, Tensor]:
        module = subject.build(seed=3).train()
        torch.manual_seed(4)
        return {"output": subject.value(module, inputs), **subject.gradients(module, inputs)}

    runs = [as_trained(run) for _ in range(2)]
    for name, first in runs[0].items():
        require_equal_bits(runs[1][name], first, f"two runs from one seed, {name}")
    module = subject.build().eval()
    torch.manual_seed(1)
    first = subject.value(module, inputs)
    torch.manual_seed(2)
    require_equal_bits(subject.value(module, inputs), first, "evaluation twice under different seeds")
    return f"output and {len(runs[0]) - 1} gradients, twice from one seed; evaluation under two seeds"


def fresh(subject: Subject) -> str:
    """Returns what was changed: other weights, other values in the same buffer, each gives its own result."""
    module, inputs = subject.build(subject.exact), subject.inputs(63)
    other_weights, other = subject.build(subject.exact, seed=9), subject.inputs(63, seed=7)
    first = subject.value(module, inputs)
    kept, x_before = first.clone(), inputs.x.clone()
    wanted = subject.value(other_weights, other)
    require_equal_bits(first, kept, "an output after the next call")
    require_equal_bits(inputs.x, x_before, "the input after forward")
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), other_weights.parameters(), strict=True):
            parameter.copy_(value)
    got = subject.value(module, inputs)
    allowed = subject.exact_error
    require_close(got, subject.value(other_weights, inputs), allowed, "the same input after the weights changed")
    with torch.no_grad():
        inputs.x.copy_(other.x)
        inputs.tokens.copy_(other.tokens)
    require_close(subject.value(module, inputs), wanted, allowed, "new values in the same input buffer")
    return "new weights with the same input, new values in the same buffer, the output after the next call"


def on_time(subject: Subject) -> str:
    """Returns how it was watched: the output is whole when forward returns, and nothing works on behind it."""
    module, inputs = subject.build(), subject.inputs(129, subject.dtype, batch=8)
    subject.value(module, inputs)  # libraries start their own pools on first use
    before = set(threading.enumerate())
    on_gpu = torch.device(subject.device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    y = subject.value(module, inputs)
    if on_gpu:
        torch.cuda.current_stream().synchronize()  # what was queued elsewhere may still run
    early = y.clone()
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    time.sleep(SETTLE_S)
    if on_gpu:
        torch.cuda.synchronize()
    require_equal_bits(y, early, "the output some time after forward returned (work on a side stream or thread?)")
    if left:
        raise BrokenPromise(f"forward left {len(left)} thread(s) running: {', '.join(left)}")
    return f"the output did not change in the {1e3 * SETTLE_S:.0f} ms after forward; no thread was left"
