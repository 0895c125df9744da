"""`harness mixers|tasks|suites`: what is registered. None of them imports torch."""

import dataclasses
import json
from typing import Any

import click
from tabulate import tabulate

from harness.config import to_json
from harness.plugins import Registry, load_registry, unavailable

_plugin = click.option(
    "--plugin", "files", multiple=True, metavar="FILE", help="Also load this Python file. May be repeated."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def warn(registry: Registry) -> None:
    """Writes one line to stderr for each plugin that did not load."""
    for problem in registry.problems:
        click.echo(f"warning: {problem}", err=True)


def _options(cls: type | None) -> list[dict[str, Any]]:
    if cls is None:
        return []
    return [{"name": f.name, "default": f.default} for f in dataclasses.fields(cls)]


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    shown = [{key: _cell(value) for key, value in row.items()} for row in rows]
    click.echo(tabulate(shown, headers="keys", tablefmt="simple", disable_numparse=True, maxcolwidths=48))


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{v['name']}={v['default']}" if isinstance(v, dict) else str(v) for v in value) or "–"
    return "–" if value is None else str(value)


@click.command()
@_plugin
@_json
def mixers(files: tuple[str, ...], as_json: bool) -> None:
    """List the registered mixers, where they come from, and why one is unavailable here."""
    registry = load_registry(files)
    warn(registry)
    rows = [
        {
            "mixer": name,
            "summary": spec.summary,
            "source": spec.source,
            "options": _options(spec.options),
            "plugin": f"{registry.origin(spec).distribution} {registry.origin(spec).version}",
            "unavailable": unavailable(spec),
        }
        for name, spec in sorted(registry.mixers.items())
    ]
    _show(rows, as_json)


@click.command()
@_plugin
@_json
def tasks(files: tuple[str, ...], as_json: bool) -> None:
    """List the tasks, their scores and their options (set with --set TASK.options.NAME=VALUE)."""
    registry = load_registry(files)
    warn(registry)
    rows = [
        {
            "task": name,
            "summary": spec.summary,
            "score": f"{spec.primary}, {'higher' if spec.higher_is_better else 'lower'} is better",
            "options": _options(spec.options),
            "source": spec.source,
        }
        for name, spec in sorted(registry.tasks.items())
    ]
    _show(rows, as_json)


@click.command()
@_plugin
@_json
def suites(files: tuple[str, ...], as_json: bool) -> None:
    """List the presets (chosen with --preset) and what each of them runs."""
    registry = load_registry(files)
    warn(registry)
    found = [registry.suites[name] for name in registry.suites]
    if as_json:
        click.echo(
            json.dumps([{**to_json(suite), "runs": [to_json(run) for run in suite.runs]} for suite in found], indent=2)
        )
        return
    rows = [
        {
            "preset": suite.name,
            "summary": suite.summary,
            "default on": list(suite.default_on),
            "task": run.task,
            "layers": run.model.layers,
            "d_model": run.model.d_model,
            "steps": run.training.steps,
            "learning rates": list(run.training.lrs),
            "seeds": list(run.training.seeds),
        }
        for suite in found
        for run in suite.runs
    ]
    _show(rows, as_json)
