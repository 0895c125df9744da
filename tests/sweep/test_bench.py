import dataclasses

import numpy as np
import pytest

from harness.config import RunConfig, TrainingConfig
from harness.errors import RecordError
from harness.plugins import load_registry
from harness.record import Record
from harness.spec import Batch, Measure
from harness.sweep.bench import busy_cores, chosen_lr, timing_batch, why_no_lr

CONFIG = RunConfig(task="mqar", training=TrainingConfig(lrs=(1e-3, 1e-2, 1e-1), seeds=(0, 1)))


def trained(lr, seed, accuracy, reason=None, primary="accuracy"):
    return Record(
        key=f"{lr}{seed}",
        kind="train",
        mixer="m/torch",
        task="mqar",
        suite="s",
        suite_key="k",
        config={},
        lr=lr,
        seed=seed,
        seconds=2.0,
        status="failed" if reason else "ok",
        reason=reason,
        measures={} if reason else {primary: Measure(value=accuracy, unit="fraction", n=10)},
        facts={} if reason else {"steps": 5},
    )


@pytest.fixture(scope="module")
def registry():
    return load_registry()


def test_the_mean_over_seeds_chooses_the_learning_rate_not_the_luckiest_seed(registry):
    scores = {(1e-3, 0): 1.0, (1e-3, 1): 0.1, (1e-2, 0): 0.6, (1e-2, 1): 0.7, (1e-1, 0): 0.2, (1e-1, 1): 0.2}
    lr, facts = chosen_lr(registry.task("mqar"), CONFIG, [trained(*key, value) for key, value in scores.items()])
    assert lr == 1e-2
    assert facts["lrs"] == [1e-3, 1e-2, 1e-1]
    assert facts["scores_by_lr"][1] == [1e-2, pytest.approx(0.65)]
    assert facts["tuning_seconds"] == 12.0


def test_where_lower_is_better_the_least_perplexity_wins(registry):
    scores = {(1e-3, 0): 90.0, (1e-3, 1): 80.0, (1e-2, 0): 20.0, (1e-2, 1): 30.0, (1e-1, 0): 99.0, (1e-1, 1): 99.0}
    records = [trained(*key, value, primary="perplexity") for key, value in scores.items()]
    assert chosen_lr(registry.task("pile"), CONFIG, records)[0] == 1e-2


def test_a_learning_rate_with_a_failed_seed_is_not_chosen(registry):
    records = [trained(lr, seed, 0.9 if lr == 1e-1 else 0.2) for lr in CONFIG.training.lrs for seed in (0, 1)]
    records[-1] = trained(1e-1, 1, 0, reason="diverged: loss is not finite at step 20")
    lr, facts = chosen_lr(registry.task("mqar"), CONFIG, records)
    assert lr == 1e-3
    assert facts["lrs_failed"] == [1e-1]


def test_an_operation_without_a_deterministic_kernel_is_that_of_the_trainings_that_were_chosen(registry):
    records = [trained(lr, seed, 0.9 if lr == 1e-1 else 0.2) for lr in CONFIG.training.lrs for seed in (0, 1)]
    records[0].facts["not_deterministic"] = "elsewhere"
    assert chosen_lr(registry.task("mqar"), CONFIG, records)[1]["not_deterministic"] is None
    records[-1].facts["not_deterministic"] = "put_"
    assert chosen_lr(registry.task("mqar"), CONFIG, records)[1]["not_deterministic"] == "put_"


def test_where_none_finished_the_reason_names_the_first_failure(registry):
    records = [trained(lr, seed, 0, reason="boom") for lr in CONFIG.training.lrs for seed in (0, 1)]
    with pytest.raises(RecordError, match=r"no learning rate finished .*: lr=0\.001 seed=0: boom \(and 5 more\)"):
        chosen_lr(registry.task("mqar"), CONFIG, records)
    assert why_no_lr([]).endswith("no train record")


@dataclasses.dataclass
class Mixture:
    """Batches of sequences of different lengths; the last position is labelled with the length."""

    lengths: tuple[int, ...]
    max_len: int = 8

    def train(self, batch_size, steps, seed):
        for length in self.lengths[:steps]:
            tokens = np.arange(2 * length).reshape(2, length)
            rows = np.array([length - 1, 2 * length - 1])
            yield Batch(tokens=tokens, rows=rows, targets=np.array([length, length]))


def test_a_timing_batch_has_exactly_the_asked_shape_and_keeps_its_labels():
    batch = timing_batch(Mixture((4, 6)), B=4, T=8)
    assert batch.tokens.shape == (4, 8)
    assert batch.tokens[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert batch.tokens[3].tolist() == [6, 7, 8, 9, 10, 11, 6, 7]
    assert batch.rows.tolist() == [3, 7, 11, 15, 21, 29]
    assert batch.targets.tolist() == [4, 4, 4, 4, 6, 6]


def test_a_timing_batch_without_a_label_says_which_setting_to_raise():
    with pytest.raises(RecordError, match=r"timing\.T = 3 leaves no labelled position; raise it to 8"):
        timing_batch(Mixture((4, 4)), B=2, T=3)


def test_a_busy_machine_is_noticed():
    import subprocess
    import sys

    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert busy_cores() > 0.3
    finally:
        other.kill()
        other.wait()
