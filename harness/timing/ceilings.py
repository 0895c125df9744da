"""What the device can do at most, measured here: bytes copied and operations of matrix products a second."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from harness.errors import HarnessError
from harness.record import digest
from harness.timing.device import device_facts

DTYPES = ("float32", "bfloat16", "float16")
BUDGET_S = 0.6  # of sampling one ceiling
SLOW_S = 0.2  # a product longer than this stays at its size
FIRST_N, LARGEST_N = 256, {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """The highest rates seen on one device with one driver and one torch."""

    device_class: str
    threads: int
    driver: str | None
    torch: str
    copy_bytes_per_s: float  # read plus written
    product_flops_per_s: dict[str, float | None]  # by dtype; None: the device does not take it
    measured: str  # UTC, ISO 8601
    other_cores: float  # kept busy by other processes meanwhile: the rates may then be too low

    def flops_per_s(self, dtype: str) -> float | None:
        """Returns the matrix rate of the dtype."""
        return self.product_flops_per_s.get(dtype)

    def to_json(self) -> dict[str, Any]:
        """Returns the ceilings as plain JSON values."""
        return asdict(self)


def ceilings_path(facts: Mapping[str, Any], threads: int) -> Path:
    """Returns where the ceilings of the device with these facts are kept: for one driver and one torch."""
    import platformdirs

    name = digest([facts["class"], facts["driver"], facts["libraries"]["torch"], threads])[:12]
    return Path(platformdirs.user_cache_dir("mixer-harness")) / "ceilings" / f"{facts['class']}-{name}.json"


def load_ceilings(facts: Mapping[str, Any], threads: int) -> Ceilings | None:
    """Returns the ceilings measured before, or None."""
    try:
        return Ceilings(**json.loads(ceilings_path(facts, threads).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def ensure_ceilings(device: str, facts: Mapping[str, Any], threads: int, *, again: bool = False) -> Ceilings:
    """Returns the ceilings, measured now in a process of its own where they are not known yet."""
    import subprocess

    found = None if again else load_ceilings(facts, threads)
    if found is not None:
        return found
    path = os.pathsep.join(part for part in sys.path if part)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-m", "harness.timing.ceilings", device, str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = load_ceilings(facts, threads)
    if done.returncode or found is None:
        raise HarnessError(f"the ceilings of {device} could not be measured: {done.stderr.strip() or done.returncode}")
    return found


def measure_ceilings(device: str, threads: int) -> Ceilings:
    """Returns the ceilings of the device, measured in about three seconds."""
    import torch

    from harness.timing.watch import between, read

    torch.set_num_threads(threads)
    facts, before = device_facts(device), read()
    copy = _copy_rate(device)
    products = {dtype: _product_rate(device, dtype) for dtype in DTYPES}
    return Ceilings(
        device_class=facts["class"],
        threads=threads,
        driver=facts["driver"],
        torch=facts["libraries"]["torch"],
        copy_bytes_per_s=copy,
        product_flops_per_s=products,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        other_cores=round(between(before, read()).other_cores, 2),
    )


def _copy_rate(device: str) -> float:
    import torch

    n_bytes = COPY_BYTES["cpu" if device == "cpu" else "cuda"]
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source).zero_()
    return 2 * n_bytes / _best_s(lambda: target.copy_(source), device)


def _product_rate(device: str, dtype: str) -> float | None:
    """Returns operations a second at the largest size that is quick; float32 is what torch is set to."""
    import torch

    best: float | None = None
    N, largest = FIRST_N, LARGEST_N["cpu" if device == "cpu" else "cuda"]
    while largest >= N:
        try:
            a = torch.randn(N, N, device=device).to(getattr(torch, dtype))
            seconds = _best_s(lambda a=a: a @ a, device)
        except RuntimeError:  # this device has no such product
            return best
        best = max(best or 0.0, 2.0 * N**3 / seconds)
        if seconds > SLOW_S:
            break
        N *= 2
    return best


def _best_s(fn: Any, device: str) -> float:
    """Returns the shortest of the calls that fit into the budget: a ceiling is what was reached once."""
    from harness.timing.sample import Call, draw

    fn()
    started, best = perf_counter(), float("inf")
    while perf_counter() - started < BUDGET_S:
        best = min(best, float(draw([Call(fn=fn)] * 3, device)[0].min()) / 1e3)
    return best


def save(ceilings: Ceilings, path: Path) -> None:
    """Writes the ceilings, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(ceilings.to_json(), file, indent=1)
    os.replace(part, path)


def main() -> None:
    """Measures the ceilings of the device and threads named on the command line, and keeps them."""
    device, threads = sys.argv[1], int(sys.argv[2])
    save(measure_ceilings(device, threads), ceilings_path(device_facts(device), threads))


if __name__ == "__main__":
    main()
