"""A second opinion on CUDA: the same calls timed by this harness, by NVBench (`cuda-bench`) and by triton's do_bench.

    pip install "cuda-bench[cu13]"                       # or [cu12]: the CUDA that torch was built with
    python benchmarks/cuda_bench_check.py
    python benchmarks/cuda_bench_check.py --mixer gla/triton --T 512,2048,8192 --d-model 1024 --json check.json

Each mixer's forward (one layer, no gradients) is timed in one process: cold by the harness, by NVBench, by do_bench,
and by the harness again. All three write over the L2 cache before each sample. The harness and NVBench also hold the
stream back until the launches are queued; do_bench does not, and reads longer where launching costs more than the work.
Targets: within 2 % of NVBench from 50 µs, within 3 % of do_bench from 200 µs. Exit code 1 where one is missed.
--sync is for a mixer that waits for the device: NVBench's blocking kernel would deadlock with it.
"""

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from tabulate import tabulate

from harness.config import ModelConfig, RunConfig, TimingConfig, TrainingConfig
from harness.plugins import load_registry
from harness.sweep.plan import choose

NVBENCH_MS, NVBENCH_RATIO = 0.05, 0.02
DO_BENCH_MS, DO_BENCH_RATIO = 0.2, 0.03
WARM_CALLS = 3
MAX_S = 2.0


def needed():
    """Returns (torch, cuda.bench), or ends the program with what is missing and the command that helps."""
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"cuda_bench_check needs a CUDA device; torch {torch.__version__} finds none")
    try:
        bench = importlib.import_module("cuda.bench")
        bench.register  # noqa: B018 - loads the native part, which needs cuda-bindings of the right version
    except (ImportError, AttributeError) as error:
        major = (torch.version.cuda or "13").partition(".")[0]
        sys.exit(f"cuda_bench_check needs cuda-bench ({error}); pip install 'cuda-bench[cu{major}]'")
    return torch, bench


def forward_call(args, mixer, T):
    """Returns the forward of one layer, its inputs in turn so that none is still in the cache."""
    from harness.timing.cuda import rotations
    from harness.timing.workload import Workload

    registry = load_registry()
    config = RunConfig(
        task="timing",
        model=ModelConfig(d_model=args.d_model),
        training=TrainingConfig(dtype=args.dtype),
        timing=TimingConfig(batch_size=args.batch, T=T),
    )
    work = Workload(registry, str(choose(registry, mixer, "cuda")), config, "cuda")
    return work.call("forward", rotations("cuda", args.batch * T * args.d_model * 4))


def ours_ms(call):
    from harness.timing.cuda import cold
    from harness.timing.sample import measure
    from harness.timing.stop import StopRule

    return float(np.median(measure(cold(call, "cuda"), "cuda", StopRule(max_s=MAX_S)).ms))


def nvbench_ms(torch, bench, calls, sync):
    """Returns the median of NVBench's cold samples of each call."""
    for name, call in calls.items():
        bench.register(measured_by_nvbench(torch, call, sync)).set_name(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        bench.run_all_benchmarks(["cuda_bench_check", "--devices", "0", "--jsonbin", str(path)])
        results = importlib.import_module("cuda.bench.results").BenchmarkResult.from_json(path)
        return {name: cold_median_ms(results[name][0]) for name in calls}


def measured_by_nvbench(torch, call, sync):
    def stream_of(one):
        return torch.cuda.ExternalStream(one.get_stream().addressof())

    def measured(state):
        with torch.cuda.stream(stream_of(state)):  # this stream's memory pool, compilation, autotuning
            for _ in range(WARM_CALLS):
                call.fn()
        torch.cuda.synchronize()

        def launch(one):
            with torch.cuda.stream(stream_of(one)):
                call.fn()

        state.exec(launch, batched=False, sync=sync)

    return measured


def cold_median_ms(state):
    if state.is_skipped or state.samples is None:
        raise SystemExit(f"cuda-bench skipped {state.state_name}: {state.skip_reason or 'it kept no samples'}")
    return 1e3 * float(np.median(np.frombuffer(state.samples, dtype=np.float32)))  # NVBench counts seconds


def compared(name, before, nvbench, triton, after):
    ours = (before + after) / 2
    ratio, other = ours / nvbench, ours / triton
    missed = (nvbench >= NVBENCH_MS and abs(ratio - 1) > NVBENCH_RATIO) or (
        triton >= DO_BENCH_MS and abs(other - 1) > DO_BENCH_RATIO
    )
    return {
        "forward": name,
        "harness ms": round(ours, 5),
        "harness again": round(after / before, 4),
        "cuda-bench ms": round(nvbench, 5),
        "harness / cuda-bench": round(ratio, 4),
        "do_bench ms": round(triton, 5),
        "harness / do_bench": round(other, 4),
        "": "MISSED" if missed else "ok" if nvbench >= NVBENCH_MS else "short",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixer", default="attention", help="one or more, with commas between")
    parser.add_argument("--T", default="512,2048,8192")
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch, bench = needed()
    from triton.testing import do_bench

    points = [(mixer, int(T)) for mixer in args.mixer.split(",") for T in args.T.split(",")]
    calls = {f"{mixer} T={T}": forward_call(args, mixer, T) for mixer, T in points}
    before = {name: ours_ms(call) for name, call in calls.items()}
    nvbench = nvbench_ms(torch, bench, calls, args.sync)
    triton = {name: float(do_bench(call.fn, return_mode="median")) for name, call in calls.items()}
    after = {name: ours_ms(call) for name, call in calls.items()}
    rows = [compared(name, before[name], nvbench[name], triton[name], after[name]) for name in calls]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuda-bench {bench.__version__}")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    sys.exit(1 if any(row[""] == "MISSED" for row in rows) else 0)


if __name__ == "__main__":
    main()
