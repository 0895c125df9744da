"""What plugins register: our own guarded loop, so that one broken plugin is one line of cause and the others work."""

import contextlib
import inspect
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from harness import __version__, hookspecs
from harness.config import with_setting
from harness.discovery import CORE, FILE, ONLY, FoundPlugin, Origin, Problem, find_plugins, source_sha256, unmet_range
from harness.errors import HarnessError, InputError, SpecError, UnavailableError, nearest
from harness.pattern import MixerChoice, parse_mixer
from harness.spec import MixerSpec, SuiteSpec, TaskSpec

__all__ = [
    "FILE",
    "ONLY",
    "LoadedPlugin",
    "Origin",
    "Problem",
    "Registry",
    "load_plugin",
    "load_registry",
    "source_sha256",
    "unavailable",
]

AnySpec: TypeAlias = MixerSpec | TaskSpec | SuiteSpec
HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("harness_"))
GIVES: dict[str, type[AnySpec]] = {"harness_mixers": MixerSpec, "harness_tasks": TaskSpec, "harness_suites": SuiteSpec}
LINE = 400  # characters of a cause; some importers quote a page

Spec = TypeVar("Spec", MixerSpec, TaskSpec, SuiteSpec)


@dataclass(frozen=True)
class LoadedPlugin:
    """What became of one plugin."""

    found: FoundPlugin
    specs: tuple[AnySpec, ...] = ()  # what it declares, refused names included
    hooks: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    problem: Problem | None = None  # why nothing of it is used

    @property
    def origin(self) -> Origin:
        """Returns where it comes from."""
        return self.found.origin

    @property
    def state(self) -> str:
        """Returns "ok", "failed" or "skipped" (by HARNESS_PLUGINS)."""
        return "failed" if self.problem else "ok" if self.found.selected else "skipped"

    def names(self, kind: type) -> list[str]:
        """Returns the names of the specs of one kind that it declares."""
        return [_key(spec) for spec in self.specs if isinstance(spec, kind)]


@dataclass(frozen=True)
class Clash:
    """Names that several plugins register. The core's own stay; of the others none is used."""

    kind: str  # "mixer", "task" or "suite"
    names: tuple[str, ...]
    claimants: tuple[Origin, ...]

    @property
    def refused(self) -> tuple[Origin, ...]:
        """Returns those whose registration of the names is not used."""
        return tuple(origin for origin in self.claimants if origin.distribution != CORE)

    @property
    def problem(self) -> Problem:
        """Returns who claims what, and the commands of which one helps."""
        what = f"{self.kind} {' and '.join(map(repr, self.names))}"
        who = " and ".join(map(str, self.refused))
        removals = " or ".join(dict.fromkeys(origin.removal for origin in self.refused))
        first = self.claimants[0]
        if first.distribution == CORE:
            return Problem(who, f"{what} belongs to {first}, which stays", f"take another name, or {removals}")
        return Problem(who, f"each registers {what}, so none is used", f"keep one: {removals}")


