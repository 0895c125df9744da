"""`harness run`: train and measure mixers, keep every finished trial, print the leaderboard."""

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from harness.errors import InputError
from harness.plugins import Registry, load_registry
from harness.spec import SuiteSpec
from harness.store import Store
from harness.sweep import settings
from harness.sweep.plan import FAILED, Plan, Planner, check_data, entrants, plan, plan_json, plan_rows, suite_key
from harness.sweep.progress import LiveDisplay, PlainDisplay, make_tally, on_terminal

INTERRUPTED = 130


@dataclass(frozen=True)
class Request:
    """What was typed."""

    everything: bool
    mixers: tuple[str, ...]
    tasks: tuple[str, ...]
    preset: str | None
    layers: str | None
    corpus: str | None
    changes: tuple[str, ...]
    files: tuple[str, ...]
    runs: Path
    device: str
    jobs: int | None
    rerun: str | None


@click.command()
@click.option("--all", "everything", is_flag=True, help="Every registered mixer.")
@click.option("--mixer", "mixers", multiple=True, metavar="M", help="NAME, NAME/IMPLEMENTATION, NAME(OPTION=VALUE).")
@click.option("--task", "tasks", multiple=True, metavar="T", help="Only this task of the preset; repeatable.")
@click.option("--preset", metavar="NAME", help="What to run (harness suites); the default depends on the device.")
@click.option("--layers", metavar="PATTERN", help="Layers of every task's model, e.g. short_conv,MIXER*2.")
@click.option("--corpus", metavar="PATH", help="Text of the task pile: .jsonl or .jsonl.zst in the Pile's format.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="training.steps=100, mqar.training.lrs=1e-3.")
@click.option("--plugin", "files", multiple=True, metavar="FILE", help="Also load this Python file; repeatable.")
@click.option("--runs", default="runs", show_default=True, metavar="DIR", type=click.Path(path_type=Path), help="Records.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Training trials at a time; default one a core.")
@click.option("--rerun", type=click.Choice(["failed"]), help="Run trials again that failed before.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def run(
    everything: bool,
    mixers: tuple[str, ...],
    tasks: tuple[str, ...],
    preset: str | None,
    layers: str | None,
    corpus: str | None,
    changes: tuple[str, ...],
    files: tuple[str, ...],
    runs: Path,
    device: str,
    jobs: int | None,
    rerun: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train and measure mixers, then print the leaderboard.

    Finished trials are kept in --runs and never run again: stop with Ctrl-C, type the same command, and it goes on.

    \b
    Examples: harness run --all
              harness run --mixer base_conv --preset smoke
              harness run --plugin my_mixer.py --mixer mine --set training.steps=200
    """
    request = Request(
        everything, mixers, tasks, preset, layers, corpus, changes, files, runs, device, jobs, rerun
    )
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result; plugins may print
        sweep = Sweep(request)
        sweep.show_plan()
        if not dry_run:
            sweep.run()
    if dry_run:
        if as_json:
            click.echo(json.dumps({"plan": plan_json(sweep.plan, sweep.seconds)}, indent=2))
        return
    click.echo(sweep.result(as_json))
    sys.exit(sweep.complain())


class Sweep:
    """One `harness run`, step by step."""

    def __init__(self, request: Request) -> None:
        self.request = request
        if request.everything == bool(request.mixers):
            raise InputError("say which mixers to run: either --all, or --mixer NAME (harness mixers lists them)")
        self.registry = load_registry(request.files)
        for problem in self.registry.problems:
            click.echo(f"warning: {problem}", err=True)
        self.store = Store(request.runs)
        self.plan = self._plan()

    def _plan(self) -> Plan:
        from harness.sweep.estimate import Estimator, wall_seconds
        from harness.sweep.machine import choose_device

        request, registry = self.request, self.registry
        base = settings.complete(_preset(request.preset, request.device, registry), registry)
        self.suite = settings.with_settings(
            settings.with_corpus(settings.with_layers(base, request.layers), request.corpus), request.changes
        )
        tasks = settings.chosen_tasks(self.suite, request.tasks, registry)
        device = choose_device(request.device)
        mixers, missing = entrants(registry, request.mixers, device)
        changed = suite_key(self.suite, registry) != suite_key(base, registry)
        planner = Planner(
            registry, self.suite, base.name + ("*" if changed else ""), device, Estimator(self.store, device)
        )
        made = plan(planner, mixers, tasks, self.store, rerun_failed=request.rerun is not None, missing=missing)
        self.workers = self._workers(device)
        self.seconds = wall_seconds(made.todo, self.workers)
        return made
