"""What is special to `h3`."""

import pytest
import torch
from harness_zoo.h3.layer import FEW_LAGS, DiagonalSSM
from harness_zoo.h3.spec import H3, H3Options, sizes_of

from harness import InputError, MixerConfig


def config(d_model: int = 6, max_len: int = 40, **options: object) -> MixerConfig:
    return MixerConfig(d_model=d_model, max_len=max_len, options=H3Options(**options))


def layer(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return H3.build(config(**options))


@pytest.mark.parametrize("T", [1, 2, 7, 50])
def test_the_diagonal_filter_is_the_impulse_response_of_its_state_space(T: int) -> None:
    torch.manual_seed(0)
    ssm = DiagonalSSM(3, 8).double()
    # dx/dt = A x + u, y = 2 Re(C x), by the bilinear rule: x_t = (1 - dt A / 2)^-1 ((1 + dt A / 2) x_{t-1} + dt u_t)
    A = torch.complex(-ssm.log_decay.exp(), ssm.frequency)
    C, dt = torch.view_as_complex(ssm.readout.detach()), ssm.log_step.exp().unsqueeze(1)
    x, response = torch.zeros_like(A), []
    for t in range(T):
        u = 1.0 if t == 0 else 0.0
        x = ((1 + dt * A / 2) * x + dt * u) / (1 - dt * A / 2)
        response.append(2 * (C * x).sum(1).real + ssm.skip * u)
    torch.testing.assert_close(ssm.taps(T), torch.stack(response, dim=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d_state", [4, FEW_LAGS, FEW_LAGS + 2, 64])
def test_the_shift_filter_is_a_state_space_that_moves_its_state_by_one(d_state: int) -> None:
    h3 = layer(d_state=str(d_state)).double()
    k = torch.randn(2, 40, 6, dtype=torch.float64)
    state, outputs = torch.zeros(2, 6, d_state, dtype=torch.float64), []
    for k_t in k.unbind(1):
        state = torch.cat((k_t.unsqueeze(2), state[:, :, :-1]), dim=2)
        outputs.append((state * h3.shift).sum(2) + h3.shift_skip * k_t)
    torch.testing.assert_close(h3.shifted(k), torch.stack(outputs, dim=1), rtol=1e-9, atol=1e-12)


def test_the_diagonal_starts_as_s4d_lin() -> None:
    ssm = DiagonalSSM(2, 6)
    torch.testing.assert_close(-ssm.log_decay.exp(), torch.full((2, 3), -0.5))
    torch.testing.assert_close(ssm.frequency, torch.pi * torch.tensor([[0.0, 1.0, 2.0]] * 2))


@pytest.mark.parametrize("log_decay", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("log_step", [-30.0, 0.0, 30.0])
def test_no_decay_and_no_step_is_too_extreme(log_decay: float, log_step: float) -> None:
    h3 = layer(d_state="8")
    with torch.no_grad():
        h3.diagonal.log_decay.fill_(log_decay)
        h3.diagonal.log_step.fill_(log_step)
    u = torch.randn(1, 40, 6, requires_grad=True)
    h3(u).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (u, *h3.parameters()))
    A, _, _ = h3.diagonal.discrete()
    assert A.abs().max() <= 1 + 1e-9, "a state may not grow by itself"


def test_a_head_keeps_the_product_of_each_of_its_key_and_value_channels() -> None:
    assert layer(d_state="4", head_dim=2).initial_state(1, "cpu", torch.float32)[1].shape == (1, 2, 2, 3, 2)


def test_a_head_mixes_its_own_channels_only() -> None:
    h3 = layer(d_state="4", head_dim=2).double()
    with torch.no_grad():
        h3.out_proj.weight.copy_(torch.eye(6))
        h3.qkv.weight.copy_(torch.eye(6).repeat(3, 1))  # q = k = v = u
    u = torch.randn(1, 9, 6, dtype=torch.float64)
    changed = u.clone()
    changed[:, :, [1, 4]] += 1  # head 1 of 3 is channels 1 and 1 + 3
    moved = (h3(changed) - h3(u)).abs().amax((0, 1)) > 1e-9
    assert moved.tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize(("max_len", "d_state"), [(40, 40), (41, 42)])
def test_a_state_as_long_as_the_sequence_is_an_even_number(max_len: int, d_state: int) -> None:
    assert sizes_of(config(max_len=max_len, d_state="length", head_dim=2)) == (d_state, 2)


@pytest.mark.parametrize("d_state", ["0", "3", "-2", "many", "²", ""])
def test_a_state_that_is_no_even_number_is_refused(d_state: str) -> None:
    with pytest.raises(InputError, match="choose length, or an even number of at least 2"):
        layer(d_state=d_state)


@pytest.mark.parametrize("head_dim", [0, 4, 7])
def test_a_head_that_does_not_divide_the_width_is_refused_with_the_divisors(head_dim: int) -> None:
    with pytest.raises(InputError, match=f"head_dim = {head_dim} does not .*d_model = 6; choose one of 1, 2, 3, 6"):
        layer(head_dim=head_dim)
