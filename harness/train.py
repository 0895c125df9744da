"""One training loop for every mixer: the head and the loss at labelled positions only, fused AdamW, one schedule."""

import contextlib
import ctypes
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.capture import Stepper
from harness.config import RunConfig, TrainingConfig
from harness.determinism import NO_KERNEL, deterministic
from harness.errors import HarnessError, InputError
from harness.model import LanguageModel, operators_by_layer
from harness.spec import Batch, Task, TaskSpec

LOGITS_AT_ONCE = 2**25  # elements of [rows, V] that prediction holds at a time
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DivergedError(HarnessError):
    """The loss is no longer a finite number: this learning rate failed, not the mixer's code."""


@dataclass
class Trained:
    """What one training run leaves."""

    model: LanguageModel
    curve: dict[str, np.ndarray]  # step, loss (mean since the last entry), validation
    predictions: dict[str, np.ndarray]  # on the split that chooses: predicted [R] int32, nll [R] float32
    facts: dict[str, Any]


def prepare_process(device: str, threads: int) -> None:
    """Pins threads, the allocator and the deterministic paths: the same config gives the same numbers twice."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)  # a training step is stricter
    # that would also fill every torch.empty with nan: one kernel more for each, in every time, and in no number
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device == "cpu":
        torch.set_flush_denormal(True)
        keep_pages()


def keep_pages() -> None:
    """Tells glibc to keep freed blocks: handing them back after every op costs 20 to 30 % of a large step."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another libc: slower, not wrong
        libc = ctypes.CDLL(None)
        m_mmap_max, m_trim_threshold, m_top_pad = -4, -1, -2
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 64 << 20)


def seed_everything(seed: int) -> None:
    """Seeds every generator a mixer might draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def to_device(batch: Batch, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns tokens [B, T], rows [R] and targets [R] as int64 tensors on the device.

    Rows are [B, Q] where every sequence has as many of them, Q, and others beside.
    """
    return tuple(  # type: ignore[return-value]
        torch.from_numpy(np.ascontiguousarray(a, dtype=np.int64)).to(device, non_blocking=True)
        for a in (batch.tokens, _by_sequence(batch), batch.targets)
    )


