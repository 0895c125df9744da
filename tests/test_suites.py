"""The presets are data: what their layers are."""

import dataclasses

import numpy as np
import pytest
import torch

from harness.config import ModelConfig, RunConfig, TimingConfig
from harness.model import build_model
from harness.pattern import parse_layers
from harness.plugins import load_registry
from harness.spec import Batch
from harness.suites import harness_suites
from harness.timing.cost import cost_measures, measure_cost

REGISTRY = load_registry()
SUITES = {suite.name: suite for suite in harness_suites()}
LAYOUTS = {
    "hybrid": ["base_conv", "base_conv", "MIXER", "base_conv"],
    "based": ["short_conv", "MIXER", "sliding_window", "short_conv", "short_conv"],
    "jamba": ["MIXER"] * 4 + ["attention"] + ["MIXER"] * 3,
}


def layers(config, mixer="under_test"):
    return [choice.name.replace("under_test", "MIXER") for choice in parse_layers(config.model.layers, mixer)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_hybrid_of_the_literature_has_its_layout_in_every_task(name):
    assert [layers(run) for run in SUITES[name].runs] == [LAYOUTS[name]] * 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_hybrid_differs_from_quick_in_its_layers_only(name):
    for run, quick in zip(SUITES[name].runs, SUITES["quick"].runs, strict=True):
        same_layers = dataclasses.replace(run.model, layers=quick.model.layers)
        assert dataclasses.replace(run, model=same_layers) == quick


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_hybrid_can_be_built_at_the_lengths_of_its_tasks(name):
    for run, T in zip(SUITES[name].runs, (64, 256), strict=True):
        model = build_model(run.model, "selective_attention", 100, T, REGISTRY)
        assert len(model.layers) == len(LAYOUTS[name])
        assert model.can_step


def test_parameters_state_and_operations_of_a_hybrid_are_told_by_layer_and_add_up():
    B, T, D = 2, 40, 16
    pattern = "short_conv*3,at=2:sliding_window(window=8),at=3:MIXER"
    config = RunConfig(
        task="mqar",
        model=ModelConfig(d_model=D, layers=pattern),
        timing=TimingConfig(batch_size=B, T=T, samples=2, warmup=0, decode_tokens=2),
    )
    torch.manual_seed(0)
    model = build_model(config.model, "attention(heads=2,kv_heads=1)", 32, T, REGISTRY)
    tokens = np.random.default_rng(0).integers(0, 32, (B, T))
    raw, facts = measure_cost(model, Batch(tokens=tokens, rows=np.arange(B * T), targets=tokens.ravel()), config, "cpu")
    assert facts["state_bytes_by_layer"] == [4 * 2 * D, 4 * 2 * 8 * D, 4 * T * D]
    assert facts["state_bytes_by_layer"] == facts["state_declared_by_layer"]
    assert cost_measures(raw)["state_kib"].value * 1024 == sum(facts["state_bytes_by_layer"])
    around = sum(p.numel() for name, p in model.named_parameters() if ".mixer." not in name)
    assert cost_measures(raw)["parameters"].value == around + sum(facts["parameters_by_layer"])
    windows, pairs = 8 * T - 28, T * (T + 1) // 2
    assert facts["flops_by_layer"] == [None, 8 * T * D * D + 4 * D * windows, 6 * T * D * D + 4 * D * pairs]
