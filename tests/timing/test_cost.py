import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from harness.config import ModelConfig, RunConfig, TimingConfig, TrainingConfig
from harness.errors import InputError, RecordError
from harness.model import build_model
from harness.plugins import load_registry
from harness.spec import Batch, MixerConfig, MixerSpec
from harness.timing.cost import cost_measures, declared_state_bytes, measure_cost
from harness.timing.memory import ON_CUDA, memory_baseline, peak_bytes, state_bytes_by_layer

B, T, V, D = 2, 12, 32, 16
CONFIG = RunConfig(
    task="mqar",
    model=ModelConfig(d_model=D, layers="MIXER*2", channel_mixer="swiglu"),
    training=TrainingConfig(clip=1.0),
    timing=TimingConfig(batch_size=B, T=T, samples=5, warmup=1, decode_tokens=4),
)


def a_batch(rows=None):
    tokens = np.random.default_rng(0).integers(0, V, (B, T))
    rows = np.arange(B * T) if rows is None else rows
    return Batch(tokens=tokens, rows=rows, targets=tokens.reshape(-1)[rows])


def attention(mixer="attention"):
    torch.manual_seed(0)
    return build_model(CONFIG.model, mixer, V, T, load_registry())


@pytest.fixture(scope="module")
def measured():
    return measure_cost(attention(), a_batch(), CONFIG, "cpu")


def test_every_measure_comes_from_the_raw_arrays(measured):
    raw, _ = measured
    measures = cost_measures(raw)
    assert set(measures) == {
        "forward_ms",
        "train_step_ms",
        "train_tokens_per_s",
        "decode_us_per_token",
        "peak_mib",
        "state_kib",
        "parameters",
        "forward_per_probe",
        "train_step_per_probe",
        "decode_step_per_probe",
        "probe_drift_pct",
    }
    assert measures["train_tokens_per_s"].value == pytest.approx(np.median(1e3 * B * T / raw["train_step_ms"]))
    assert measures["train_tokens_per_s"].low <= measures["train_tokens_per_s"].value
    assert measures["decode_us_per_token"].value == pytest.approx(1e3 * np.median(raw["decode_step_ms"]) / B)
    assert [measures[name].n for name in ("forward_ms", "train_step_ms")] == [
        len(raw[name]) for name in ("forward_ms", "train_step_ms")
    ]
    assert all(isinstance(measure.value, float) for measure in measures.values())


def test_the_facts_are_json(measured):
    _, facts = measured
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["B"], facts["T"], facts["rows"], facts["no_decode"]) == (B, T, B * T, None)
    assert facts["decode_context"] == [T - 4, T]


def test_a_series_stands_between_two_readings_of_the_probe_and_says_what_disturbed_it(measured):
    raw, facts = measured
    assert [raw[f"{name}_probe"].tolist() for name in ("train_step", "forward", "decode_step")] == [
        [0, 1],
        [1, 2],
        [2, 3],
    ]
    assert raw["probe_ms"].shape == (4, 3)
    assert all(len(raw[f"{name}_flags"]) == len(raw[f"{name}_ms"]) for name in facts["series"])
    assert set(facts["disturbed"]) == set(facts["series"]) == {"train_step", "forward", "decode_step"}
    assert facts["policy"]["stop"]["min_samples"] == CONFIG.timing.samples


def test_arrays_of_earlier_records_give_what_they_gave():
    old = {
        "forward_ms": np.array([1.0, 2.0, 3.0]),
        "train_step_ms": np.array([4.0]),
        "decode_step_us": np.array([10.0, 30.0]),
        "decode_batch": np.array([2]),
        "tokens_per_step": np.array([8]),
        "parameters": np.array([5]),
    }
    measures = cost_measures(old)
    assert measures["decode_us_per_token"].value == 10.0
    assert set(measures) == {"forward_ms", "train_step_ms", "train_tokens_per_s", "decode_us_per_token", "parameters"}


def test_the_state_of_attention_is_keys_and_values_of_every_token(measured):
    raw, facts = measured
    a_layer = 2 * T * D * 4  # K and V, float32
    assert raw["state_bytes"].tolist() == [a_layer * B] * 2
    assert facts["state_bytes_by_layer"] == [a_layer] * 2


