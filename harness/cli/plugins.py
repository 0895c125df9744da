"""`harness plugins list|doctor|new`: what is installed, what is wrong with it, and how to start one."""

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.listing import print_json, print_reasons, show, warn
from harness.cli.options import json_option, plugin_option
from harness.discovery import FILE, Problem
from harness.doctor import Diagnosis, Examination, examine
from harness.plugins import LoadedPlugin, load_registry
from harness.spec import MixerSpec, SuiteSpec, TaskSpec

KINDS = {"mixers": MixerSpec, "tasks": TaskSpec, "suites": SuiteSpec}


@click.group()
def plugins() -> None:
    """List the plugins, find what is wrong with them, start a new one."""


@plugins.command("list")
@plugin_option
@json_option
def list_(files: tuple[str, ...], as_json: bool) -> None:
    """List each plugin: where it comes from, what it registers, whether it loads."""
    registry = load_registry(files)
    warn(registry)
    if as_json:
        print_json([_facts(plugin) for plugin in registry.plugins])
    else:
        show([_row(plugin) for plugin in registry.plugins])


@plugins.command()
@plugin_option
@json_option
def doctor(files: tuple[str, ...], as_json: bool) -> None:
    """Look at each plugin in a fresh process and say what is wrong and what to type; exit code 1 if something is.

    A mixer that is unavailable here (no GPU, an optional package absent) is not wrong.
    """
    found = examine(files)
    if as_json:
        print_json(
            {
                "ok": not found.problems,
                "plugins": [{**_facts(one.plugin), **_findings(one)} for one in found.plugins],
                "problems": [_problem(problem) for problem in found.others],
            }
        )
    else:
        show([_health(one) for one in found.plugins])
        _print_findings(found)
    sys.exit(1 if found.problems else 0)


@plugins.command()
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default=True,
    help="Where to put the new folder.",
)
@json_option
def new(name: str, folder: Path, as_json: bool) -> None:
    """Write a complete plugin with one working mixer NAME: package, tests, CI. Then make it yours.

    Example: harness plugins new my_mixer
    """
    from harness.scaffold import write_plugin

    written = write_plugin(name, folder)
    if as_json:
        print_json({"mixer": name, "folder": str(written.folder), "files": [str(file) for file in written.files]})
        return
    for file in written.files:
        click.echo(file)
    click.echo(f"\nNow type:\n  cd {written.folder}\n  pip install -e '.[test]'\n  pytest\n  harness check {name}")
    click.echo(f"  harness run --mixer {name} --preset smoke\nThen make it yours: grep -rn EDIT .")


def _facts(plugin: LoadedPlugin) -> dict[str, Any]:
    origin = plugin.origin
    return {
        "plugin": origin.plugin,
        "distribution": origin.distribution,
        "version": origin.version,
        "module": origin.module,
        "requires": list(plugin.found.requires),
        **{what: plugin.names(kind) for what, kind in KINDS.items()},
        "hooks": list(plugin.hooks),
        "state": plugin.state,
        "problem": _problem(plugin.problem) if plugin.problem else None,
    }


def _problem(problem: Problem) -> dict[str, str]:
    return {"plugin": problem.plugin, "cause": problem.cause, "fix": problem.fix}


def _findings(one: Diagnosis) -> dict[str, Any]:
    return {
        "import_ms": one.probe.import_ms if one.probe else None,
        "imports": one.probe.imports if one.probe else None,
        "unavailable_imports": one.probe.asks if one.probe else None,
        "unavailable": one.unavailable,
        "hides": list(one.plugin.found.hides),
        "problems": [_problem(problem) for problem in one.problems],
    }


def _row(plugin: LoadedPlugin) -> dict[str, Any]:
    origin = plugin.origin
    registers = [f"{what}: {', '.join(names)}" for what, kind in KINDS.items() if (names := plugin.names(kind))]
    return {
        "plugin": origin.plugin,
        "distribution": "–" if origin.version == FILE else origin.distribution,
        "version": origin.version,
        "registers": "; ".join(registers + _told(plugin)) or None,
        "state": plugin.state,
    }


def _health(one: Diagnosis) -> dict[str, Any]:
    """Returns the plugin as a row of the doctor's table, which counts: names are in the list and in the JSON."""
    origin = one.plugin.origin
    counts = {what: len(one.plugin.names(kind)) for what, kind in KINDS.items()}
    registers = [f"{n} {what if n > 1 else what.removesuffix('s')}" for what, n in counts.items() if n]
    return {
        "plugin": origin.plugin,
        "distribution": origin.version if origin.version == FILE else f"{origin.distribution} {origin.version}",
        "registers": ", ".join(registers + _told(one.plugin)) or None,
        "state": one.plugin.state,
        "import": _cost(one),
    }


def _told(plugin: LoadedPlugin) -> list[str]:
    return ["harness_record"] if "harness_record" in plugin.hooks else []


def _cost(one: Diagnosis) -> str | None:
    if one.probe is None:
        return None
    asked = [f"{name} (to see whether it runs here)" for name in one.probe.asks]
    return f"{one.probe.import_ms:.0f} ms, {', '.join([*one.probe.imports, *asked]) or 'light'}"


def _print_findings(found: Examination) -> None:
    click.echo()
    for problem in found.problems:
        click.echo(f"broken: {problem}")
    for one in found.plugins:
        print_reasons(one.unavailable)
        origin = one.plugin.origin
        for hidden in one.plugin.found.hides:
            click.echo(f"hidden: {hidden}, by {origin}; be rid of both, then install one: {origin.removal}")
    if not found.problems:
        click.echo("Nothing is broken.")
