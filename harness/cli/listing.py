"""`harness mixers|tasks|suites`: what is registered. None of them imports torch."""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import click
from tabulate import tabulate

from harness.cli.options import json_option, plugin_option
from harness.config import to_json
from harness.plugins import Registry, load_registry, unavailable

COLUMNS = 100  # of a table that goes into a pipe
WORD = 24  # characters; a longer one may be broken behind a / or a _ to fit
PADDING = 2  # tabulate makes a column so much wider than its title


def warn(registry: Registry) -> None:
    """Writes one line to stderr for each plugin that did not load."""
    for problem in registry.problems:
        click.echo(f"warning: {problem}", err=True)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows as a table that fits the terminal."""
    shown = [{key: _cell(value) for key, value in row.items()} for row in rows]
    widths = column_widths(shown, shutil.get_terminal_size((COLUMNS, 24)).columns)
    lines = [
        {key: wrapped(cell, width) for (key, cell), width in zip(row.items(), widths, strict=True)} for row in shown
    ]
    click.echo(
        tabulate(lines, headers="keys", tablefmt="simple", disable_numparse=True, maxheadercolwidths=widths),
    )


def wrapped(text: str, width: int) -> str:
    """Returns the text in lines of `width`: broken between words, and a word that is longer behind a / or a _."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
            continue
        first, *rest = [word] if len(word) <= width else re.findall(r"[^/_]*[/_]+|[^/_]+", word)
        lines.append(first)
        for part in rest:
            if len(lines[-1]) + len(part) <= width:
                lines[-1] += part
            else:
                lines.append(part)
    return "\n".join(lines)


def print_json(value: Any) -> None:
    """Prints a value as JSON; what JSON does not know (an option's default may be anything) as text."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_reasons(reasons: Mapping[str, str]) -> None:
    """Prints one line for each mixer that cannot run here: they are too long for a table."""
    for mixer, reason in reasons.items():
        click.echo(f"unavailable here: {mixer}: {reason}")


def column_widths(rows: Sequence[dict[str, str]], total: int) -> list[int]:
    """Returns how wide each column may be in a table of `total` characters: the widest give way, words stay whole."""
    columns = [[key, *(row[key] for row in rows)] for key in (rows[0] if rows else ())]
    widths = [max(len(column[0]) + PADDING, *map(len, column)) for column in columns]
    words = [max(min(len(word), WORD) for cell in column for word in cell.split() or [""]) for column in columns]
    for _ in range(sum(widths) + 2 * (len(widths) - 1) - total):
        spare = [width - word for width, word in zip(widths, words, strict=True)]
        if max(spare) > 0:
            widest = max((width, column) for column, width in enumerate(widths) if spare[column] > 0)
            widths[widest[1]] -= 1
    return widths


def _options(cls: type | None) -> list[dict[str, Any]]:
    if cls is None:
        return []
    return [
        {"name": f.name, "default": f.default if f.default_factory is dataclasses.MISSING else f.default_factory()}
        for f in dataclasses.fields(cls)
    ]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{v['name']}={v['default']}" if isinstance(v, dict) else str(v) for v in value) or "–"
    return "–" if value is None else str(value)


@click.command()
@plugin_option
@json_option
def mixers(files: tuple[str, ...], as_json: bool) -> None:
    """List the registered mixers, where they come from, and why one is unavailable here."""
    registry = load_registry(files)
    warn(registry)
    reasons = {name: unavailable(spec) for name, spec in sorted(registry.mixers.items())}
    rows = [
        {
            "mixer": name,
            "summary": spec.summary,
            "source": spec.source,
            "options": _options(spec.options),
            "plugin": f"{registry.origin(spec).distribution} {registry.origin(spec).version}",
            "unavailable": reasons[name],
        }
        for name, spec in sorted(registry.mixers.items())
    ]
    if as_json:
        print_json(rows)
        return
    show([{key: value for key, value in row.items() if key != "unavailable"} for row in rows])
    print_reasons({name: reason for name, reason in reasons.items() if reason is not None})


@click.command()
@plugin_option
@json_option
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
    print_json(rows) if as_json else show(rows)


@click.command()
@plugin_option
@json_option
def suites(files: tuple[str, ...], as_json: bool) -> None:
    """List the presets (chosen with --preset) and what each of them runs."""
    registry = load_registry(files)
    warn(registry)
    found = [registry.suites[name] for name in registry.suites]
    if as_json:
        print_json([{**to_json(suite), "runs": [to_json(run) for run in suite.runs]} for suite in found])
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
    print_json(rows) if as_json else show(rows)
