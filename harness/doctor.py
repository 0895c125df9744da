"""What is wrong with the plugins, each looked at in a fresh process of its own, and what to type."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from harness.discovery import CORE, FILE, Problem, find_plugins, unmet_range
from harness.plugins import LoadedPlugin, Registry, load_plugin, load_registry, unavailable
from harness.spec import MixerSpec

PROBE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from harness.doctor import probe; probe(*sys.argv[2:])"
)
HEAVY = ("torch", "triton", "xformers", "jax")  # what listing must not import
PROBE_SECONDS = 120  # a module that hangs on import


@dataclass(frozen=True)
class Probe:
    """What loading one plugin alone did, as `harness mixers` loads it."""

    import_ms: float
    imports: list[str]  # heavy libraries, by the module or a hook: every command pays for them
    asks: list[str]  # and by an `unavailable()`: `harness mixers` pays for them, on this machine


@dataclass(frozen=True)
class Diagnosis:
    """One plugin: what became of it and what can be done."""

    plugin: LoadedPlugin
    probe: Probe | None  # None where the plugin was not loaded, or the fresh process died
    problems: tuple[Problem, ...]  # broken, by anyone's fault
    unavailable: dict[str, str]  # mixer -> why it cannot run here; not broken


@dataclass(frozen=True)
class Examination:
    """Every plugin's diagnosis, and the problems that belong to no one plugin (metadata, HARNESS_PLUGINS)."""

    plugins: tuple[Diagnosis, ...]
    others: tuple[Problem, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Returns everything that is broken, each once."""
        found = [problem for diagnosis in self.plugins for problem in diagnosis.problems]
        return tuple(dict.fromkeys([*found, *self.others]))


def examine(files: Sequence[str] = ()) -> Examination:
    """Returns what is wrong with the installed plugins and the plugin files."""
    registry = load_registry(files)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        probes = list(pool.map(_probed, registry.plugins))
    found = tuple(_diagnosis(registry, *pair) for pair in zip(registry.plugins, probes, strict=True))
    told = {problem for diagnosis in found for problem in diagnosis.problems}
    return Examination(found, tuple(problem for problem in registry.problems if problem not in told))


def probe(distribution: str, name: str, file: str) -> None:
    """Prints, as one line of JSON, what loading one plugin does to a process that has loaded nothing else."""
    found, _ = find_plugins([file] if file else [])
    plugin = next(p for p in found if (p.origin.distribution, p.origin.plugin) == (distribution, name))
    unmet_range([f"{CORE}>=0"])  # what the harness itself imports for it is not the plugin's
    began = time.perf_counter()
    loaded = load_plugin(plugin)
    import_ms = 1e3 * (time.perf_counter() - began)
    imports = [name for name in HEAVY if name in sys.modules]
    for spec in loaded.specs:
        if isinstance(spec, MixerSpec):
            unavailable(spec)
    asks = [name for name in HEAVY if name in sys.modules and name not in imports]
    print(json.dumps({"import_ms": import_ms, "imports": imports, "asks": asks}))


def _probed(plugin: LoadedPlugin) -> Probe | Problem | None:
    if plugin.state != "ok":
        return None
    origin = plugin.origin
    file = str(origin.root) if origin.version == FILE else ""
    command = [sys.executable, "-c", PROBE, json.dumps(sys.path), origin.distribution, origin.plugin, file]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
        return Probe(**json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, LookupError) as error:
        cause = f"a fresh process that loads it alone does not end well ({type(error).__name__}: {_last_line(error)})"
        return Problem(str(origin), cause, f"repair it or remove it: {origin.removal}")


def _last_line(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return said.strip().splitlines()[-1] if isinstance(said, str) and said.strip() else str(error)


def _diagnosis(registry: Registry, plugin: LoadedPlugin, probed: Probe | Problem | None) -> Diagnosis:
    origin, problems = plugin.origin, [plugin.problem] if plugin.problem else []
    problems += [clash.problem for clash in registry.clashes if origin in clash.refused]
    if isinstance(probed, Problem):
        problems.append(probed)
    elif probed and probed.imports:
        heavy = " and ".join(probed.imports)
        cause = f"listing it imports {heavy} ({probed.import_ms:,.0f} ms), and every listing pays for that"
        fix = f"import {heavy} inside build(), not at the top of the module; look again: harness plugins doctor"
        problems.append(Problem(str(origin), cause, fix))
    mixers = [spec for spec in plugin.specs if isinstance(spec, MixerSpec)]
    reasons = {spec.full_name: reason for spec in mixers if (reason := unavailable(spec)) is not None}
    return Diagnosis(plugin, probed if isinstance(probed, Probe) else None, tuple(problems), reasons)
