"""Microseconds of the zoo's operators: Triton kernels beside torch's own path and public libraries, and their floor.

The floor is what the device cannot beat: the bytes that must move over its copy bandwidth, or the operations over its
matrix rate, whichever takes longer; both ceilings are measured here first. `device` is the time on the GPU with a cold
L2 and the launches queued beforehand, `eager` the time a call takes when calls follow each other. Each operator runs in
a process of its own; public libraries with a time limit, as their first call may tune for minutes.

    python benchmarks/ops.py --json ops.json          # on CUDA some minutes; on a CPU it times the torch paths
    python benchmarks/ops.py --scaling                # how time and memory of forward and backward grow with T
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time

import numpy as np
from ops_paths import ATTENTIONS, HEAD, OPS, PATTERN, WINDOW, block_rows, inputs, operators

from harness.timing.spread import exponent

SIZES = ((64, 512, 128), (512, 64, 64), (8, 4096, 256))  # B, T, D
LENGTHS = (1024, 2048, 4096, 8192, 16384)  # of --scaling, with B and D of SCALED
SCALED = (4, 256)
MATRIX_LEN = 2048  # beyond it Fourier transforms do the long convolution, whose operations are not what takes time
MODES = ("forward", "both")  # both: forward and backward
FLUSH_BYTES = 1 << 28  # more than any L2
QUEUE_CYCLES = 10_000_000  # the device waits this long, so that the host has launched all of a sample before it starts
LIMIT_S = 45  # of one library and operator
LIBRARIES = {  # the import that must be there, and the operators it is compared on
    "fla": ("fla", ("short_conv", "wkv")),
    "causal-conv1d": ("causal_conv1d", ("short_conv",)),
    "xformers": ("xformers", ("sliding_window", "attention")),
}
DTYPES = {"bfloat16": 2, "float32": 4}


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
                for path in [path for path in paths if op in found[path]]:
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


def child_rows(paths, op, args):
    """Returns the rows of an operator, measured in a process of its own: a fault there ends no other rows.

    A library's process is also ended at the time limit.
    """
    name = "+".join(paths)
    row, library = {"op": op, "path": name}, LIBRARIES.get(name)
    if library is not None and importlib.util.find_spec(library[0]) is None:
        return [{**row, "reason": "not installed"}]
    command = [sys.executable, __file__, "--child", name, "--op", op, "--samples", str(args.samples)]
    command += ["--device", args.device]
    limit = None if library is None else LIMIT_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as stopped:
        lines = (stopped.stdout or b"").decode().splitlines()
        return [*json_rows(lines), {**row, "reason": f"stopped after {LIMIT_S} s"}]
    rows = json_rows(done.stdout.splitlines())
    if done.returncode or not rows:
        rows.append({**row, "reason": (done.stderr.strip().splitlines() or ["no output"])[-1][:160]})
    return rows


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
    # Forward: two tensors read, one written. Backward: those two and dy read, two gradients written. Attentions: three
    # read, one written; then those four and dy read, three written.
    forward_tensors, all_tensors = (4, 12) if row["op"] in ATTENTIONS else (3, 8)
    moved = (all_tensors if both else forward_tensors) * B * T * D * DTYPES[row["dtype"]]
    operations = (3 if both else 1) * forward_operations(row["op"], B, T, D)
    bytes_us, operations_us = moved / ceiling["bytes_per_s"] * 1e6, operations / ceiling[row["dtype"]] * 1e6
    return max(bytes_us, operations_us), "bytes" if bytes_us >= operations_us else "operations"


def forward_operations(op, B, T, D):
    """Returns the operations on the matrix units; of an attention, those of the pairs that are seen."""
    if op == "block_sparse":  # all pairs of two blocks, and half of those of a block with itself
        return 4 * B * D * PATTERN["block"] ** 2 * sum(len(row) - 0.5 for row in block_rows(T))
    if op in ATTENTIONS:
        W = min(T, WINDOW if op == "sliding_window" else T)
        return 4 * B * D * (T * W - W * (W - 1) // 2)
    return B * D * T * T if op == "long_conv" and T <= MATRIX_LEN else 0


def scaling(paths, ops, lengths, device, samples):
    """Yields for each operator and path the time and the peak memory of forward and backward at each length."""
    B, D = SCALED
    dtype = "bfloat16" if device == "cuda" else "float32"
    for op in ops:
        for path in paths:
            row = {"op": op, "path": path, "dtype": dtype, "T": lengths, "device_us": [], "peak_bytes": []}
            if op not in (operator := operators(path)):
                continue
            try:
                for T in lengths:
                    call = calls(operator[op], inputs(op, (B, T, D), dtype, device))["both"]
                    row["device_us"].append(float(np.median(timed(call, device, samples)["samples_us"])))
                    row["peak_bytes"].append(peak_bytes(call, device))
            except Exception as error:  # what a path says to a length it does not take
                row["reason"] = f"{type(error).__name__}: {error}"[:160]
            yield row


def peak_bytes(call, device):
    """Returns how much more memory the call took than there was before it; None on a CPU."""
    import torch

    if device == "cpu":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def scaling_table(rows, measure, unit):
    """Returns a table of one measure at each length, and the exponent of T fitted to it."""
    shown = []
    for row in rows:
        values = [value / unit for value in row[measure] if value is not None]
        out = {"op": row["op"], "path": row["path"]}
        out |= {f"T = {T}": f"{value:,.2f}" for T, value in zip(row["T"], values, strict=False)}
        fit = exponent(row["T"][: len(values)], values) if values else None
        out["exponent of T"] = row.get("reason", "–") if fit is None else f"{fit[0]:.2f} ± {fit[1] or np.nan:.2f}"
        shown.append(out)
    return table(shown)


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


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write every sample there")
    parser.add_argument("--op", choices=OPS, help="only this operator")
    parser.add_argument("--samples", type=int, help="a call; default 40 on CUDA, 3 on a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--scaling", action="store_true", help="the growth with T instead")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="T", help="of --scaling")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse()
    import torch

    device = args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.samples = args.samples or (40 if device == "cuda" else 3)
    ops = (args.op,) if args.op else OPS
    paths = ("kernel", "torch", "sdpa") if device == "cuda" else ("torch", "sdpa")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    found = {"device": name, "torch": torch.__version__}
    if args.child:
        for row in measure(args.child.split("+"), ops, SIZES, device, args.samples):
            print(json.dumps(row), flush=True)
        return
    if args.scaling:
        found["rows"] = list(scaling(paths, ops, args.lengths, device, args.samples))
        print_scaling(found)
    else:
        found["ceilings"] = ceilings(device)
        found["rows"] = []
        for op in ops:
            libraries = [(name,) for name, (_, known) in LIBRARIES.items() if device == "cuda" and op in known]
            for given in (paths, *libraries):
                found["rows"] += child_rows(given, op, args)
                save(found, args)
                print(f"{op}: {', '.join(given)} measured", file=sys.stderr, flush=True)
        print_times(found)
    save(found, args)


def save(found, args):
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file)


def print_times(found):
    ceiling = found["ceilings"]
    print(table([shown(row, ceiling) for row in found["rows"]]))
    rates = ", ".join(f"{dtype} {ceiling[dtype] / 1e12:,.3g} T/s" for dtype in DTYPES if dtype in ceiling)
    print(f"\n{found['device']}; copy {ceiling['bytes_per_s'] / 1e9:,.0f} GB/s read and written; products {rates}")
    print("median [quartiles] of n calls; short_conv: 4 taps, bias, SiLU, gate; long_conv: bias, gate;")
    drawn = ", ".join(f"{name} {value}" for name, value in PATTERN.items())
    print(f"sliding_window: window {WINDOW}; block_sparse: {drawn}; attention: causal; heads of {HEAD}")


def print_scaling(found):
    rows = found["rows"]
    print("device ms, forward and backward\n")
    print(scaling_table(rows, "device_us", 1e3))
    if found["device"] != "CPU":
        print("\npeak MiB above the inputs\n")
        print(scaling_table(rows, "peak_bytes", 2**20))
    print(f"\n{found['device']}, {rows[0]['dtype']}, B = {SCALED[0]}, D = {SCALED[1]}; medians; exponent of T ± its")
    print(
        f"standard error; window {WINDOW}, heads of {HEAD}; from where on long_conv takes the Fourier transform, "
        "`path` in its kernel's file says"
    )


if __name__ == "__main__":
    main()
