"""For the tests of a plugin: the whole contract kit in one line.

from harness.testing import mixer_contract

test_ema = mixer_contract("ema")
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from harness.check.kit import PROMISES, chosen, find
from harness.check.promise import BROKEN, NOT_APPLICABLE, WAIVED
from harness.check.subject import Subject
from harness.errors import InputError
from harness.plugins import load_registry

BY_NAME = {promise.name: promise for promise in PROMISES}


def mixer_contract(
    mixer: str, *, plugin: Path | str | None = None, device: str = "cpu", promises: Sequence[str] = ()
) -> Callable[[str], None]:
    """Returns a pytest test with one case a promise; assign it to a name that begins with `test_`.

    `mixer` is what --mixer takes: `ema`, `gla/triton`, `base_conv(kernel=3)`; `plugin` is a bare file that registers
    it; `promises` are those to test, all where none is named. A waived promise is an expected failure, one that does
    not apply is skipped with its reason.
    """
    registry = load_registry([] if plugin is None else [str(plugin)])
    try:
        subject = Subject(registry, registry.mixer(mixer), device)
    except InputError as error:
        problems = "".join(f"\n{problem}" for problem in registry.problems)
        raise InputError(f"{error}{problems}") from error

    @pytest.mark.parametrize("promise", [promise.name for promise in chosen(promises)])
    def keeps(promise: str) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the tensors are small, and tests may run side by side
        try:
            finding = find(subject, BY_NAME[promise])
        finally:
            torch.set_num_threads(threads)
        if finding.verdict == BROKEN:
            pytest.fail(f"{subject.spec.full_name} breaks {promise}: {finding.detail}", pytrace=False)
        if finding.verdict == WAIVED:
            pytest.xfail(finding.detail)
        if finding.verdict == NOT_APPLICABLE:
            pytest.skip(finding.detail)

    return keeps
