"""What `document_attention` promises."""

import pytest
import torch
from harness_zoo.document_attention.layer import document_starts, inside_document
from harness_zoo.document_attention.reference import seen
from harness_zoo.document_attention.spec import DOCUMENT_ATTENTION, DocumentAttentionOptions

from harness import AttentionOptions, InputError, MixerConfig, SelfAttention
from harness.testing import mixer_contract

D, MAX_LEN, END = 12, 160, 7

test_the_contract_is_kept = mixer_contract("document_attention(heads=4,positions=rotary)")
test_grouped_queries_keep_the_contract = mixer_contract(
    "document_attention(heads=4,kv_heads=2,positions=learned,separator=3)",
    promises=["reference", "step", "state_bytes"],
)


def config(separator: int = END, heads: int = 2, positions: str = "none") -> MixerConfig:
    options = DocumentAttentionOptions(separator=separator, heads=heads, positions=positions)
    return MixerConfig(d_model=D, max_len=MAX_LEN, options=options)


def build(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return DOCUMENT_ATTENTION.build(config(**options)).eval()


def attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(D, MAX_LEN, AttentionOptions(heads=2)).eval()


def test_a_document_begins_behind_each_separator() -> None:
    tokens = torch.tensor([[1, END, 2, 3, END, END, 4], [END, 1, 1, 1, 1, 1, END]])
    assert document_starts(tokens, END).tolist() == [[0, 0, 2, 2, 2, 5, 6], [0, 1, 1, 1, 1, 1, 1]]
    for row, firsts in zip(tokens.tolist(), document_starts(tokens, END).tolist(), strict=True):
        assert [seen(row, t, END) for t in range(7)] == [range(first, t + 1) for t, first in enumerate(firsts)]


def test_each_document_gives_what_attention_gives_of_it_alone() -> None:
    module, alone, x = build(), attention(), torch.randn(1, 40, D)
    tokens = torch.ones(1, 40, dtype=torch.int64)
    tokens[0, [9, 10, 30]] = END
    documents = [alone(part) for part in x.split((10, 1, 20, 9), dim=1)]
    torch.testing.assert_close(module(x, tokens), torch.cat(documents, dim=1), rtol=1e-5, atol=1e-6)


def test_without_a_separator_it_is_attention() -> None:
    x = torch.randn(2, 50, D)
    tokens = torch.zeros(2, 50, dtype=torch.int64)
    torch.testing.assert_close(build()(x, tokens), attention()(x), rtol=1e-5, atol=1e-6)


def test_what_stands_before_a_separator_changes_nothing_behind_it() -> None:
    module, x, tokens = build(), torch.randn(2, 30, D), torch.randint(END, (2, 30))
    tokens[:, 11] = END
    changed = x.clone()
    changed[:, :12] += 5
    before, after = module(x, tokens), module(changed, tokens)
    assert torch.equal(before[:, 12:], after[:, 12:])
    assert not torch.allclose(before[:, 11], after[:, 11])


def test_sequences_of_a_batch_have_documents_of_their_own_while_decoding() -> None:
    module, x, tokens = build(positions="rotary"), torch.randn(3, 40, D), torch.randint(END + 1, (3, 40))
    with torch.no_grad():
        state, outputs = module.initial_state(3, "cpu", torch.float32), []
        for x_t, tokens_t in zip(x.unbind(1), tokens.unbind(1), strict=True):
            y_t, state = module.step(x_t, state, tokens_t)
            outputs.append(y_t)
        torch.testing.assert_close(torch.stack(outputs, 1), module(x, tokens), rtol=1e-5, atol=1e-6)


def test_one_mask_serves_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, attention = [], torch.nn.functional.scaled_dot_product_attention

    def counted(q, k, v, attn_mask=None, **rest):
        shapes.append(tuple(attn_mask.shape))
        return attention(q, k, v, attn_mask=attn_mask, **rest)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", counted)
    q = torch.randn(2, 6, 30, 4)
    inside_document(q, q, q, torch.zeros(2, 30, dtype=torch.int64), END)
    assert shapes == [(2, 1, 30, 30)]


def test_the_kit_feeds_separators_so_a_layer_that_ignores_them_breaks_the_contract(tmp_path) -> None:
    from harness.check.kit import run_kit
    from harness.check.subject import LENGTHS, Subject
    from harness.plugins import load_registry

    source = tmp_path / "deaf.py"
    source.write_text(
        "from dataclasses import replace\n"
        "from harness import SelfAttention, hookimpl\n"
        "from harness_zoo.document_attention.spec import DOCUMENT_ATTENTION, checked\n\n"
        "def build(config):\n"
        "    class Deaf(SelfAttention):\n"
        "        def forward(self, x, tokens):\n"
        "            return super().forward(x)\n\n"
        "    return Deaf(config.d_model, config.max_len, checked(config))\n\n"
        "@hookimpl\n"
        "def harness_mixers():\n"
        "    yield replace(DOCUMENT_ATTENTION, implementation='deaf', build=build)\n"
    )
    registry = load_registry([str(source)])
    subject = Subject(registry, registry.mixer("document_attention/deaf"))
    separator = DocumentAttentionOptions().separator
    assert all((subject.inputs(T).tokens[:, :-1] == separator).any() for T in LENGTHS if T > 1)
    assert [f.promise for f in run_kit(subject, ["shape", "reference", "implementations"]).broken] == [
        "reference",
        "implementations",
    ]


def test_the_state_is_keys_values_and_ids() -> None:
    assert [DOCUMENT_ATTENTION.state_bytes(config(), T) for T in (1, 10)] == [8 * D + 4, 10 * (8 * D + 4)]


def test_options_that_do_not_fit_are_refused_in_the_name_of_the_mixer() -> None:
    with pytest.raises(InputError, match="document_attention: heads = 5 does not divide d_model = 12; choose one of"):
        build(heads=5)
    with pytest.raises(InputError, match="document_attention: positions = 'sine'"):
        build(positions="sine")
