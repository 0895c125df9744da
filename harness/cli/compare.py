"""`harness compare`: which of two mixers is faster, or that nobody can say."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.listing import warn
from harness.cli.options import measuring_options
from harness.cli.time import resumable
from harness.errors import InputError
from harness.plugins import load_registry

if TYPE_CHECKING:
    from harness.sweep.duels import CompareRequest

PERCENT = 100.0


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B", required=False)
@click.option("--aa", is_flag=True, help="The A/A test: compare A with itself, and print how often that goes wrong.")
@click.option("--pairs", default=20, show_default=True, type=click.IntRange(min=1), help="Comparisons of the A/A test.")
@click.option(
    "--margin",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0.1, max=50),
    metavar="PERCENT",
    help="The smallest difference worth a verdict.",
)
@measuring_options(T="512", mode="forward", processes=8)
def compare(
    a: str,
    b: str | None,
    aa: bool,
    pairs: int,
    lengths: tuple[int, ...],
    modes: tuple[str, ...],
    d_model: int,
    batch_size: int,
    dtype: str,
    processes: int,
    margin: float,
    again: bool,
    files: tuple[str, ...],
    runs: Path,
    device: str,
    as_json: bool,
) -> None:
    """Compare two mixers: B is faster, slower, the same, or undecided, with the ratio and its interval.

    Both are built in the same process and called in turn, a coin deciding who goes first; several fresh processes give
    one ratio each, and the interval is over these. Faster or slower is said only where all of the interval lies beyond
    the margin, the same only where all of it lies within.

    \b
    Examples: harness compare gla/torch gla/triton --T 512,2048 --mode forward,train
              harness compare attention --aa --pairs 200
    """
    if aa == (b is not None):
        raise InputError("give two mixers, or one and --aa: harness compare A B, harness compare A --aa")
    from harness.sweep.duels import CompareRequest
    from harness.sweep.gated import Place

    request = CompareRequest(
        a=a,
        b=b or a,
        lengths=lengths,
        modes=modes,
        d_model=d_model,
        batch_size=batch_size,
        dtype=dtype,
        processes=processes,
        margin=margin / PERCENT,
        place=Place(runs=runs, device=device, again=again),
    )
    _decide(request, pairs if aa else None, files, as_json)


def _decide(request: "CompareRequest", pairs: int | None, files: tuple[str, ...], as_json: bool) -> None:
    """Compares, or where `pairs` is given compares A with itself so often, and prints what came out."""
    from harness.sweep.duels import run_aa, run_compare

    with contextlib.redirect_stdout(sys.stderr):  # plugins may print
        registry = load_registry(files)
        warn(registry)
        false = None if pairs is None else resumable(lambda: run_aa(request, pairs, registry))
        found = [] if pairs is not None else resumable(lambda: run_compare(request, registry))
    if as_json:
        plain = dataclasses.asdict(false) if false is not None else [one.to_json() for one in found]
        click.echo(json.dumps(plain, indent=2))
    else:
        click.echo(str(false) if false is not None else "\n".join(map(str, found)))
