"""What the mixers by xformers promise on any machine, with or without xformers and CUDA."""

import importlib.metadata
import importlib.util
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from harness_xformers import harness_mixers
from harness_xformers.availability import extension_failure, import_operators, no_operator, not_installed
from harness_xformers.operator import (
    MemoryEfficientAttention,
    PackedDocuments,
    document_lengths,
    document_mask,
    mask,
    packed_ends,
)
from made_kernels import kernel, stand_in

from harness import AttentionOptions, DocumentAttentionOptions, InputError, MixerConfig, SlidingWindowOptions

D, MAX_LEN, WINDOW, END = 64, 160, 20, 5
POSITIONS = ("none", "learned", "rotary")
SPECS = {spec.name: spec for spec in harness_mixers()}
HERE = {name: spec.unavailable() for name, spec in SPECS.items()}
needs_device = pytest.mark.skipif(HERE["attention"] is not None, reason=str(HERE["attention"]))
needs_package = pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="xformers is not installed")
each = pytest.mark.parametrize("name", list(SPECS))


def config(name: str, positions: str = "none", heads: int = 2) -> MixerConfig:
    options = {
        "attention": AttentionOptions(heads=heads, positions=positions),
        "sliding_window": SlidingWindowOptions(window=WINDOW, heads=heads, positions=positions),
        "document_attention": DocumentAttentionOptions(separator=END, heads=heads, positions=positions),
    }
    return MixerConfig(d_model=D, max_len=MAX_LEN, options=options[name])


def given(name: str, T: int, device: str = "cpu", B: int = 2) -> tuple[torch.Tensor, ...]:
    """Returns what the layer is called with beside x: token ids [B, T] where it needs them."""
    tokens = torch.randint(END + 1, (B, T), generator=torch.Generator().manual_seed(3))
    return (tokens.to(device),) if SPECS[name].needs_tokens else ()


def attention_torch():
    """Returns the spec of `attention/torch`, found as the harness finds it."""
    (entry,) = importlib.metadata.entry_points(group="mixer_harness", name="harness_baselines")
    (spec,) = entry.load().harness_mixers()
    return spec


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


@each
def test_where_it_cannot_run_the_reason_and_the_command_are_named(name: str) -> None:
    if HERE[name] is None:
        pytest.skip("xformers runs here")
    assert "xformers" in HERE[name]
    assert "`pip install xformers`" in HERE[name] or f"`harness run --mixer {name}/torch`" in HERE[name]


def test_a_missing_package_names_the_command_that_installs_it() -> None:
    assert not_installed("attention", "Linux", "x86_64").endswith("`pip install xformers`")


@each
def test_a_machine_without_a_wheel_is_told_to_use_torch(name: str) -> None:
    assert "Darwin arm64" in not_installed(name, "Darwin", "arm64")
    assert f"{name}/torch" in not_installed(name, "Darwin", "arm64")


def test_without_the_package_the_reason_is_found_without_importing_torch() -> None:
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'xformers' else find(name, *rest)\n"
        "import harness_xformers; print(harness_xformers.unavailable('attention')); sys.exit('torch' in sys.modules)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "xformers" in result.stdout


def test_a_build_without_cuda_operators_is_reported_in_its_own_words() -> None:
    error = NotImplementedError(
        "No operator found:\n  query : shape\n`fa2F` is not supported because:\n"
        "    xFormers wasn't build with CUDA support"
    )
    assert "(xFormers wasn't build with CUDA support)" in no_operator("attention", error)
    assert "`pip install" in no_operator("attention", error)


