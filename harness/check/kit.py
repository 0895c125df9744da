"""The promises, in the order in which they are checked, and the run of the kit over one mixer."""

import time
from collections.abc import Callable, Sequence

from harness.check import causality, copies, decode, effects, forward_at, invariance, numbers, shape
from harness.check.promise import BROKEN, KEPT, NOT_APPLICABLE, WAIVED, Finding, NotApplicable, Promise
from harness.check.report import CheckReport
from harness.check.subject import Subject
from harness.errors import HarnessError, InputError, nearest

PROMISES = (
    Promise("listing", "every command lists every plugin, so none may make listing slow", effects.listing),
    Promise("shape", "a layer is exchanged for another one without changing the model around it", shape.shape),
    Promise("causality", "a mixer that sees the future recalls what it should predict", causality.causality, False),
    Promise("padding", "a score must not depend on what a batch was padded with", causality.padding, False),
    Promise("reference", "speed counts only for the function that was claimed", numbers.reference),
    Promise("implementations", "one name is one function, whatever computes it", numbers.implementations, False),
    Promise("slope", "a silent drop to fewer bits buys speed with accuracy", numbers.slope),
    Promise("gradients", "a parameter without gradient is counted but cannot learn", numbers.gradients),
    Promise("autocast", "a declared dtype is one that was tried", numbers.autocast),
    Promise(
        "forward_at", "scores come from the positions asked for, times from all of them", forward_at.forward_at, False
    ),
    Promise("step", "decode time is the time of the same function", decode.step),
    Promise("state_bytes", "recall is bought with state, so state is measured", decode.state_bytes),
    Promise(
        "isolation", "state that hides in the layer is not counted and mixes sequences up", decode.isolation, False
    ),
    Promise("batch", "a score must not depend on which sequences share a batch", invariance.batch, False),
    Promise("determinism", "a result that cannot be repeated cannot be checked", invariance.determinism),
    Promise("fresh", "a cached result is fast and wrong", invariance.fresh, False),
    Promise("on_time", "time is taken when forward returns, so the work is done by then", invariance.on_time, False),
    Promise("side_effects", "one mixer must not change how the next one runs", effects.side_effects, False),
    Promise("scratch", "uninitialised memory is sometimes zero, and then sometimes not", effects.scratch),
    Promise("layout", "a view is an input like any other", shape.layout),
    Promise("beyond_max_len", "too long an input is refused, not answered with something else", shape.beyond_max_len),
    Promise("copies", "what was trained is what is tested, timed and shared", copies.copies),
)
NAMES = tuple(promise.name for promise in PROMISES)


def chosen(names: Sequence[str]) -> list[Promise]:
    """Returns the promises of those names, all of them where none is named."""
    by_name = {promise.name: promise for promise in PROMISES}
    for name in names:
        if name not in by_name:
            raise InputError(f"unknown promise {name!r}: {nearest(name, NAMES)}")
    return [by_name[name] for name in names] or list(PROMISES)


def run_kit(
    subject: Subject, names: Sequence[str] = (), begins: Callable[[int, int, str], None] | None = None
) -> CheckReport:
    """Returns the report over the promises of those names (none: all).

    `begins(number, of, promise)` is called before each, so that somebody knows of which one the process died.
    """
    promises, findings = chosen(names), []
    for number, promise in enumerate(promises):
        if begins is not None:
            begins(number, len(promises), promise.name)
        findings.append(find(subject, promise))
    return CheckReport((*findings, *_misspelt(subject)), dtype=subject.widest)


def find(subject: Subject, promise: Promise) -> Finding:
    """Returns what was found of one promise; whatever the plugin raises breaks it."""
    reason = subject.spec.expected_failures.get(promise.name)
    started = time.perf_counter()
    try:
        before = effects.switches()
        verdict, detail = KEPT, promise.test(subject)
        effects.require_same(before, effects.switches(), f"the mixer, while {promise.name} was checked,")
    except NotApplicable as error:
        verdict, detail = NOT_APPLICABLE, str(error)
    except HarnessError as error:
        verdict, detail = BROKEN, str(error)
    except Exception as error:
        verdict, detail = BROKEN, f"{type(error).__name__}: {error}"
    detail = " ".join(detail.split())
    if reason is not None:
        verdict, detail = _excused(promise, reason, verdict, detail)
    return Finding(promise.name, verdict, detail, time.perf_counter() - started)


def _excused(promise: Promise, reason: str, verdict: str, detail: str) -> tuple[str, str]:
    """Returns (verdict, detail) of a promise for which the spec expects a failure, and says why."""
    if verdict == BROKEN and promise.waivable:
        return WAIVED, f"{reason} ({detail})"
    if verdict == BROKEN:
        return BROKEN, f"{detail}; expected_failures cannot excuse {promise.name}, as {promise.why}"
    return BROKEN, f"expected to fail ({reason}), but it is {verdict}: {detail}; remove it from expected_failures"


def _misspelt(subject: Subject) -> list[Finding]:
    """Returns one finding for each expected failure that names no promise."""
    return [
        Finding(name, BROKEN, f"expected_failures names no promise of the kit: {nearest(name, NAMES)}")
        for name in subject.spec.expected_failures
        if name not in NAMES
    ]
