"""The numbers are right: against the reference, between implementations, in the declared dtypes."""

import torch
from torch import Tensor, nn

from harness.check.compare import relative_error, require_close
from harness.check.promise import BrokenPromise, NotApplicable
from harness.check.subject import DTYPES, HALVES, LENGTHS, Inputs, Subject, load_weights, weighted_sum, widest
from harness.plugins import unavailable

GRADIENT_FACTOR = 10  # gradients add B * T rounded terms where the output adds a few
LEAST_GRADIENT = 1e-3  # of the largest gradient: a parameter that hardly counts is measured against that
# In half precision a bias, whose terms nearly cancel, keeps their rounding: attention in bfloat16 is off by 0.12 of the
# gradient of such a bias, by 0.02 of what it is measured against here.
HALF_GRADIENT_FACTOR, HALF_LEAST_GRADIENT = 5, 0.1
STEP = 1e-2  # of the finite difference, in units of the input's spread
SLOPE_ERROR = 1e-2


def reference(subject: Subject) -> str:
    """Returns the largest errors of forward and gradients against the reference in float64, for two layer indices."""
    worst = {subject.widest: [0.0, 0.0], **({"float64": [0.0, 0.0]} if subject.exact == torch.float64 else {})}
    for layer in (0, 1):
        fast = subject.build(layer=layer)
        exact = subject.twin(fast, layer)
        for T in LENGTHS:
            narrow = subject.inputs(T, subject.dtype)
            inputs = Inputs(narrow.x.to(torch.float64), narrow.tokens)  # the same numbers: rounding x is nobody's error
            wanted, slopes = subject.value(exact, inputs), subject.gradients(exact, inputs)
            for dtype, errors in worst.items():
                module = fast if dtype == subject.widest else _converted(subject, fast, dtype, layer)
                found = _compare(
                    subject, module, Inputs(inputs.x.to(DTYPES[dtype]), inputs.tokens), dtype, wanted, slopes
                )
                errors[:] = [max(pair) for pair in zip(errors, found, strict=True)]
    said = [f"{dtype} {forward:.1g}, gradients {backward:.1g}" for dtype, (forward, backward) in worst.items()]
    return f"{'; '.join(said)} (allowed {subject.max_error(subject.widest):.1g} in {subject.widest})"


def _converted(subject: Subject, module: nn.Module, dtype: str, layer: int) -> nn.Module:
    twin = subject.build(DTYPES[dtype], layer=layer)
    load_weights(twin, module, "the same layer")
    return twin


def _compare(
    subject: Subject, module: nn.Module, inputs: Inputs, dtype: str, wanted: Tensor, slopes: dict[str, Tensor]
) -> tuple[float, float]:
    """Returns the errors of (output, gradients); too large a one breaks the promise."""
    T, allowed = inputs.x.shape[1], subject.max_error(dtype)
    forward = require_close(subject.value(module, inputs), wanted, allowed, f"{dtype}, T = {T}, output")
    got, half = subject.gradients(module, inputs), dtype in HALVES
    return forward, require_close_gradients(got, slopes, allowed, half, f"{dtype}, T = {T}")


def require_close_gradients(
    got: dict[str, Tensor], wanted: dict[str, Tensor], allowed: float, half: bool, what: str
) -> float:
    """Returns the largest error of the gradients; `allowed` is that of the output, `half` whether in half precision."""
    largest = max(float(slope.abs().max()) for slope in wanted.values())
    worst, most = 0.0, (HALF_GRADIENT_FACTOR if half else GRADIENT_FACTOR) * allowed
    least = (HALF_LEAST_GRADIENT if half else LEAST_GRADIENT) * largest
    for name, slope in got.items():
        error = relative_error(slope, wanted[name], least)
        if not error <= most:
            raise BrokenPromise(f"{what}, gradient of {name}: error {error:.2g} of the largest, allowed is {most:.2g}")
        worst = max(worst, error)
    return worst


