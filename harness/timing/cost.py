"""What one model costs: time of a forward pass, a train step, a decode step; peak memory; parameters; state.

`measure_cost` fills raw arrays, `cost_measures` turns them into numbers, and nothing else enters a number.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from harness.capture import WARM_UP
from harness.config import RunConfig
from harness.errors import InputError, RecordError
from harness.model import LanguageModel, operators_by_layer
from harness.spec import Batch, Measure, MixerConfig, MixerSpec
from harness.timing.memory import peak_bytes, resident_bytes
from harness.timing.probe import drift
from harness.timing.sample import Call, quartiles, repeated, summarise
from harness.timing.session import Session
from harness.timing.spread import disturbances, one, per_probe
from harness.timing.stop import stop_rule
from harness.timing.workload import decode_call, without_grad
from harness.train import keep_pages, make_optimizer, stepper, to_device

SERIES = ("train_step", "forward", "decode_step")
MAX_S = 2.0  # of sampling one of them
MEMORY_STEPS = 3  # the first makes the optimiser's state, the second has it beside the gradients


def measure_cost(
    model: LanguageModel, batch: Batch, config: RunConfig, device: str, baseline: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns (raw arrays, facts) of the model on the device; call it first thing in a fresh process.

    `baseline` is what `memory_baseline(device)` gave before the model was built. Without it the bytes of the model
    itself stand in for what building it took.
    """
    B, T = batch.tokens.shape
    if T < 2:
        raise InputError(f"timing.T must be at least 2, got {T}: a decode step needs a context")
    if baseline is None:
        baseline = 0 if torch.device(device).type == "cuda" else resident_bytes() - _model_bytes(model)
    timing, bench = config.timing, _Bench(model, batch, config, device)
    step, raw, facts = bench.train(baseline)  # memory first
    facts["operators_by_layer"] = operators_by_layer(model)  # as in training
    session = Session(device, stop_rule(device, MAX_S, timing.samples), timing.warmup)
    session.take("train_step", step)
    session.take("forward", bench.forward())
    decode, of_state, state_facts = bench.decode()
    if decode is not None:
        session.take("decode_step", decode)
    raw |= {**of_state, "tokens_per_step": np.array([B * T]), "parameters": np.array([_count(model)])}
    facts |= {"B": B, "T": T, "rows": len(batch.rows), "dtype": config.training.dtype}
    facts["parameters_by_layer"] = [_count(block.mixer) for block in model.layers]  # type: ignore[arg-type]
    facts["flops_by_layer"] = declared_flops(model, T)
    facts |= state_facts | session.finish()
    raw |= session.raw
    facts["disturbed"] = {name: disturbances(raw, name) for name in session.series}
    return raw, facts


def cost_measures(raw: Mapping[str, np.ndarray]) -> dict[str, Measure]:
    """Returns the measures, from the raw arrays alone; what was not measured is absent."""
    needed = ("forward_ms", "train_step_ms", "tokens_per_step", "parameters")
    missing = [name for name in needed if name not in raw]
    if missing:
        raise RecordError(f"the raw arrays of a time record lack {', '.join(missing)}; time it again")
    train_ms = np.asarray(raw["train_step_ms"], dtype=np.float64)
    measures = {
        "forward_ms": summarise(raw["forward_ms"]),
        "train_step_ms": summarise(train_ms),
        "train_tokens_per_s": quartiles(float(raw["tokens_per_step"][0]) / (train_ms / 1e3), "tokens/s"),
        "parameters": Measure(value=float(raw["parameters"][0]), unit="parameters", n=1),
    }
    steps_us = _decode_step_us(raw)
    if steps_us is not None:
        per_token = steps_us / float(raw["decode_batch"][0])
        measures["decode_us_per_token"] = quartiles(per_token, "µs/token")
    if "peak_bytes" in raw:
        measures["peak_mib"] = Measure(value=float(raw["peak_bytes"][0]) / 2**20, unit="MiB", n=1)
    if "state_bytes" in raw:
        per_sequence = float(np.sum(raw["state_bytes"], dtype=np.float64)) / float(raw["decode_batch"][0])
        measures["state_kib"] = Measure(value=per_sequence / 2**10, unit="KiB", n=1)
    if "probe_ms" in raw:  # earlier records have none
        timed = [name for name in SERIES if f"{name}_ms" in raw]
        measures |= {f"{name}_per_probe": one(per_probe(raw, name), "probes") for name in timed}
        measures["probe_drift_pct"] = one(100 * drift(raw["probe_ms"]), "%")
    return measures


