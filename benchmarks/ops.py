"""Microseconds of the zoo's operators: Triton kernels beside torch's own path and public libraries, and their floor.

The floor is what the device cannot beat: the bytes that must move over its copy bandwidth, or the operations over its
matrix rate, whichever takes longer; both ceilings are measured here first. `device` is the time on the GPU with a cold
L2 and the launches queued beforehand, `eager` the time a call takes when calls follow each other. Public libraries run
in a process of their own with a time limit: their first call may tune for minutes.

    python benchmarks/ops.py --json ops.json          # on CUDA under 4 minutes; on a CPU it times the torch paths
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time

import numpy as np

SIZES = ((64, 512, 128), (512, 64, 64), (8, 4096, 256))  # B, T, D
TAPS = 4  # of the short convolution
MATRIX_LEN = 2048  # beyond it Fourier transforms do the long convolution, whose operations are not what takes time
MODES = ("forward", "both")  # both: forward and backward
FLUSH_BYTES = 1 << 28  # more than any L2
QUEUE_CYCLES = 10_000_000  # the device waits this long, so that the host has launched all of a sample before it starts
LIMIT_S = 45  # of one library and operator
LIBRARIES = {  # the import that must be there, and the operators it is compared on
    "fla": ("fla", ("short_conv", "wkv")),
    "causal-conv1d": ("causal_conv1d", ("short_conv",)),
}
DTYPES = {"bfloat16": 2, "float32": 4}


def inputs(op, size, dtype, device):
    """Returns the tensors of one call by name, those that want gradients only."""
    import torch

    B, T, D = size
    torch.manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, device=device, dtype=getattr(torch, dtype))

    if op == "wkv":
        decay, bonus = torch.rand(D, device=device) + 0.01, torch.randn(D, device=device)
        made = {"k": draw(B, T, D), "v": draw(B, T, D), "decay": decay, "bonus": bonus}
    else:
        taps = draw(D, TAPS) if op == "short_conv" else draw(D, T) * T**-0.5
        made = {"x": draw(B, T, D), "taps": taps, "bias": draw(D), "gate": draw(B, T, D)}
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def operators(path):
    """Returns the operators of a path by name, each from the tensors of `inputs` to y."""
    if path in ("kernel", "torch"):
        return own_operators("_kernel" if path == "kernel" else "")
    return {"fla": fla_operators, "causal-conv1d": causal_conv1d_operators}[path]()


def own_operators(suffix):
    from importlib import import_module

    def operator(name):
        return getattr(import_module(f"harness_zoo.ops.{name}{suffix}"), name)

    return {
        "short_conv": lambda **given: operator("short_conv")(**given, activation="silu"),
        "long_conv": lambda **given: operator("long_conv")(**given),
        "wkv": lambda **given: operator("wkv")(**given)[0],
    }


def fla_operators():
    from fla.modules.convolution import causal_conv1d
    from fla.ops.rwkv4 import fused_recurrent_rwkv4

    def short_conv(x, taps, bias, gate):
        y = causal_conv1d(x, taps.flip(1), bias, activation="silu")
        return gate * (y[0] if isinstance(y, tuple) else y)

    def wkv(k, v, decay, bonus):
        B, _, D = k.shape
        state = k.new_zeros(B, 3, 1, D)
        state[:, 2] = -1e38
        return fused_recurrent_rwkv4(-decay.to(k.dtype), bonus.to(k.dtype), k, v, state)[0]

    return {"short_conv": short_conv, "wkv": wkv}


def causal_conv1d_operators():
    from causal_conv1d import causal_conv1d_fn

    def short_conv(x, taps, bias, gate):
        return gate * causal_conv1d_fn(x.mT, taps.flip(1), bias, activation="silu").mT

    return {"short_conv": short_conv}


def calls(op, given):
    """Returns a call for each mode: forward alone without a graph, and forward with all gradients."""
    import torch

    dy = None

    def forward():
        with torch.no_grad():
            op(**given)

    def both():
        nonlocal dy
        y = op(**given)
        dy = torch.ones_like(y) if dy is None else dy
        torch.autograd.grad(y, list(given.values()), dy)

    return {"forward": forward, "both": both}


def device_us(call, device, samples):
    """Returns the time of each sample in microseconds: on CUDA of the device alone, with a cold L2."""
    import torch

    if device == "cpu":
        return [one_host_us(call, 1, device) for _ in range(samples)]
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(samples)]
    for start, end in events:
        flush.zero_()
        torch.cuda._sleep(QUEUE_CYCLES)
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in events]


def one_host_us(call, repeats, device):
    import torch

    started = time.perf_counter()
    for _ in range(repeats):
        call()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e6 / repeats


def measure(paths, ops, sizes, device, samples):
    """Yields a row for each operator, size, dtype, mode and path; the paths take turns within a size."""
    found = {path: operators(path) for path in paths}
    dtypes = DTYPES if device == "cuda" else ("float32",)
    for op in ops:
        for size in sizes:
            for dtype in dtypes:
                for path in paths:
                    for mode, call in calls(found[path][op], inputs(op, size, dtype, device)).items():
                        row = {"op": op, "size": size, "dtype": dtype, "mode": mode, "path": path}
                        try:
                            yield {**row, **timed(call, device, samples)}
                        except Exception as error:  # whatever a library says to what it does not take
                            yield {**row, "reason": f"{type(error).__name__}: {error}"[:160]}


def timed(call, device, samples):
    for _ in range(3 if device == "cuda" else 1):
        call()
    eager = None if device == "cpu" else one_host_us(call, 20, device)
    return {"samples_us": device_us(call, device, samples), "eager_us": eager}


def library_rows(library, op, args):
    """Returns the rows of a library, measured in a process that is ended at the time limit."""
    module, _ = LIBRARIES[library]
    row = {"op": op, "path": library}
    if importlib.util.find_spec(module) is None:
        return [{**row, "reason": "not installed"}]
    command = [sys.executable, __file__, "--child", library, "--op", op, "--samples", str(args.samples)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as stopped:
        lines = (stopped.stdout or b"").decode().splitlines()
        return [*json_rows(lines), {**row, "reason": f"stopped after {LIMIT_S} s"}]
    rows = json_rows(done.stdout.splitlines())
    return rows or [{**row, "reason": (done.stderr.strip().splitlines() or ["no output"])[-1][:160]}]


def json_rows(lines):
    return [json.loads(line) for line in lines if line.startswith('{"op"') and line.endswith("}")]


def ceilings(device):
    """Returns bytes/s of a large copy (read and written) and operations/s of a large product by dtype."""
    import torch

    if device == "cpu":
        source, n = torch.empty(1 << 26, dtype=torch.int8), 1024
    else:
        source, n = torch.empty(1 << 30, dtype=torch.int8, device=device), 8192
    target = torch.empty_like(source)
    found = {"bytes_per_s": 2 * source.numel() / best_s(lambda: target.copy_(source), device)}
    for dtype in DTYPES if device == "cuda" else ("float32",):
        a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
        torch.backends.cuda.matmul.allow_tf32 = True
        # In float32 an exact product takes three of TF32.
        passes = 3 if device == "cuda" and dtype == "float32" else 1
        found[dtype] = 2 * n**3 / passes / best_s(lambda a=a: a @ a, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def best_s(call, device):
    for _ in range(3):
        call()
    return float(np.median(device_us(call, device, 10))) / 1e6


def floor_us(row, ceiling):
    """Returns the least time of a row and what sets it."""
    B, T, D = row["size"]
    both = row["mode"] == "both"
    # Forward: two tensors read, one written. Backward: those two and dy read, two gradients written.
    moved = (8 if both else 3) * B * T * D * DTYPES[row["dtype"]]
    as_matrix = row["op"] == "long_conv" and T <= MATRIX_LEN
    operations = (3 if both else 1) * B * D * T * T if as_matrix else 0
    bytes_us, operations_us = moved / ceiling["bytes_per_s"] * 1e6, operations / ceiling[row["dtype"]] * 1e6
    return max(bytes_us, operations_us), "bytes" if bytes_us >= operations_us else "operations"


def shown(row, ceiling):
    """Returns the table row."""
    out = {"op": row["op"], "(B, T, D)": "", "dtype": row.get("dtype", ""), "mode": row.get("mode", "")}
    out["path"] = row["path"]
    if "size" in row:
        out["(B, T, D)"] = "({}, {}, {})".format(*row["size"])
    if "reason" in row:
        return {**out, "device µs": f"– {row['reason']}"}
    low, middle, high = np.percentile(row["samples_us"], (25, 50, 75))
    floor, by = floor_us(row, ceiling)
    eager = row["eager_us"]
    return {
        **out,
        "device µs": f"{middle:,.1f} [{low:,.1f}–{high:,.1f}]",
        "n": len(row["samples_us"]),
        "floor µs": f"{floor:,.1f} ({by})",
        "times the floor": f"{middle / floor:.1f}",
        "eager µs": "–" if eager is None else f"{eager:,.0f}",
    }


def table(rows):
    """Returns a Markdown table; without a library, for GPU machines that have torch and little else."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    return "\n".join([lines[0], "|-" + "-|-".join("-" * width for width in widths) + "-|", *lines[1:]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    parser.add_argument("--op", choices=("short_conv", "long_conv", "wkv"), help="only this operator")
    parser.add_argument("--samples", type=int, help="a call; default 40 on CUDA, 3 on a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.samples = args.samples or (40 if device == "cuda" else 3)
    ops = (args.op,) if args.op else ("short_conv", "long_conv", "wkv")
    if args.child:
        for row in measure((args.child,), ops, SIZES, device, args.samples):
            print(json.dumps(row), flush=True)
        return
    ceiling = ceilings(device)
    paths = ("kernel", "torch") if device == "cuda" else ("torch",)
    rows = list(measure(paths, ops, SIZES, device, args.samples))
    for library, (_, known) in LIBRARIES.items() if device == "cuda" else ():
        rows += [row for op in ops if op in known for row in library_rows(library, op, args)]
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"device": name, "torch": torch.__version__, "ceilings": ceiling, "rows": rows}, file)
    print(table([shown(row, ceiling) for row in rows]))
    rates = ", ".join(f"{dtype} {ceiling[dtype] / 1e12:,.3g} T/s" for dtype in DTYPES if dtype in ceiling)
    print(f"\n{name}; copy {ceiling['bytes_per_s'] / 1e9:,.0f} GB/s read and written; products {rates}")
    print("median [quartiles] of n calls; short_conv: 4 taps, bias, SiLU, gate; long_conv: bias, gate")


if __name__ == "__main__":
    main()
