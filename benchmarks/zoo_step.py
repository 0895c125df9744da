"""Seconds and peak memory of one MQAR training step for each mixer of the zoo, whole step, through the harness.

Two layers, no channel mixer, vocabulary 8,192, float32. Each mixer and size runs in a fresh process, mixers in turn,
and the figures are medians over all steps of all rounds. The predecessor's own code is not run here: its figures are
those of PEER_SECONDS, measured on the same kind of machine on another day, so the ratios carry that machine's drift.

    python benchmarks/zoo_step.py                      # every mixer, (64, 4) d 64 batch 512
    python benchmarks/zoo_step.py --all --mixer rwkv4  # one mixer, every size
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

SIZES = [(64, 4, 64, 512), (64, 4, 128, 512), (256, 16, 64, 256), (256, 16, 128, 256)]  # (N, D, d_model, batch)
V = 8192
PEER_SECONDS = {  # the predecessor's mixers with their allocator tuned, one figure for each of SIZES
    "base_conv(kernel=published)": (2.32, 2.92, 3.29, 7.60),
    "hyena": (2.23, 3.71, 4.35, 7.08),
    "h3(d_state=length,head_dim=2)": (4.45, 3.52, 4.80, 9.50),
}
MIXERS = ["short_conv", "base_conv", *PEER_SECONDS, "long_conv", "rwkv4"]


def make_step(mixer, N, D, d_model, B):
    import torch

    from harness import MQAR
    from harness.config import ModelConfig, TrainingConfig
    from harness.model import build_model
    from harness.plugins import load_registry
    from harness.train import make_optimizer, prepare_process, to_device, train_step

    prepare_process("cpu", torch.get_num_threads())
    torch.manual_seed(0)
    training = TrainingConfig()
    model = build_model(ModelConfig(d_model=d_model, layers="MIXER*2"), mixer, V, N, load_registry())
    optimizer = make_optimizer(model, training, 1e-3)
    inputs = to_device(next(iter(MQAR(N=N, D=D).train(batch_size=B, steps=1, seed=0))), "cpu")
    return lambda: float(train_step(model, inputs, optimizer, training))


def one_process(mixer, size, steps, threads):
    import torch

    torch.set_num_threads(threads)
    step = make_step(mixer, *size)
    step()
    seconds, cpu_seconds = [], []
    for _ in range(steps):
        started, cpu_started = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)  # of all threads: what other processes cannot stretch
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of the whole process, torch included
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak_gb}))


def measure(mixer, size, steps, threads):
    command = [sys.executable, __file__, "--one", mixer, "--steps", str(steps), "--threads", str(threads)]
    out = subprocess.run([*command, "--size", *map(str, size)], capture_output=True, text=True, check=True)
    found = json.loads(out.stdout)
    print(f"{mixer} {size}: {statistics.median(found['seconds']):.3f} s", file=sys.stderr, flush=True)
    return found


def row(mixer, size, found):
    seconds = [s for process in found for s in process["seconds"]]
    cpu_seconds = [s for process in found for s in process["cpu_seconds"]]
    ours, peer = statistics.median(seconds), PEER_SECONDS.get(mixer)
    N, D, d_model, B = size
    return {
        "mixer": mixer,
        "(N, D)": f"({N}, {D})",
        "d": d_model,
        "batch": B,
        "s/step": f"{ours:.3f} [{min(seconds):.3f}–{max(seconds):.3f}]",
        "CPU s/step": f"{statistics.median(cpu_seconds):.3f}",
        "peak GB": f"{max(process['peak_gb'] for process in found):.2f}",
        "peer s/step, another day": f"{peer[SIZES.index(size)]:.2f}" if peer else "–",
        "times faster": f"{peer[SIZES.index(size)] / ours:.1f}" if peer else "–",
        "n": len(seconds),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every size, not only the first")
    parser.add_argument("--mixer", action="append", choices=MIXERS, help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one_process(args.one, args.size, args.steps, args.threads)
        return
    from tabulate import tabulate

    rows = []
    for size in SIZES if args.all else SIZES[:1]:
        mixers = args.mixer or MIXERS
        rounds = [[measure(mixer, size, args.steps, args.threads) for mixer in mixers] for _ in range(args.rounds)]
        rows += [row(mixer, size, found) for mixer, *found in zip(mixers, *rounds, strict=True)]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    print(
        f"\nmedian [min–max] of n steps over {args.rounds} processes; {args.threads} threads; V {V:,}; 2 layers; fp32"
    )
    print(
        "Peer: the predecessor's code as measured on the same kind of machine on another day, not run here. RWKV does"
    )
    print("not run there without CUDA; for the plain convolutions there is no figure.")


if __name__ == "__main__":
    main()
