"""What `attention/xformers` promises, on any machine: with or without xformers, with or without CUDA."""

import importlib.metadata
import importlib.util
import logging
import subprocess
import sys

import pytest
import torch
from harness_xformers import AttentionOptions, build, build_reference, harness_mixers, state_bytes, unavailable
from harness_xformers.availability import extension_failure, import_operators, no_operator, not_installed

from harness import InputError, MixerConfig

D, MAX_LEN = 64, 160
POSITIONS = ("none", "learned", "rotary")
HERE = unavailable()
needs_device = pytest.mark.skipif(HERE is not None, reason=str(HERE))
needs_package = pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="xformers is not installed")


def config(positions: str = "none", heads: int = 2) -> MixerConfig:
    return MixerConfig(d_model=D, max_len=MAX_LEN, options=AttentionOptions(heads=heads, positions=positions))


def attention_torch():
    """Returns the spec of `attention/torch`, found as the harness finds it."""
    (entry,) = importlib.metadata.entry_points(group="mixer_harness", name="harness_baselines")
    (spec,) = entry.load().harness_mixers()
    return spec


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_where_it_cannot_run_the_reason_and_the_command_are_named() -> None:
    if HERE is None:
        pytest.skip("xformers runs here")
    assert "xformers" in HERE
    assert "`pip install xformers`" in HERE or "`harness run --mixer attention/torch`" in HERE


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    assert not_installed("Linux", "x86_64").endswith("`pip install xformers`")


def test_a_machine_without_a_wheel_is_told_to_use_torch() -> None:
    assert "Darwin arm64" in not_installed("Darwin", "arm64")
    assert "attention/torch" in not_installed("Darwin", "arm64")


def test_without_the_package_the_reason_is_found_without_importing_torch() -> None:
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'xformers' else find(name, *rest)\n"
        "import harness_xformers; print(harness_xformers.unavailable()); sys.exit('torch' in sys.modules)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "xformers" in result.stdout


def test_a_build_without_cuda_operators_is_reported_in_its_own_words() -> None:
    error = NotImplementedError(
        "No operator found:\n  query : shape\n`fa2F` is not supported because:\n"
        "    xFormers wasn't build with CUDA support"
    )
    assert "(xFormers wasn't build with CUDA support)" in no_operator(error)
    assert "`pip install" in no_operator(error)


def test_the_cause_behind_an_extension_that_does_not_load_is_reported() -> None:
    extension = RuntimeError("can't load C++/CUDA extensions")
    extension.__cause__ = OSError("libcudart.so.12: cannot open shared object file")
    assert "did not load: libcudart.so.12" in no_operator(NotImplementedError("No operator found"), extension)


@needs_package
def test_what_xformers_caught_on_loading_its_extension_can_be_read() -> None:
    operators = import_operators()
    assert operators.memory_efficient_attention is not None
    failure = extension_failure()
    assert failure is None or "xFormers" in str(failure)


def test_listing_imports_neither_torch_nor_xformers() -> None:
    code = (
        "import sys, harness_xformers; list(harness_xformers.harness_mixers())\n"
        "sys.exit('torch' in sys.modules or 'xformers' in sys.modules)"
    )
    assert run_python(code).returncode == 0


def test_the_mixer_can_be_listed_again_after_its_layers_were_built() -> None:
    build(config())
    build_reference(config())
    (spec,) = harness_mixers()
    assert spec.full_name == "attention/xformers"


@needs_package
def test_importing_the_operators_says_nothing_on_stderr() -> None:
    result = run_python("from harness_xformers.availability import import_operators; import_operators()")
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")


@needs_package
def test_other_messages_of_xformers_are_not_silenced(caplog: pytest.LogCaptureFixture) -> None:
    import_operators()
    with caplog.at_level(logging.WARNING):
        logging.getLogger("xformers").warning("something else")
        logging.getLogger("xformers").warning("can't load C++")
    assert [record.getMessage() for record in caplog.records] == ["something else", "can't load C++"]


