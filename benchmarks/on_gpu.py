"""Everything that wants a CUDA device, in one call: right first, then fast. Every step has a time limit and a log.

    python benchmarks/on_gpu.py --out gpu-out                    # all steps, up to hours
    python benchmarks/on_gpu.py --out gpu-out --only kernels,ops # some of them
    python benchmarks/on_gpu.py --list

A step that fails or runs out of time does not stop the others; what it had written stays. Steps that time want the
machine for themselves, so nothing runs side by side. Exit code 1 where a step failed.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PYTEST = "-m pytest -q -p no:cacheprovider"


@dataclass(frozen=True)
class Step:
    """A command in the words after `python`, and its limit in seconds; {out} is the folder of results."""

    command: str
    limit_s: int


STEPS = {
    "kernels": Step(f"{PYTEST} plugins/zoo/tests/kernels/test_results.py", 600),
    "core": Step(f"{PYTEST} tests/test_capture.py tests/test_train.py tests/timing plugins/xformers", 300),
    "check": Step("-m harness check --all --device cuda --runs {out}/runs", 900),
    "slow": Step(f"{PYTEST} -m slow", 1800),
    "ops": Step("benchmarks/ops.py --json {out}/ops.json", 400),
    "scaling": Step("benchmarks/ops.py --scaling --json {out}/scaling.json", 120),
    "attention_scaling": Step(
        "benchmarks/attention_scaling.py --device cuda --lengths 512 1024 2048 4096 8192 16384", 120
    ),
    "steps": Step("benchmarks/zoo_step.py --all --device cuda --rounds 1 --json {out}/steps.json", 900),
    "device": Step("-m harness device --device cuda", 120),
    "time": Step("-m harness time attention --T 128,512,2048,8192 --device cuda --runs {out}/runs", 300),
    "cuda_bench": Step("benchmarks/cuda_bench_check.py --mixer attention(heads=16) --json {out}/cuda_bench.json", 120),
    "ruler": Step(
        "benchmarks/ruler.py --runs {out}/ruler --device cuda --mixer attention(heads=4) --T 2048 --d-model 256 "
        "--batch 8 --max-s 0.06 --duels 100 --json {out}/ruler.json",
        3600,
    ),
    "run": Step("-m harness run --all --device cuda --runs {out}/runs", 7200),
}


def run(name, out):
    """Returns what became of the step, in a word, and its seconds."""
    step, log = STEPS[name], out / f"{name}.log"
    command = [sys.executable, *(word.format(out=out) for word in step.command.split())]
    began = time.monotonic()
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=step.limit_s, check=False
            ).returncode
            word = "ok" if done == 0 else f"exit code {done}"
        except subprocess.TimeoutExpired:
            word = f"stopped after {step.limit_s} s"
    return word, time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="logs, raw figures and records")
    parser.add_argument("--only", help="names of steps, separated by commas")
    parser.add_argument("--list", action="store_true", help="list the steps, and stop")
    args = parser.parse_args()
    if args.list:
        for name, step in STEPS.items():
            print(f"{name:18} {step.limit_s:5} s  python {step.command}")
        return
    names = args.only.split(",") if args.only else list(STEPS)
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}; choose from: {', '.join(STEPS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names:
        word, seconds = run(name, args.out)
        found[name] = {"ended": word, "seconds": round(seconds, 1)}
        (args.out / "steps_done.json").write_text(json.dumps(found, indent=1))
        print(f"{name:18} {word}, {seconds:.0f} s, {args.out / name}.log", flush=True)
    sys.exit(1 if any(one["ended"] != "ok" for one in found.values()) else 0)


if __name__ == "__main__":
    main()
