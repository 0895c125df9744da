"""Time and peak memory of one MQAR training step for each mixer, whole step, through the harness.

Two layers, no channel mixer, vocabulary 8,192, float32. Each mixer and size runs in a fresh process, mixers in turn,
and the figures are medians over all steps of all rounds. The predecessor's own code is not run here: its figures are
those of PEER, measured on the same kind of machine on another day, so the ratios carry that machine's drift.

    python benchmarks/zoo_step.py                      # two CPU threads, every mixer, (64, 4) d 64 batch 512
    python benchmarks/zoo_step.py --all --mixer rwkv4  # one mixer, every size
    python benchmarks/zoo_step.py --all --device cuda  # steps launched one by one, and recorded once and replayed
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

CPU_SIZES = [(64, 4, 64, 512), (64, 4, 128, 512), (256, 16, 64, 256), (256, 16, 128, 256)]  # (N, D, d_model, batch)
CUDA_SIZES = [(N, D, d, B) for N, D, B in ((64, 4, 512), (256, 16, 256), (512, 64, 128)) for d in (64, 512)]
SIZES = {"cpu": CPU_SIZES, "cuda": CUDA_SIZES}
V = 8192
ATTENTION = "attention(positions=learned)"
EVERY = f"{ATTENTION}, every position"  # and not, in the last layer, the labelled ones alone
BASE_CONV, HYENA, H3 = "base_conv(kernel=published)", "hyena", "h3(d_state=length,head_dim=2)"
PEER = {  # the predecessor's mixers: seconds on two Zen 3 cores with its allocator tuned; ms and MiB on an H100
    "cpu": {
        (ATTENTION, CPU_SIZES[0]): 2.25,
        (ATTENTION, CPU_SIZES[1]): 3.65,
        (ATTENTION, CPU_SIZES[2]): 4.80,
        (ATTENTION, CPU_SIZES[3]): 5.52,
        (BASE_CONV, CPU_SIZES[0]): 2.32,
        (BASE_CONV, CPU_SIZES[1]): 2.92,
        (BASE_CONV, CPU_SIZES[2]): 3.29,
        (BASE_CONV, CPU_SIZES[3]): 7.60,
        (HYENA, CPU_SIZES[0]): 2.23,
        (HYENA, CPU_SIZES[1]): 3.71,
        (HYENA, CPU_SIZES[2]): 4.35,
        (HYENA, CPU_SIZES[3]): 7.08,
        (H3, CPU_SIZES[0]): 4.45,
        (H3, CPU_SIZES[1]): 3.52,
        (H3, CPU_SIZES[2]): 4.80,
        (H3, CPU_SIZES[3]): 9.50,
    },
    "cuda": {
        (ATTENTION, CUDA_SIZES[0]): (9.4, 4351),
        (ATTENTION, CUDA_SIZES[1]): (33.6, 5773),
        (ATTENTION, CUDA_SIZES[2]): (17.6, 9530),
        (ATTENTION, CUDA_SIZES[3]): (67.6, 11811),
        (ATTENTION, CUDA_SIZES[4]): (18.6, 10347),
        (ATTENTION, CUDA_SIZES[5]): (72.2, 12620),
        (BASE_CONV, CUDA_SIZES[0]): (9.1, 4438),
        (BASE_CONV, CUDA_SIZES[2]): (16.5, 9185),
        (HYENA, CUDA_SIZES[0]): (12.8, 4651),
        (H3, CUDA_SIZES[0]): (17.1, 4845),
        (H3, CUDA_SIZES[3]): (104.8, 16072),
    },
}
MIXERS = [ATTENTION, EVERY, "short_conv", "base_conv", BASE_CONV, HYENA, H3, "long_conv", "rwkv4"]


def make_steps(mixer, size, device):
    """Yields how the step is launched, and the step: plain, and on CUDA then also recorded once and replayed."""
    import torch

    from harness import MQAR
    from harness.config import ModelConfig, TrainingConfig
    from harness.model import build_model
    from harness.plugins import load_registry
    from harness.sweep.plan import choose
    from harness.train import make_optimizer, prepare_process, stepper, to_device, train_step

    N, D, d_model, B = size
    every, mixer = mixer == EVERY, ATTENTION if mixer == EVERY else mixer
    prepare_process(device, torch.get_num_threads())
    torch.manual_seed(0)
    registry, training = load_registry(), TrainingConfig()
    chosen = str(choose(registry, mixer, device))
    layers = "MIXER*2" if mixer != ATTENTION else f"{chosen},{chosen.replace('positions=learned', 'positions=none')}"
    model = build_model(ModelConfig(d_model=d_model, layers=layers), chosen, V, N, registry).to(device)
    optimizer = make_optimizer(model, training, 1e-3)
    tokens, rows, targets = to_device(next(iter(MQAR(N=N, D=D).train(batch_size=B, steps=1, seed=0))), device)
    inputs = tokens, rows.flatten() if every else rows, targets
    yield "plain", lambda: train_step(model, inputs, optimizer, training)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # a replay allocates nothing: its memory is what the recording took
        recorded = stepper(model, optimizer, training, device)
        for _ in range(4):
            recorded(inputs)
        if recorded.facts["not_captured"]:
            print(f"{mixer} {size}: not recorded: {recorded.facts['not_captured']}", file=sys.stderr)
        else:
            yield "recorded", lambda: recorded(inputs)


def one_process(mixer, size, steps, device, threads):
    import torch

    torch.set_num_threads(threads)
    found = {}
    for launch, step in make_steps(mixer, size, device):
        float(step())
        seconds, cpu_seconds = [], []
        for _ in range(steps):
            started, cpu_started = time.perf_counter(), time.process_time()
            float(step())  # waits for the device
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)  # of all threads: what others cannot stretch
        found[launch] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes(device)}
    print(json.dumps(found))


def peak_bytes(device):
    """Returns the peak of the whole process, torch included; on CUDA of what torch allocated on the device."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(mixer, size, args):
    command = [sys.executable, __file__, "--one", mixer, "--steps", str(args.steps), "--threads", str(args.threads)]
    command += ["--device", args.device, "--size", *map(str, size)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(out.stdout.splitlines()[-1])
    for launch, one in found.items():
        print(f"{mixer} {size} {launch}: {statistics.median(one['seconds']):.4f} s", file=sys.stderr, flush=True)
    return found


def rows_of(mixer, size, processes, device):
    """Returns a row for each way of launching."""
    return [row(mixer, size, launch, [one[launch] for one in processes], device) for launch in processes[0]]


def row(mixer, size, launch, found, device):
    ms = [1e3 * s for process in found for s in process["seconds"]]
    mib = max(process["peak_bytes"] for process in found) / 2**20
    ours = statistics.median(ms)
    peer_ms, peer_mib = peer_of(mixer, size, device)
    N, D, d_model, B = size
    return {
        "mixer": mixer,
        "(N, D)": f"({N}, {D})",
        "d": d_model,
        "batch": B,
        "launch": launch,
        "ms/step": f"{ours:,.2f} [{min(ms):,.2f}–{max(ms):,.2f}]",
        "CPU ms": f"{1e3 * statistics.median([s for process in found for s in process['cpu_seconds']]):,.1f}",
        "peak MiB": f"{mib:,.0f}",
        "peer ms": "–" if peer_ms is None else f"{peer_ms:,.1f}",
        "times faster": "–" if peer_ms is None else f"{peer_ms / ours:.1f}",
        "peer MiB": "–" if peer_mib is None else f"{peer_mib:,}",
        "n": len(ms),
    }


def peer_of(mixer, size, device):
    """Returns (ms, MiB or None) of the predecessor, (None, None) where it was not measured."""
    found = PEER[device].get((mixer, size))
    if found is None:
        return None, None
    return found if device == "cuda" else (1e3 * found, None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every size, not only the first")
    parser.add_argument("--mixer", action="append", choices=MIXERS, help="only this one; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="a process; default 5 on a CPU, 50 on CUDA")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.steps = args.steps or (50 if args.device == "cuda" else 5)
    if args.one:
        one_process(args.one, tuple(args.size), args.steps, args.device, args.threads)
        return
    from tabulate import tabulate

    rows, raw = [], []
    for size in SIZES[args.device] if args.all else SIZES[args.device][:1]:
        mixers = args.mixer or MIXERS
        rounds = [[measure(mixer, size, args) for mixer in mixers] for _ in range(args.rounds)]
        for mixer, *processes in zip(mixers, *rounds, strict=True):
            rows += rows_of(mixer, size, processes, args.device)
            raw.append({"mixer": mixer, "size": size, "processes": processes})
        if args.json:  # after every size: what is measured is kept
            Path(args.json).write_text(json.dumps(raw))
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    print(f"\nmedian [min–max] of n steps over {args.rounds} processes; {args.device}; V {V:,}; 2 layers; fp32")
    print("Peer: the predecessor's code as measured on the same kind of machine on another day, not run here.")


if __name__ == "__main__":
    main()