def test_operations_and_operators_are_told_by_layer(measured):
    _, facts = measured
    pairs = T * (T + 1) // 2
    assert facts["flops_by_layer"] == [2 * (4 * T * D * D + pairs * 2 * D)] * 2  # four products, scores, weighted sums
    assert facts["operators_by_layer"] == [None, None]  # attention/torch leaves the choice to torch


@pytest.mark.parametrize(("operator", "told"), [("fa2F", "fa2F"), (print, None)], ids=["a name", "a function"])
def test_a_layer_may_name_its_operator_and_anything_else_of_that_name_is_left_out(operator, told):
    model = attention()
    for block in model.layers:
        block.mixer.attend = named(operator, block.mixer.attend)
    _, facts = measure_cost(model, a_batch(), CONFIG, "cpu")
    assert json.loads(json.dumps(facts))["operators_by_layer"] == [told, told]


def named(name, function):
    class Named:
        operator = name

        def __call__(self, q, k, v):
            return function(q, k, v)

    return Named()


def test_the_state_per_sequence_is_the_sum_over_the_layers(measured):
    raw, facts = measured
    a_layer = facts["state_bytes_by_layer"][0]
    assert cost_measures(raw)["state_kib"].value == 2 * a_layer / 1024


def test_parameters_are_those_of_the_model(measured):
    raw, facts = measured
    model = attention()
    assert raw["parameters"].tolist() == [sum(p.numel() for p in model.parameters())]
    assert facts["parameters_by_layer"] == [4 * D * D + 4 * D] * 2


def test_the_weights_are_the_same_after_measuring():
    model = attention()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_cost(model, a_batch(), CONFIG, "cpu")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_decoding_never_leaves_the_positions_the_model_was_built_for():
    raw, _ = measure_cost(
        attention("attention(positions=learned)"), a_batch(), CONFIG, "cpu"
    )  # one step further would raise
    assert len(raw["decode_step_ms"])


def test_more_decode_tokens_than_the_sequence_has_are_cut():
    timing = dataclasses.replace(CONFIG.timing, decode_tokens=1000)
    _, facts = measure_cost(attention(), a_batch(), dataclasses.replace(CONFIG, timing=timing), "cpu")
    assert facts["decode_context"] == [1, T]


def test_only_the_labelled_rows_reach_the_head_in_a_train_step():
    model, heads = attention(), []
    logits = model.logits
    model.logits = lambda hidden: heads.append(tuple(hidden.shape)) or logits(hidden)
    measure_cost(model, a_batch(np.array([3, 20])), CONFIG, "cpu")
    assert set(heads) == {(2, D), (B, T, D), (B, D)}  # train, forward, decode


def test_a_sequence_of_one_token_has_no_decode_step():
    batch = Batch(tokens=np.zeros((2, 1), dtype=np.int64), rows=np.array([0]), targets=np.array([0]))
    with pytest.raises(InputError, match=r"timing\.T must be at least 2"):
        measure_cost(attention(), batch, CONFIG, "cpu")


class Pool(nn.Module):
    """A mixer without step: the mean of everything so far."""

    def forward(self, x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1).unsqueeze(1)


class TinyModel(nn.Module):
    """The interface of LanguageModel, with nothing behind it that the harness wrote."""

    can_step = False

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.layers = nn.ModuleList([nn.ModuleDict({"mixer": Pool()})])
        self.layers[0].mixer = self.layers[0]["mixer"]
        self.specs = [MixerSpec(name="pool", summary="", source="", build=lambda config: Pool())]
        self.not_deterministic = None

    def forward(self, tokens, rows=None):
        y = self.layers[0].mixer(self.embedding(tokens))
        return y if rows is None else y.flatten(0, 1)[rows.flatten()]

    def logits(self, hidden):
        return hidden @ self.embedding.weight.T

    def auxiliary_loss(self):
        return self.embedding.weight.square().mean()


def test_a_mixer_without_step_has_no_decode_time_and_no_state_and_says_why():
    raw, facts = measure_cost(TinyModel(), a_batch(), CONFIG, "cpu")
    assert facts["no_decode"] == "pool/torch has no step() and initial_state()"
    assert not {"decode_us_per_token", "state_kib"} & set(cost_measures(raw))
    assert {"forward_ms", "train_step_ms", "peak_mib", "parameters"} <= set(cost_measures(raw))


def test_raw_arrays_that_lack_one_are_refused():
    with pytest.raises(RecordError, match="lack train_step_ms, parameters"):
        cost_measures({"forward_ms": np.ones(3), "tokens_per_step": np.ones(1)})


