"""Whether a stored record is what its raw arrays say: every shown number is computed again, from them alone."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from harness.check.report import report_from_facts
from harness.config import to_json
from harness.errors import HarnessError, RecordError
from harness.plugins import Registry
from harness.record import CHECK, DUEL, GATED, PEAK
from harness.spec import Measure, Task, TaskSpec
from harness.store import CONFIG, StoredRecord, arrays_sha256, stale_sums

if TYPE_CHECKING:
    import numpy as np

KEY = re.compile(r"[0-9a-f]{16,64}")
TOLERANCE = 1e-9  # relative: another machine may add the same numbers in another order
ANSWERS = ("predicted", "nll")
SEEDS = "seeds"  # [S], beside the answers [S, R] of a test record; every other array there is a label [R]


def verify(stored: StoredRecord, registry: Registry) -> list[str]:
    """Returns one line for each thing that does not match; an empty list means the record is good."""
    wrong = stale_sums(stored.path) + _wrong_config(stored)
    key = stored.record.key
    if not KEY.fullmatch(key):
        wrong.append(f"key {key!r} is not 16 to 64 hexadecimal digits")
    try:
        raw = stored.raw()
        if (arrays_sha256(raw) if raw else None) != stored.record.raw_sha256:
            return [*wrong, "raw_sha256 is not the digest of the raw arrays"]
        again = recompute(stored, raw, registry)
    except HarnessError as error:
        return [*wrong, str(error)]
    return wrong + _differences(stored.record.measures, again)


def verify_labels(stored: StoredRecord, task: Task) -> list[str]:
    """Returns one line for each label array that is not the task's own; it draws or reads the split again."""
    import numpy as np

    if stored.record.kind in ("time", CHECK, *GATED):
        return []
    split = "test" if stored.record.kind == "test" else stored.record.config["training"]["select"]
    raw, wrong = stored.raw(), []
    for name, labels in task.labels(split).items():
        if name not in raw:
            wrong.append(f"label array {name!r} of the {split} split is missing from the raw arrays")
        elif not _same_array(raw[name], np.asarray(labels)):
            wrong.append(f"label array {name!r} is not that of the {split} split")
    return wrong


def recompute(stored: StoredRecord, raw: "Mapping[str, np.ndarray]", registry: Registry) -> dict[str, Measure]:
    """Returns the measures that the raw arrays give; arrays that give none raise RecordError."""
    record = stored.record
    if not raw and (record.status != "ok" or record.kind == PEAK):  # a mixer without step has no memory of decoding
        return {}
    if record.kind == CHECK:
        report_from_facts(record.facts)  # its verdict is read off its findings, so they must be readable
        return {}
    if record.kind == "time":
        from harness.timing.cost import cost_measures as compute  # imports torch: only where it is needed
    elif record.kind == DUEL:
        from harness.timing.duel import duel_measures as compute
    elif record.kind in GATED:
        from harness.timing.spread import speed_measures as compute
    elif record.kind in ("train", "test"):
        spec = registry.task(record.task)
        if (SEEDS in raw) != (record.kind == "test"):
            raise RecordError(
                f"a test record has an array {SEEDS!r} and a train record has none; this is {record.kind}"
            )

        def compute(raw: "Mapping[str, np.ndarray]") -> dict[str, Measure]:
            return score_arrays(spec, raw)
    else:
        raise RecordError(f"record kind {record.kind!r} is none of train, test, time, check, speed, peak, duel")
    try:
        return compute(raw)
    except HarnessError:
        raise
    except Exception as error:  # a plugin's score, on arrays from anywhere
        raise RecordError(f"the raw arrays cannot be scored: {type(error).__name__}: {error}") from error


def score_arrays(spec: TaskSpec, raw: "Mapping[str, np.ndarray]") -> dict[str, Measure]:
    """Returns the measures of a train record's arrays ([R] answers), or of a test record's ([S, R], with seeds)."""
    missing = [name for name in ANSWERS if name not in raw]
    if missing:
        raise RecordError(f"the raw arrays lack {', '.join(missing)}")
    if SEEDS not in raw:
        return spec.score(raw)
    labels = {name: array for name, array in raw.items() if name not in (*ANSWERS, SEEDS)}
    seeds = raw[SEEDS].tolist()
    if not seeds or len(set(seeds)) != len(seeds) or any(len(raw[name]) != len(seeds) for name in ANSWERS):
        shapes = ", ".join(f"{name} {raw[name].shape}" for name in ANSWERS)
        raise RecordError(f"answers must be [seeds, rows] with distinct seeds, got seeds {seeds} and {shapes}")
    return over_seeds([spec.score({**labels, **{name: raw[name][s] for name in ANSWERS}}) for s in range(len(seeds))])


def over_seeds(scores: Sequence[Mapping[str, Measure]]) -> dict[str, Measure]:
    """Returns the mean of each measure over the seeds, with their least and greatest value as low and high.

    `n` counts every answer behind the mean: seeds times rows. A single seed keeps its own interval.
    """
    if not scores:
        raise RecordError("no scores: a result needs at least one seed")
    if len(scores) == 1:
        return dict(scores[0])
    names = list(scores[0])
    for score in scores:
        if set(score) != set(names):
            odd = ", ".join(sorted(set(score) ^ set(names)))
            raise RecordError(f"the seeds were not scored on the same measures: {odd}")
    return {name: _mean([score[name] for score in scores]) for name in names}


def _mean(seeds: Sequence[Measure]) -> Measure:
    values = [measure.value for measure in seeds]
    # A plain sum lets an infinite perplexity through; the clamp undoes rounding where all seeds are equal.
    mean = math.nan if any(map(math.isnan, values)) else min(max(sum(values) / len(values), min(values)), max(values))
    fewest, most = min(measure.n for measure in seeds), max(measure.n for measure in seeds)
    answers = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return Measure(
        value=mean,
        unit=seeds[0].unit,
        n=sum(measure.n for measure in seeds),
        low=min(values) if not math.isnan(mean) else None,
        high=max(values) if not math.isnan(mean) else None,
        spread=f"min–max of {len(seeds)} seeds, {answers} answers each",
    )


def _wrong_config(stored: StoredRecord) -> list[str]:
    try:
        config = json.loads((stored.path / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        return [f"{CONFIG} cannot be read: {error}"]
    return [] if config == stored.record.config else [f"{CONFIG} is not the config in the record"]


def _differences(shown: Mapping[str, Measure], again: Mapping[str, Measure]) -> list[str]:
    wrong = [f"measure {name!r} is missing" for name in sorted(set(again) - set(shown))]
    wrong += [f"measure {name!r} does not follow from the raw arrays" for name in sorted(set(shown) - set(again))]
    for name in sorted(set(shown) & set(again)):
        ours = to_json(again[name])
        wrong += [
            f"measure {name!r}: {field} is {value!r}, the raw arrays give {ours[field]!r}"
            for field, value in to_json(shown[name]).items()
            if not _equal(value, ours[field])
        ]
    return wrong


def _equal(shown: Any, again: Any) -> bool:
    if not isinstance(shown, float):  # text, a count, or None
        return bool(shown == again)
    if not isinstance(again, Real):
        return False
    both_nan = math.isnan(shown) and math.isnan(again)
    return both_nan or math.isclose(shown, again, rel_tol=TOLERANCE, abs_tol=0.0)


def _same_array(a: "np.ndarray", b: "np.ndarray") -> bool:
    import numpy as np

    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
