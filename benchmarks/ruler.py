"""The ruler is measured first: what the timing of this harness can see on this machine, and what it cannot.

    python benchmarks/ruler.py --runs /tmp/ruler                     # all of it; on 2 CPU cores about an hour
    python benchmarks/ruler.py --runs /tmp/ruler --parts clock,burn  # three minutes
    python benchmarks/ruler.py --runs /tmp/ruler --device cuda --mixer 'attention(heads=4)' --T 2048 --d-model 256 \\
        --batch 8 --max-s 0.06 --duels 100

The machine must be otherwise idle. Finished processes are kept in --runs: the same command goes on where it ended.
A part whose target is missed is printed as MISSED, and the exit code is 1. --plot writes one figure (needs matplotlib);
--replot draws it from the --json of an earlier run, on another machine perhaps, and measures nothing.

clock    a no-op, and a sleep of known length (on CUDA a spin of known cycles)
aa       a mixer against itself, --pairs times: at most 1 % may be called faster or slower
planted  a slowdown of 0.2 % must never be called; 3 %, and the smallest that the A/A test says is found, 100 times each
burn     rows timed while every core (on CUDA the GPU) is kept busy by others: at least 95 % flagged, none clean
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tabulate import tabulate

from harness.plugins import load_registry
from harness.store import Store
from harness.sweep.duels import CompareRequest, false_verdicts, run_pairs
from harness.sweep.gated import Place
from harness.sweep.machine import choose_device, physical_cores
from harness.sweep.times import TimeRequest, run_times
from harness.timing.device import facts_from_outside
from harness.timing.spread import disturbances, series_names
from harness.timing.verdict import SLOWER, judge

PARTS = ("clock", "aa", "planted", "burn")
PLANTED = (0.002, 0.03)
BURN_CPU = "while True: pass"
BURN_GPU = """
import torch
a = torch.randn(4096, 4096, device="cuda")
while True:
    for _ in range(50):
        a @ a
    torch.cuda.synchronize()