def test_the_cause_behind_an_extension_that_does_not_load_is_reported() -> None:
    extension = RuntimeError("can't load C++/CUDA extensions")
    extension.__cause__ = OSError("libcudart.so.12: cannot open shared object file")
    reason = no_operator("attention", NotImplementedError("No operator found"), extension)
    assert "did not load: libcudart.so.12" in reason
    assert "`pip install nvidia-cuda-runtime-cu12`" in reason
    assert "`pip install --upgrade xformers`" in no_operator("attention", NotImplementedError("No operator found"))


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
    core, same = attention_torch(), config("attention", positions)
    mine, other = SPECS["attention"].build(same), core.build(same)
    mine.load_state_dict(other.state_dict())
    other.load_state_dict(mine.state_dict())
    assert [name for name, _ in mine.named_parameters()] == [name for name, _ in other.named_parameters()]


def test_options_are_those_of_attention_torch() -> None:
    assert SPECS["attention"].options is attention_torch().options


@needs_package
@pytest.mark.parametrize("window", [1, 5, 40])
def test_the_masks_of_xformers_are_causal_and_of_the_window(window: int) -> None:
    T = 40
    row, column = torch.arange(T).unsqueeze(1), torch.arange(T).unsqueeze(0)
    for width, sees in ((None, column <= row), (window, (column <= row) & (column > row - window))):
        bias = mask(import_operators(), T, width).materialize((T, T))
        assert torch.equal(bias == 0, sees)
        assert torch.equal(bias == -torch.inf, ~sees)


def packed(tokens: torch.Tensor) -> torch.Tensor:
    """Returns which packed positions each sees by the definition: those of its sequence and document, up to itself."""
    B, S = tokens.shape
    before = torch.cat((torch.zeros(B, 1), (tokens[:, :-1] == END).cumsum(1)), dim=1)  # documents that ended before
    document = (before + S * torch.arange(B).unsqueeze(1)).flatten()
    return (document.unsqueeze(1) == document).tril()


@pytest.mark.parametrize(("B", "S"), [(1, 1), (2, 1), (1, 30), (3, 40)])
def test_the_lengths_of_documents_are_those_that_a_separator_ends(B: int, S: int) -> None:
    (tokens,) = given("document_attention", S, B=B)
    lengths = document_lengths(tokens, END)
    assert [sum(row) for row in lengths] == [S] * B
    for row, ids in zip(lengths, tokens.tolist(), strict=True):
        ends = [t + 1 for t in range(S - 1) if ids[t] == END]
        assert row == [b - a for a, b in zip([0, *ends], [*ends, S], strict=True)]


@needs_package
@pytest.mark.parametrize(("B", "S"), [(1, 1), (1, 30), (3, 40)])
def test_the_mask_of_xformers_over_packed_documents_is_the_definition_and_that_of_torch(B: int, S: int) -> None:
    (tokens,) = given("document_attention", S, B=B)
    lengths = [length for row in document_lengths(tokens, END) for length in row]
    bias = document_mask(import_operators(), lengths, tokens.device).materialize((B * S, B * S))
    assert torch.equal(bias == 0, packed(tokens))
    assert torch.equal(bias == -torch.inf, ~packed(tokens))
    layer = pytest.importorskip("harness_zoo.document_attention.layer")
    starts = layer.document_starts(tokens, END)
    sees = (torch.arange(S) >= starts.unsqueeze(2)) & (torch.arange(S) <= torch.arange(S).unsqueeze(1))  # [B, S, S]
    assert torch.equal(bias == 0, torch.block_diag(*sees.float().unbind()).bool())


@needs_package
def test_the_newest_positions_see_the_ends_of_their_sequences() -> None:
    tokens = torch.tensor([[1, END, 2, 3], [1, 2, 3, 4], [1, 2, END, 3], [1, 2, 3, END]])
    newest = [row[-1] for row in document_lengths(tokens, END)]
    assert newest == [2, 4, 1, 4]
    k = torch.arange(16.0).view(4, 4, 1, 1)
    ends = packed_ends(k, newest)
    assert ends.flatten().tolist() == [2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15]
    biases = import_operators().fmha.attn_bias
    bias = biases.BlockDiagonalMask.from_seqlens([1] * 4, newest, device=k.device).materialize((4, 11))
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(newest))
    assert torch.equal(bias == 0, torch.arange(4).unsqueeze(1) == owner)


