"""Seconds and peak memory of one MQAR training step: this harness beside the published recipe, in one run.

The published recipe is restated here: learned positions, scores materialised, the vocabulary head at every position,
AdamW without fusion, an argmax over every logit. Both sides train two attention layers without channel mixer. Each
side runs in a fresh process, sides alternate, and the ratio is one of medians over all steps of all rounds.

    python benchmarks/mqar_step.py            # (64, 4) d 64 batch 512, two threads
    python benchmarks/mqar_step.py --all      # every size of the predecessor's table
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

SIZES = {  # (N, D, d_model, batch) -> the predecessor's own code on two Zen 3 cores, allocator tuned: seconds, GB
    (64, 4, 64, 512): (2.25, 5.9),
    (64, 4, 128, 512): (3.65, 4.3),
    (256, 16, 64, 256): (4.80, 9.6),
    (256, 16, 128, 256): (5.52, 8.6),
}
V = 8192


def batch_of(N, D, B):
    from harness import MQAR

    return next(iter(MQAR(N=N, D=D).train(batch_size=B, steps=1, seed=0)))


def harness_step(N, D, d_model, B):
    import torch

    from harness.config import ModelConfig, TrainingConfig
    from harness.model import build_model
    from harness.plugins import load_registry
    from harness.train import loss_on_rows, make_optimizer, prepare_process, to_device

    prepare_process("cpu", torch.get_num_threads())
    torch.manual_seed(0)
    config = ModelConfig(d_model=d_model, layers="attention(positions=learned),attention")
    model = build_model(config, "attention", V, N, load_registry())
    optimizer = make_optimizer(model, TrainingConfig(), 1e-3)
    inputs = to_device(batch_of(N, D, B), "cpu")

    def step():
        loss = loss_on_rows(model, *inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def recipe_step(N, D, d_model, B):
    import torch
    from torch import nn
    from torch.nn import functional as F

    from harness.train import keep_pages

    keep_pages()
    torch.manual_seed(0)
    batch = batch_of(N, D, B)
    tokens = torch.from_numpy(batch.tokens).long()
    labels = torch.full((B * N,), -100)
    labels[torch.from_numpy(batch.rows)] = torch.from_numpy(batch.targets).long()

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.qkv = nn.LayerNorm(d_model), nn.Linear(d_model, 3 * d_model)
            self.out, self.drop = nn.Linear(d_model, d_model), nn.Dropout(0.1)

        def forward(self, x):
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            future = torch.full((N, N), -10000.0).triu(1)
            weights = (torch.einsum("btd,bsd->bts", q, k) * d_model**-0.5 + future).softmax(-1)
            return x + self.out(self.drop(weights) @ v)

    embedding, position = nn.Embedding(V, d_model), nn.Embedding(N, d_model)
    layers, norm = nn.Sequential(Layer(), Layer()), nn.LayerNorm(d_model)
    parameters = [p for m in (embedding, position, layers, norm) for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)

    def step():
        x = F.dropout(embedding(tokens) + position.weight, 0.1)
        logits = F.linear(norm(layers(x)), embedding.weight)  # [B, N, V]
        loss = F.cross_entropy(logits.flatten(0, 1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logits.detach().argmax(-1)
        return float(loss.detach())

    return step


def one_side(side, size, steps, threads):
    import torch

    torch.set_num_threads(threads)
    run = {"harness": harness_step, "recipe": recipe_step}[side](*size)
    run()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of the whole process, torch included
    print(json.dumps({"seconds": seconds, "peak_gb": peak_gb}))


def measure(side, size, steps, threads):
    command = [sys.executable, __file__, "--side", side, "--steps", str(steps), "--threads", str(threads)]
    out = subprocess.run([*command, "--size", *map(str, size)], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def compare(size, rounds, steps, threads):
    seconds, peaks = {"harness": [], "recipe": []}, {"harness": 0.0, "recipe": 0.0}
    for _ in range(rounds):
        for side in seconds:
            found = measure(side, size, steps, threads)
            seconds[side] += found["seconds"]
            peaks[side] = max(peaks[side], found["peak_gb"])
    ours, theirs = (statistics.median(seconds[side]) for side in ("harness", "recipe"))
    N, D, d_model, B = size
    return {
        "(N, D)": f"({N}, {D})",
        "d": d_model,
        "batch": B,
        "harness s/step": f"{ours:.3f} [{min(seconds['harness']):.3f}–{max(seconds['harness']):.3f}]",
        "recipe s/step": f"{theirs:.3f} [{min(seconds['recipe']):.3f}–{max(seconds['recipe']):.3f}]",
        "times faster": f"{theirs / ours:.1f}",
        "harness GB": f"{peaks['harness']:.2f}",
        "recipe GB": f"{peaks['recipe']:.2f}",
        "memory ratio": f"{peaks['harness'] / peaks['recipe']:.2f}",
        "predecessor's code, another machine": "{} s, {} GB".format(*SIZES[size]),
        "n": len(seconds["harness"]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every size, not only the first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--side", choices=["harness", "recipe"], help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        one_side(args.side, args.size, args.steps, args.threads)
        return
    from tabulate import tabulate

    sizes = list(SIZES) if args.all else list(SIZES)[:1]
    rows = [compare(size, args.rounds, args.steps, args.threads) for size in sizes]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    print(f"\nmedian [min–max] of n steps over {args.rounds} processes a side; {args.threads} threads; V {V:,}; fp32")


if __name__ == "__main__":
    main()
