"""Imports go one way: a module imports only from its own layer's left."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent
LAYERS = [
    {"errors"},
    {"config", "pattern"},
    {"spec"},
    {"hookspecs", "discovery", "plugins", "doctor", "scaffold"},
    {"tasks", "baselines", "attention", "model", "suites"},
    {"capture", "determinism", "train", "timing", "check", "record", "store", "verify"},
    {"sweep", "board"},
    {"cli", "testing", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harness"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("harness.")]


def files():
    return [f for f in sorted(ROOT.rglob("*.py")) if f != ROOT / "__init__.py"]


@pytest.mark.parametrize("file", files(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_no_import_points_back(file):
    own = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no layer yet: add it to the design and to this test"
    for name in imports(file):
        if name in LEVEL:
            assert LEVEL[name] <= LEVEL[own], f"{file.name} ({own}) imports {name}"


@pytest.mark.parametrize("file", files(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_the_core_never_imports_a_plugin(file):
    assert "import harness_" not in file.read_text()
    assert "from harness_" not in file.read_text()


def plugin_files():
    return sorted((ROOT.parent / "plugins").glob("*/harness_*/**/*.py"))


@pytest.mark.parametrize("file", plugin_files(), ids=lambda f: "/".join(f.parts[-3:]))
def test_plugins_import_from_the_front_door_only(file):
    own = next(p for p in file.parts if p.startswith("harness_"))
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harness"):
            assert node.module == "harness" or node.module.split(".")[0] == own, node.module
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("harness.") for a in node.names)


@pytest.mark.parametrize(
    "statement",
    ["import harness", "import harness.plugins as p; p.load_registry()", "import harness.cli"],
)
def test_listing_imports_neither_torch_nor_numpy(statement):
    code = f"{statement}\nimport sys\nprint([m for m in ('torch', 'numpy', 'triton', 'xformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
