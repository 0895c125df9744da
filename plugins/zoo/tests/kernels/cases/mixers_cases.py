"""The mixers of the zoo on Triton beside the same layers on torch: run by `test_results.py`."""

import pytest
import torch
from harness_zoo import harness_mixers
from kernel_support import DEVICE, INTERPRETED, draw, needs_loops, relative_error

from harness import MixerConfig
from harness.testing import mixer_contract

pytestmark = needs_loops
SPECS = {(spec.name, spec.implementation): spec for spec in harness_mixers()}
NAMES = [name for name, implementation in SPECS if implementation == "triton"]
CONFIG = MixerConfig(d_model=4, max_len=70, layer=1, n_layers=2)


# All promises on a GPU. Interpreted, that takes minutes a mixer: there only the one that compares, at full size.
PROMISES = ("implementations",) if INTERPRETED else ()
test_short_conv = mixer_contract("short_conv/triton", device=DEVICE, promises=PROMISES)
test_base_conv = mixer_contract("base_conv/triton", device=DEVICE, promises=PROMISES)
test_long_conv = mixer_contract("long_conv/triton", device=DEVICE, promises=PROMISES)
test_h3 = mixer_contract("h3/triton", device=DEVICE, promises=PROMISES)
test_hyena = mixer_contract("hyena/triton", device=DEVICE, promises=PROMISES)
test_rwkv4 = mixer_contract("rwkv4/triton", device=DEVICE, promises=PROMISES)
test_bigbird = mixer_contract("bigbird/triton", device=DEVICE, promises=PROMISES)
test_sliding_window = mixer_contract("sliding_window/triton", device=DEVICE, promises=PROMISES)


def pair(name: str):
    """Returns the layer on torch in float64 and on Triton in float32, with the same weights."""
    torch.manual_seed(0)
    exact, fast = (SPECS[name, implementation].build(CONFIG) for implementation in ("torch", "triton"))
    fast.load_state_dict(exact.state_dict())
    return exact.double(), fast.to(DEVICE)


@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradients_equal_those_of_torch(name: str) -> None:
    exact, fast = pair(name)
    x = draw(2, 67, 4)
    found = []
    for layer, dtype, device in ((exact, torch.float64, "cpu"), (fast, torch.float32, DEVICE)):
        u = x.clone().to(device, dtype).requires_grad_()
        y = layer(u)
        y.backward(draw(*y.shape, seed=1).to(device, dtype))
        found.append({"y": y.detach(), "x": u.grad, **{n: p.grad for n, p in layer.named_parameters()}})
    wanted, got = found
    for what in wanted:
        assert relative_error(got[what], wanted[what]) <= 1e-4, what


@pytest.mark.parametrize("name", NAMES)
def test_stepping_gives_what_the_whole_sequence_gives(name: str) -> None:
    exact, fast = pair(name)
    x = draw(2, 5, 4)
    state, outputs = fast.initial_state(2, DEVICE, torch.float32), []
    with torch.no_grad():
        for x_t in x.float().to(DEVICE).unbind(1):
            y_t, state = fast.step(x_t, state)
            outputs.append(y_t)
        assert relative_error(torch.stack(outputs, 1), exact(x)) <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_it_stays_near(name: str) -> None:
    if DEVICE == "cpu":
        pytest.skip("the interpreter does not multiply in bfloat16")
    exact, fast = pair(name)
    x = draw(2, 67, 4)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = fast(x.float().to(DEVICE))
    y.sum().backward()
    assert relative_error(y.float().detach(), exact(x).detach()) <= 3e-2
    assert all(p.grad.isfinite().all() for p in fast.parameters())
