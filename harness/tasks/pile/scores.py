"""Perplexity of AR hits and of the other tokens, from raw arrays alone. numpy only."""

import math
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from harness.spec import Measure

THRESHOLDS = (20, 100, 1250)  # always reported beside the run's own, and "any": the share depends on the corpus
SPREAD = "95 % normal interval on the mean nll, tokens taken as independent"


def score(raw: Mapping[str, NDArray[np.generic]]) -> dict[str, Measure]:
    """Returns the measures of one split; a slice without tokens has none.

    `perplexity` of all tokens, `perplexity_ar` and `perplexity_other` of the AR hits at the run's threshold and of
    the rest, `ar_share`; the hits again as `…@20`, `…@100`, `…@1250` and `…@any`; `perplexity/SUBSET` and
    `perplexity_ar/SUBSET` (at the run's threshold); `nll`, the mean over all tokens.
    """
    nll = np.asarray(raw["nll"], dtype=np.float64)
    hit = hits(raw, int(raw["threshold"]))
    found = {"perplexity": _perplexity(nll), "perplexity_ar": _perplexity(nll[hit])}
    found |= {"perplexity_other": _perplexity(nll[~hit]), "ar_share": _share(hit)}
    found["nll"] = Measure(value=float(nll.mean()), unit="nats", n=len(nll)) if len(nll) else None
    for name in (*THRESHOLDS, "any"):
        at = hits(raw, None if name == "any" else int(name))
        found |= {f"perplexity_ar@{name}": _perplexity(nll[at]), f"ar_share@{name}": _share(at)}
    subset = np.asarray(raw["subset"])
    for index, name in enumerate(raw["subset_names"].tolist()):
        inside = subset == index
        found[f"perplexity/{name}"] = _perplexity(nll[inside])
        found[f"perplexity_ar/{name}"] = _perplexity(nll[inside & hit])
    return {name: measure for name, measure in found.items() if measure is not None}


def hits(raw: Mapping[str, NDArray[np.generic]], threshold: int | None) -> NDArray[np.bool_]:
    """Returns [R]: which tokens are AR hits; without a threshold, every token that ends a repeated bigram."""
    repeated = np.asarray(raw["repeated"], dtype=np.bool_)
    return repeated if threshold is None else repeated & (np.asarray(raw["train_count"], dtype=np.int64) < threshold)


def _perplexity(nll: NDArray[np.float64]) -> Measure | None:
    n = len(nll)
    if not n:
        return None
    mean = float(nll.mean())
    if n == 1:
        return Measure(value=_exp(mean), unit="perplexity", n=n)
    half = NormalDist().inv_cdf(0.975) * float(nll.std(ddof=1)) / math.sqrt(n)
    low, high = _exp(mean - half), _exp(mean + half)
    return Measure(value=_exp(mean), unit="perplexity", n=n, low=low, high=high, spread=SPREAD)


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))  # a diverged model scores inf


def _share(hit: NDArray[np.bool_]) -> Measure | None:
    return Measure(value=float(hit.mean()), unit="fraction", n=len(hit)) if len(hit) else None