@needs_package
def test_the_packed_layer_equals_its_definition_when_the_mask_is_applied_by_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def attention(q, k, v, attn_bias, op):
        bias = attn_bias.materialize((q.shape[1], k.shape[1]), dtype=q.dtype)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)

    operators = stand_in((kernel("fa2F"), kernel("fa2B")), ())
    operators.memory_efficient_attention = attention
    operators.fmha.attn_bias = import_operators().fmha.attn_bias
    monkeypatch.setattr("harness_xformers.operator.import_operators", lambda: operators)
    options = DocumentAttentionOptions(separator=END, heads=4, kv_heads=2, positions="rotary")
    made = MixerConfig(d_model=D, max_len=MAX_LEN, options=options)
    fast = SPECS["document_attention"].build(made).double()
    exact = SPECS["document_attention"].reference(made).double()
    exact.load_state_dict(fast.state_dict())
    x, (tokens,) = torch.randn(2, 40, D, dtype=torch.float64), given("document_attention", 40)
    torch.testing.assert_close(fast(x, tokens), exact(x, tokens), rtol=1e-9, atol=1e-9)
    assert fast.operator == "fa2F + fa2B"
    with torch.no_grad():
        state, outputs = fast.initial_state(2, x.device, x.dtype), []
        for x_t, tokens_t in zip(x.unbind(1), tokens.unbind(1), strict=True):
            y_t, state = fast.step(x_t, state, tokens_t)
            outputs.append(y_t)
        torch.testing.assert_close(torch.stack(outputs, 1), fast(x, tokens), rtol=1e-9, atol=1e-9)
    assert fast.operator == "fa2F"


def test_an_implementation_elsewhere_has_the_same_options_parameters_and_definition() -> None:
    theirs = pytest.importorskip("harness_zoo.document_attention.spec").DOCUMENT_ATTENTION
    mine, same = SPECS["document_attention"], config("document_attention", "learned")
    assert mine.options is theirs.options
    assert [mine.state_bytes(same, T) for T in (1, 9)] == [theirs.state_bytes(same, T) for T in (1, 9)]
    exact, other = mine.reference(same).double(), theirs.build(same).double()
    exact.load_state_dict(other.state_dict())
    mine.build(same).load_state_dict(other.state_dict())
    x, (tokens,) = torch.randn(2, 40, D, dtype=torch.float64), given("document_attention", 40)
    torch.testing.assert_close(exact(x, tokens), other(x, tokens), rtol=1e-9, atol=1e-9)


@needs_package
def test_the_newest_position_alone_needs_no_mask() -> None:
    assert mask(import_operators(), 1, WINDOW) is None


@needs_package
def test_without_an_operator_the_error_says_why_and_what_helps() -> None:
    q = torch.zeros(1, 2, 30, 32)
    with pytest.raises(InputError, match=r"for torch.float32 on cpu, head width 32, LowerTriangularFromBottomRightLoc"):
        MemoryEfficientAttention(WINDOW)(q, q, q)
    with pytest.raises(InputError, match=r"training.dtype=bfloat16.*multiple of 8.*/torch"):
        MemoryEfficientAttention(WINDOW)(q, q, q)
    with pytest.raises(InputError, match=r"head width 32, BlockDiagonalCausalMask"):
        PackedDocuments(END)(q, q, q, torch.zeros(1, 30, dtype=torch.int64))


def test_the_name_of_the_kernels_that_ran_can_be_read_from_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    operators = stand_in((kernel("fa2F"), kernel("fa2B")), (kernel("cutlassF"), kernel("cutlassB")))
    operators.memory_efficient_attention = lambda q, k, v, attn_bias, op: q
    operators.fmha.attn_bias = SimpleNamespace(LowerTriangularMask=object)
    monkeypatch.setattr("harness_xformers.operator.import_operators", lambda: operators)
    layer = SPECS["attention"].build(config("attention"))
    assert layer.operator is None
    layer(torch.zeros(1, 9, D))
    assert layer.operator == "fa2F + fa2B"
    with torch.no_grad():
        layer(torch.zeros(1, 9, D))
    assert layer.operator == "fa2F"


