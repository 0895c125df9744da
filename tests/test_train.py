import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from harness.config import ModelConfig, RunConfig, TrainingConfig
from harness.errors import InputError
from harness.model import build_model
from harness.plugins import load_registry
from harness.spec import Batch
from harness.tasks.options import MQAROptions
from harness.train import (
    DivergedError,
    learning_rate,
    loss_on_rows,
    make_optimizer,
    predict,
    seed_everything,
    to_device,
    train,
    train_step,
)

REGISTRY = load_registry()
OPTIONS = MQAROptions(
    vocab_size=32, train_cells=((16, 2, 640),), validation_cells=((16, 2, 50),), test_cells=((16, 2, 50),)
)
MODEL = ModelConfig(d_model=16, layers="attention")


@pytest.fixture
def deterministic():
    """The process as a trial's: `prepare_process` in short."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def run(lr=1e-2, seed=0, model=MODEL, **training):
    config = RunConfig(task="mqar", options=OPTIONS, model=model, training=TrainingConfig(**{"steps": 20, **training}))
    spec = REGISTRY.task("mqar")
    task = spec.load(OPTIONS, lambda what, fraction: None)
    seed_everything(seed)
    net = build_model(config.model, "attention", task.vocab_size, task.max_len, REGISTRY)
    return train(spec=spec, task=task, config=config, model=net, lr=lr, seed=seed, device="cpu", report=lambda *a: None)


def test_loss_on_rows_is_the_cross_entropy_of_those_rows():
    torch.manual_seed(0)
    net = build_model(MODEL, "attention", 32, 16, REGISTRY)
    rng = np.random.default_rng(0)
    batch = Batch(tokens=rng.integers(0, 32, (4, 16)), rows=np.array([3, 17, 63]), targets=np.array([1, 2, 3]))
    tokens, rows, targets = to_device(batch, "cpu")
    whole = F.log_softmax(net.logits(net(tokens)), -1).flatten(0, 1)
    expected = -whole[[3, 17, 63], [1, 2, 3]].mean()
    torch.testing.assert_close(loss_on_rows(net, tokens, rows, targets), expected)
    found = predict(net, [batch], "cpu")
    assert found["predicted"].tolist() == whole[[3, 17, 63]].argmax(-1).tolist()
    assert found["nll"].mean() == pytest.approx(float(expected.detach()), abs=1e-5)


def test_rows_come_by_sequence_where_each_has_as_many_and_others_beside():
    def rows(*given):
        batch = Batch(tokens=np.zeros((2, 4), int), rows=np.array(given), targets=np.zeros(len(given), int))
        return to_device(batch, "cpu")[1].tolist()

    assert rows(0, 2, 5, 7) == [[0, 2], [5, 7]]
    assert rows(3, 4) == [[3], [4]]
    for uneven in ([0, 1, 2, 7], [0, 1], [0, 4, 5], [1], list(range(8))):
        assert rows(*uneven) == uneven


def test_the_same_config_gives_the_same_numbers_twice():
    first, second = run(), run()
    assert np.array_equal(first.predictions["nll"], second.predictions["nll"])
    assert np.array_equal(first.curve["loss"], second.curve["loss"])
    assert not np.array_equal(first.predictions["nll"], run(seed=1).predictions["nll"])


PUTS = """
from harness import MixerSpec, hookimpl
def build(config):
    import torch
    class Puts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out_proj = torch.nn.Linear(config.d_model, config.d_model)
        def forward(self, x):
            first = torch.zeros(1, dtype=torch.long)
            return self.out_proj(x.clone().put_(first, torch.zeros(1)))
    return Puts()
