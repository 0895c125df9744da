"""The future stays unseen: by its values, by its gradients, and by its length."""

import torch

from harness.check.compare import relative_error, require_close
from harness.check.promise import BrokenPromise, NotApplicable
from harness.check.subject import LENGTHS, VOCAB, Inputs, Subject, weighted_sum

T_EVERY = 33  # the length at which every position is tried
SHOCK = 10.0


def causality(subject: Subject) -> str:
    """Returns how many positions were tried: what comes later changes no earlier output, in training neither."""
    if not subject.spec.causal:
        raise NotApplicable("declared non-causal: its rows are shown and not ranked")
    module, tried = subject.build(subject.exact), 0
    for T, at in ((T_EVERY, range(1, T_EVERY)), (LENGTHS[-1], (1, 64, 128))):
        inputs = subject.inputs(T)
        for training in (False, True):
            module.train(training)
            wanted = _seeded(subject, module, inputs)
            for t in at:
                got = _seeded(subject, module, _changed_after(inputs, t))
                what = f"{'training' if training else 'evaluation'}, input changed from position {t} of {T} on"
                require_close(got[:, :t], wanted[:, :t], subject.exact_error, what)
                tried += 1
    _no_gradient_from_the_future(subject, module.eval())
    return f"{tried} changes of the future, {T_EVERY - 1} positions by gradient"


def _seeded(subject: Subject, module: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    torch.manual_seed(5)  # dropout falls on the same places
    return subject.value(module, inputs)


def _changed_after(inputs: Inputs, t: int) -> Inputs:
    x, tokens = inputs.x.clone(), inputs.tokens.clone()
    x[:, t:] = SHOCK * torch.flip(x[:, t:], dims=(1,)) + 1
    tokens[:, t:] = (tokens[:, t:] + 1) % VOCAB
    return Inputs(x, tokens)


def _no_gradient_from_the_future(subject: Subject, module: torch.nn.Module) -> None:
    inputs = subject.inputs(T_EVERY)
    x = inputs.x.detach().clone().requires_grad_()
    y = subject.call(module, Inputs(x, inputs.tokens))
    for t in range(1, y.shape[1]):
        (gradient,) = torch.autograd.grad(weighted_sum(y[:, :t]), x, retain_graph=True)
        leaked = float(gradient[:, t:].abs().max() / gradient.abs().max().clamp(min=1e-30))
        if leaked > subject.exact_error:
            raise BrokenPromise(
                f"outputs before position {t} have a gradient from later inputs: {leaked:.2g} of the largest one, "
                f"allowed is {subject.exact_error:.2g}"
            )


def padding(subject: Subject) -> str:
    """Returns the lengths compared: what follows a sequence does not change what was computed for it."""
    if not subject.spec.causal:
        raise NotApplicable("declared non-causal: what follows may count")
    module, inputs = subject.build(subject.exact), subject.inputs(LENGTHS[-1])
    wanted = subject.value(module, inputs)
    error, lengths = 0.0, [subject.length(T) for T in (1, 16, 63, 64, 65, 128)]
    for T in lengths:
        got = subject.value(module, inputs.cut(0, T))
        require_close(got, wanted[:, :T], subject.exact_error, f"T = {T} alone and as the beginning of a longer one")
        error = max(error, relative_error(got, wanted[:, :T]))
    return f"T = {', '.join(map(str, lengths))}: largest error {error:.1g}"
