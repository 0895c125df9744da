"""`harness run`: train and measure mixers, keep every finished trial, print the leaderboard."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tabulate import tabulate

from harness.cli.listing import warn
from harness.cli.options import device_option, plugin_option, runs_option
from harness.errors import InputError
from harness.plugins import Registry, load_registry
from harness.record import CHECK, CONTRACT_KEY

if TYPE_CHECKING:
    from harness.sweep.command import Sweep

INTERRUPTED = 130


@click.command()
@click.option("--all", "everything", is_flag=True, help="Every registered mixer.")
@click.option("--mixer", "mixers", multiple=True, metavar="M", help="NAME, NAME/IMPLEMENTATION, NAME(OPTION=VALUE).")
@click.option("--task", "tasks", multiple=True, metavar="T", help="Only this task of the preset; repeatable.")
@click.option("--preset", metavar="NAME", help="What to run (harness suites); the default depends on the device.")
@click.option("--layers", metavar="PATTERN", help="Layers of every task's model, e.g. short_conv,MIXER*2.")
@click.option("--corpus", metavar="PATH", help="Text of the task pile: .jsonl or .jsonl.zst in the Pile's format.")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="training.steps=100, mqar.training.lrs=1e-3."
)
@plugin_option
@runs_option
@device_option
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Training trials at a time; default one a core.")
@click.option("--rerun", type=click.Choice(["failed"]), help="Run trials again that failed before.")
@click.option(
    "--no-check", is_flag=True, help="Skip the contract: what has no green report on disk is neither timed nor ranked."
)
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
    no_check: bool,
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
    if everything == bool(mixers):
        raise InputError("say which mixers to run: either --all, or --mixer NAME (harness mixers lists them)")
    from harness.sweep.command import RunRequest, Sweep

    request = RunRequest(
        mixers=mixers,
        tasks=tasks,
        preset=preset,
        layers=layers,
        corpus=corpus,
        changes=changes,
        runs=runs,
        device=device,
        jobs=jobs,
        rerun_failed=rerun is not None,
        check=not no_check,
    )
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result; plugins may print
        sweep = Sweep(request, _registry(files))
        _show_plan(sweep)
        if not dry_run:
            _execute(sweep)
    if dry_run:
        _print_plan(sweep, as_json)
    else:
        sys.exit(_print_result(sweep, as_json))


def _registry(files: tuple[str, ...]) -> Registry:
    registry = load_registry(files)
    warn(registry)
    return registry


def _show_plan(sweep: "Sweep") -> None:
    """Writes the plan to stderr: what will run, what is there already, what cannot run here, how long it will take."""
    from harness.sweep.command import plan_rows
    from harness.sweep.estimate import in_words

    plan = sweep.plan
    click.echo(f"preset {plan.suite} on {plan.device}, records in {sweep.store.root}", err=True)
    click.echo(tabulate(plan_rows(plan), headers="keys", tablefmt="simple"), err=True)
    checks = [trial for trial in plan.trials if trial.kind == CHECK]
    if checks:
        left = sum(trial in plan.todo for trial in checks)
        click.echo(f"contract: {len(checks) - left} of {len(checks)} mixers have a report, {left} to check", err=True)
    for mixer, reason in plan.unavailable:
        click.echo(f"unavailable here: {mixer}: {reason}", err=True)
    for damage in sweep.store.damaged:
        click.echo(f"warning: {damage}", err=True)
    failed = len(plan.having("failed"))
    if failed:
        click.echo(f"{failed} failed before; run them again with --rerun failed", err=True)
    workers = f"{sweep.workers} worker{'s' if sweep.workers > 1 else ''}"
    time = f": {in_words(sweep.seconds)} on {workers} (an estimate)" if plan.todo else ""
    click.echo(f"{len(plan.trials)} trials, {len(plan.todo)} to run{time}", err=True)


def _execute(sweep: "Sweep") -> None:
    try:
        sweep.execute()
    except KeyboardInterrupt:
        total = len(sweep.plan.trials)
        click.echo(
            f"interrupted: {sweep.on_disk()} of {total} trials are on disk; run the same command again to continue",
            err=True,
        )
        sys.exit(INTERRUPTED)


def _print_plan(sweep: "Sweep", as_json: bool) -> None:
    from harness.sweep.plan import plan_json

    if as_json:
        click.echo(json.dumps({"plan": plan_json(sweep.plan, sweep.seconds)}, indent=2))


def _print_result(sweep: "Sweep", as_json: bool) -> int:
    """Returns the exit code after printing the leaderboard, and the failures."""
    from harness.board.points import Gathered
    from harness.board.render import render
    from harness.board.table import leaderboard

    wanted = (sweep.plan.suite_key, CONTRACT_KEY)
    comparable = tuple(s for s in sweep.store.records() if s.record.suite_key in wanted)
    tables = leaderboard(Gathered(comparable), sweep.registry)
    if not as_json:
        click.echo(render(tables, "plain"))
        return _complain(sweep)
    failures = [
        {"task": r.task, "mixer": r.mixer, "kind": r.kind, "lr": r.lr, "seed": r.seed, "reason": r.reason}
        | {"log": str(stored.path / "log.txt")}
        for stored in sweep.failures()
        for r in [stored.record]
    ]
    found = {"suite": sweep.plan.suite, "suite_key": sweep.plan.suite_key}
    click.echo(json.dumps({**found, "tables": json.loads(render(tables, "json")), "failures": failures}, indent=2))
    return _complain(sweep)


def _complain(sweep: "Sweep") -> int:
    """Returns the exit code after naming every failed trial on stderr, with its log."""
    failures = sweep.failures()
    for stored in failures:
        record = stored.record
        what = f"lr={record.lr:g} seed={record.seed}" if record.lr is not None else record.kind
        click.echo(f"failed: {record.task} {record.mixer} {what}: {record.reason}", err=True)
        click.echo(f"        log: {stored.path / 'log.txt'}", err=True)
    if failures:
        click.echo(f"{len(failures)} of {len(sweep.plan.trials)} trials failed", err=True)
    return 1 if failures else 0
