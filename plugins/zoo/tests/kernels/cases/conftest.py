"""Every buffer a kernel gets lies between two bands of NaN: what reads outside gives NaN, what writes outside shows."""

import pytest
import torch
from kernel_support import Guards


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch):
    guards = Guards(torch.empty)
    monkeypatch.setattr(torch, "empty", guards.empty)
    yield guards
    guards.check()
