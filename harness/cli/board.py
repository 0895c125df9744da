"""`harness leaderboard|submit|verify|records`: what is in a folder of records, checked, ranked and published."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tabulate import tabulate

from harness.board.points import Gathered, Point, gather, points
from harness.cli.listing import warn
from harness.cli.options import json_option, plugin_option, runs_option
from harness.errors import InputError, RecordError
from harness.plugins import Registry, load_registry, unavailable
from harness.spec import MixerSpec
from harness.store import RECORD, Damage

if TYPE_CHECKING:
    from harness.board.speeds import SpeedPoint

FORMATS = ("plain", "github", "html", "json")
_folder = click.Path(path_type=Path)


def _registry(files: tuple[str, ...]) -> Registry:
    registry = load_registry(files)
    warn(registry)
    return registry


def _gathered(runs: Path) -> Gathered:
    """Returns the records below a folder; none at all is an error that says what to type."""
    found = gather(runs)
    if not found.found and not found.damaged:
        raise InputError(f"no records in {runs}; make some: harness run --all, or name their folder with --runs DIR")
    return found


def _warned(found: Gathered) -> Gathered:
    for damage in found.damaged:
        click.echo(f"warning: {damage}", err=True)
    return found


@click.command()
@runs_option
@click.option("--preset", metavar="NAME", help="Only this preset; quick shows quick* (settings changed) too.")
@click.option("--format", type=click.Choice(FORMATS), default="plain", show_default=True, help="How to print.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@plugin_option
def leaderboard(runs: Path, preset: str | None, format: str, as_json: bool, files: tuple[str, ...]) -> None:
    """Print the leaderboard of a folder of records: one table a preset and class of device.

    \b
    Examples: harness leaderboard
              harness leaderboard --format html
              harness leaderboard --runs leaderboard/submissions
    """
    from harness.board.render import render
    from harness.board.speeds import speed_tables
    from harness.board.table import leaderboard as build

    registry, found = _registry(files), _warned(_gathered(runs))
    tables = build(found, registry, suite=preset) + ([] if preset else speed_tables(found))
    if not tables:
        raise InputError(f"the records in {runs} are of training only; finish the run: type the same harness run again")
    click.echo(render(tables, "json" if as_json else format))
    shown = {row.mixer.partition("(")[0] for table in tables for row in table.rows}
    on_cpu_only = all(table.device_class.startswith("cpu-") for table in tables)
    for name, spec in sorted(registry.mixers.items()):
        reason = None if name in shown else _why_absent(spec, on_cpu_only)
        if reason:
            click.echo(f"not in the table: {name}: {reason}", err=True)


def _why_absent(spec: MixerSpec, on_cpu_only: bool) -> str | None:
    if on_cpu_only and "cpu" not in spec.devices:  # no need to look for a GPU, which takes the import of torch
        return f"runs on {' and '.join(spec.devices)} only"
    return unavailable(spec)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--board", default="leaderboard", show_default=True, metavar="DIR", type=_folder, help="The board.")
@runs_option
@plugin_option
@json_option
def submit(run: str, board: Path, runs: Path, files: tuple[str, ...], as_json: bool) -> None:
    """Verify records and add them to the leaderboard.

    RUN is a folder of records (every complete point in it), one record's folder, or the beginning of a record's key.
    A point is all of one mixer in one preset on one device, or all that harness time measured of it there. Nothing is
    added unless everything matches.
    """
    from harness.board import submit as board_submit
    from harness.board.speeds import complete_speeds, speed_points

    registry = _registry(files)
    everything, chosen = _find(run, runs)
    every_point = points(_warned(everything))
    wanted = every_point if chosen is everything else [p for p in every_point if _concerns(p, chosen)]
    good, skipped = board_submit.complete(wanted, every_point)
    timed = [p for p in speed_points(everything) if chosen is everything or _concerns(p, chosen)]
    timed, unfinished = complete_speeds(timed)
    skipped += unfinished
    if not good and not timed:
        raise InputError(_nothing_to_submit(run, skipped))
    done = board_submit.submit([*good, *timed], skipped, board, registry)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "added": [path.as_posix() for path in done.added],
                    "present": [path.as_posix() for path in done.present],
                    "skipped": list(done.skipped),
                    "labels": list(done.labels),
                },
                indent=2,
            )
        )
        return
    for line in (*done.labels, *(f"skipped: {line}" for line in done.skipped)):
        click.echo(line, err=True)
    click.echo(
        f"{len(done.added)} records added, {len(done.present)} were there already; {board / board_submit.README}"
    )


def _concerns(point: "Point | SpeedPoint", chosen: Gathered) -> bool:
    """Returns whether the point holds the one record; a failed or a training record stands for its mixer's point."""
    if not chosen.found:  # damaged
        return False
    record = chosen.found[0].record
    if record.status == "ok" and record.kind != "train":
        return record.key in {stored.record.key for stored in point.stored}
    return isinstance(point, Point) and (point.mixer, point.suite_key) == (record.mixer, record.suite_key)


