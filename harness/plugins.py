"""How plugins are found: our own guarded loop over entry points, so that one broken plugin is one line of cause."""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from harness import hookspecs
from harness.config import with_setting
from harness.errors import InputError, SpecError, UnavailableError, nearest
from harness.pattern import MixerChoice, parse_mixer
from harness.spec import MixerSpec, SuiteSpec, TaskSpec

ONLY = "HARNESS_PLUGINS"  # comma-separated entry-point names: load only these
CORE = "mixer-harness"
FILE = "file"  # the version of a plugin that is a bare file

Spec = TypeVar("Spec", MixerSpec, TaskSpec, SuiteSpec)


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
    """A plugin, or one name of it, that was not loaded."""

    plugin: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.plugin}: {self.cause}; {self.fix}"


def source_sha256(files: Iterable[Path], root: Path) -> str:
    """Returns the SHA-256 over the names (relative to `root`) and contents of source files."""
    sha = hashlib.sha256()
    for file in files:
        name = file.name if file == root else file.relative_to(root).as_posix()
        sha.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()


@dataclass
class Registry:
    """Everything that was registered, by name, and what was not and why."""

    mixers: dict[str, MixerSpec] = field(default_factory=dict)
    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    suites: dict[str, SuiteSpec] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    files: tuple[str, ...] = ()  # --plugin files, so that a worker loads the same ones
    _origins: dict[tuple[str, str], Origin] = field(default_factory=dict)
    _modules: list[tuple[Origin, Any]] = field(default_factory=list)

    def origin(self, spec: MixerSpec | TaskSpec | SuiteSpec) -> Origin:
        """Returns the plugin that registered the spec."""
        return self._origins[(type(spec).__name__, _key(spec))]

    def task(self, name: str) -> TaskSpec:
        """Returns the task of that name."""
        return _named(self.tasks, name, "task", "harness tasks")

    def suite(self, name: str) -> SuiteSpec:
        """Returns the suite (preset) of that name."""
        return _named(self.suites, name, "preset", "harness suites")

    def implementations(self, name: str) -> list[MixerSpec]:
        """Returns the implementations of one mixer, the preferred first."""
        found = [spec for spec in self.mixers.values() if spec.name == name]
        return sorted(found, key=lambda spec: (-spec.preference, spec.implementation))

    def mixer(self, text: str) -> MixerChoice:
        """Returns the choice `text` names, its implementation pinned to the preferred one available here."""
        choice = parse_mixer(text)
        specs = self.implementations(choice.name)
        if not specs:
            names = {spec.name for spec in self.mixers.values()}
            raise InputError(f"unknown mixer {choice.name!r}: {nearest(choice.name, names)} List them: harness mixers")
        if choice.implementation:
            full = f"{choice.name}/{choice.implementation}"
            _named(self.mixers, full, "mixer", "harness mixers")
            specs = [self.mixers[full]]
        reasons = {spec.full_name: unavailable(spec) for spec in specs}
        for spec in specs:
            if reasons[spec.full_name] is None:
                pinned = choice.pinned(spec.implementation)
                self.options(pinned)
                return pinned
        raise UnavailableError("; ".join(f"{name} is unavailable here: {why}" for name, why in reasons.items()))

    def spec(self, choice: MixerChoice) -> MixerSpec:
        """Returns the spec of a pinned choice."""
        return self.mixers[f"{choice.name}/{choice.implementation}"]

    def options(self, choice: MixerChoice) -> Any:
        """Returns the options of a pinned choice, as an instance of the spec's own dataclass, or None."""
        spec = self.spec(choice)
        if spec.options is None:
            if choice.settings:
                raise InputError(f"mixer {spec.full_name} has no options, got {choice}")
            return None
        options = spec.options()
        for key, value in choice.settings:
            options = with_setting(options, key, value, f"{choice.name}.")
        return options

    def record_hooks(self, record: Mapping[str, Any]) -> list[str]:
        """Returns one line for each `harness_record` hook that failed; all the others were told of the record."""
        failures = []
        for origin, module in self._modules:
            hook = getattr(module, "harness_record", None)
            if hook is None or not _is_hook(hook):
                continue
            try:
                hook(record=record)
            except Exception as error:
                failures.append(f"{origin}: harness_record raised {type(error).__name__}: {error}")
        return failures