@pytest.mark.parametrize("positions", POSITIONS)
def test_state_dicts_are_interchangeable_with_attention_torch(positions: str) -> None:
    core = attention_torch()
    mine, other = (
        build(config(positions)),
        core.build(MixerConfig(d_model=D, max_len=MAX_LEN, options=core.options(heads=2, positions=positions))),
    )
    mine.load_state_dict(other.state_dict())
    other.load_state_dict(mine.state_dict())
    assert [name for name, _ in mine.named_parameters()] == [name for name, _ in other.named_parameters()]


def test_options_are_those_of_attention_torch() -> None:
    assert AttentionOptions.__dataclass_fields__.keys() == attention_torch().options.__dataclass_fields__.keys()
    assert vars(AttentionOptions()) == vars(attention_torch().options())


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("T", [1, 63, 129])
def test_the_definition_equals_attention_torch(positions: str, T: int) -> None:
    core = attention_torch()
    mine = build_reference(config(positions)).double()
    other = core.build(MixerConfig(d_model=D, max_len=MAX_LEN, options=core.options(heads=2, positions=positions)))
    other.double().load_state_dict(mine.state_dict())
    x = torch.randn(2, T, D, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    torch.testing.assert_close(mine(x), other(y), rtol=1e-9, atol=1e-9)
    mine(x).sin().sum().backward()
    other(y).sin().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-9)


def test_future_tokens_do_not_change_the_past() -> None:
    module, x = build_reference(config()), torch.randn(2, 20, D)
    changed = x.clone()
    changed[:, 11:] += 10.0
    torch.testing.assert_close(module(x)[:, :11], module(changed)[:, :11], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
def test_stepping_token_by_token_gives_what_the_whole_sequence_gives(positions: str) -> None:
    module, x = build_reference(config(positions)), torch.randn(2, 33, D)
    state, outputs = module.initial_state(2, x.device, x.dtype), []
    for x_t in x.unbind(1):
        y_t, state = module.step(x_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("T", [1, 17])
def test_the_measured_state_has_the_declared_size(T: int) -> None:
    module = build_reference(config())
    state = module.initial_state(1, "cpu", torch.float32)
    for _ in range(T):
        _, state = module.step(torch.randn(1, D), state)
    assert sum(part.untyped_storage().nbytes() for part in state) == state_bytes(config(), T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AttentionOptions(heads=5), "heads = 5 does not divide d_model = 64; choose one of 1, 2, 4"),
        (AttentionOptions(positions="sine"), "positions = 'sine'; choose one of none, learned, rotary"),
        (AttentionOptions(heads=64, positions="rotary"), "even head width"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_choices(options: AttentionOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(MixerConfig(d_model=D, max_len=MAX_LEN, options=options))


def test_a_sequence_beyond_the_learned_positions_is_refused_naming_both_lengths() -> None:
    with pytest.raises(InputError, match=f"T = {MAX_LEN + 1} .*max_len = {MAX_LEN}"):
        build(config("learned"))(torch.zeros(1, MAX_LEN + 1, D))


@needs_device
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("T", [1, 63, 129])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_kernels_and_their_gradients_equal_the_definition(positions: str, T: int, dtype: str) -> None:
    (spec,) = harness_mixers()
    torch.manual_seed(0)
    fast = build(config(positions)).to("cuda", getattr(torch, dtype))
    exact = build_reference(config(positions)).to("cuda", torch.float64)
    exact.load_state_dict(fast.state_dict())
    x = torch.randn(2, T, D, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
    z = x.detach().double().requires_grad_()
    got, wanted = fast(x), exact(z)
    got.sum().backward()
    wanted.sum().backward()
    for a, b in ((got, wanted), (x.grad, z.grad), (fast.out_proj.weight.grad, exact.out_proj.weight.grad)):
        assert (a.double() - b).abs().max() <= 2 * spec.max_error[dtype] * b.abs().max()


@needs_device
@pytest.mark.parametrize("positions", POSITIONS)
def test_stepping_on_the_device_gives_what_the_whole_sequence_gives(positions: str) -> None:
    module, x = build(config(positions)).cuda(), torch.randn(2, 33, D, device="cuda")
    state, outputs = module.initial_state(2, x.device, x.dtype), []
    for x_t in x.unbind(1):
        y_t, state = module.step(x_t, state)
        outputs.append(y_t)
    torch.testing.assert_close(torch.stack(outputs, 1), module(x), rtol=2e-3, atol=2e-3)