def _by_sequence(batch: Batch) -> np.ndarray:
    rows, (B, T) = np.asarray(batch.rows), batch.tokens.shape
    Q, rest = divmod(len(rows), B)
    if rest or not 0 < Q < T:
        return rows
    by_sequence = rows.reshape(B, Q)
    return by_sequence if (by_sequence // T == np.arange(B)[:, None]).all() else rows


def loss_on_rows(model: LanguageModel, tokens: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy over the labelled rows; no other position sees the head."""
    return F.cross_entropy(model.logits(model(tokens, rows)).float(), targets)


def make_optimizer(model: LanguageModel, training: TrainingConfig, lr: float) -> torch.optim.Optimizer:
    """Returns fused AdamW with decoupled weight decay on every parameter, as the published code has it.

    On CUDA the learning rate and the count of steps live on the device, so that a recorded step can be replayed.
    """
    device = next(model.parameters()).device
    on_cuda = device.type == "cuda"
    return torch.optim.AdamW(
        model.parameters(),
        lr=torch.tensor(lr, device=device) if on_cuda else lr,
        betas=training.betas,
        weight_decay=training.weight_decay,
        fused=True,
        capturable=on_cuda,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of every group, in place where it is a tensor that a recorded step reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def train_step(
    model: LanguageModel,
    inputs: tuple[Tensor, ...],
    optimizer: torch.optim.Optimizer,
    training: TrainingConfig,
) -> Tensor:
    """Returns the loss of one update on `inputs` (tokens, rows, targets); what is trained is also what is timed.

    Every sum is taken in one order, so that the same config gives the same weights twice. Where an operation has no
    such kernel, `model.not_deterministic` names it, and the steps go on without.
    """
    strictly = model.not_deterministic is None
    try:
        with deterministic(strictly):
            return _update(model, inputs, optimizer, training)
    except RuntimeError as error:
        if not strictly or NO_KERNEL not in str(error):
            raise
        model.not_deterministic = str(error).split()[0]
    optimizer.zero_grad(set_to_none=True)
    return train_step(model, inputs, optimizer, training)


def _update(
    model: LanguageModel,
    inputs: tuple[Tensor, ...],
    optimizer: torch.optim.Optimizer,
    training: TrainingConfig,
) -> Tensor:
    with autocast(inputs[0].device.type, training.dtype):
        loss = loss_on_rows(model, *inputs)
        auxiliary = model.auxiliary_loss()
    (loss if auxiliary is None else loss + auxiliary).backward()  # type: ignore[no-untyped-call]
    if training.clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def stepper(model: LanguageModel, optimizer: torch.optim.Optimizer, training: TrainingConfig, device: str) -> Stepper:
    """Returns `train_step` to be called again and again: recorded and replayed on CUDA, plain elsewhere."""

    def loss(inputs: tuple[Tensor, ...]) -> Tensor:
        with autocast(device, training.dtype):
            return loss_on_rows(model, *inputs)

    return Stepper(model, lambda inputs: train_step(model, inputs, optimizer, training), loss, device)


def learning_rate(training: TrainingConfig, lr: float, step: int, epoch_steps: int) -> float:
    """Returns the learning rate of the 0-based step: linear warm-up, then cosine to 0 by step or by epoch."""
    if step < training.warmup_steps:
        return lr * (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return lr
    if training.schedule == "cosine-epoch":
        epochs = math.ceil(training.steps / epoch_steps)
        return lr * 0.5 * (1 + math.cos(math.pi * (step // epoch_steps) / epochs))
    if training.schedule != "cosine":
        raise InputError(f"training.schedule is {training.schedule!r}; choose cosine, cosine-epoch or constant")
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return lr * 0.5 * (1 + math.cos(math.pi * done))


def autocast(device: str, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Returns the autocast context of the training dtype; float32 runs as it is."""
    if dtype not in DTYPES:
        raise InputError(f"training.dtype is {dtype!r}; choose from: {', '.join(DTYPES)}")
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, DTYPES[dtype])


def train(
    *,
    spec: TaskSpec,
    task: Task,
    config: RunConfig,
    model: LanguageModel,
    lr: float,
    seed: int,
    device: str,
    report: Callable[[int, int, str], None],
) -> Trained:
    """Returns the trained model with its curve and its predictions on the split that chooses.

    `report(step, steps, text)` is called now and then. A loss that is not finite raises DivergedError.
    """
    optimizer = make_optimizer(model, config.training, lr)
    loop = _Loop(spec, task, config, model, device, stepper(model, optimizer, config.training, device))
    steps, every = config.training.steps, config.training.eval_every
    epoch_steps = task.epoch_steps(config.training.batch_size)
    started, score, tokens = time.perf_counter(), math.nan, 0
    for step, batch in enumerate(task.train(config.training.batch_size, steps, seed)):
        set_learning_rate(optimizer, learning_rate(config.training, lr, step, epoch_steps))
        done = step + 1
        loop.step(batch, checked=done % every == 0)
        if step == 0:
            operators = operators_by_layer(model)  # later they may be those of an evaluation
        tokens += batch.tokens.size
        if done % 20 == 0 or done == steps:
            report(
                done,
                steps,
                f"loss {loop.check(done):.3f}" + ("" if math.isnan(score) else f", {spec.primary} {score:.3f}"),
            )
        if done % every == 0 or done == steps:
            score = loop.validate(done)
            if loop.good_enough(score):
                break
    seconds = time.perf_counter() - started
    facts = {"steps": done, "steps_planned": steps, "tokens": tokens, "train_seconds": seconds, **loop.stepper.facts}
    facts |= {"operators_by_layer": operators, "not_deterministic": model.not_deterministic}
    return Trained(model, loop.curve(), loop.predictions, facts)


class _Loop:
    """The mutable part of one training run."""

    def __init__(
        self, spec: TaskSpec, task: Task, config: RunConfig, model: LanguageModel, device: str, stepper: Stepper
    ) -> None:
        self.spec, self.task, self.config, self.model, self.device = spec, task, config, model, device
        self.stepper = stepper
        # One tensor, not a list: a small tensor kept each step would sit in a large block that `keep_pages` holds, the
        # next step's logits would no longer fit there, and memory would grow by the logits every step.
        self.loss_sum, self.last_loss = torch.zeros((), device=device), torch.zeros((), device=device)
        self.n_losses = 0
        self.points: list[tuple[int, float, float]] = []
        self.predictions: dict[str, np.ndarray] = {}

    def step(self, batch: Batch, checked: bool) -> None:
        loss = (self.stepper.checked if checked else self.stepper)(to_device(batch, self.device))
        self.loss_sum += loss
        self.last_loss.copy_(loss)
        self.n_losses += 1

    def check(self, done: int) -> float:
        loss = float(self.last_loss)
        if not math.isfinite(loss):
            raise DivergedError(f"diverged: loss is not finite at step {done}")
        return loss

    def validate(self, done: int) -> float:
        self.check(done)
        split, batch_size = self.config.training.select, self.config.training.batch_size
        with autocast(self.device, self.config.training.dtype):
            self.predictions = predict(self.model, self.task.evaluate(split, batch_size), self.device)
        score = self.spec.score({**self.task.labels(split), **self.predictions})[self.spec.primary].value
        self.points.append((done, float(self.loss_sum) / self.n_losses, score))
        self.loss_sum.zero_()
        self.n_losses = 0
        if not math.isfinite(score):
            raise DivergedError(f"diverged: {self.spec.primary} is not finite at step {done}")
        return score

    def good_enough(self, score: float) -> bool:
        bar = self.config.training.stop_at
        return bar is not None and (score >= bar if self.spec.higher_is_better else score <= bar)

    def curve(self) -> dict[str, np.ndarray]:
        columns = zip(*self.points, strict=True)
        return dict(zip(("step", "loss", "validation"), map(np.array, columns), strict=True))


@torch.no_grad()
def predict(model: LanguageModel, batches: Iterable[Batch], device: str) -> dict[str, np.ndarray]:
    """Returns predicted [R] int32 (the likeliest token) and nll [R] float32 (nats) at every labelled row, in order."""
    was_training = model.training
    model.eval()
    # Byte arrays, not a list of tensors: each small tensor kept would sit in a large block that `keep_pages` holds,
    # the next batch would no longer fit there, and memory would grow by a batch of logits a batch.
    predicted, nll = bytearray(), bytearray()
    for batch in batches:
        tokens, rows, targets = to_device(batch, device)
        selected = model(tokens, rows)
        for some_rows, some_targets in _chunks(selected, targets, model.embedding.num_embeddings):
            logits = model.logits(some_rows).float()
            predicted += logits.argmax(-1).to("cpu", torch.int32).numpy().data
            nll += F.cross_entropy(logits, some_targets, reduction="none").cpu().numpy().data
    model.train(was_training)
    return {"predicted": np.frombuffer(predicted, np.int32), "nll": np.frombuffer(nll, np.float32)}


def _chunks(rows: Tensor, targets: Tensor, vocab_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, LOGITS_AT_ONCE // vocab_size)
    return zip(torch.split(rows, size), torch.split(targets, size), strict=True)
