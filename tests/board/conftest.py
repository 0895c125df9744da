"""Records as `harness run` writes them: small arrays, scored by the tasks' own functions."""

import hashlib

import numpy as np
import pytest

from harness.check.promise import Finding
from harness.check.report import CheckReport
from harness.config import ModelConfig, RunConfig, TimingConfig, TrainingConfig, to_json
from harness.plugins import load_registry
from harness.record import Record
from harness.store import Store
from harness.tasks.mqar import MQAR
from harness.tasks.options import MQAROptions, PileOptions
from harness.timing.cost import cost_measures
from harness.verify import score_arrays

MQAR_OPTIONS = MQAROptions(
    vocab_size=64, train_cells=((32, 2, 64),), validation_cells=((32, 2, 20),), test_cells=((32, 2, 200),)
)
CONFIGS = {
    "mqar": RunConfig(
        task="mqar",
        options=MQAR_OPTIONS,
        model=ModelConfig(d_model=32, layers="short_conv,MIXER"),
        training=TrainingConfig(lrs=(1e-3, 3e-3), seeds=(0, 1)),
        timing=TimingConfig(batch_size=16, T=32),
    ),
    "pile": RunConfig(
        task="pile",
        options=PileOptions(corpus="absent.jsonl", T=128, eval_tokens=600),
        model=ModelConfig(d_model=64, layers="short_conv,MIXER", channel_mixer="swiglu"),
        training=TrainingConfig(lrs=(3e-3,), seeds=(0,)),
        timing=TimingConfig(batch_size=8, T=128),
    ),
}
ENVIRONMENT = {
    "device": "cpu",
    "class": "cpu-test-processor-2c",
    "name": "Test Processor",
    "cores": 2,
    "threads": 2,
    "python": "3.11.9",
    "libraries": {"mixer-harness": "0.1.0", "torch": "2.13.0", "numpy": "2.2.0", "triton": None},
}


@pytest.fixture(scope="session")
def registry():
    return load_registry()


@pytest.fixture(scope="session")
def mqar():
    task = MQAR(MQAR_OPTIONS)
    return {"labels": task.labels("test"), "data": task.data_sha256()}


def answers(labels, accuracies, seed=0):
    """Returns [S, R] predictions of which exactly that share is right."""
    targets, rng = labels["targets"], np.random.default_rng(seed)
    predicted = np.stack([np.where(np.arange(len(targets)) < round(a * len(targets)), targets, 0) for a in accuracies])
    return {"predicted": predicted.astype(np.int32), "nll": rng.random(predicted.shape).astype(np.float32)}


def pile_arrays(ar, other, seed=0):
    """Returns the raw arrays of 600 tokens, a third of them AR hits, with these two perplexities."""
    rng, R = np.random.default_rng(seed), 600
    repeated = np.arange(R) % 3 == 0
    nll = np.where(repeated, np.log(ar), np.log(other)) + rng.normal(0, 0.05, R)
    return {
        "targets": rng.integers(0, 50, R).astype(np.int32),
        "repeated": repeated,
        "train_count": np.where(repeated, 3, 5000).astype(np.int64),
        "subset": (np.arange(R) % 2).astype(np.int32),
        "subset_names": np.array(["mini:A", "mini:B"]),
        "threshold": np.array(1250),
        "predicted": rng.integers(0, 50, (1, R)).astype(np.int32),
        "nll": nll.astype(np.float32)[None],
        "seeds": np.array([0]),
    }


def time_arrays(scale=1.0, decode=True):
    rng = np.random.default_rng(5)
    raw = {
        "forward_ms": scale * rng.gamma(400, 0.01, 20),
        "train_step_ms": scale * rng.gamma(400, 0.05, 20),
        "tokens_per_step": np.array([1024]),
        "peak_bytes": np.array([int(scale * 250e6)]),
        "parameters": np.array([int(scale * 654_321)]),
    }
    if decode:
        raw |= {"decode_step_us": rng.gamma(400, 1.0, 16), "decode_batch": np.array([8])}
        raw |= {"state_bytes": np.array([8 * 4096, 8 * int(scale * 16_384)])}
    return raw


