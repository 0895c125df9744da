"""What tests share. That this file is here puts `made_plugins` on the path of every test below."""

import sys

import pytest


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Returns an empty folder at the front of sys.path; what is imported from it is forgotten after the test."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]
