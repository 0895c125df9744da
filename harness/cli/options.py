"""The options that commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from harness.errors import InputError

Command = TypeVar("Command", bound=Callable[..., object])

plugin_option = click.option(
    "--plugin", "files", multiple=True, metavar="FILE", help="Also load this Python file; repeatable."
)
runs_option = click.option(
    "--runs", default="runs", show_default=True, metavar="DIR", type=click.Path(path_type=Path), help="Records."
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Returns whole numbers from text such as "128,512"."""
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise InputError(f"{parameter.opts[0]} takes whole numbers with commas between, got {value!r}") from None


def words(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Returns the parts of text such as "forward,train"."""
    return tuple(part.strip() for part in value.split(","))


def measuring_options(*, T: str, mode: str, processes: int) -> Callable[[Command], Command]:
    """Returns a decorator with what `harness time` and `harness compare` share, and these defaults."""
    at_least = click.IntRange(min=1)
    options = (
        click.option("--T", "lengths", default=T, show_default=True, callback=numbers, help="Lengths."),
        click.option("--mode", "modes", default=mode, show_default=True, callback=words, help="What is timed."),
        click.option("--d-model", default=64, show_default=True, type=at_least, help="Width."),
        click.option("--batch", "batch_size", default=4, show_default=True, type=at_least, help="Sequences."),
        click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16 (autocast)."),
        click.option(
            "--processes",
            default=processes,
            show_default=True,
            metavar="N",
            help=f"Fresh processes a point; at least {processes}.",
        ),
        click.option("--again", is_flag=True, help="Measure again what is on disk already."),
        plugin_option,
        runs_option,
        device_option,
        json_option,
    )

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