@dataclass
class Registry:
    """Everything that was registered, by name, and what was not and why."""

    mixers: dict[str, MixerSpec] = field(default_factory=dict)
    tasks: dict[str, TaskSpec] = field(default_factory=dict)
    suites: dict[str, SuiteSpec] = field(default_factory=dict)
    plugins: tuple[LoadedPlugin, ...] = ()
    clashes: tuple[Clash, ...] = ()
    problems: tuple[Problem, ...] = ()
    files: tuple[str, ...] = ()  # --plugin files, so that a worker loads the same ones
    _origins: dict[tuple[str, str], Origin] = field(default_factory=dict)

    def origin(self, spec: AnySpec) -> Origin:
        """Returns the plugin that registered the spec."""
        return self._origins[(type(spec).__name__, _key(spec))]

    def task(self, name: str) -> TaskSpec:
        """Returns the task of that name."""
        return self._named(self.tasks, name, "task")

    def suite(self, name: str) -> SuiteSpec:
        """Returns the suite (preset) of that name."""
        return self._named(self.suites, name, "suite")

    def implementations(self, name: str) -> list[MixerSpec]:
        """Returns the implementations of one mixer, the preferred first."""
        found = [spec for spec in self.mixers.values() if spec.name == name]
        return sorted(found, key=lambda spec: (-spec.preference, spec.implementation))

    def mixer(self, text: str) -> MixerChoice:
        """Returns the choice `text` names, its implementation pinned to the preferred one available here."""
        choice = parse_mixer(text)
        specs = self.implementations(choice.name)
        if not specs:
            raise self._unknown(choice.name, {spec.name for spec in self.mixers.values()}, "mixer")
        if choice.implementation:
            full = f"{choice.name}/{choice.implementation}"
            specs = [self._named(self.mixers, full, "mixer")]
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

    def _named(self, specs: Mapping[str, Spec], name: str, kind: str) -> Spec:
        if name not in specs:
            raise self._unknown(name, specs, kind)
        return specs[name]

    def _unknown(self, name: str, names: Iterable[str], kind: str) -> InputError:
        for clash in self.clashes:
            if clash.kind == kind and any(name in (taken, taken.partition("/")[0]) for taken in clash.names):
                return InputError(str(clash.problem))
        what = "preset" if kind == "suite" else kind
        return InputError(f"unknown {what} {name!r}: {nearest(name, names)} (harness {kind}s lists them)")

    def record_hooks(self, record: Mapping[str, Any]) -> list[str]:
        """Returns one line for each `harness_record` hook that failed; all the others were told of the record."""
        failures = []
        for plugin in self.plugins:
            if "harness_record" not in plugin.hooks:
                continue
            try:
                with _output_to_stderr():
                    plugin.hooks["harness_record"](record)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                failures.append(f"{plugin.origin}: harness_record raised {_cause(error, plugin.origin.root)}")
        return failures


def unavailable(spec: MixerSpec) -> str | None:
    """Returns why the mixer cannot run here, or None. A plugin's own test that raises is itself a reason."""
    if spec.unavailable is None:
        return None
    try:
        with _output_to_stderr():
            reason = spec.unavailable()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"its availability test raised {type(error).__name__}: {error}"
    if reason is None or (isinstance(reason, str) and reason):
        return reason
    return f"its availability test returned {reason!r}, expected None or the reason"


def load_registry(files: Sequence[str] = ()) -> Registry:
    """Returns everything registered by installed distributions and by the plugin files; loading twice is harmless."""
    found, problems = find_plugins(files)
    registry = Registry(files=tuple(files), plugins=tuple(load_plugin(plugin) for plugin in found))
    problems += [plugin.problem for plugin in registry.plugins if plugin.problem]
    registry.clashes = tuple(_admit(registry))
    registry.problems = (*problems, *(clash.problem for clash in registry.clashes))
    return registry


def load_plugin(found: FoundPlugin) -> LoadedPlugin:
    """Returns the plugin with all its specs, or with none and the one line that says why."""
    if not found.selected:
        return LoadedPlugin(found)
    origin = found.origin
    fix = f"repair it or remove it: {origin.removal}"
    try:
        if (needs := unmet_range(found.requires)) is not None:
            cause = f"it declares {CORE}{needs}, and this is {CORE} {__version__}"
            fix = f"pip install --upgrade {origin.distribution}, or pip install '{CORE}{needs}'"
            return LoadedPlugin(found, problem=Problem(str(origin), cause, fix))
        with _output_to_stderr():
            hooks = _hooks(found.load())
            return LoadedPlugin(found, _specs(hooks), hooks)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may call sys.exit
        return LoadedPlugin(found, problem=Problem(str(origin), _cause(error, origin.root), fix))


def _output_to_stderr() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stdout(sys.stderr)  # stdout is for the result; plugins may print


