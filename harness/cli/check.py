"""`harness check`: hold mixers against their contract, each in a process of its own."""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from harness.cli.listing import warn
from harness.cli.options import device_option, json_option, plugin_option, runs_option
from harness.config import LimitsConfig
from harness.errors import InputError
from harness.plugins import Registry, load_registry

if TYPE_CHECKING:
    from harness.store import StoredRecord

WIDTH = 100  # of the column that says what was found
SHOWN = {"kept": "kept", "broken": "BROKEN", "waived": "waived", "not applicable": "–"}


@click.command()
@click.argument("mixers", nargs=-1, metavar="[MIXER|FILE.py]...")
@click.option("--all", "everything", is_flag=True, help="Every registered mixer that can run here.")
@click.option("--promise", "promises", multiple=True, metavar="NAME", help="Only this promise; no report is kept.")
@click.option("--list", "show_list", is_flag=True, help="List the promises with their reasons, and stop.")
@click.option("--again", is_flag=True, help="Check again what has a report already.")
@plugin_option
@runs_option
@device_option
@click.option("--minutes", default=5.0, show_default=True, type=click.FloatRange(min=0.0, min_open=True), help="Limit.")
@click.option("--memory-gib", default=8.0, show_default=True, type=click.FloatRange(min=0.1), help="Limit.")
@json_option
def check(
    mixers: tuple[str, ...],
    everything: bool,
    promises: tuple[str, ...],
    show_list: bool,
    again: bool,
    files: tuple[str, ...],
    runs: Path,
    device: str,
    minutes: float,
    memory_gib: float,
    as_json: bool,
) -> None:
    """Hold mixers against their contract: one table a mixer, exit code 1 where a promise is broken.

    A FILE.py is loaded as a plugin, and all its mixers are checked. The report is kept as a record in --runs; it holds
    for exactly this code, and a row of the leaderboard is ranked only with a green one.

    \b
    Examples: harness check ema
              harness check ./my_mixer.py
              harness check --all --json
    """
    if show_list:
        return _list(as_json)
    own = tuple(name for name in mixers if name.endswith(".py"))
    if everything == bool(mixers):
        raise InputError("say what to check: --all, or mixers and files, e.g. harness check ema (--list: the promises)")
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:  # plugins may print
        from harness.sweep.checks import CheckRequest, run_checks

        registry = load_registry((*files, *own))
        warn(registry)
        names = () if everything else _names(registry, mixers, own)
        request = CheckRequest(
            mixers=names,
            promises=promises,
            runs=Path(scratch) if promises else runs,
            device=device,
            limits=LimitsConfig(trial_minutes=minutes, memory_gib=memory_gib),
            again=again,
        )
        checked = run_checks(request, registry)
    _show(checked.records, checked.unavailable, as_json)
    sys.exit(0 if all(_is_green(stored) for stored in checked.records) else 1)


def _names(registry: Registry, mixers: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the mixers named, and those of the files named; a file without one is an error."""
    found = [name for name in mixers if name not in own]
    for file in own:
        mine = [
            name for name, spec in registry.mixers.items() if registry.origin(spec).plugin == Path(file).name
        ]  # fmt: skip
        if not mine:
            causes = [str(problem) for problem in registry.problems if problem.plugin == Path(file).name]
            raise InputError(f"{file} registers no mixer: {'; '.join(causes) or 'it needs a harness_mixers() hook'}")
        found += mine
    return tuple(dict.fromkeys(found))


def _list(as_json: bool) -> None:
    from harness.check.kit import PROMISES

    rows = [{"promise": p.name, "because": p.why, "may be waived": "yes" if p.waivable else "no"} for p in PROMISES]
    click.echo(json.dumps(rows, indent=2) if as_json else tabulate(rows, headers="keys", tablefmt="simple"))


def _is_green(stored: "StoredRecord") -> bool:
    from harness.check.report import report_from_facts

    return stored.record.status == "ok" and report_from_facts(stored.record.facts).green


def _show(records: "list[StoredRecord]", unavailable: tuple[tuple[str, str], ...], as_json: bool) -> None:
    if as_json:
        found = [_plain(stored) for stored in records]
        missing = [{"mixer": mixer, "unavailable": reason} for mixer, reason in unavailable]
        click.echo(json.dumps({"checks": found, "unavailable": missing}, indent=2))
        return
    for mixer, reason in unavailable:
        click.echo(f"not checked: {mixer}: unavailable here: {reason}", err=True)
    click.echo("\n\n".join(_table(stored) for stored in records))


def _plain(stored: "StoredRecord") -> dict[str, Any]:
    record = stored.record
    return {
        "mixer": record.mixer,
        "green": _is_green(stored),
        "status": record.status,
        "reason": record.reason,
        "plugin": record.plugin,
        "device": record.environment.get("class"),
        "seconds": record.seconds,
        "kit_version": record.facts.get("kit_version"),
        "dtype": record.facts.get("dtype"),
        "findings": record.facts.get("findings", []),
        "record": str(stored.path),
    }


def _table(stored: "StoredRecord") -> str:
    from harness.sweep.progress import verdict

    record = stored.record
    code = str(record.plugin.get("code_sha256"))[:10]
    head = (
        f"{record.mixer} · {record.plugin.get('distribution')} {record.plugin.get('version')} (code {code}) · "
        f"{record.environment.get('name')} · {record.facts.get('dtype', 'float32')}"
    )
    if record.status != "ok":
        return f"{head}\nFAILED: {record.reason}\nlog: {stored.path / 'log.txt'}"
    rows = [
        {"promise": f["promise"], "verdict": SHOWN[f["verdict"]], "s": f"{f['seconds']:.1f}", "found": f["detail"]}
        for f in record.facts["findings"]
    ]
    widths, sides = [None, None, None, WIDTH], ["left", "left", "right", "left"]
    grid = tabulate(rows, headers="keys", tablefmt="simple", maxcolwidths=widths, colalign=sides, disable_numparse=True)
    return f"{head}\n\n{grid}\n\n{record.mixer} {verdict(record)} · {record.seconds:.0f} s"
