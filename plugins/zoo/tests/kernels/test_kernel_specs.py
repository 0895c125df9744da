"""What the Triton implementations declare, on any machine."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from harness_zoo import harness_mixers
from harness_zoo.kernel_specs import has_driver, reason, replace_operators
from torch import nn

from harness import MixerConfig

TORCH = {spec.name: spec for spec in harness_mixers() if spec.implementation == "torch"}
TRITON = {spec.name: spec for spec in harness_mixers() if spec.implementation == "triton"}


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, check=False)


def test_every_mixer_whose_operators_have_kernels_is_there_twice() -> None:
    without = {"document_attention", "selective_attention", "selective_attention_published"}
    assert TRITON.keys() == TORCH.keys() - without


@pytest.mark.parametrize("name", TRITON)
def test_the_layer_is_the_same_but_for_its_operators(name: str) -> None:
    pytest.importorskip("triton")
    config = MixerConfig(d_model=8, max_len=16)
    layer, twin = TORCH[name].build(config), TRITON[name].build(config)
    assert type(layer) is type(twin)
    assert [n for n, _ in layer.named_parameters()] == [n for n, _ in twin.named_parameters()]
    before, after = operators(layer), operators(twin)
    changed = {n for n, operator in before.items() if after[n] is not operator}
    assert changed
    assert all(after[n].__module__ == before[n].__module__ + "_kernel" for n in changed)


def operators(layer: nn.Module) -> dict[str, Callable[..., object]]:
    """Returns the functions that the modules of a layer hold, without the arguments that are bound to them."""
    modules = dict(layer.named_modules())
    held = {f"{path}.{n}": getattr(value, "func", value) for path, m in modules.items() for n, value in vars(m).items()}
    return {n: value for n, value in held.items() if callable(value)}


def test_arguments_bound_to_an_operator_stay_bound() -> None:
    pytest.importorskip("triton")
    layer, twin = (specs["sliding_window"].build(MixerConfig(d_model=8, max_len=16)) for specs in (TORCH, TRITON))
    assert twin.attend.keywords == layer.attend.keywords == {"window": 16}


def test_a_layer_without_known_operators_is_left_as_it_is() -> None:
    pytest.importorskip("triton")

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = abs

    assert replace_operators(Layer()).act is abs


def test_where_it_cannot_run_the_reason_and_the_other_implementation_are_named() -> None:
    why = reason("h3")
    if why is None:
        pytest.skip("Triton runs here")
    assert "`harness run --mixer h3/torch`" in why


@pytest.mark.skipif(has_driver(), reason="with a driver torch is asked too")
def test_without_a_driver_the_reason_is_found_without_torch_and_triton() -> None:
    code = (
        "import sys, harness_zoo; print([spec.unavailable() for spec in harness_zoo.harness_mixers() "
        "if spec.unavailable]); sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "Triton needs a GPU" in result.stdout


def test_in_the_interpreter_it_runs_on_a_cpu_in_float32_and_is_never_preferred() -> None:
    code = (
        "import harness_zoo; specs = [s for s in harness_zoo.harness_mixers() if s.implementation == 'triton']\n"
        "for s in specs: print(s.devices, s.dtypes, s.preference, s.unavailable())"
    )
    result = run_python(code, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.splitlines()) == {"('cpu', 'cuda') ('float32',) -1 None"}