def unavailable(spec: MixerSpec) -> str | None:
    """Returns why the mixer cannot run here, or None. A plugin's own test that raises is itself a reason."""
    if spec.unavailable is None:
        return None
    try:
        return spec.unavailable()
    except Exception as error:
        return f"its availability test raised {type(error).__name__}: {error}"


def load_registry(files: Sequence[str] = ()) -> Registry:
    """Returns everything registered by installed distributions and by the plugin files; loading twice is harmless."""
    registry = Registry(files=tuple(files))
    problems: list[Problem] = []
    for origin, load in [*_entry_points(), *(_file(path) for path in files)]:
        try:
            module = load()
            _register(registry, origin, module, problems)
        except Exception as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            problems.append(Problem(str(origin), cause, f"repair it or remove it: {origin.removal}"))
    registry.problems = tuple(problems)
    return registry


def _entry_points() -> list[tuple[Origin, Callable[[], Any]]]:
    only = os.environ.get(ONLY)
    wanted = {name.strip() for name in only.split(",")} if only is not None else None
    found: dict[tuple[str, str], tuple[Origin, Callable[[], Any]]] = {}
    for point in metadata.entry_points(group=hookspecs.PROJECT):
        distribution = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else "0"
        if wanted is not None and point.name not in wanted and distribution != CORE:
            continue
        # the core is no one plugin: each of its entry points is its own module, the rest is the protocol
        root = _root(point.module if distribution == CORE else point.module.partition(".")[0])
        origin = Origin(point.name, distribution, version, point.module, root)
        found.setdefault((distribution, point.name), (origin, point.load))
    return [found[key] for key in sorted(found, key=lambda key: (key[0] != CORE, key))]


def _root(module: str) -> Path:
    """Returns the folder or file that holds the module, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return Path(module)
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


def _file(path: str) -> tuple[Origin, Callable[[], Any]]:
    file = Path(path)
    if not file.is_file():
        raise InputError(f"plugin file {path!r} does not exist; --plugin takes a Python file with hooks in it")
    name = f"harness_plugin_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"

    def load() -> ModuleType:
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise InputError(f"{path!r} is not a Python file: give one that ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return Origin(file.name, file.name, FILE, name, file), load


def _register(registry: Registry, origin: Origin, module: Any, problems: list[Problem]) -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)  # a wrong signature raises here, naming plugin, hook and argument
    new: list[tuple[dict[str, Any], Any]] = []
    for hook, kind, into in (
        ("harness_mixers", MixerSpec, registry.mixers),
        ("harness_tasks", TaskSpec, registry.tasks),
        ("harness_suites", SuiteSpec, registry.suites),
    ):
        for specs in getattr(manager.hook, hook)():
            for spec in specs:
                if not isinstance(spec, kind):
                    raise SpecError(f"{hook} gave {spec!r}, expected a {kind.__name__}")
                new.append((into, spec))
    for into, spec in new:
        _add(registry, origin, into, spec, problems)
    registry._modules.append((origin, module))


def _add(registry: Registry, origin: Origin, into: dict[str, Any], spec: Any, problems: list[Problem]) -> None:
    key, kind = _key(spec), type(spec).__name__
    taken = registry._origins.get((kind, key))
    if taken is None:
        into[key], registry._origins[(kind, key)] = spec, origin
        return
    into.pop(key, None)
    what = kind.removesuffix("Spec").lower()
    problems.append(
        Problem(
            str(origin),
            f"{what} {key!r} is also registered by {taken}, so neither is used",
            f"remove one: {origin.removal}",
        )
    )


def _key(spec: MixerSpec | TaskSpec | SuiteSpec) -> str:
    return spec.full_name if isinstance(spec, MixerSpec) else spec.name


def _is_hook(function: Any) -> bool:
    return bool(getattr(function, f"{hookspecs.PROJECT}_impl", None))


def _named(specs: Mapping[str, Spec], name: str, what: str, command: str) -> Spec:
    if name not in specs:
        raise InputError(f"unknown {what} {name!r}: {nearest(name, specs)} List them: {command}")
    return specs[name]
