"""What a worker process does for each kind of trial: train, test, time. Imports torch when it starts one."""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import RunConfig
from harness.errors import HarnessError, RecordError
from harness.plugins import Registry
from harness.record import Record
from harness.spec import Batch, Measure, Task, TaskSpec
from harness.store import Store, StoredRecord
from harness.sweep.gate import gates
from harness.sweep.trial import Job, Trial

if TYPE_CHECKING:
    import numpy as np

    from harness.model import LanguageModel

BUSY_SAMPLE_S = 0.3
BLIND_BATCHES = 4


@dataclasses.dataclass
class Outcome:
    """What a trial leaves for its record."""

    measures: dict[str, Measure]
    facts: dict[str, Any]
    raw: "dict[str, np.ndarray]"
    curve: "dict[str, np.ndarray] | None" = None
    weights: dict[str, Any] | None = None
    spent: bool = False  # its process is not fit for another trial


@dataclasses.dataclass
class Bench:
    """The three kinds of trial."""

    job: Job
    registry: Registry
    spec: TaskSpec
    task: Task
    config: RunConfig
    report: Callable[[int, int, str], None]

    @property
    def trial(self) -> Trial:
        """Returns the trial of the job."""
        return self.job.trial

    def build(self, seed: int, max_len: int) -> "LanguageModel":
        """Returns the freshly initialised model on the device."""
        from harness.model import build_model
        from harness.train import seed_everything

        seed_everything(seed)
        planned = dataclasses.replace(self.config.model, layers=self.trial.layers)
        model = build_model(planned, self.trial.mixer, self.task.vocab_size, max_len, self.registry)
        return model.to(self.job.device)

    def train(self) -> Outcome:
        """Returns one learning rate and seed, scored on the split that chooses."""
        from harness.train import train

        trial = self.trial
        if trial.lr is None or trial.seed is None:
            raise RecordError(f"train trial {trial.key[:10]} lacks a learning rate or a seed")
        model = self.build(trial.seed, self.task.max_len)
        done = train(
            spec=self.spec,
            task=self.task,
            config=self.config,
            model=model,
            lr=trial.lr,
            seed=trial.seed,
            device=self.job.device,
            report=self.report,
        )
        raw = {**self.task.labels(self.config.training.select), **done.predictions}
        facts = {**done.facts, **model_facts(model)}
        return Outcome(self.spec.score(raw), facts, raw, done.curve, done.model.state_dict())

    def test(self) -> Outcome:
        """Returns the test split read once with the chosen learning rate, every seed."""
        import numpy as np

        from harness.train import autocast, predict
        from harness.verify import SEEDS, over_seeds

        trained = {record.record.key: record for record in map(self._trained, self.trial.needs)}
        lr, facts = chosen_lr(self.spec, self.config, [stored.record for stored in trained.values()])
        labels, training, answers = self.task.labels("test"), self.config.training, []
        for index, seed in enumerate(training.seeds):
            self.report(index, len(training.seeds), f"seed {seed}")
            stored = next(s for s in trained.values() if (s.record.lr, s.record.seed) == (lr, seed))
            model = self._with_weights(stored, seed)
            with autocast(self.job.device, training.dtype):
                blind = predict(model, hidden_labels(self.task, training.batch_size), self.job.device)["predicted"]
                answers.append(predict(model, self.task.evaluate("test", training.batch_size), self.job.device))
            if not np.array_equal(blind, answers[-1]["predicted"][: len(blind)]):
                raise HarnessError("the answers change when the labels are hidden: something reads them")
        raw = {name: np.stack([answer[name] for answer in answers]) for name in ("predicted", "nll")}
        measures = over_seeds([self.spec.score({**labels, **answer}) for answer in answers])
        raw = {**labels, **raw, SEEDS: np.array(training.seeds, dtype=np.int64)}
        return Outcome(measures, {**facts, **model_facts(model)}, raw)

    def time(self) -> Outcome:
        """Returns the cost of the model, measured with nothing else running, where its check is green."""
        from harness.timing.conditions import pin_to_cores
        from harness.timing.cost import cost_measures, measure_cost
        from harness.timing.device import device_facts
        from harness.timing.memory import memory_baseline
        from harness.timing.watch import between, read

        timing, device = self.config.timing, self.job.device
        found = gates(Store(Path(self.job.runs)), self.trial.checks, device_facts(device)["class"])
        bound = pin_to_cores(self.job.threads) if device == "cpu" else None
        self.report(0, 1, "timing")
        busy, start = busy_cores(), read()
        batch = timing_batch(self.task, timing.batch_size, timing.T)
        baseline = memory_baseline(self.job.device)  # what the process holds before there is a model
        # as long as in training, so that parameters and state are those of the model that was scored
        model = self.build(self.config.training.seeds[0], max(self.task.max_len, timing.T))
        raw, facts = measure_cost(model, batch, self.config, self.job.device, baseline)
        others = round(max(busy, between(start, read()).other_cores), 2)  # before it, or while it was timed
        facts |= {"busy_cores": others, "bound_to_cores": bound, "gates": found}
        return Outcome(cost_measures(raw), {**facts, **model_facts(model)}, raw)

    def _trained(self, key: str) -> StoredRecord:
        stored = Store(Path(self.job.runs)).find(key)
        if stored is None:
            raise RecordError(
                f"the train record {key[:10]} is missing from {self.job.runs}; run the same command again"
            )
        return stored

    def _with_weights(self, stored: StoredRecord, seed: int) -> "LanguageModel":
        import torch

        if stored.weights_path is None:
            raise RecordError(f"{stored.path} has no weights; delete this folder and run the same command again")
        model = self.build(seed, self.task.max_len)
        weights = torch.load(stored.weights_path, map_location=self.job.device, weights_only=True)
        model.load_state_dict(weights)
        return model