@pytest.mark.parametrize(("declared", "agrees"), [(2 * T * D * 4, True), (2 * T * D, False), (None, None)])
def test_declared_state_is_compared_with_what_was_measured(declared, agrees):
    model = attention()
    spec = dataclasses.replace(model.specs[0], state_bytes=None if declared is None else lambda config, T: declared)
    model.specs = [spec] * 2
    model.mixer_configs = [MixerConfig(d_model=D, max_len=T)] * 2
    assert declared_state_bytes(model, T) == [declared] * 2
    _, facts = measure_cost(model, a_batch(), CONFIG, "cpu")
    assert facts["state_declared_by_layer"] == [declared] * 2
    assert facts["state_declared_agrees"] is agrees


@dataclass
class Cache:
    keys: torch.Tensor
    step: int


def test_state_bytes_count_each_storage_once_and_whole():
    model = nn.Linear(3, 3)
    buffer = torch.zeros(100)  # 400 bytes
    for state, n_bytes in [
        (buffer, 400),
        (buffer[:10], 400),  # the view keeps all of it alive
        ([buffer[:50], buffer[50:]], 400),
        ({"a": buffer, "b": (torch.zeros(1), None, 3)}, 404),
        (Cache(torch.zeros(2, 5, dtype=torch.bfloat16), 7), 20),
        (SimpleNamespace(h=torch.zeros(4, dtype=torch.float64)), 32),
        (np.zeros(4), 32),
        (torch.zeros(1).expand(1000), 4),
        ([model.weight, model.bias.detach()], 0),  # weights are not state
        (torch.zeros(0), 0),
        (None, 0),
    ]:
        assert state_bytes_by_layer([state], model) == [n_bytes], state
    assert state_bytes_by_layer([buffer, buffer, torch.zeros(1)], model) == [400, 0, 4]


def test_a_state_that_holds_itself_is_walked_once():
    state = {"h": torch.zeros(2)}
    state["self"] = state
    assert state_bytes_by_layer([state], nn.Identity()) == [8]


PEAK = """
import sys, torch
from harness.timing.memory import memory_baseline, peak_bytes
baseline = memory_baseline("cpu")
print(peak_bytes(lambda: torch.ones(int(sys.argv[1]) << 18).sum(), "cpu", baseline)[0] / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a peak that can be reset")
def test_a_planted_allocation_is_found_in_the_peak():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = [sys.executable, "-c", PEAK, "200"]
    out = subprocess.run(code, env=environment, capture_output=True, text=True, check=True).stdout
    assert float(out) == pytest.approx(200, abs=16)  # pages that the process gave back are taken again first


@pytest.mark.skipif(sys.platform != "linux", reason="needs a peak that can be reset")
def test_an_earlier_peak_does_not_count():
    torch.ones(64 << 18).sum()
    peak, method = peak_bytes(lambda: None, "cpu", memory_baseline("cpu"))
    assert peak < 8 << 20
    assert "VmHWM" in method


def test_measuring_memory_does_not_change_what_is_drawn_next():
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    memory_baseline("cpu")
    assert torch.equal(torch.rand(3), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_measures_come_from_a_gpu():
    baseline = memory_baseline("cuda")
    raw, facts = measure_cost(attention().to("cuda"), a_batch(), CONFIG, "cuda", baseline)
    assert 0 < raw["peak_bytes"][0] < torch.cuda.max_memory_allocated()
    assert facts["peak_method"] == ON_CUDA
    assert all(measure.value > 0 for measure in cost_measures(raw).values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_timed_before_leaves_nothing_in_the_peak_on_a_gpu():
    def peak():
        baseline = memory_baseline("cuda")
        return measure_cost(attention().to("cuda"), a_batch(), CONFIG, "cuda", baseline)[0]["peak_bytes"][0]

    assert peak() == peak()


def test_on_a_gpu_the_peak_is_over_what_was_there_before(monkeypatch):
    told = []
    for name, answer in (("synchronize", None), ("reset_peak_memory_stats", None), ("max_memory_allocated", 1700)):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name, answer=answer: told.append(name) or answer)
    peak, method = peak_bytes(lambda: told.append("call"), "cuda", 500)
    assert (peak, method) == (1200, ON_CUDA)
    assert told.index("reset_peak_memory_stats") < told.index("call") < told.index("max_memory_allocated")
