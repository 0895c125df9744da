import pytest
import torch

from harness.config import ModelConfig
from harness.errors import InputError
from harness.model import build_model
from harness.plugins import load_registry

REGISTRY = load_registry()
SMALL = ModelConfig(d_model=16, layers="MIXER*2", channel_mixer="swiglu")


def model(config=SMALL, mixer="attention", V=32, T=12):
    torch.manual_seed(0)
    return build_model(config, mixer, V, T, REGISTRY)


def tokens(B=3, T=12, V=32):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))


def test_hidden_state_has_the_shape_of_the_tokens_and_the_width_of_the_model():
    m = model()
    hidden = m(tokens())
    assert hidden.shape == (3, 12, 16)
    assert m.logits(hidden).shape == (3, 12, 32)


def test_chosen_positions_have_the_hidden_state_they_have_among_all():
    m = model()
    rows = torch.tensor([0, 5, 13, 35])
    whole = m(tokens())
    assert torch.equal(m(tokens(), rows), whole.flatten(0, 1)[rows])
    assert torch.equal(m(tokens(), torch.arange(36)), whole.flatten(0, 1))


LAYERS = [
    "attention(positions=learned)",
    "short_conv,attention(heads=4,kv_heads=2,positions=rotary)",
    "attention,ema",
    "document_attention(separator=3)",
]


@pytest.mark.parametrize("layers", LAYERS)
def test_as_many_positions_of_every_sequence_have_the_hidden_state_and_gradients_they_have_among_all(layers):
    m = model(ModelConfig(d_model=16, layers=layers, channel_mixer="swiglu")).double()
    rows = torch.tensor([[0, 5, 11], [13, 14, 23], [24, 30, 35]])  # of sequences of 12
    found = []
    for asked in (rows, rows.flatten()):
        m.zero_grad()
        hidden = m(tokens(), asked)
        (hidden * torch.arange(16)).square().sum().backward()
        found.append([hidden.detach(), *(p.grad.clone() for p in m.parameters())])
    assert found[0][0].shape == (9, 16)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_where_positions_are_asked_for_the_last_mixer_computes_no_others(monkeypatch):
    m, seen = model(), []
    last = m.layers[-1].mixer
    whole, some = last.forward, last.forward_at
    monkeypatch.setattr(last, "forward", lambda x: seen.append("all") or whole(x))
    monkeypatch.setattr(last, "forward_at", lambda x, positions: seen.append(positions.tolist()) or some(x, positions))
    m(tokens(), torch.tensor([[3, 4], [13, 23], [24, 26]]))
    m(tokens(), torch.tensor([3, 4, 13, 24]))
    assert seen == [[[3, 4], [1, 11], [0, 2]], "all"]


def test_a_mixer_that_answers_for_other_positions_than_asked_is_an_error_with_both_shapes(monkeypatch):
    m = model()
    last = m.layers[-1].mixer
    monkeypatch.setattr(type(last), "forward_at", lambda self, x, positions: self(x))
    with pytest.raises(InputError, match=r"shape \(3, 12, 16\) for input \(3, 12, 16\) at 1 position; .* \(3, 1, 16\)"):
        m(tokens(), torch.tensor([[3], [13], [24]]))


def test_the_head_is_the_embedding():
    m = model()
    assert torch.equal(m.logits(torch.eye(16)), m.embedding.weight.T)
    assert sum(p.numel() for p in m.parameters()) == sum(p.numel() for p in set(m.parameters()))


def test_the_same_seed_builds_the_same_model():
    first, second = model().state_dict(), model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_future_tokens_do_not_change_the_past():
    m = model().eval()
    before, changed = tokens(), tokens()
    changed[:, 7:] = (changed[:, 7:] + 1) % 32
    assert torch.equal(m(before)[:, :7], m(changed)[:, :7])
    assert not torch.equal(m(before)[:, 7:], m(changed)[:, 7:])


def test_decoding_step_by_step_gives_the_logits_of_the_whole_sequence():
    m = model().eval()
    assert m.can_step
    state, steps = m.initial_state(3, "cpu", torch.float32), []
    for t in range(12):
        logits, state = m.step(tokens()[:, t], state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), m.logits(m(tokens())), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", ["attention", "ema,attention,hyena", "document_attention(separator=3),short_conv"])
def test_a_prompt_in_one_pass_leaves_what_steps_leave_also_where_a_layer_has_no_prefill(layers):
    m = model(ModelConfig(d_model=16, layers=layers, channel_mixer="swiglu")).eval()
    hidden, state = m.prefill(tokens()[:, :9], torch.float32)
    steps = []
    for t in range(9, 12):
        logits, state = m.step(tokens()[:, t], state)
        steps.append(logits)
    whole = m.logits(m(tokens()))
    torch.testing.assert_close(m.logits(hidden), whole[:, :9], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.stack(steps, 1), whole[:, 9:], atol=1e-5, rtol=1e-4)


def test_a_mixer_that_needs_tokens_is_given_them_in_forward_and_in_each_step(tmp_path):
    file = tmp_path / "ids.py"
    file.write_text(
        "from harness import MixerSpec, hookimpl\n"
        "def build(config):\n"
        "    import torch\n"
        "    class Ids(torch.nn.Module):\n"
        "        def forward(self, x, tokens): return x * tokens.unsqueeze(2)\n"
        "        def initial_state(self, B, device, dtype): return ()\n"
        "        def step(self, x_t, state, tokens_t): return x_t * tokens_t.unsqueeze(1), state\n"
        "    return Ids()\n"
        "@hookimpl\n"
        "def harness_mixers(): yield MixerSpec(name='ids', summary='', source='', build=build, needs_tokens=True)\n"
    )
    m = build_model(ModelConfig(d_model=8, layers="MIXER,attention"), "ids", 32, 5, load_registry([str(file)])).eval()
    ids, state, steps = tokens(T=5), m.initial_state(3, "cpu", torch.float32), []
    for t in range(5):
        logits, state = m.step(ids[:, t], state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), m.logits(m(ids)), atol=1e-5, rtol=1e-4)


def test_each_layer_knows_its_place(tmp_path):
    file = tmp_path / "seen.py"
    file.write_text(
        "from harness import MixerSpec, hookimpl\n"
        "def build(config):\n"
        "    import torch\n"
        "    module = torch.nn.Identity()\n"
        "    module.seen = (config.layer, config.n_layers, config.d_model, config.max_len)\n"
        "    return module\n"
        "@hookimpl\n"
        "def harness_mixers(): yield MixerSpec(name='seen', summary='', source='', build=build)\n"
    )
    m = build_model(ModelConfig(d_model=8, layers="seen,MIXER,seen"), "seen", 10, 5, load_registry([str(file)]))
    assert [block.mixer.seen for block in m.layers] == [(i, 3, 8, 5) for i in range(3)]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ModelConfig(layers="atention"), "did you mean 'attention'"),
        (ModelConfig(channel_mixer="mlp"), "choose none or swiglu"),
        (ModelConfig(d_model=10, layers="attention(heads=3)"), "heads"),
    ],
)
def test_a_model_that_cannot_be_built_says_why(config, says):
    with pytest.raises(InputError, match=says):
        model(config)


def test_a_mixer_that_changes_the_shape_is_an_error_with_both_shapes():
    m = model()
    m.layers[0].mixer = torch.nn.Linear(16, 8)
    with pytest.raises(InputError, match=r"\(3, 12, 8\) for input \(3, 12, 16\)"):
        m(tokens())
