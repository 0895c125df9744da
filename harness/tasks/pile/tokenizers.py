"""Text to tokens: GPT-2's vocabulary, or a small byte-level BPE trained on the training split.

Both end as a `tiktoken.Encoding`, so there is one encode path; the `tokenizers` library only trains.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UnavailableError
from harness.tasks.pile.archives import members

if TYPE_CHECKING:
    import tiktoken

TOKENIZERS = ("bpe4k", "gpt2")
BPE_VOCAB = 4096  # the last id ends a text
GPT2_VOCAB = 50257
# GPT-2 cuts text into words like this before it merges; possessive, so that a long word cannot overflow a stack.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# The whitespace alternative still backtracks: a run this long is cut, or one odd document would end the build.
_LONG_GAP = re.compile(r"\s{4096}")


@dataclass(frozen=True)
class Tokenizer:
    """Every token's bytes by id; the end of a text is one more id, which no text encodes to."""

    name: str
    vocab_size: int
    tokens: tuple[bytes, ...]

    @property
    def end_of_text(self) -> int:
        """Returns the id that stands after each document."""
        return self.vocab_size - 1

    def sha256(self) -> str:
        """Returns what identifies the ids it gives: a digest of its tokens and of how it cuts words."""
        return hashlib.sha256(json.dumps([_WORDS, self.vocab_size, *map(bytes.hex, self.tokens)]).encode()).hexdigest()

    def encoding(self) -> "tiktoken.Encoding":
        """Returns the encoder; `encode_ordinary` never gives the end-of-text id."""
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        special = {"<|endoftext|>": self.end_of_text}
        return tiktoken.Encoding(self.name, pat_str=_WORDS, mergeable_ranks=ranks, special_tokens=special)

    def save(self, path: Path) -> None:
        """Writes the tokens as JSON, in hexadecimal."""
        data = {"name": self.name, "vocab_size": self.vocab_size, "tokens": [token.hex() for token in self.tokens]}
        path.write_text(json.dumps(data), "utf-8")


def load(path: Path) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.save` wrote."""
    data = json.loads(path.read_text("utf-8"))
    return Tokenizer(data["name"], data["vocab_size"], tuple(map(bytes.fromhex, data["tokens"])))


def pieces(text: str) -> Iterator[str]:
    """Yields the text whole, or cut inside a run of thousands of blanks."""
    start = 0
    for match in _LONG_GAP.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    if start < len(text) or not text:
        yield text[start:]


def gpt2(carrier: Path) -> Tokenizer:
    """Returns GPT-2's tokenizer, read out of the pinned archive that carries its vocabulary."""
    for _, data in members(carrier, lambda name: name.endswith("/data/encoder.json")):
        vocab = json.loads(data)
        vocab.pop("<|endoftext|>", None)
        return Tokenizer("gpt2", GPT2_VOCAB, _in_order(vocab))
    raise UnavailableError(f"{carrier} holds no encoder.json; use --set pile.options.tokenizer=bpe4k")


def train_bpe(texts: Iterable[str], vocab_size: int = BPE_VOCAB) -> Tokenizer:
    """Returns a byte-level BPE: the same texts give the same merges, in any process."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # one id is left for the end of a text
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return Tokenizer("bpe4k", vocab_size, _in_order(model.get_vocab()))


def byte_of() -> dict[str, int]:
    """Returns the byte each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves; the other bytes follow, in order, from U+0100.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


def _in_order(vocab: dict[str, int]) -> tuple[bytes, ...]:
    table = byte_of()
    return tuple(bytes(map(table.__getitem__, token)) for token, _ in sorted(vocab.items(), key=lambda item: item[1]))
