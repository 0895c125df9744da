"""How much of a gap in perplexity is recall, and how much of the recall a hybrid brings back."""

import math
from dataclasses import dataclass

from harness.errors import InputError


@dataclass(frozen=True)
class SlicePerplexity:
    """Perplexity of all tokens and of the AR hits among them, and the hits' share of the tokens."""

    overall: float
    ar: float
    ar_share: float


def share_from_recall(model: SlicePerplexity, attention: SlicePerplexity) -> float | None:
    """Returns the share of the model's gap to attention that lies in the AR hits, or None where there is no gap.

    The difference of the log perplexities of the hits times their share of the tokens, over that of all tokens
    (arXiv:2312.04927, table 1). Above 1 the model is ahead of attention on the other tokens; the paper shows 100 %.
    """
    gap = math.log(model.overall / attention.overall)
    return model.ar_share * math.log(model.ar / attention.ar) / gap if gap > 0 else None


def share_closed(hybrid: float, base: float, attention: float) -> float:
    """Returns the share of the gap of `base` to attention that the hybrid closes, from perplexities of AR hits.

    In log perplexity, so that it is a share of nats (arXiv:2312.04927, table 2). Above 1 the hybrid is ahead of
    attention; raises InputError where `base` is not behind attention.
    """
    if not base > attention > 0:
        raise InputError(
            f"there is no gap to close: the base model's perplexity is {base:g} and attention's {attention:g}; "
            "compare with a base model that is behind attention"
        )
    return math.log(base / hybrid) / math.log(base / attention)
