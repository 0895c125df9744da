"""How time and memory of attention layers grow with T: the figures, the exponent fitted to them with its error, and
the exponent of the last doubling alone, where what does not depend on T counts least. Memory: on CUDA.

One layer, one sequence, one thread, float32; processor time, so that other processes stretch it little. Layers take
turns within each length, and the figures are medians over the rounds. Ids are uniform out of 8 T, so 6 % repeat.

    python benchmarks/attention_scaling.py
    python benchmarks/attention_scaling.py --mixer attention --mixer "sliding_window(window=64)" --rounds 20
    python benchmarks/attention_scaling.py --device cuda --lengths 512 1024 2048 4096 8192 16384
"""

import argparse
import math
import statistics
import time

import torch

from harness import MixerConfig
from harness.plugins import load_registry
from harness.sweep.plan import choose
from harness.timing.spread import exponent

D = 64
MIXERS = [
    "attention",
    "sliding_window(window=64)",
    "bigbird",
    "selective_attention",
    "selective_attention(selection=random)",
    "selective_attention(selection=programmatic)",
    "selective_attention(selection=full)",
]


def make_calls(registry, name, T, device):
    """Returns forward without gradients, and forward and backward of a layer in training."""
    choice = choose(registry, name, device)
    spec = registry.spec(choice)
    torch.manual_seed(0)
    layer = spec.build(MixerConfig(d_model=D, max_len=T, options=registry.options(choice))).to(device)
    x = torch.randn(1, T, D, device=device, requires_grad=True)
    inputs = (x, torch.randint(8 * T, (1, T), device=device)) if spec.needs_tokens else (x,)

    @torch.no_grad()
    def forward():
        layer.eval()(*inputs)

    def train():
        layer.train()(*inputs).sum().backward()

    return {"forward": forward, "forward and backward": train}


def seconds(call, device):
    clock = time.process_time
    if device != "cpu":
        torch.cuda.synchronize()
        clock = time.perf_counter
    began = clock()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def peak_bytes(call):
    """Returns how much more memory of the CUDA device the call takes than was in use before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(mixers, lengths, rounds, device):
    """Returns ({(mixer, call): [median seconds of each length]}, the same of the peak bytes, none on a CPU)."""
    registry, medians, peaks = load_registry(), {}, {}
    for T in lengths:
        calls = {(name, what): f for name in mixers for what, f in make_calls(registry, name, T, device).items()}
        for call in calls.values():
            call()
        samples = {key: [] for key in calls}
        for _ in range(rounds):
            for key, call in calls.items():
                samples[key].append(seconds(call, device))
        for key, values in samples.items():
            medians.setdefault(key, []).append(statistics.median(values))
            if device != "cpu":
                peaks.setdefault(key, []).append(peak_bytes(calls[key]))
    return medians, peaks


def show(found, lengths, unit, scale):
    """Prints a table for each call."""
    width = max(len(name) for name, _ in found)
    for what in ("forward", "forward and backward"):
        head = f"{what}, {unit}"
        print(f"{head:{width}} " + " ".join(f"{T:>8}" for T in lengths) + "  exponent of T, at the end")
        for (name, of), values in found.items():
            if of == what:
                slope, error = exponent(lengths, values)
                cells = " ".join(f"{scale * value:8.2f}" for value in values)
                last, _ = exponent(lengths[-2:], values[-2:])
                print(f"{name:{width}} {cells}  {slope:.2f} ± {error or math.nan:.2f}    {last:.2f}")
        print()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixer", action="append")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    medians, peaks = measure(given.mixer or MIXERS, given.lengths, given.rounds, given.device)
    show(medians, given.lengths, "ms", 1e3)
    if peaks:
        show(peaks, given.lengths, "MiB", 2**-20)


if __name__ == "__main__":
    main()
