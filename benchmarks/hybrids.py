"""How much recall a few attention layers bring to a convolutional model: MQAR accuracy, and the AR gap closed on text.

Layers of BaseConv (3 taps, long, 3 taps, long, …) in which some are replaced by attention of selected positions. On
MQAR the width is below the length, where BaseConv alone fails; on text attention and the hybrids have equally many
parameters (within 3 %). Everything is run by `harness run`; finished trials in --runs are not run again.

    python benchmarks/hybrids.py --part mqar --runs runs-hybrids      # hours on a CPU; the plan prints an estimate
    python benchmarks/hybrids.py --part pile --runs runs-hybrids      # for a GPU
    python benchmarks/hybrids.py --report --runs docs/results/hybrids # the tables again, from the records
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

from harness.pattern import parse_layers, parse_mixer
from harness.plugins import load_registry
from harness.store import Store
from harness.tasks.pile.gap import SlicePerplexity, share_closed, share_from_recall
from harness.verify import SEEDS

BASE = "base_conv(kernel=published)"
WINDOW = "sliding_window(window=16)"
PUBLISHED = "selective_attention_published(k=32)"  # selected over the whole sequence: not causal, a control
CELLS = {"mqar-128": (128, 8), "mqar-256": (256, 16)}  # N, D at d = 64
THRESHOLDS = (100, 1250)  # the bigram of an AR hit occurs fewer times than this in the training data
STEPS = {"mqar-128": 1000, "mqar-256": 2000}


def selections(T):
    """Returns the four selections of the paper at length T; learned with k = sqrt(T), the default, and with T / 4."""
    given = ("full", "programmatic", "learned", f"learned,k={T // 4}", f"random,k={T // 4}")
    return [f"selective_attention(selection={one})" for one in given]


def mqar_layouts(T):
    """Returns (layers, mixers in the place of MIXER); other shares and places at the shorter length only."""
    full, programmatic, _, learned, _ = selections(T)
    quarter = [("MIXER*4", [BASE]), (f"{BASE}*4,at=2:MIXER", selections(T))]
    others = ("4,at=3", "4,at=2+3", "8,at=2", "8,at=5")
    if T > 128:
        return quarter
    return quarter + [(f"{BASE}*{layers}:MIXER", [full, programmatic, learned]) for layers in others]


def pile_layouts(T):
    """Returns (layers, mixers): eight layers of attention have as many parameters as ten of BaseConv.

    The learned selection takes T / 8 positions, as the published one takes 256 of 2,048, and once half of them.
    """
    full, programmatic, *_ = selections(T)
    learned, half = (f"selective_attention(selection=learned,k={k})" for k in (T // 8, T // 2))
    random = f"selective_attention(selection=random,k={T // 8})"
    return [
        ("MIXER*8", ["attention(positions=rotary)"]),
        ("MIXER*10", [BASE]),
        (f"{BASE}*10,at=6:MIXER", [full, programmatic, learned, half, random, PUBLISHED, WINDOW]),
        (f"{BASE}*10,at=4+8:MIXER", [programmatic, learned]),
    ]


def mqar_settings(part):
    N, D = CELLS[part]
    cells = {"train": 64 * STEPS[part], "validation": 500, "test": 1000}
    given = [f"mqar.options.{split}_cells=(({N}, {D}, {n}),)" for split, n in cells.items()]
    rest = (f"mqar.training.steps={STEPS[part]}", "mqar.training.lrs=(1e-3, 3e-3)", "mqar.training.seeds=(0, 1, 2)")
    return ["--preset", "quick", "--task", "mqar", *(f"--set={one}" for one in (*given, *rest, f"mqar.timing.T={N}"))]


def pile_settings():
    given = ("options.eval_tokens=131072", "training.lrs=(3e-3,)", "training.seeds=(0, 1)", "timing.samples=5")
    return ["--preset", "gpu", "--task", "pile", *(f"--set=pile.{one}" for one in given)]


def commands(part, args):
    """Returns a `harness run` for each layout of the part, each with a folder of its own."""
    layouts = pile_layouts(256) if part == "pile" else mqar_layouts(CELLS[part][0])
    settings = pile_settings() if part == "pile" else mqar_settings(part)
    for number, (layers, mixers) in enumerate(layouts):
        chosen = [word for mixer in mixers for word in ("--mixer", mixer)]
        runs = args.runs / part / f"layout{number}"
        yield [sys.executable, "-m", "harness", "run", *settings, "--layers", layers, *chosen, "--runs", str(runs)]


def run(parts, args):
    """Runs all layouts; with --side-by-side all at once, each with its share of the jobs."""
    more = ["--jobs", str(args.jobs), *(["--no-check"] if args.side_by_side else [])]
    running = []
    for command in (command for part in parts for command in commands(part, args)):
        running.append(subprocess.Popen([*command, *more]))
        if not args.side_by_side:
            running[-1].wait()
    if any(process.wait() for process in running):
        sys.exit("a run failed; what finished is kept: the same command does the rest")


def tests(folder):
    """Returns the finished test records below a folder."""
    roots = sorted({path.parent.parent for path in folder.glob("*/*-test-*/record.json")})
    return [
        one
        for root in roots
        for one in Store(root).records()
        if one.record.kind == "test" and one.record.status == "ok"
    ]


def places(record):
    """Returns (the places of the mixer under test, counted from 1; how many layers there are)."""
    layers = parse_layers(record.config["model"]["layers"], "under_test")
    return [i for i, layer in enumerate(layers, 1) if layer.name == "under_test"], len(layers)


def label(record):
    """Returns the mixer without its implementation; a selection by its options alone."""
    choice = parse_mixer(record.mixer)
    settings = sorted(choice.settings, reverse=True)  # selection before k
    inside = ", ".join(value if key == "selection" else f"{key} = {value}" for key, value in settings)
    name = "selected" if choice.name == "selective_attention" else choice.name
    return f"{name}: {inside}" if inside else name


def mqar_rows(part, args):
    N, D = CELLS[part]
    rows = []
    for one in tests(args.runs / part):
        record = one.record
        at, depth = places(record)
        found = record.measures["accuracy"]
        alone = record.mixer.startswith("base_conv")
        rows.append(
            {
                "(N, D)": f"({N}, {D})",
                "layers": depth,
                "at": "–" if alone else " and ".join(map(str, at)),
                "mixer there": "BaseConv alone" if alone else label(record),
                "accuracy": f"{found.value:.3f} [{found.low:.3f}–{found.high:.3f}]",
                "n": f"{found.n:,}",
                "learning rate": f"{record.facts['lr']:g}",
                "parameters": f"{record.facts['parameters']:,}",
                "record": record.key[:10],
            }
        )
    return sorted(
        rows, key=lambda row: (row["mixer there"] != "BaseConv alone", row["layers"], row["at"], row["mixer there"])
    )


def by_seed(one, registry):
    """Returns the perplexities of each seed by the threshold of AR hits, from the raw answers."""
    raw, spec = one.raw(), registry.task("pile")
    labels = {name: array for name, array in raw.items() if name not in ("predicted", "nll", SEEDS)}
    scores = [
        spec.score({**labels, "predicted": raw["predicted"][s], "nll": raw["nll"][s]}) for s in range(len(raw[SEEDS]))
    ]
    names = ("perplexity", "perplexity_ar@{}", "ar_share@{}")
    return {
        most: [SlicePerplexity(*(score[name.format(most)].value for name in names)) for score in scores]
        for most in THRESHOLDS
    }


def spread(values, form):
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{form(sum(known) / len(known))} [{form(min(known))}–{form(max(known))}]"


def pile_rows(args):
    registry = load_registry()
    found = [(one.record, by_seed(one, registry)) for one in tests(args.runs / "pile")]
    attention, base = (
        next(seeds for record, seeds in found if record.mixer.startswith(name)) for name in ("attention", "base_conv")
    )
    rows = []
    for record, seeds in found:
        at, depth = places(record)
        alone = seeds is base or seeds is attention
        row = {
            "layers": depth,
            "at": "–" if alone else " and ".join(map(str, at)),
            "mixer there": f"{label(record)}, alone" if alone else label(record),
            "parameters": f"{record.facts['parameters']:,}",
            "ppl all": spread([seed.overall for seed in seeds[THRESHOLDS[0]]], "{:.1f}".format),
            "other": f"{record.measures['perplexity_other'].value:.1f}",
        }
        for most in THRESHOLDS:
            h, b, a = seeds[most], base[most], attention[most]
            recall = [share_from_recall(*pair) for pair in zip(h, a, strict=True)]
            closed = [share_closed(x.ar, y.ar, z.ar) for x, y, z in zip(h, b, a, strict=True)]
            row[f"AR hits < {most:,}"] = spread([seed.ar for seed in h], "{:.2f}".format)
            row[f"of the gap, < {most:,}"] = "–" if seeds is attention else spread(recall, "{:.0%}".format)
            row[f"closed, < {most:,}"] = "–" if alone else spread(closed, "{:.0%}".format)
        rows.append({**row, "record": record.key[:10]})
    return sorted(rows, key=lambda row: (row["at"] != "–", row["at"], row["mixer there"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=[*CELLS, "mqar", "pile"], help="default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs-hybrids"))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of each layout")
    parser.add_argument(
        "--side-by-side", action="store_true", help="all layouts at once, unchecked; for large machines"
    )
    parser.add_argument("--report", action="store_true", help="run nothing, print the tables")
    args = parser.parse_args()
    parts = args.part or [*CELLS, "pile"]
    parts = [name for part in parts for name in (CELLS if part == "mqar" else [part])]
    if not args.report:
        run(parts, args)
    for part in parts:
        rows = pile_rows(args) if part == "pile" else mqar_rows(part, args)
        print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True), end="\n\n")
    print("mean [min–max] of the seeds; n counts the answers of all seeds; perplexities: held-out text, mini corpus")


if __name__ == "__main__":
    main()
