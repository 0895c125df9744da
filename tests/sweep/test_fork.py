import os

import pytest
import torch

from harness.errors import HarnessError
from harness.sweep.fork import can_fork, in_a_copy

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system does not copy processes")


def test_a_copy_answers_and_leaves_nothing_behind():
    kept = []
    assert in_a_copy(lambda: kept.append(1) or [os.getpid() != parent, None, 1.5, "µ"]) == [True, None, 1.5, "µ"]
    assert kept == []


parent = os.getpid()


def stops():
    raise SystemExit(3)


def breaks():
    raise HarnessError("not today")


def patches():
    torch.equal = lambda a, b: True


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (stops, "SystemExit: 3"),
        (breaks, "^not today$"),
        (lambda: os._exit(5), "without an answer"),
        (patches, "a plugin replaced torch.equal"),
    ],
)
def test_whatever_happens_in_a_copy_is_one_error_here(work, message):
    before = torch.equal
    with pytest.raises(HarnessError, match=message):
        in_a_copy(work)
    assert torch.equal is before
