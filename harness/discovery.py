"""Which plugins there are: entry points and files, read from metadata alone. Nothing of a plugin is imported here."""

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import __version__
from harness.errors import InputError, SpecError, nearest
from harness.hookspecs import PROJECT

ONLY = "HARNESS_PLUGINS"  # comma-separated entry-point names: load only these
CORE = "mixer-harness"
FILE = "file"  # the version of a plugin that is a bare file
# a requirement on the core that names a range; mixer-harness-zoo is another distribution
CORE_RANGE = re.compile(r"mixer[-_.]harness\s*[\[(;@<>=!~]", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """Where a spec comes from."""

    plugin: str  # the entry point's name, or the file
    distribution: str
    version: str
    module: str
    root: Path  # the top-level package or file whose source decides what the plugin computes

    def code_sha256(self) -> str:
        """Returns the SHA-256 over the plugin's Python sources: an edited plugin is another plugin."""
        return source_sha256(sorted(self.root.rglob("*.py")) if self.root.is_dir() else [self.root], self.root)

    @property
    def removal(self) -> str:
        """Returns what to type to be rid of the plugin."""
        return f"drop --plugin {self.plugin}" if self.version == FILE else f"pip uninstall {self.distribution}"

    def __str__(self) -> str:
        return self.plugin if self.version == FILE else f"{self.distribution} {self.version} ({self.plugin})"


@dataclass(frozen=True)
class Problem:
    """Why a plugin, or some names of it, are not used, and the command that helps."""

    plugin: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.plugin}: {self.cause}; {self.fix}"


@dataclass(frozen=True)
class FoundPlugin:
    """A plugin as its metadata describes it, not imported yet."""

    origin: Origin
    load: Callable[[], Any]  # imports it and returns the object that holds the hooks
    requires: tuple[str, ...] = ()  # the Requires-Dist lines of its distribution
    selected: bool = True  # False where HARNESS_PLUGINS leaves it out
    hides: tuple[str, ...] = ()  # other versions of the distribution that lie behind it on sys.path


def source_sha256(files: Iterable[Path], root: Path) -> str:
    """Returns the SHA-256 over the names (relative to `root`) and contents of source files."""
    sha = hashlib.sha256()
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        sha.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()


def find_plugins(files: Sequence[str] = ()) -> tuple[list[FoundPlugin], list[Problem]]:
    """Returns the plugins, the core's own first and the files last, and what about the metadata is wrong."""
    problems: list[Problem] = []
    wanted = _wanted()
    found = [plugin for one in _installed(problems) for plugin in _plugins_of(one, wanted)]
    found.sort(key=_order)
    names = {plugin.origin.plugin for plugin in found}
    for name in sorted((wanted or set()) - names):
        cause = f"{name!r} is no installed plugin: {nearest(name, names)}"
        problems.append(Problem(ONLY, cause, "list them: harness plugins list"))
    paths = {Path(path).resolve(): path for path in reversed(files)}  # one file named twice is one plugin
    return found + [_file(path) for path in reversed(paths.values())], problems


def _order(plugin: FoundPlugin) -> tuple[bool, str, str]:
    return plugin.origin.distribution != CORE, plugin.origin.distribution, plugin.origin.plugin


def unmet_range(requires: Iterable[str]) -> str | None:
    """Returns the range of the core that a distribution declares and this core does not lie in, or None."""
    for line in requires:
        if not CORE_RANGE.match(line):
            continue
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            needs = Requirement(line)
        except InvalidRequirement as error:
            raise SpecError(f"its metadata says Requires-Dist: {line}, which is no requirement") from error
        applies = needs.marker is None or needs.marker.evaluate({"extra": ""})
        if applies and not needs.specifier.contains(__version__, prereleases=True):
            return str(needs.specifier)
    return None


def _wanted() -> set[str] | None:
    """Returns the names in HARNESS_PLUGINS, or None where it is not set."""
    only = os.environ.get(ONLY)
    return None if only is None else {name.strip() for name in only.split(",") if name.strip()}


@dataclass(frozen=True)
class _Distribution:
    """What the metadata of one installed distribution says."""

    name: str
    version: str
    requires: tuple[str, ...]
    points: tuple[metadata.EntryPoint, ...]
    folder: str


def _installed(problems: list[Problem]) -> Iterable[list[_Distribution]]:
    """Returns the distributions that have plugins: those of one name together, the one Python imports first.

    Our own loop, not `metadata.entry_points`, in which one unreadable file ends the search for all.
    """
    found: dict[str, list[_Distribution]] = {}
    for distribution in metadata.distributions():
        try:
            if PROJECT in (distribution.read_text("entry_points.txt") or ""):
                one = _read(distribution)
                found.setdefault(re.sub(r"[-_.]+", "-", one.name).lower(), []).append(one)
        except Exception as error:
            path = getattr(distribution, "_path", distribution.locate_file(""))
            cause = " ".join(f"its metadata cannot be read ({type(error).__name__}: {error})".split())
            problems.append(Problem(str(path), cause, "install the distribution again, or remove this folder"))
    return found.values()


def _read(distribution: metadata.Distribution) -> _Distribution:
    facts = distribution.metadata
    for needed in ("Name", "Version"):
        if needed not in facts:
            raise SpecError(f"METADATA has no {needed}")
    return _Distribution(
        name=facts["Name"],
        version=facts["Version"],
        requires=tuple(facts.get_all("Requires-Dist") or ()),
        points=tuple(distribution.entry_points.select(group=PROJECT)),
        folder=str(distribution.locate_file("")),
    )


def _plugins_of(same_name: list[_Distribution], wanted: set[str] | None) -> Iterator[FoundPlugin]:
    first, *behind = same_name
    for point in first.points:
        yield FoundPlugin(
            origin=_origin(point, first.name, first.version),
            load=point.load,
            requires=first.requires,
            selected=wanted is None or point.name in wanted or first.name == CORE,
            hides=tuple(f"{old.name} {old.version} in {old.folder}" for old in behind if old.version != first.version),
        )


def _origin(point: metadata.EntryPoint, distribution: str, version: str) -> Origin:
    match = point.pattern.match(point.value)
    module = match.group("module") if match else point.value  # a value that is none fails when it is loaded
    # the core is no one plugin: each of its entry points is its own module, the rest is the protocol
    root = _root(module if distribution == CORE else module.partition(".")[0])
    return Origin(point.name, distribution, version, module, root)


def _root(module: str) -> Path:
    """Returns the folder or file that holds the module, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(module if spec is None or spec.origin is None else spec.origin)


def _file(path: str) -> FoundPlugin:
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        what = "is not a Python file" if file.exists() else "does not exist"
        raise InputError(f"plugin file {path!r} {what}; --plugin takes a Python file (.py) with hooks in it")
    name = f"harness_plugin_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    return FoundPlugin(Origin(file.name, file.name, FILE, name, file), lambda: _module(name, file))


def _module(name: str, file: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass in it looks its module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
