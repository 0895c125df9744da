"""A new plugin is green before its author's first line."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import __version__
from harness.errors import InputError
from harness.plugins import load_registry
from harness.scaffold import FILES, TEMPLATE, supported_range, write_plugin

RUN = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def installed(tmp_path, name="my_mixer"):
    """Returns the folder of a new plugin with the metadata pip would write, and the path to import it from."""
    written = write_plugin(name, tmp_path)
    info = written.folder / f"mixer_harness_{name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mixer-harness-{name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[mixer_harness]\n{name} = harness_{name}\n")
    return written.folder


def own_lines(file):
    """Returns the lines that are code: no blank line, comment, docstring or import."""
    tree = ast.parse(file.read_text())
    lines = set()
    for node in ast.walk(tree):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not is_docstring and not isinstance(node, ast.Import | ast.ImportFrom):
            inner = getattr(node, "body", None)
            lines |= set(range(node.lineno, (inner[0].lineno if inner else node.end_lineno + 1)))
    blank = {
        n for n, line in enumerate(file.read_text().splitlines(), 1) if not line.strip() or line.strip()[0] in '#"'
    }
    return len(lines - blank)


def test_every_file_of_the_template_is_written_and_no_placeholder_is_left(tmp_path):
    written = write_plugin("my_mixer", tmp_path / "not" / "there" / "yet")
    assert len(written.files) == len(FILES) == len(list(TEMPLATE.iterdir()))
    for file in written.files:
        text = file.read_text()
        assert "$" not in text.replace("${{ matrix", "")
        if file.suffix == ".py":
            compile(text, file.name, "exec")


def test_the_new_plugin_keeps_every_promise_as_generated(tmp_path):
    folder = installed(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    out = subprocess.run(RUN, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert out.returncode == 0, out.stdout
    assert "passed" in out.stdout


def test_the_new_plugin_loads_and_declares_the_range_of_this_core(tmp_path, monkeypatch):
    folder = installed(tmp_path, "fresh_one")
    monkeypatch.syspath_prepend(folder)
    registry = load_registry()
    assert registry.problems == ()
    assert str(registry.mixer("fresh_one(kernel=3)")) == "fresh_one/torch(kernel=3)"
    assert f'"mixer-harness{supported_range(__version__)}"' in (folder / "pyproject.toml").read_text()


def test_the_test_of_a_contract_is_one_line(tmp_path):
    (file,) = [file for file in write_plugin("my_mixer", tmp_path).files if file.name == "test_contract.py"]
    code = [line for line in file.read_text().splitlines() if line and not line.startswith(('"""', "from"))]
    assert code == ['test_my_mixer = mixer_contract("my_mixer")']


def test_what_an_author_writes_is_at_most_forty_lines(tmp_path):
    files = {file.name: file for file in write_plugin("my_mixer", tmp_path).files}
    assert 20 < own_lines(files["layer.py"]) + own_lines(files["reference.py"]) <= 40
    assert all(
        "EDIT" in files[name].read_text() for name in ("layer.py", "reference.py", "__init__.py", "pyproject.toml")
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Gated-Conv", "for example 'gated_conv'"),
        ("7th", "for example 'my_mixer'"),
        ("", "for example 'my_mixer'"),
        ("../up", "for example 'up'"),
        ("lambda", "for example 'lambda_mixer'"),
        ("match", "a word of the Python language"),
        ("attention", "mixer 'attention' exists: mixer-harness 0.1.0"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_error_with_the_fix(tmp_path, name, says):
    with pytest.raises(InputError) as refused:
        write_plugin(name, tmp_path)
    assert says in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_installed_already_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "harness_taken.py").write_text("")
    with pytest.raises(InputError, match="the package harness_taken is installed already"):
        write_plugin("taken", tmp_path)


def test_a_folder_that_exists_is_left_alone(tmp_path):
    write_plugin("my_mixer", tmp_path)
    kept = tmp_path / "mixer-harness-my-mixer" / "harness_my_mixer" / "layer.py"
    kept.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_plugin("my_mixer", tmp_path)
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("version", "range_"), [("0.1.0", ">=0.1,<0.2"), ("0.9.3", ">=0.9,<0.10"), ("1.4.0.dev1", ">=1.4,<2")]
)
def test_the_range_ends_before_the_next_version_that_may_break(version, range_):
    assert supported_range(version) == range_


def test_the_template_is_shipped():
    assert '"scaffold/template/*"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()