def _nothing_to_submit(run: str, skipped: list[str]) -> str:
    lines = skipped or ["no test and time records here, or newer ones of the same mixer replace them"]
    return f"nothing to submit in {run}: a point needs ok test and time records\n  " + "\n  ".join(lines)


@click.command()
@click.argument("run", metavar="RUN")
@runs_option
@plugin_option
@click.option("--no-labels", is_flag=True, help="Do not draw or read the tasks' data again.")
@json_option
def verify(run: str, runs: Path, files: tuple[str, ...], no_labels: bool, as_json: bool) -> None:
    """Recompute every number of the records from their raw data.

    RUN is a folder of records (or of folders of them), one record's folder, or the beginning of a record's key. Where
    the task loads here, the labels and the data's SHA-256 are compared with the task's own. Exit code 1 on a mismatch.
    """
    from harness.board.check import Checker

    checker = Checker(_registry(files), labels=not no_labels)
    found = _find(run, runs)[1]
    checked = [checker.check(stored) for stored in found.found]
    if as_json:
        click.echo(json.dumps([one.to_json() for one in checked] + [_unreadable(d) for d in found.damaged], indent=2))
    else:
        for damage in found.damaged:
            click.echo(f"DAMAGED   {damage}")
        for one in checked:
            record = one.stored.record
            click.echo(
                f"{'MISMATCH' if one.wrong else record.status:8}  {one.stored.path.name}: "
                f"{len(record.measures)} measures recomputed, labels: {one.labels}"
            )
            for line in one.wrong:
                click.echo(f"          {line}")
    bad = sum(bool(one.wrong) for one in checked) + len(found.damaged)
    if bad:
        raise RecordError(f"{bad} of {len(checked) + len(found.damaged)} records do not match their raw data")


def _unreadable(damage: Damage) -> dict[str, object]:
    return {"path": damage.path.name, "mismatches": [damage.cause]}


@click.command()
@runs_option
@json_option
def records(runs: Path, as_json: bool) -> None:
    """List the records of a folder: what ran, how it ended, how long it took."""
    rows = [
        {
            "key": s.record.key,
            "kind": s.record.kind,
            "mixer": s.record.mixer,
            "task": s.record.task,
            "suite": s.record.suite,
            "lr": s.record.lr,
            "seed": s.record.seed,
            "status": s.record.status,
            "seconds": s.record.seconds,
            "reason": s.record.reason,
            "path": str(s.path),
        }
        for s in _warned(_gathered(runs)).found
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    shown = [
        {
            **{name: "–" if value is None else str(value) for name, value in row.items() if name != "path"},
            "key": str(row["key"])[:10],
            "seconds": f"{row['seconds']:.1f}",
        }
        for row in rows
    ]
    sides = ["right" if name in ("lr", "seed", "seconds") else "left" for name in shown[0]]
    click.echo(tabulate(shown, headers="keys", tablefmt="simple", disable_numparse=True, colalign=sides))


def _find(run: str, runs: Path) -> tuple[Gathered, Gathered]:
    """Returns (every record beside those named, those named): by a folder, a record's folder, or a key's beginning."""
    path = Path(run).resolve()
    if (path / RECORD).exists():
        everything = _gathered(path.parent)
        chosen = Gathered(
            tuple(stored for stored in everything.found if stored.path == path),
            tuple(damage for damage in everything.damaged if damage.path == path),
        )
        if not chosen.found and not chosen.damaged:
            raise InputError(f"{run} was renamed: a record's folder ends with the first ten digits of its key")
        return everything, chosen
    if path.is_dir():
        everything = _gathered(Path(run))
        return everything, everything
    if not re.fullmatch("[0-9a-f]+", run):
        raise InputError(f"no folder {run!r}; give a folder of records, a record's folder, or a key's beginning")
    everything = _gathered(runs)
    found = tuple(stored for stored in everything.found if stored.record.key.startswith(run))
    if len(found) != 1:
        listed = ", ".join(stored.record.key[:16] for stored in found[:5])
        more = f": {listed}; type more of it" if found else "; list them: harness records"
        raise InputError(f"{len(found)} records in {runs} have a key that begins with {run!r}{more}")
    return everything, Gathered(found)