"""
SLEEP_MS = 5.0


def row(test, found, target, good):
    return {"test": test, "found": found, "target": target, "": {True: "ok", False: "MISSED", None: ""}[good]}


def compare_request(args, **changes):
    fields = {
        "a": args.mixer,
        "b": args.mixer,
        "lengths": (args.T,),
        "d_model": args.d_model,
        "batch_size": args.batch,
        "max_s": args.max_s,
        "place": Place(runs=args.runs, device=args.device),
    }
    return CompareRequest(**(fields | changes))


def clock(args, found):
    from harness.timing.sample import Call, measure
    from harness.timing.stop import StopRule

    rule, device = StopRule(max_s=1.0), args.device
    nothing = measure(Call(fn=lambda: None), device, rule)
    rows = [row("no-op", f"{1e6 * np.median(nothing.ms):,.0f} ns", "", None)]
    if device == "cuda":
        import torch

        spin = measure(Call(fn=lambda: torch.cuda._sleep(10_000_000)), device, rule)
        half = measure(Call(fn=lambda: torch.cuda._sleep(5_000_000)), device, rule)
        ratio = float(np.median(spin.ms) / np.median(half.ms))
        return [*rows, row("10 M cycles over 5 M", f"{ratio:.4f}", "2 within 1 %", abs(ratio - 2) < 0.02)]
    sleep = measure(Call(fn=lambda: time.sleep(SLEEP_MS / 1e3)), device, rule)
    found["sleep_ms"] = sleep.ms.tolist()
    said = f"{np.median(sleep.ms):.3f} ms, least {sleep.ms.min():.3f}"
    return [*rows, row(f"sleep of {SLEEP_MS:g} ms", said, "never shorter", bool(sleep.ms.min() >= SLEEP_MS))]


def aa(args, found):
    pairs = run_pairs(compare_request(args), args.pairs, load_registry(), args.duels)
    told = false_verdicts(pairs, pairs[0].verdict.margin)
    found["aa"] = [one.to_json() for one in pairs]
    found["smallest_found"] = told.smallest_found
    return [
        row(f"A/A, {told.pairs} pairs: called", f"{told.wrong}", "at most 1 %", told.wrong <= 0.01 * told.pairs),
        row("smallest slowdown found in 95 of 100", f"{told.smallest_found:.2%}", "", None),
        row("A/A comparisons disturbed", f"{told.disturbed} of {told.pairs}", "an idle machine: few", None),
    ]


def planted(args, found):
    sizes = list(PLANTED)
    if "smallest_found" in found:
        sizes.append(math.ceil(1000 * found["smallest_found"]) / 1000)
    rows = []
    for size in dict.fromkeys(sizes):
        pairs = run_pairs(compare_request(args, planted=size), args.planted_pairs, load_registry(), args.duels)
        called = sum(one.verdict.verdict == SLOWER for one in pairs)
        ratio = float(np.median([one.verdict.ratio for one in pairs]))
        found.setdefault("planted", []).append({"size": size, "pairs": len(pairs), "called": called, "ratio": ratio})
        wanted = called == 0 if size < 0.01 else called >= 0.95 * len(pairs)
        if size in PLANTED and size > 0.01 and size < found.get("smallest_found", 0.0):
            wanted = None  # below what this machine can see: undecided is the right answer
        target = "never" if size < 0.01 else "95 of 100"
        said = f"{called} of {len(pairs)}; median ratio {ratio:.4f}"
        rows.append(row(f"planted {size:.1%}: called slower", said, target, wanted))
    return rows


def burn(args, found):
    flagged = {}
    for what, burners in (("quiet", 0), ("burned", 1 if args.device == "cuda" else physical_cores())):
        code = BURN_GPU if args.device == "cuda" else BURN_CPU
        others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(burners)]
        try:
            timed, flagged[what] = timed_rows(args, args.runs / what)
        finally:
            for other in others:
                other.kill()
                other.wait()
        found[what] = {"series_flagged": flagged[what], "rows_clean": [row.clean for row in timed.rows]}
    share, clean = np.mean(flagged["burned"]), sum(found["burned"]["rows_clean"])
    return [
        row("series flagged, quiet", f"{np.mean(flagged['quiet']):.0%} of {len(flagged['quiet'])}", "few", None),
        row("series flagged, burned", f"{share:.0%} of {len(flagged['burned'])}", "at least 95 %", bool(share >= 0.95)),
        row("rows passed as clean, burned", f"{clean} of {len(timed.rows)}", "none", clean == 0),
    ]


def timed_rows(args, runs):
    """Returns the rows of `harness time` here and now, and whether each series of each process was flagged."""
    request = TimeRequest(
        mixers=(args.mixer,),
        lengths=(args.T // 4, args.T),
        modes=("forward", "train"),
        d_model=args.d_model,
        batch_size=args.batch,
        processes=5,
        place=Place(runs=runs, device=args.device),
    )
    timed = run_times(request, load_registry())
    raws = [stored.raw() for stored in Store(runs).records() if stored.record.kind == "speed"]
    return timed, [bool(disturbances(raw, name)) for raw in raws for name in series_names(raw)]


def setting(args):
    """Returns on what this was measured, in one line."""
    told = facts_from_outside(args.device)
    where = told["name"] if args.device == "cuda" else f"{told['name']}, {physical_cores()} cores"
    shape = f"{args.mixer} forward, B = {args.batch}, T = {args.T}, D = {args.d_model}"
    return f"{where}, torch {told['libraries']['torch']}: {shape}, {args.max_s:g} s of samples a comparison and process"


def plot(found, path):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "ruler"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    figure.suptitle(found["setting"], fontsize=9, color="0.35")
    pairs = sorted(found["aa"], key=lambda one: one["ratio"])
    ratio = np.array([one["ratio"] for one in pairs])
    ends = np.array([[one["low"], one["high"]] for one in pairs])
    left.vlines(np.arange(len(pairs)), *ends.T, color="0.75", linewidth=1)
    left.plot(ratio, ".", color="black", markersize=2)
    margin = pairs[0]["margin"]
    left.axhspan(1 / (1 + margin), 1 + margin, color="tab:blue", alpha=0.15, linewidth=0)
    called = sum(one["verdict"] in ("faster", "slower") for one in pairs)
    title = f"A mixer against itself: {called} of {len(pairs)} called"
    left.set(
        xlabel="comparison, sorted (bars: 99 % interval; band: margin)", ylabel="time of A over time of A", title=title
    )
    shifts = np.linspace(0, max(0.06, 1.5 * found["smallest_found"]), 61)
    called = [
        100
        * np.mean([judge([r + math.log1p(s) for r in one["log_ratios"]], margin).verdict == SLOWER for one in pairs])
        for s in shifts
    ]
    right.plot(100 * shifts, called, color="black", label="A/A shifted")
    for one in found.get("planted", []):
        right.plot(100 * (one["ratio"] - 1), 100 * one["called"] / one["pairs"], "o", color="tab:red")
    right.axhline(95, color="0.75", linewidth=1)
    right.set(
        xlabel="slowdown of B, % (line: A/A shifted; red: planted, as measured)",
        ylabel="called slower, %",
        title="What is found",
    )
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--runs", type=Path, default=Path("runs-ruler"))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--mixer", default="attention")
    parser.add_argument("--T", type=int, default=256)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--planted-pairs", type=int, default=100)
    parser.add_argument("--duels", type=int, default=20, help="comparisons that share their eight processes")
    parser.add_argument("--max-s", type=float, default=0.2, help="of sampling a comparison; harness compare takes 1.0")
    parser.add_argument("--plot", type=Path, help="an .svg file")
    parser.add_argument("--json", type=Path, help="everything that was found")
    parser.add_argument("--replot", type=Path, metavar="JSON", help="draw --plot from this, and stop")
    args = parser.parse_args()
    if args.replot:
        if not args.plot:
            parser.error("--replot JSON needs --plot FILE")
        plot(json.loads(args.replot.read_text()), args.plot)
        return
    parts = args.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown part {', '.join(unknown)}: choose from {', '.join(PARTS)}")
    args.device = choose_device(args.device)
    found, rows = {"setting": setting(args)}, []
    for part in (clock, aa, planted, burn):
        if part.__name__ in parts:
            rows += part(args, found)
            if args.json:  # after each part: what was found outlives a run that is cut short
                args.json.write_text(json.dumps(found, indent=1))
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    if args.plot and "aa" in found:
        plot(found, args.plot)
    sys.exit(1 if any(one[""] == "MISSED" for one in rows) else 0)


if __name__ == "__main__":
    main()