@hookimpl
def harness_mixers(): yield MixerSpec(name="puts", summary="", source="", build=build)
"""


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic implementation")  # torch's, where it may run
def test_an_operation_that_sums_in_any_order_is_named_and_the_training_goes_on(tmp_path, deterministic):
    file = tmp_path / "puts.py"
    file.write_text(PUTS)
    registry = load_registry([str(file)])
    seed_everything(0)
    net = build_model(ModelConfig(d_model=16, layers="MIXER"), "puts", 32, 16, registry)
    optimizer = make_optimizer(net, TrainingConfig(), 1e-2)
    inputs = torch.randint(32, (4, 16)), torch.arange(64), torch.randint(32, (64,))
    losses = [float(train_step(net, inputs, optimizer, TrainingConfig())) for _ in range(20)]
    assert net.not_deterministic == "put_"
    assert losses[-1] < losses[0]
    assert torch.is_deterministic_algorithms_warn_only_enabled()  # as it was
    assert run().facts["not_deterministic"] is None


def test_an_error_of_a_step_is_not_taken_for_a_missing_kernel(monkeypatch, deterministic):
    def fails(*args):
        raise RuntimeError("out of order")

    net = build_model(MODEL, "attention", 32, 16, REGISTRY)
    monkeypatch.setattr(net.layers[0].mixer, "forward", fails)
    inputs = torch.zeros(1, 16, dtype=torch.long), torch.arange(16), torch.zeros(16, dtype=torch.long)
    with pytest.raises(RuntimeError, match="out of order"):
        train_step(net, inputs, make_optimizer(net, TrainingConfig(), 1e-2), TrainingConfig())
    assert net.not_deterministic is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_attention_on_a_gpu_is_trained_to_the_same_weights_twice(deterministic):
    config = ModelConfig(d_model=128, layers="attention*2")
    tokens = torch.randint(512, (32, 256), generator=torch.Generator().manual_seed(0)).cuda()
    inputs, weights = (tokens, torch.arange(tokens.numel()).cuda(), tokens.flatten()), []
    for _ in range(2):
        seed_everything(0)
        net = build_model(config, "attention", 512, 256, REGISTRY).cuda()
        optimizer = make_optimizer(net, TrainingConfig(), 3e-3)
        for _ in range(6):
            train_step(net, inputs, optimizer, TrainingConfig())
        weights.append([parameter.detach().cpu() for parameter in net.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_training_lowers_the_loss_and_the_facts_count_what_was_spent():
    trained = run(eval_every=5)
    assert trained.curve["loss"][-1] < trained.curve["loss"][0]
    assert trained.curve["step"].tolist() == [5, 10, 15, 20]
    assert trained.facts["steps"] == 20
    assert trained.facts["tokens"] == 20 * 64 * 16


def test_training_ends_early_once_the_bar_is_reached():
    trained = run(eval_every=5, stop_at=0.0)
    assert (trained.facts["steps"], trained.facts["steps_planned"]) == (5, 20)


def test_a_loss_that_is_not_finite_is_called_diverged():
    with pytest.raises(DivergedError, match="not finite at step"):
        run(lr=1e30)


def test_the_schedule_warms_up_and_ends_near_zero():
    training = TrainingConfig(steps=100, warmup_steps=10)
    rates = [learning_rate(training, 1.0, step, 25) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.001
    by_epoch = TrainingConfig(steps=100, schedule="cosine-epoch")
    assert [learning_rate(by_epoch, 1.0, s, 25) for s in (0, 24, 25)] == pytest.approx(
        [1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 4))]
    )


@pytest.mark.parametrize(("setting", "says"), [("schedule", "cosine-epoch"), ("dtype", "bfloat16")])
def test_an_unknown_choice_lists_the_allowed_ones(setting, says):
    with pytest.raises(InputError, match=says):
        run(**{setting: "other"})


GROWTH = """
from dataclasses import make_dataclass
import numpy as np, psutil, torch
from harness.config import ModelConfig, RunConfig, TrainingConfig
from harness.model import build_model
from harness.plugins import load_registry
from harness.spec import Batch, Measure, TaskSpec
from harness.train import prepare_process, train

B, T, V = 8, 128, 2048
tokens = np.random.default_rng(0).integers(0, V, (B, T))
batch = Batch(tokens=tokens, rows=np.arange(B * T), targets=tokens.ravel())

class Dense:
    vocab_size, max_len = V, T
    def train(self, batch_size, steps, seed):
        return (batch for _ in range(steps))
    def epoch_steps(self, batch_size):
        return 1
    def evaluate(self, split, batch_size):
        return (batch for _ in range(20))
    def labels(self, split):
        return {}

prepare_process("cpu", 1)
seen = {}
def report(step, steps, text):
    seen[step] = psutil.Process().memory_info().rss / 2**20
NoOptions = make_dataclass("NoOptions", [], frozen=True)
spec = TaskSpec(name="dense", summary="", source="", options=NoOptions, load=print, primary="nll",
                higher_is_better=False,
                score=lambda raw: {"nll": Measure(value=float(raw["nll"].mean()), unit="nats", n=1)})
config = RunConfig(task="dense", model=ModelConfig(d_model=16), training=TrainingConfig(steps=100, eval_every=40))
model = build_model(config.model, "attention", V, T, load_registry())
train(spec=spec, task=Dense(), config=config, model=model, lr=1e-3, seed=0, device="cpu", report=report)
print(seen[100] - seen[20])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is tuned on Linux only")
def test_memory_does_not_grow_with_the_steps():
    out = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < 100  # MiB; one block of logits is 8 MiB, and 80 steps lie between