def _decode_step_us(raw: Mapping[str, np.ndarray]) -> np.ndarray | None:
    if "decode_step_us" in raw:  # an earlier record: one step a sample
        return np.asarray(raw["decode_step_us"], dtype=np.float64)
    return 1e3 * raw["decode_step_ms"] if "decode_step_ms" in raw else None


class _Bench:
    """One model, one batch, one device: the three modes it is timed in."""

    def __init__(self, model: LanguageModel, batch: Batch, config: RunConfig, device: str) -> None:
        self.model, self.config, self.device = model, config, device
        self.inputs = to_device(batch, device)  # once: copying data is not what is timed

    def train(self, baseline: int) -> tuple[Call, dict[str, np.ndarray], dict[str, Any]]:
        """Returns (a training step, raw arrays and facts of its memory)."""
        model, training = self.model.train(), self.config.training
        # A learning rate of 0 does the same work and leaves the weights as they were drawn: repeating one batch
        # a hundred times can neither diverge nor slide into denormal numbers.
        optimizer = make_optimizer(model, training, lr=0.0)

        update = stepper(model, optimizer, training, self.device)  # as in training: on CUDA recorded and replayed

        def step() -> None:
            update(self.inputs)

        steps = MEMORY_STEPS if update.stream is None else WARM_UP + 2  # what a recording holds counts
        peak, method = peak_bytes(repeated(Call(fn=step), steps), self.device, baseline)
        if torch.device(self.device).type == "cpu":
            keep_pages()  # as in training: time is measured without the page faults that exact memory costs
        facts = {"peak_method": method, "not_captured": update.why_not, "not_deterministic": model.not_deterministic}
        return Call(fn=step), {} if peak is None else {"peak_bytes": np.array([peak])}, facts

    def forward(self) -> Call:
        """Returns a forward pass with the logits of every position."""
        model = self.model.eval()
        return without_grad(lambda: model.logits(model(self.inputs[0])), self.device, self.config.training.dtype)

    def decode(self) -> tuple[Call | None, dict[str, np.ndarray], dict[str, Any]]:
        """Returns (the last steps through the batch's own tokens, raw arrays and facts of the state)."""
        reason = _why_no_decode(self.model)
        if reason:
            return None, {}, {"no_decode": reason}
        B, T = self.inputs[0].shape
        most = max(1, min(self.config.timing.decode_tokens, T - 1))
        call, held = decode_call(self.model, self.inputs[0], most, self.config.training.dtype)
        raw = {"decode_batch": np.array([B]), "state_bytes": np.array(held)}
        return call, raw, {"no_decode": None, "decode_context": [T - most, T], **self._state_facts(held)}

    def _state_facts(self, held: Sequence[int]) -> dict[str, Any]:
        """Returns measured and declared bytes per sequence and layer, and whether they agree where both are known."""
        B, T = self.inputs[0].shape
        measured = [n_bytes / B for n_bytes in held]
        declared = declared_state_bytes(self.model, T)
        pairs = [(m, d) for m, d in zip(measured, declared, strict=True) if d is not None]
        agree = all(m == d for m, d in pairs) if pairs else None
        return {"state_bytes_by_layer": measured, "state_declared_by_layer": declared, "state_declared_agrees": agree}


def declared_state_bytes(model: LanguageModel, T: int) -> list[int | None]:
    """Returns what each layer's spec declares that one sequence carries after T tokens; None where it does not."""
    return [
        int(spec.state_bytes(config, T)) if spec.state_bytes is not None and config is not None else None
        for spec, config in _declared(model)
    ]


def declared_flops(model: LanguageModel, T: int) -> list[int | None]:
    """Returns what each layer's spec declares for a forward pass of one sequence of T tokens; None where it does not.

    A multiplication and an addition are two operations.
    """
    return [
        int(spec.flops(config, T)) if spec.flops is not None and config is not None else None
        for spec, config in _declared(model)
    ]


def _declared(model: LanguageModel) -> Iterator[tuple[MixerSpec, MixerConfig | None]]:
    configs: Sequence[MixerConfig | None] = getattr(model, "mixer_configs", [None] * len(model.specs))
    return zip(model.specs, configs, strict=True)


def _why_no_decode(model: LanguageModel) -> str | None:
    if model.can_step:
        return None
    layers = zip(model.specs, model.layers, strict=True)
    without = {s.full_name for s, b in layers if not (hasattr(b.mixer, "step") and hasattr(b.mixer, "initial_state"))}
    return f"{', '.join(sorted(without))} has no step() and initial_state()"


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _model_bytes(model: LanguageModel) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
