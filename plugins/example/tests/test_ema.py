"""What `ema` promises: the whole contract in one line, and what is special to it."""

import pytest
import torch
from harness_example import build

from harness import MixerConfig
from harness.testing import mixer_contract

test_ema = mixer_contract("ema")


@pytest.mark.parametrize("logit", [-30.0, 0.0, 30.0])
def test_extreme_decays_stay_finite_over_two_thousand_tokens(logit: float) -> None:
    module = build(MixerConfig(d_model=12, max_len=2048))
    torch.nn.init.constant_(module.decay_logit, logit)
    x = torch.randn(1, 2048, 12, requires_grad=True)
    module(x).square().sum().backward()
    assert all(value.grad.isfinite().all() for value in (x, *module.parameters()))
