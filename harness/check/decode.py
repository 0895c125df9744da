"""Token by token: the same function, in a state of the declared size, that lies in the state alone."""

import copy
from typing import Any

import torch

from harness.check.compare import relative_error, require_close
from harness.check.promise import BrokenPromise, NotApplicable
from harness.check.subject import Inputs, Subject
from harness.timing.memory import held_bytes

FLOAT_BYTES = 4  # state_bytes are declared for float32, whatever the kit computes in
PREFIX, SUFFIX = 21, 12
SIZES = (1, 17, 64)


def step(subject: Subject) -> str:
    """Returns the error of stepping against forward, from the initial state and from a continued one."""
    module = subject.require_step(subject.build(subject.exact))
    inputs, other = subject.inputs(PREFIX + SUFFIX), subject.inputs(PREFIX + SUFFIX, seed=2)
    branch = Inputs(
        torch.cat((inputs.x[:, :PREFIX], other.x[:, PREFIX:]), dim=1),
        torch.cat((inputs.tokens[:, :PREFIX], other.tokens[:, PREFIX:]), dim=1),
    )
    state = _initial(subject, module, inputs)
    begun, state = subject.decode(module, inputs.cut(0, PREFIX), state)
    kept, worst = copy.deepcopy(state), 0.0
    for whole, start in ((inputs, state), (branch, kept)):
        wanted = subject.value(module, whole)
        rest, _ = subject.decode(module, whole.cut(PREFIX, PREFIX + SUFFIX), start)
        got = torch.cat((begun, rest), dim=1)
        require_close(got, wanted, subject.exact_error, "stepping against forward")
        worst = max(worst, relative_error(got, wanted))
    also = ""
    if hasattr(module, "prefill"):
        worst, also = max(worst, _prefilled(subject, module, inputs)), ", after a prefill too"
    return f"{PREFIX + SUFFIX} steps, two continuations{also}: largest error {worst:.1g}"


def _prefilled(subject: Subject, module: Any, inputs: Inputs) -> float:
    """Returns the error of the outputs of `prefill`, and of steps from the state that it leaves, against forward."""
    begun, state = subject.prefill(module, inputs.cut(0, PREFIX))
    rest, _ = subject.decode(module, inputs.cut(PREFIX, PREFIX + SUFFIX), state)
    got, wanted = torch.cat((begun, rest), dim=1), subject.value(module, inputs)
    require_close(got, wanted, subject.exact_error, "prefill, and stepping on from its state, against forward")
    return relative_error(got, wanted)


def state_bytes(subject: Subject) -> str:
    """Returns the bytes of the real state after some tokens; they are the declared ones, and nothing grows beside."""
    module = subject.require_step(subject.build())
    measured = {T: _measured(subject, module, T) for T in SIZES}
    said = ", ".join(f"{n:,} at T = {T}" for T, n in measured.items())
    if subject.spec.state_bytes is None:
        raise BrokenPromise(
            f"state_bytes is not declared; measured per sequence: {said} bytes. "
            "Add state_bytes=lambda config, T: … to the MixerSpec"
        )
    for T, n_bytes in measured.items():
        declared = subject.spec.state_bytes(subject.config(), T)
        if declared != n_bytes:
            raise BrokenPromise(
                f"state_bytes declares {declared:,} bytes per sequence at T = {T}, the real state holds {n_bytes:,} "
                f"(measured: {said})"
            )
    return f"{said} bytes, as declared"


def _measured(subject: Subject, module: Any, T: int) -> int:
    inputs = subject.inputs(T, subject.dtype, batch=1)
    before = held_bytes(vars(module))
    _, state = subject.decode(module, inputs, _initial(subject, module, inputs))
    grown = held_bytes(vars(module)) - before
    if grown:
        raise BrokenPromise(f"the layer itself held {grown:,} bytes more after {T} steps: state belongs into the state")
    n_bytes = held_bytes(state, besides=module, halves_as=FLOAT_BYTES)
    if hasattr(module, "prefill"):
        _, state = subject.prefill(module, inputs)
        prefilled = held_bytes(state, besides=module, halves_as=FLOAT_BYTES)
        if prefilled != n_bytes:
            raise BrokenPromise(
                f"after {T} tokens the state of prefill holds {prefilled:,} bytes per sequence and that of step "
                f"{n_bytes:,}: return copies of what is kept, since a slice keeps all that it was cut from"
            )
    return n_bytes


def isolation(subject: Subject) -> str:
    """Returns how decoding was disturbed: another sequence in between changes nothing, so no state hides elsewhere."""
    module = subject.require_step(subject.build(subject.exact))
    ours, theirs = subject.inputs(SUFFIX), subject.inputs(SUFFIX, seed=3)
    wanted, _ = subject.decode(module, ours, _initial(subject, module, ours))
    state, other = _initial(subject, module, ours), _initial(subject, module, theirs)
    outputs = []
    with torch.no_grad():
        for now, foreign in zip(ours.steps(), theirs.steps(), strict=True):
            y_t, state = subject.step(module, now, state)
            outputs.append(y_t)
            _, other = subject.step(module, foreign, other)
            subject.call(module, theirs)
    what = "decoding with another sequence's steps in between"
    require_close(torch.stack(outputs, dim=1), wanted, subject.exact_error, what)
    return f"{SUFFIX} steps between those of another sequence"


def _initial(subject: Subject, module: Any, inputs: Inputs) -> Any:
    if subject.spec.len_multiple != 1:
        raise NotApplicable(f"len_multiple = {subject.spec.len_multiple}: single steps are not compared with forward")
    return module.initial_state(inputs.x.shape[0], inputs.x.device, inputs.x.dtype)
