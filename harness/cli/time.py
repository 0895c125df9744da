"""`harness time`: what a mixer costs in time and memory, and how well that is known."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from tabulate import tabulate

from harness.board.cells import DASH, Notes, stacked
from harness.cli.listing import warn
from harness.cli.options import measuring_options
from harness.plugins import load_registry
from harness.timing.settings import MODES

if TYPE_CHECKING:
    from harness.sweep.times import Timed

INTERRUPTED = 130
Result = TypeVar("Result")


def resumable(work: Callable[[], Result]) -> Result:
    """Returns what the work gives; after Ctrl-C it says how to go on, and leaves with the shell's exit code for it."""
    try:
        return work()
    except KeyboardInterrupt:
        click.echo("interrupted: finished processes are on disk; run the same command again to continue", err=True)
        sys.exit(INTERRUPTED)


@click.command()
@click.argument("mixers", nargs=-1, required=True, metavar="MIXER...")
@click.option("--layers", default="MIXER*2", show_default=True, metavar="PATTERN", help="Of train, prefill, decode.")
@click.option("--seed", default=0, show_default=True, help="Of the order in which points are visited.")
@measuring_options(T="128,512,2048", mode=",".join(MODES), processes=3)
def time(
    mixers: tuple[str, ...],
    lengths: tuple[int, ...],
    modes: tuple[str, ...],
    d_model: int,
    batch_size: int,
    layers: str,
    dtype: str,
    processes: int,
    seed: int,
    again: bool,
    files: tuple[str, ...],
    runs: Path,
    device: str,
    as_json: bool,
) -> None:
    """Time mixers: several fresh processes a point, in shuffled order, with a fixed probe around every series.

    A mixer without a green check of its code on this class of device is checked first, and not timed where a promise
    is broken. Finished processes are kept in --runs: stop with Ctrl-C, type the same command, and it goes on.

    \b
    Examples: harness time attention ema
              harness time gla --T 512,1024,2048,4096 --mode forward,decode
    """
    with contextlib.redirect_stdout(sys.stderr):  # plugins may print
        from harness.sweep.gated import Place
        from harness.sweep.times import TimeRequest, run_times

        registry = load_registry(files)
        warn(registry)
        request = TimeRequest(
            mixers=mixers,
            lengths=lengths,
            modes=modes,
            d_model=d_model,
            batch_size=batch_size,
            layers=layers,
            dtype=dtype,
            processes=processes,
            seed=seed,
            place=Place(runs=runs, device=device, again=again),
        )
        timed = resumable(lambda: run_times(request, registry))
    click.echo(json.dumps(timed.to_json(), indent=2)) if as_json else _show(timed)
    sys.exit(1 if timed.failed or timed.refused else 0)


def _show(timed: "Timed") -> None:
    if timed.rows:
        notes = Notes()
        rows = _rows(timed, notes)
        sides = ["left" if name in ("mode", "mixer") else "right" for name in rows[0]]
        cells = [list(row.values()) for row in rows]
        click.echo(tabulate(cells, stacked(list(rows[0])), tablefmt="simple", disable_numparse=True, colalign=sides))
        click.echo("\n".join([*notes.lines(), _legend(timed)]))
    if timed.exponents:
        click.echo("\n" + tabulate(_exponents(timed), headers="keys", tablefmt="simple", disable_numparse=True))
    for line in (*timed.refused, *(f"failed: {line}" for line in timed.failed)):
        click.echo(line, err=True)
    for mixer, reason in timed.unavailable:
        click.echo(f"not timed: {mixer}: unavailable here: {reason}", err=True)


def _rows(timed: "Timed", notes: Notes) -> list[dict[str, str]]:
    launches = any(row.launch_us is not None for row in timed.rows)
    return [
        {
            "mode": row.series.replace("_", " "),
            "T": str(row.T),
            "#": str(timed.rank(row)),
            "mixer": notes.mark(row.mixer, "; ".join(row.notes) or None),
            "ms": f"{row.ms.value:.4g}",
            "within ±%": f"{row.within_pct:.1f}",
            "between %": f"{row.between_pct:.1f}",
            "× probe": f"{row.per_probe.value:.3g}",
            "floor %": DASH if row.floor_pct is None else f"{row.floor_pct:.0f}",
            "first ms": f"{row.first_ms:.3g}",
            **({"launch µs": _three_digits(row.launch_us)} if launches else {}),
            "peak MiB": DASH if row.peak_mib is None else f"{row.peak_mib:.1f}",
            "state KiB": DASH if row.state_kib is None or row.series != "decode" else f"{row.state_kib:.4g}",
        }
        for row in timed.rows
    ]


def _three_digits(value: float | None) -> str:
    return DASH if value is None else f"{float(f'{value:.3g}'):,g}"


def _legend(timed: "Timed") -> str:
    counts = sorted({row.ms.spread for row in timed.rows})
    clean = sum(row.clean for row in timed.rows)
    counted = sorted({row.flops_by for row in timed.rows if row.flops_by})
    return "\n".join(
        [
            "ms: median of the processes' medians; # ranks within a mode and T, equal numbers: their ranges overlap; "
            f"{clean} of {len(timed.rows)} rows are clean",
            "within: half the distance of the quartiles in one process; between: "
            f"{' or '.join(counts)}, greatest minus least",
            "× probe: in units of a fixed product and copy, timed just before and after; it moved by up to "
            f"{timed.probe_drift_pct or 0:.0f} % within a process",
            "floor: the share that the bytes and operations need at the measured ceilings (harness device); operations "
            f"by {' and '.join(counted) or 'nobody'}",
            "first: the slowest first call, compilation and autotuning included; it is in no other column",
        ]
    )


def _exponents(timed: "Timed") -> list[dict[str, str]]:
    return [
        {
            "mixer": found["mixer"],
            "mode": found["series"].replace("_", " "),
            "time ~ T^": _power(found["time"]),
            "peak memory ~ T^": _power(found["memory"]),
            "lengths": str(found["lengths"]),
        }
        for found in timed.exponents
    ]


def _power(fit: tuple[float, float | None] | None) -> str:
    if fit is None:
        return DASH
    slope, error = fit
    return f"{slope:.2f}" + (f" ±{error:.2f}" if error is not None else "")
