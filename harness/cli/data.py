"""`harness data`: a task's data as files, for use without the harness."""

import json
from pathlib import Path

import click

from harness.config import with_setting
from harness.errors import InputError, nearest
from harness.tasks.options import MQAROptions

EXPORTABLE = ("mqar",)


@click.group()
def data() -> None:
    """Write a task's data to a file."""


@data.command()
@click.argument("task")
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write: .npz or .jsonl.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A task option; repeatable.")
@click.option("--N", "n", type=int, help="Length: with --D, this one cell in every split.")
@click.option("--D", "d", type=int, help="Key-value pairs: with --N.")
@click.option("--examples", type=int, help="Examples of the split; it must have one cell.")
@click.option("--train-seed", type=int, default=0, show_default=True, help="Seed of the training data.")
@click.option("--json", "as_json", is_flag=True, help="Print path, examples and sha256 as JSON.")
def export(
    task: str,
    split: str,
    out: Path,
    settings: tuple[str, ...],
    n: int | None,
    d: int | None,
    examples: int | None,
    train_seed: int,
    as_json: bool,
) -> None:
    """Write one split of TASK (mqar) to a file.

    Example: harness data export mqar --N 64 --D 4 --split test --out test.npz
    """
    if task not in EXPORTABLE:
        raise InputError(f"cannot export task {task!r}: {nearest(task, EXPORTABLE)}")
    from harness.tasks import mqar  # numpy

    options = _chosen(settings)
    if n is not None or d is not None:
        options = mqar.one_cell(options, n, d)
    if examples is not None:
        options = _counted(options, split, examples)
    written = mqar.export(options, split, out, seed=train_seed)
    if as_json:
        click.echo(json.dumps(written))
    else:
        click.echo(f"{written['path']}: {written['examples']} examples, sha256 {written['sha256']}")


def _chosen(settings: tuple[str, ...]) -> MQAROptions:
    options = MQAROptions()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set takes KEY=VALUE, got {setting!r}; for example --set vocab_size=64")
        options = with_setting(options, key.strip(), value.strip())
    return options


def _counted(options: MQAROptions, split: str, examples: int) -> MQAROptions:
    from harness.tasks.mqar import cells

    if len(cells(options, split)) != 1:
        raise InputError(
            f"--examples sets the count of one cell, and {split}_cells has {len(cells(options, split))}; "
            f"use --set {split}_cells='((N, D, examples), ...)'"
        )
    N, D, _ = cells(options, split)[0]
    return with_setting(options, f"{split}_cells", repr(((N, D, examples),)))
