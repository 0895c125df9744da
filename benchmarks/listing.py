"""Milliseconds of `harness mixers` with 50 more plugins installed, 10 of them broken, and of an empty Python script.

Each round starts all in fresh processes, one after the other; the figures are medians over the rounds. Wall time counts
what else runs on the machine, processor time (user and system) does not.

    python benchmarks/listing.py
    python benchmarks/listing.py --rounds 50
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "harness mixers": ["-m", "harness", "mixers"],
    "harness plugins list": ["-m", "harness", "plugins", "list"],
    "harness --help": ["-m", "harness", "--help"],
    "python -c pass": ["-c", "pass"],
}


def milliseconds(arguments, environment):
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1e3 * (time.perf_counter() - began), 1e3 * processor


def measure(rounds):
    sys.path.insert(0, str(ROOT / "tests"))
    from made_plugins import install_fifty

    with tempfile.TemporaryDirectory() as site:
        install_fifty(Path(site))
        paths = [site, str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        samples = {name: [] for name in COMMANDS}
        for round_ in range(rounds + 1):
            for name, arguments in COMMANDS.items():
                taken = milliseconds(arguments, environment)
                if round_:  # the first one compiles the plugins
                    samples[name].append(taken)
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print every sample")
    options = parser.parse_args()
    samples = measure(options.rounds)
    if options.json:
        print(json.dumps(samples))
        return
    for name, taken in samples.items():
        wall, processor = zip(*taken, strict=True)
        low, middle, high = statistics.quantiles(wall, n=4)
        cpu = statistics.median(processor)
        print(
            f"{name:22} {middle:6.0f} ms (quartiles {low:.0f} to {high:.0f}, n = {len(taken)}), processor {cpu:.0f} ms"
        )


if __name__ == "__main__":
    main()
