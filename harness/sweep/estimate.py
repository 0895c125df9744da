"""How long trials will take: from earlier records of this machine, else from a count of operations."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.config import RunConfig, to_json
from harness.pattern import MixerChoice
from harness.record import ALONE, digest
from harness.store import Store
from harness.sweep.trial import Trial

START_S = 2.0  # a fresh process: imports, the task's data
STEP_S = 0.004  # what a training step costs beside its products: small operations, the optimiser
REACHED = 0.8  # share of the matrix-product rate that a training step reaches
MIXER_MATRICES = 4  # D x D products of a typical mixer
PROBE_S = 0.3
PROBE_N = 512
TIME_REPEATS = 4  # a time trial: forward, train step and memory steps, in units of train steps a sample


@dataclass(frozen=True)
class Work:
    """The size of one task run, as far as its options tell without the data."""

    T: int
    vocab_size: int
    labelled: float  # share of the positions with a label
    eval_tokens: int


def work(config: RunConfig) -> Work:
    """Returns the size of the task: read from the options the core's tasks have, else guessed from `timing.T`."""
    options = config.options
    cells = getattr(options, "train_cells", None)
    if cells:
        T = max(int(cell[0]) for cell in cells)
        labelled = statistics.fmean(cell[1] / cell[0] for cell in cells)
        eval_tokens = sum(cell[0] * cell[2] for cell in getattr(options, "validation_cells", ()))
        return Work(T, getattr(options, "vocab_size", 4096), labelled, eval_tokens)
    T = int(getattr(options, "T", config.timing.T))
    return Work(T, int(getattr(options, "vocab_size", 4096)), 1.0, int(getattr(options, "eval_tokens", 64 * T)))


def step_flops(config: RunConfig, layers: int, batch_size: int, T: int) -> float:
    """Returns the operations of one training step: 6 a matrix parameter and token, the head at labelled rows."""
    size, D, tokens = work(config), config.model.d_model, batch_size * T
    channel = 3 * config.model.expansion if config.model.channel_mixer != "none" else 0
    attention = 2 * T / D  # scores and their weighted sum: at most two products with T x D a token
    per_token = layers * (MIXER_MATRICES + channel + attention) * D * D + size.labelled * size.vocab_size * D
    return 6.0 * per_token * tokens


def counted_seconds(kind: str, config: RunConfig, layers: Sequence[MixerChoice], rate: float) -> float:
    """Returns a rough number of seconds for one trial on a core with that matrix-product rate (FLOP/s)."""
    size, training, timing = work(config), config.training, config.timing
    speed = rate * REACHED

    def step(batch_size: int, T: int) -> float:
        return STEP_S + step_flops(config, len(layers), batch_size, T) / speed

    tokens = training.batch_size * size.T
    evaluation = size.eval_tokens / tokens * step(training.batch_size, size.T) / 3  # forward only
    if kind == "train":
        rounds = -(-training.steps // training.eval_every)
        return START_S + training.steps * step(training.batch_size, size.T) + rounds * evaluation
    if kind == "test":
        return START_S + len(training.seeds) * evaluation
    samples = TIME_REPEATS * (timing.samples + timing.warmup)
    return START_S + samples * step(timing.batch_size, timing.T)


def product_rate(device: str) -> float:
    """Returns the FLOP/s of float32 matrix products on the device, of one thread on a CPU, measured in 0.3 s."""
    import torch

    threads, on_gpu = torch.get_num_threads(), device != "cpu"
    torch.set_num_threads(1)
    try:
        N = PROBE_N * (4 if on_gpu else 1)
        a = torch.randn(N, N, device=device)
        a @ a  # the first product also starts the library
        count, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < PROBE_S:
            a @ a
            if on_gpu:
                torch.cuda.synchronize()
            count += 1
        return 2.0 * N**3 * max(count, 1) / elapsed
    finally:
        torch.set_num_threads(threads)


class Estimator:
    """Seconds of a trial: as recorded on this class of machine where such a trial is in the store, else counted."""

    def __init__(self, store: Store, device: str) -> None:
        from harness.timing.device import device_facts

        self.device = device
        self.recorded = recorded_seconds(store, str(device_facts(device)["class"]))
        self.rate: float | None = None

    def __call__(self, kind: str, config: RunConfig, layers: Sequence[MixerChoice], mixer: str) -> float:
        """Returns the estimate."""
        known = self.recorded.get(shape(kind, mixer, config))
        if known is not None:
            return known
        if self.rate is None:
            self.rate = product_rate(self.device)
        return counted_seconds(kind, config, layers, self.rate)


def recorded_seconds(store: Store, machine: str) -> dict[str, float]:
    """Returns the median seconds of earlier trials on this class of machine, by `shape`."""
    found: dict[str, list[float]] = {}
    for stored in store.records():
        record = stored.record
        if record.status == "ok" and record.environment.get("class") == machine:
            found.setdefault(shape(record.kind, record.mixer, record.config), []).append(record.seconds)
    return {key: statistics.median(seconds) for key, seconds in found.items()}


def shape(kind: str, mixer: str, config: dict[str, Any] | RunConfig) -> str:
    """Returns what two trials share that take equally long: all but the learning rates and the limits."""
    plain = to_json(config) if isinstance(config, RunConfig) else config
    training = {key: value for key, value in plain["training"].items() if key != "lrs"}
    if kind != "test":
        del training["seeds"]
    rest = {key: value for key, value in plain.items() if key != "limits"}
    return digest([kind, mixer, {**rest, "training": training}])


def wall_seconds(trials: Sequence[Trial], workers: int) -> float:
    """Returns how long the trials take together: training and tests on all workers, what is timed one by one."""
    packed = [trial.seconds for trial in trials if trial.kind not in ALONE]
    alone = sum(trial.seconds for trial in trials if trial.kind in ALONE)
    return alone + (max(sum(packed) / workers, max(packed)) if packed else 0.0)


def in_words(seconds: float) -> str:
    """Returns "about 40 s", "about 9 min" or "about 2.5 h"."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
