"""`harness device`: what this device is, and the rates that it reaches."""

import json
from typing import Any

import click
from tabulate import tabulate


@click.command()
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Which.")
@click.option("--again", is_flag=True, help="Measure the ceilings again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def device(device: str, again: bool, as_json: bool) -> None:
    """Show this device, its state, and its measured ceilings: bytes copied and operations of products a second.

    The ceilings are kept for this device, driver and torch. Measure them on a quiet machine: every row of
    harness time is compared with them.
    """
    from harness.sweep.local import alone
    from harness.sweep.machine import choose_device
    from harness.timing.ceilings import ceilings_path, ensure_ceilings
    from harness.timing.conditions import conditions
    from harness.timing.device import device_facts
    from harness.timing.nvml import Gpu

    chosen = choose_device(device)
    threads = alone(chosen).threads
    told = device_facts(chosen)
    found = ensure_ceilings(chosen, told, threads, again=again)
    facts: dict[str, Any] = {
        "facts": told,
        "conditions": conditions(Gpu(chosen) if chosen == "cuda" else None),
        "ceilings": found.to_json(),
        "kept_in": str(ceilings_path(told, threads)),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    rows = [{"ceiling": "copy, read plus written", "rate": f"{found.copy_bytes_per_s / 1e9:,.1f} GB/s"}]
    for dtype, rate in found.product_flops_per_s.items():
        said = "not on this device" if rate is None else f"{rate / 1e12:,.3g} TFLOP/s"
        rows.append({"ceiling": f"matrix product, {dtype}", "rate": said})
    click.echo(f"{facts['facts']['name']} ({found.device_class}), {threads} threads, torch {found.torch}")
    click.echo(tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True, colalign=("left", "right")))
    click.echo(f"measured {found.measured}; kept in {facts['kept_in']}")
    if found.other_cores > 0.1:
        click.echo(
            f"warning: other processes kept {found.other_cores:g} cores busy meanwhile: the ceilings may be too low; "
            "on a quiet machine: harness device --again",
            err=True,
        )
