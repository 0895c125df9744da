"""How the time of attention layers grows with T: milliseconds, the exponent fitted to them with its error, and the
exponent of the last doubling alone, where what does not depend on T counts least.

One layer, one sequence, one thread, float32; processor time, so that other processes stretch it little. Layers take
turns within each length, and the figures are medians over the rounds. Ids are uniform out of 8 T, so 6 % repeat.

    python benchmarks/attention_scaling.py
    python benchmarks/attention_scaling.py --mixer attention --mixer "sliding_window(window=64)" --rounds 20
    python benchmarks/attention_scaling.py --device cuda --lengths 512 1024 2048 4096 8192 16384
"""

import argparse
import statistics
import time

import numpy as np
import torch

from harness import MixerConfig
from harness.plugins import load_registry

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
    choice = registry.mixer(name)
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


def measure(mixers, lengths, rounds, device):
    """Returns {(mixer, call): [median seconds of each length]}."""
    registry, medians = load_registry(), {}
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
    return medians


def exponent(lengths, values):
    """Returns the slope of log(value) over log(T) and its standard error."""
    x, y = np.log(lengths), np.log(values)
    slope, start = np.polyfit(x, y, 1)
    left = y - slope * x - start
    return slope, np.sqrt((left @ left) / max(1, len(x) - 2) / ((x - x.mean()) ** 2).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixer", action="append")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    medians = measure(given.mixer or MIXERS, given.lengths, given.rounds, given.device)
    width = max(len(name) for name, _ in medians)
    for what in ("forward", "forward and backward"):
        print(f"{what + ', ms':{width}} " + " ".join(f"{T:>8}" for T in given.lengths) + "  exponent of T, at the end")
        for (name, of), values in medians.items():
            if of == what:
                slope, error = exponent(given.lengths, values)
                cells = " ".join(f"{1e3 * value:8.2f}" for value in values)
                last = exponent(given.lengths[-2:], values[-2:])[0]
                print(f"{name:{width}} {cells}  {slope:.2f} ± {error:.2f}    {last:.2f}")
        print()


if __name__ == "__main__":
    main()