def _hooks(module: Any) -> dict[str, Callable[..., Any]]:
    """Returns the hooks in a module; one that is no hook, lacks its mark or takes no such argument raises."""
    hooks: dict[str, Callable[..., Any]] = {}
    for name in dir(module):
        value = getattr(module, name, None)
        if not inspect.isroutine(value):
            continue
        is_hook = hasattr(value, f"{hookspecs.PROJECT}_impl")
        own = name.startswith("harness_") and getattr(value, "__module__", None) == getattr(module, "__name__", None)
        if (is_hook or own) and name not in HOOKS:
            raise SpecError(f"there is no hook {name!r}: {nearest(name, HOOKS)}")
        if own and not is_hook:
            raise SpecError(f"{name} is not marked: write @hookimpl (from harness import hookimpl) above it")
        if is_hook:
            _check_signature(name, value)
            hooks[name] = value
    if not hooks:
        raise SpecError(f"no hook in it: write one of {', '.join(HOOKS)} with @hookimpl above it")
    return hooks


def _check_signature(name: str, hook: Callable[..., Any]) -> None:
    given, taken = (list(inspect.signature(f).parameters) for f in (getattr(hookspecs, name), hook))
    if given != taken:
        raise SpecError(f"{name}({', '.join(taken)}) does not fit the hook, which is {name}({', '.join(given)})")


def _specs(hooks: Mapping[str, Callable[..., Any]]) -> tuple[AnySpec, ...]:
    """Returns what the plugin's hooks give, all of it or an error."""
    found: dict[tuple[str, str], AnySpec] = {}
    for hook, kind in GIVES.items():
        given = hooks[hook]() if hook in hooks else ()
        if not isinstance(given, Iterable):
            raise SpecError(f"{hook} returned {reprlib.repr(given)}, expected an iterable of {kind.__name__}")
        for spec in given:
            if type(spec) is not kind:
                raise SpecError(f"{hook} gave {reprlib.repr(spec)}, expected a {kind.__name__}")
            if (hook, _key(spec)) in found:
                raise SpecError(f"{hook} gave {_key(spec)!r} twice")
            found[hook, _key(spec)] = spec
    return tuple(found.values())


def _cause(error: BaseException, root: Path) -> str:
    """Returns the error on one line, with the last line of the plugin's own source that it passed."""
    text = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    place, step = "", error.__traceback__
    while step is not None:
        file = Path(step.tb_frame.f_code.co_filename)
        if file == root or root in file.parents:
            place = f" ({file.name if file == root else file.relative_to(root.parent)}:{step.tb_lineno})"
        step = step.tb_next
    return (text if len(text) <= LINE else f"{text[:LINE]}…") + place


def _admit(registry: Registry) -> list[Clash]:
    """Enters every spec under its name, and returns the names that several plugins claim."""
    claims: dict[tuple[type, str], list[tuple[Origin, AnySpec]]] = {}
    for plugin in registry.plugins:
        for spec in plugin.specs:
            claims.setdefault((type(spec), _key(spec)), []).append((plugin.origin, spec))
    into: dict[type, dict[str, Any]] = {
        MixerSpec: registry.mixers,
        TaskSpec: registry.tasks,
        SuiteSpec: registry.suites,
    }
    clashes: dict[tuple[type, tuple[Origin, ...]], list[str]] = {}
    for (kind, key), claimants in claims.items():
        origin, spec = claimants[0]
        if len(claimants) > 1:
            clashes.setdefault((kind, tuple(claimant for claimant, _ in claimants)), []).append(key)
        if len(claimants) == 1 or origin.distribution == CORE:  # the core comes first; its yardsticks stay
            into[kind][key] = spec
            registry._origins[kind.__name__, key] = origin
    return [
        Clash(kind.__name__.removesuffix("Spec").lower(), tuple(names), claimants)
        for (kind, claimants), names in clashes.items()
    ]


def _key(spec: AnySpec) -> str:
    return spec.full_name if isinstance(spec, MixerSpec) else spec.name