def gradients(subject: Subject) -> str:
    """Returns how many parameters a gradient reaches: each of them, and every one finite."""
    module = subject.build().train()
    for T in (1, 63, 129):
        found = subject.gradients(module, subject.inputs(T, subject.dtype))
        for name, gradient in found.items():
            if not bool(torch.isfinite(gradient).all()):
                raise BrokenPromise(f"T = {T}: the gradient of {name} is not finite")
            if T > 1 and not bool(gradient.any()):
                raise BrokenPromise(f"T = {T}: no gradient reaches {name}: use it in forward, or remove it")
    return f"{len(found) - 1} parameters and the input"


def slope(subject: Subject) -> str:
    """Returns how well a small step follows the gradient: rounding to fewer bits inside makes it jump."""
    if subject.exact != torch.float64:
        raise NotApplicable("does not compute in float64; the comparison with the reference covers its dtypes")
    module, inputs = subject.build(torch.float64), subject.inputs(63)
    direction = subject.gradients(module, inputs)["x"]
    steepness = float(direction.norm())
    if steepness == 0:
        raise BrokenPromise("the gradient of the input is zero everywhere")
    direction = direction / steepness

    def central(step: float) -> float:
        ends = [subject.value(module, Inputs(inputs.x + sign * step * direction, inputs.tokens)) for sign in (1, -1)]
        return float(weighted_sum(ends[0] - ends[1])) / (2 * step)

    measured = (4 * central(STEP / 2) - central(STEP)) / 3  # Richardson: the error of a smooth function is of order 4
    error = abs(measured - steepness) / steepness
    if not error <= SLOPE_ERROR:
        raise BrokenPromise(
            f"a step of {STEP} changes the output by {measured / steepness:.3g} times what the gradient says, "
            f"allowed is 1 ± {SLOPE_ERROR}: backward is wrong, or forward rounds to fewer bits than its dtype"
        )
    return f"finite difference and gradient agree to {error:.1g}"


def implementations(subject: Subject) -> str:
    """Returns the implementations that compute the same from the same weights, in the widest dtype of both."""
    compared = []
    for other in subject.registry.implementations(subject.spec.name):
        shared = [dtype for dtype in subject.spec.dtypes if dtype in other.dtypes]
        if other is subject.spec or subject.device not in other.devices or not shared or unavailable(other):
            continue
        dtype = widest(shared)
        module, inputs = subject.build(DTYPES[dtype]), subject.inputs(63, DTYPES[dtype])
        twin = subject.prepared(other.build, DTYPES[dtype], 1, 0)
        load_weights(twin, module, other.full_name)
        allowed = subject.max_error(dtype) + float(other.max_error.get(dtype, 0.0))
        what = f"{other.full_name} with the same weights in {dtype}"
        require_close(subject.value(twin, inputs), subject.value(module, inputs), allowed, what)
        compared.append(f"{other.full_name} in {dtype}")
    if not compared:
        raise NotApplicable("no other implementation with a dtype in common is available here")
    return f"equal to {', '.join(compared)}"


def autocast(subject: Subject) -> str:
    """Returns the errors under autocast in each declared half precision."""
    declared = [dtype for dtype in subject.spec.dtypes if dtype in HALVES]
    if not declared:
        raise NotApplicable("declares float32 only")
    module, said = subject.build(torch.float32), []
    exact = subject.twin(module)
    for dtype in declared:
        worst = 0.0
        for T in (1, 63):
            inputs = subject.inputs(T, torch.float64)
            with torch.no_grad(), torch.autocast(subject.device, DTYPES[dtype]):
                got = subject.call(module, Inputs(inputs.x.float(), inputs.tokens))
            what = f"under autocast to {dtype}, T = {inputs.x.shape[1]}"
            worst = max(worst, require_close(got, subject.value(exact, inputs), subject.max_error(dtype), what))
        said.append(f"{dtype} {worst:.1g} (allowed {subject.max_error(dtype):.1g})")
    return "; ".join(said)
