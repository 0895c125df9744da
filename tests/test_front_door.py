"""`harness` is what plugins import from: what it offers, it has."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import harness


@pytest.mark.parametrize("name", harness.__all__)
def test_every_name_offered_can_be_imported(name):
    value = getattr(harness, name)
    if name != "__version__":
        assert value is getattr(import_module(harness._HOME[name]), name)


def test_type_checkers_see_the_same_names_from_the_same_modules():
    seen = {}
    for node in ast.parse(Path(harness.__file__).read_text()).body:
        if isinstance(node, ast.If):
            for line in node.body:
                seen |= {alias.asname: line.module for alias in line.names if alias.asname == alias.name}
    assert seen == harness._HOME
    assert sorted(harness.__all__) == sorted([*seen, "__version__"])


def test_a_name_it_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'MixerSpecs'"):
        _ = harness.MixerSpecs