@each
def test_a_layer_keeps_the_declared_state(name: str) -> None:
    from harness.timing.memory import held_bytes

    module = SPECS[name].build(config(name))
    module.attend = lambda q, k, v, *tokens: q  # what is kept does not depend on what it is used for
    state = module.initial_state(1, "cpu", torch.float32)
    for T in range(1, WINDOW + 3):
        _, state = module.step(torch.randn(1, D), state, *(tokens[:, 0] for tokens in given(name, 1, B=1)))
        assert held_bytes(state) == SPECS[name].state_bytes(config(name), T)


def test_the_window_is_declared_for_half_precision_only() -> None:
    assert SPECS["sliding_window"].dtypes == ("bfloat16", "float16")


@each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads = 5 does not divide d_model = 64; choose one of 1, 2, 4"),
        ({"positions": "sine"}, "positions = 'sine'; choose one of none, learned, rotary"),
        ({"heads": 64, "positions": "rotary"}, "even head width"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_choices(name: str, options: dict, message: str) -> None:
    wrong = SPECS[name].options(**options)
    with pytest.raises(InputError, match=f"{name}: .*{message}"):
        SPECS[name].build(MixerConfig(d_model=D, max_len=MAX_LEN, options=wrong))


@pytest.mark.parametrize("window", [0, MAX_LEN + 1])
def test_a_window_of_nothing_or_beyond_the_sequence_is_refused(window: int) -> None:
    options = SlidingWindowOptions(window=window)
    with pytest.raises(InputError, match=rf"window = {window}; it takes 1 to max_len = {MAX_LEN}"):
        SPECS["sliding_window"].build(MixerConfig(d_model=D, max_len=MAX_LEN, options=options))


@needs_device
@each
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("T", [1, 63, 129])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_kernels_and_their_gradients_equal_the_definition(name: str, positions: str, T: int, dtype: str) -> None:
    spec = SPECS[name]
    if dtype not in spec.dtypes:
        pytest.skip(f"{spec.full_name} does not declare {dtype}")
    torch.manual_seed(0)
    fast = spec.build(config(name, positions)).to("cuda", getattr(torch, dtype))
    exact = spec.reference(config(name, positions)).to("cuda", torch.float64)
    exact.load_state_dict(fast.state_dict())
    x = torch.randn(2, T, D, device="cuda", dtype=getattr(torch, dtype), requires_grad=True)
    z, tokens = x.detach().double().requires_grad_(), given(name, T, "cuda")
    got, wanted = fast(x, *tokens), exact(z, *tokens)
    got.sum().backward()
    wanted.sum().backward()
    weights = fast.heads.out_proj.weight.grad, exact.heads.out_proj.weight.grad
    for a, b in ((got, wanted), (x.grad, z.grad), weights):
        assert (a.double() - b).abs().max() <= 2 * spec.max_error[dtype] * b.abs().max()
    assert fast.operator


@needs_device
@each
@pytest.mark.parametrize("positions", POSITIONS)
def test_stepping_on_the_device_gives_what_the_whole_sequence_gives(name: str, positions: str) -> None:
    dtype, tokens = torch.float16 if name == "sliding_window" else torch.float32, given(name, 33, "cuda")
    module = SPECS[name].build(config(name, positions)).to("cuda", dtype)
    x = torch.randn(2, 33, D, device="cuda", dtype=dtype)
    with torch.no_grad():
        state, outputs = module.initial_state(2, x.device, x.dtype), []
        for t, x_t in enumerate(x.unbind(1)):
            y_t, state = module.step(x_t, state, *(ids[:, t] for ids in tokens))
            outputs.append(y_t)
        torch.testing.assert_close(torch.stack(outputs, 1), module(x, *tokens), rtol=4e-3, atol=4e-3)