def hidden_labels(task: Task, batch_size: int) -> Iterator[Batch]:
    """Yields the first test batches with other targets: the answers must be the same without the labels."""
    for batch in itertools.islice(task.evaluate("test", batch_size), BLIND_BATCHES):
        yield dataclasses.replace(batch, targets=(batch.targets + 1) % task.vocab_size)


def chosen_lr(spec: TaskSpec, config: RunConfig, records: Sequence[Record]) -> tuple[float, dict[str, Any]]:
    """Returns the learning rate with the best mean over seeds, among those whose seeds all finished; and facts."""
    training = config.training
    scores: dict[float, float] = {}
    for lr in training.lrs:
        values = [r.measures[spec.primary].value for r in records if r.lr == lr and r.status == "ok"]
        if len(values) == len(training.seeds):
            scores[lr] = statistics.fmean(values)
    if not scores:
        raise RecordError(why_no_lr(records))
    best = (max if spec.higher_is_better else min)(scores, key=lambda lr: scores[lr])
    chosen = [r for r in records if r.lr == best]
    return best, {
        "lr": best,
        "lrs": list(training.lrs),
        "seeds": list(training.seeds),
        "chosen_on": training.select,
        "scores_by_lr": [[lr, score] for lr, score in scores.items()],
        "lrs_failed": [lr for lr in training.lrs if lr not in scores],
        "not_deterministic": next(
            (r.facts["not_deterministic"] for r in chosen if r.facts.get("not_deterministic")), None
        ),
        "steps": max(r.facts.get("steps", 0) for r in chosen),
        "steps_planned": training.steps,
        "tuning_trials": len(records),
        "tuning_seconds": round(sum(r.seconds for r in records), 3),
    }


def why_no_lr(records: Sequence[Record]) -> str:
    """Returns why no learning rate can be chosen: the first reason of each that failed."""
    reasons = {f"lr={r.lr:g} seed={r.seed}: {r.reason}" for r in records if r.status != "ok"}
    first = sorted(reasons)[0] if reasons else "no train record"
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"no learning rate finished on every seed: {first}{more}"


def model_facts(model: "LanguageModel") -> dict[str, Any]:
    """Returns what a row says of the model whatever was measured."""
    return {"depth": len(model.layers), "parameters": sum(p.numel() for p in model.parameters())}


def busy_cores() -> float:
    """Returns how many cores other processes keep busy, while this one waits: what makes a time too long."""
    import psutil

    return round(psutil.cpu_percent(interval=BUSY_SAMPLE_S) / 100 * (psutil.cpu_count() or 1), 2)


def timing_batch(task: Task, B: int, T: int) -> Batch:
    """Returns B sequences of exactly T tokens: training sequences cut or repeated, with their labels."""
    import numpy as np

    tokens: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for batch in task.train(B, B, 0):  # the last batch of a pass may be smaller, so several may be needed
        dense = np.full(batch.tokens.size, -1, dtype=np.int64)
        dense[batch.rows] = batch.targets
        tokens += list(batch.tokens)
        targets += list(dense.reshape(batch.tokens.shape))
        if len(tokens) >= B:
            break
    # sequences of a mixture differ in length: each is repeated to T on its own
    X = np.stack([np.resize(row, T) for row in cycled(tokens, B)]).astype(np.int64)  # [B, T]
    Y = np.stack([np.resize(row, T) for row in cycled(targets, B)]).ravel()  # [B * T]
    rows = np.flatnonzero(Y >= 0)
    if not len(rows):
        raise RecordError(f"timing.T = {T} leaves no labelled position; raise it to {task.max_len}")
    return Batch(tokens=X, rows=rows, targets=Y[rows])


def cycled(rows: Sequence[Any], count: int) -> list[Any]:
    """Returns `count` of the rows, from the beginning again where there are fewer."""
    return [rows[index % len(rows)] for index in range(count)]
