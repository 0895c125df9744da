"""The options of the core tasks: what `--set mqar.options.KEY=VALUE` reaches. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MQAROptions:
    """Multi-query associative recall (arXiv:2312.04927). A cell is (N, D, examples): length, key-value pairs, count."""

    vocab_size: int = 8192
    train_cells: tuple[tuple[int, int, int], ...] = ((64, 4, 100_000),)
    validation_cells: tuple[tuple[int, int, int], ...] = ((64, 4, 1_000),)
    test_cells: tuple[tuple[int, int, int], ...] = ((64, 4, 3_000),)
    power_a: float = 0.01  # exponent of the gap distribution: slot i has weight i ** (power_a - 1)
    random_non_queries: bool = False  # fill unused positions with random tokens instead of token 0
    avoid_keys: bool = False  # with random_non_queries: no filler equals a key of its own context
    num_passes: int = 1  # how often the key-value block is written
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PileOptions:
    """Perplexity of recalled and of other tokens on real text (arXiv:2312.04927, section 3)."""

    corpus: str = "mini"  # or the path of a .jsonl / .jsonl.zst file in the Pile's format
    archives: str | None = None  # a folder that already holds the mini corpus' archives; None downloads them
    permissive: bool = False  # leave out the sources under a share-alike licence
    documentation: bool = False  # add the slices that come from source distributions (pip runs their build metadata)
    tokenizer: str = "bpe4k"  # trained on the training split; or "gpt2"
    T: int = 256  # context length
    threshold: int = 100  # an AR hit's bigram occurs fewer times than this in the training split
    eval_tokens: int = 131_072  # of the validation and of the test split each
    seed: int = 0