class Maker:
    """Writes records of one suite into a folder."""

    configs, environment = CONFIGS, ENVIRONMENT

    def __init__(self, folder, registry, mqar):
        self.store, self.registry, self.mqar = Store(folder), registry, mqar

    def record(self, kind, mixer, task, raw, **changes):
        fields = {
            "key": hashlib.sha256(repr((kind, mixer, task, sorted(changes.items(), key=str))).encode()).hexdigest(),
            "kind": kind,
            "mixer": mixer,
            "task": task,
            "suite": "tiny",
            "suite_key": "5a" * 32,
            "config": to_json(CONFIGS[task]) if task in CONFIGS else {},
            "plugin": {"distribution": "mixer-harness", "version": "0.1.0", "code_sha256": "c0" * 32},
            "environment": ENVIRONMENT,
            "started": "2026-01-01T00:00:00+00:00",
            "seconds": 12.5,
            "data_sha256": self.mqar["data"] if task == "mqar" else {"test": "da" * 32},
        }
        return self.store.write(Record(**(fields | changes)), raw)

    def test(self, mixer, task, raw, **changes):
        training = CONFIGS[task].training
        facts = {
            "lr": training.lrs[-1],
            "lrs": list(training.lrs),
            "seeds": list(training.seeds),
            "depth": 2,
            "layers": f"short_conv/torch,{mixer}",
        }
        measures = score_arrays(self.registry.task(task), raw)
        return self.record("test", mixer, task, raw, **({"facts": facts, "measures": measures} | changes))

    def mqar_test(self, mixer, accuracies=(0.99, 0.995), **changes):
        labels = self.mqar["labels"]
        raw = {**labels, **answers(labels, accuracies), "seeds": np.arange(len(accuracies))}
        return self.test(mixer, "mqar", raw, **changes)

    def pile_test(self, mixer, ar=20.0, other=40.0, **changes):
        return self.test(mixer, "pile", pile_arrays(ar, other), **changes)

    def time(self, mixer, task, scale=1.0, decode=True, **changes):
        raw = time_arrays(scale, decode)
        timing = CONFIGS[task].timing
        facts = {"B": timing.batch_size, "T": timing.T, "dtype": "float32", "depth": 2}
        facts["no_decode"] = None if decode else f"{mixer} has no step() and initial_state()"
        return self.record("time", mixer, task, raw, **({"facts": facts, "measures": cost_measures(raw)} | changes))

    def check(self, mixer, broken=(), **changes):
        """Writes the check record of a mixer that keeps its contract but for the promises named."""
        verdicts = {"causality": "kept", "reference": "kept"} | dict.fromkeys(broken, "broken")
        findings = tuple(Finding(name, verdict, "as seen") for name, verdict in verdicts.items())
        fields = {"suite": "contract", "suite_key": "", "config": {}, "data_sha256": {}}
        fields["facts"] = CheckReport(findings).to_facts()
        return self.record("check", mixer, "contract", {}, **(fields | changes))

    def failed(self, kind, mixer, task, reason, **changes):
        fields = {"status": "failed", "reason": reason, "environment": {}, "facts": {}, "data_sha256": {}}
        return self.record(kind, mixer, task, {}, **(fields | changes))

    def point(self, mixer, accuracies=(0.99, 0.995), ar=20.0, other=40.0, scale=1.0, decode=True, **changes):
        """Writes the four records of a mixer, and its green check."""
        self.check(mixer, **changes)
        self.mqar_test(mixer, accuracies, **changes)
        self.pile_test(mixer, ar, other, **changes)
        self.time(mixer, "mqar", scale, decode, **changes)
        self.time(mixer, "pile", scale, decode, **changes)


@pytest.fixture
def maker(tmp_path, registry, mqar):
    return Maker(tmp_path / "runs", registry, mqar)


@pytest.fixture
def other_gpu():
    return {**ENVIRONMENT, "device": "cuda", "class": "nvidia-test", "name": "NVIDIA Test", "driver": "1", "cuda": "13"}
