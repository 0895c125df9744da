"""A new plugin from the template: a complete package with one working mixer, green before its author's first line."""

import importlib.util
import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from harness import __version__
from harness.discovery import CORE
from harness.errors import InputError
from harness.plugins import Registry, load_registry
from harness.spec import NAME

TEMPLATE = Path(__file__).parent / "template"
FILES = {  # of the new plugin -> of the template
    "pyproject.toml": "pyproject.toml.in",
    "README.md": "README.md.in",
    "$package/__init__.py": "init.py.in",
    "$package/layer.py": "layer.py.in",
    "$package/reference.py": "reference.py.in",
    "tests/test_contract.py": "test_contract.py.in",
    ".github/workflows/tests.yml": "tests.yml.in",
}


@dataclass(frozen=True)
class WrittenPlugin:
    """What was written, and where."""

    folder: Path
    files: tuple[Path, ...]


def write_plugin(name: str, parent: Path) -> WrittenPlugin:
    """Returns the files of a new plugin with the mixer `name`, written to a new folder of `parent`."""
    _check_name(name, load_registry())
    words = {
        "name": name,
        "package": f"harness_{name}",
        "distribution": f"{CORE}-{name.replace('_', '-')}",
        "range": supported_range(__version__),
    }
    folder = parent / words["distribution"]
    if folder.exists():
        raise InputError(f"{folder} exists already; choose another name, or another place with --dir DIR")
    files = []
    for path, source in FILES.items():
        file = folder / Template(path).substitute(words)
        file.parent.mkdir(parents=True, exist_ok=True)
        text = (TEMPLATE / source).read_text(encoding="utf-8")
        file.write_text(Template(text).substitute(words), encoding="utf-8")
        files.append(file)
    return WrittenPlugin(folder, tuple(files))


def supported_range(version: str) -> str:
    """Returns the range of cores a plugin made for `version` declares: to the next version that may break it."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor},<{major + 1}" if major else f">=0.{minor},<0.{minor + 1}"


def _check_name(name: str, registry: Registry) -> None:
    if not NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        near = near if NAME.fullmatch(near) else "my_mixer"
        raise InputError(f"{name!r} cannot name a mixer; use lower-case letters, digits and _, for example {near!r}")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise InputError(f"{name!r} is a word of the Python language; take another name, for example '{name}_mixer'")
    taken = registry.implementations(name)
    if taken:
        raise InputError(
            f"mixer {name!r} exists: {registry.origin(taken[0])} registers it; take another name (harness mixers lists "
            "them), or add an implementation to it by hand"
        )
    if importlib.util.find_spec(f"harness_{name}") is not None:
        raise InputError(f"the package harness_{name} is installed already; take another name, for example '{name}_2'")
