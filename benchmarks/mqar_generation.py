"""MQAR examples per second and core, and peak memory, beside a plain generator measured in the same run.

Run it with `python benchmarks/mqar_generation.py`, or with `--quick` for small counts. Each row is a process of its
own, held to one core where the system allows, so that peak memory is that of the row.
"""

import json
import os
import resource
import subprocess
import sys
import time
from statistics import median

import click
import numpy as np
from tabulate import tabulate

from harness import MQAR
from harness.tasks.options import MQAROptions

CELLS = ((64, 4), (128, 8), (256, 16), (512, 64))
VOCAB = 8192
ROUNDS = 3  # the two generators take turns this often, since machines drift
# The predecessor's release at commit dbcb60d, 100,000 sequences, filler zeros: sequences/s on one core and peak GB.
# Measured on another day and machine (2 cores, AMD Zen 3), so no ratio to it is claimed.
PREDECESSOR = {(64, 4): ("2,430", "6.8"), (256, 16): ("1,815", "7.7"), (512, 64): ("1,750", "8.8")}


def plain(N: int, D: int, count: int, fillers: bool) -> int:
    """The published recipe, written plainly: tile the vocabulary, then draw row by row, all of it in memory.

    With numpy's Generator, whose choice is quicker here than the older np.random.choice: the stricter comparison.
    """
    rng = np.random.default_rng(0)
    keys = np.tile(np.arange(1, VOCAB // 2), (count, 1))
    values = np.tile(np.arange(VOCAB // 2, VOCAB), (count, 1))
    keys = np.apply_along_axis(rng.choice, 1, keys, replace=False, size=D)
    values = np.apply_along_axis(rng.choice, 1, values, replace=False, size=D)
    slots = np.tile(np.arange((N - 2 * D) // 2), (count, 1))
    weights = np.arange(1, slots.shape[1] + 1) ** (0.01 - 1)
    slots = np.apply_along_axis(rng.choice, 1, slots, replace=False, p=weights / weights.sum(), size=D)
    tokens, labels = np.zeros((count, N), np.int64), np.full((count, N), -100, np.int64)
    tokens[:, 0 : 2 * D : 2], tokens[:, 1 : 2 * D : 2] = keys, values
    np.put_along_axis(tokens, 2 * D + 2 * slots, keys, axis=1)
    np.put_along_axis(labels, 2 * D + 2 * slots, values, axis=1)
    if fillers:
        tokens[tokens == 0] = rng.integers(VOCAB, size=int((tokens == 0).sum()))
    return len(tokens)


def ours(N: int, D: int, count: int, fillers: bool) -> int:
    """One pass over the training split as int64 batches, validation and test sequences left out."""
    options = MQAROptions(
        vocab_size=VOCAB,
        train_cells=((N, D, count),),
        validation_cells=((N, D, 1000),),
        test_cells=((N, D, 3000),),
        random_non_queries=fillers,
    )
    task = MQAR(options)
    return sum(len(batch.tokens) for batch in task.train(512, task.epoch_steps(512), seed=0))


GENERATORS = {"ours": ours, "plain": plain}


def measure(name: str, N: int, D: int, count: int, fillers: bool) -> tuple[float, float]:
    """Returns examples/s and peak MiB of one fresh process."""
    arguments = [sys.executable, __file__, "--row", json.dumps([name, N, D, count, fillers])]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    return tuple(json.loads(out))


def run_row(row: str) -> None:
    name, N, D, count, fillers = json.loads(row)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    start = time.perf_counter()
    done = GENERATORS[name](N, D, count, fillers)
    seconds = time.perf_counter() - start
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(json.dumps([done / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit]))


@click.command()
@click.option("--quick", is_flag=True, help="2,000 examples of two cells.")
@click.option("--examples", default=100_000, show_default=True, help="Streamed by our generator, in each row.")
@click.option("--plain-examples", default=5_000, show_default=True, help="Held in memory by the plain one.")
@click.option("--row", hidden=True, help="Measure one row in this process.")
def main(quick: bool, examples: int, plain_examples: int, row: str | None) -> None:
    if row is not None:
        return run_row(row)
    if quick:
        examples, plain_examples = 2_000, 500
    table = []
    for (N, D), fillers in ((cell, f) for cell in (CELLS[:1] + CELLS[-1:] if quick else CELLS) for f in (False, True)):
        pairs = [
            (measure("ours", N, D, examples, fillers), measure("plain", N, D, plain_examples, fillers))
            for _ in range(1 if quick else ROUNDS)
        ]
        mine, theirs = (median(pair[i][0] for pair in pairs) for i in (0, 1))
        ratio = median(a[0] / b[0] for a, b in pairs)
        memory = [max(pair[i][1] for pair in pairs) for i in (0, 1)]
        recorded = PREDECESSOR.get((N, D), ("–", "–")) if not fillers else ("–", "–")
        kind = "random" if fillers else "zeros"
        table.append([f"{N}, {D}", kind, mine, memory[0], theirs, memory[1], ratio, *recorded])
    headers = ["N, D", "fillers", "ours\nexamples/s", "ours\npeak MiB", "plain\nexamples/s", "plain\npeak MiB"]
    headers += ["ours / plain\n(same run)", "predecessor*\nexamples/s", "predecessor*\npeak GB"]
    formats = ("", "", ",.0f", ",.0f", ",.0f", ",.0f", ",.0f", "", "")
    align = ("left", "left", *["right"] * 7)
    print(tabulate(table, headers=headers, floatfmt=formats, colalign=align, disable_numparse=[7, 8]))
    print(f"\nOne core, V = {VOCAB}; medians of {1 if quick else ROUNDS} alternating runs, peak memory the largest.")
    print(
        f"Ours streams {examples:,} examples; plain holds its {plain_examples:,} in memory (peak grows with the count)."
    )
    print("* recorded at 100,000 examples on another day and machine (commit dbcb60d): no ratio is claimed. A dash:")
    print("  not recorded.")


if __name__ == "__main__":
    main()
