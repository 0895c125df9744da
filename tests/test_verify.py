import copy
import dataclasses
import json
import math
import random
import re
from dataclasses import dataclass

import numpy as np
import pytest

from harness.config import RunConfig, TrainingConfig, to_json
from harness.errors import RecordError
from harness.plugins import Registry
from harness.record import Record
from harness.spec import Measure, TaskSpec
from harness.store import RECORD, SUMS, Store, _contents
from harness.verify import over_seeds, score_arrays, verify, verify_labels

R = 40


@dataclass(frozen=True)
class NoOptions:
    pass


class CopyTask:
    """The labels of a task with two lengths."""

    def labels(self, split):
        rng = np.random.default_rng(7 if split == "test" else 8)
        return {"targets": rng.integers(0, 5, R), "N": rng.choice([16, 32], R)}


def score(raw):
    right = raw["predicted"] == raw["targets"]
    by_length = {
        f"accuracy/{n}": Measure(
            value=float(right[raw["N"] == n].mean()), unit="fraction", n=int((raw["N"] == n).sum())
        )
        for n in np.unique(raw["N"]).tolist()
    }
    p = float(right.mean())
    half = 1.96 * math.sqrt(p * (1 - p) / len(right))
    return {
        "accuracy": Measure(value=p, unit="fraction", n=len(right), low=p - half, high=p + half, spread="95 %"),
        "nll": Measure(value=float(raw["nll"].mean(dtype=np.float64)), unit="nats", n=len(right)),
        "perplexity": Measure(value=float(np.exp(raw["nll"].mean(dtype=np.float64))), unit="", n=len(right)),
        **by_length,
    }


SPEC = TaskSpec(
    name="copy",
    summary="a test's own task",
    source="here",
    options=NoOptions,
    load=lambda options, progress: CopyTask(),
    score=score,
    primary="accuracy",
    higher_is_better=True,
)
REGISTRY = Registry(tasks={"copy": SPEC})


def raw_arrays(kind):
    rng = np.random.default_rng(3)
    if kind == "time":
        return {
            "forward_ms": rng.gamma(20, 0.1, 20),
            "train_step_ms": rng.gamma(20, 0.5, 20),
            "decode_step_us": rng.gamma(20, 3, 64),
            "decode_batch": np.array([8]),
            "tokens_per_step": np.array([2048]),
            "peak_bytes": np.array([123_456_789]),
            "parameters": np.array([65_536]),
            "state_bytes": np.array([4096, 12_288]),
        }
    shape = (2, R) if kind == "test" else (R,)
    raw = {
        "predicted": rng.integers(0, 5, shape).astype(np.int32),
        "nll": rng.random(shape).astype(np.float32),
        **CopyTask().labels("test" if kind == "test" else "validation"),
    }
    return raw | ({"seeds": np.array([0, 1])} if kind == "test" else {})


def measures_of(kind, raw):
    if kind == "time":
        from harness.timing.cost import cost_measures

        return cost_measures(raw)
    return score_arrays(SPEC, raw)


def a_record(kind, raw):
    config = RunConfig(task="copy", training=TrainingConfig(seeds=(0, 1)))
    return Record(
        key="ab" * 32,
        kind=kind,
        mixer="attention/torch",
        task="copy",
        suite="quick",
        suite_key="cd" * 32,
        config=to_json(config),
        lr=0.003,
        seed=1 if kind == "train" else None,
        environment={"threads": 2, "memory_mib": 16_000},
        seconds=12.5,
        measures=measures_of(kind, raw),
        facts={"steps": 500, "chosen": {"lr": 0.003}},
    )


@pytest.fixture(params=["train", "test", "time"])
def kind(request):
    return request.param


@pytest.fixture
def stored(kind, tmp_path):
    raw = raw_arrays(kind)
    return Store(tmp_path).write(a_record(kind, raw), raw)


def read_again(stored):
    (again,) = Store(stored.path.parent).records()
    return again


def numbers(value, path=()):
    """Yields the path of every number in a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from numbers(item, (*path, i))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


def with_number(data, path, change):
    data = copy.deepcopy(data)
    holder = data
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = change(holder[path[-1]])
    return data


CHANGES = (
    lambda x: x + 1,
    lambda x: -x - 1,
    lambda x: x * 1.0000001 + 1e-6,
    lambda x: 0 if x else 1,
    lambda x: x * 10 + 1,
)


def refused(path_of_store):
    """Returns whether a changed record is refused: unreadable, or with at least one mismatch."""
    store = Store(path_of_store)
    return bool(store.damaged) or any(verify(found, REGISTRY) for found in store.records())


def test_an_untouched_record_is_good(stored):
    assert verify(stored, REGISTRY) == []
    assert verify(read_again(stored), REGISTRY) == []


def test_every_changed_number_of_a_record_is_refused(stored):
    file = stored.path / RECORD
    data = json.loads(file.read_text())
    rng, paths = random.Random(0), list(numbers(data))
    for n in range(200):
        changed = with_number(data, paths[n % len(paths)], rng.choice(CHANGES))
        file.write_text(json.dumps(changed, indent=1, ensure_ascii=False) + "\n")
        assert refused(stored.path.parent), paths[n % len(paths)]


def test_a_changed_measure_is_refused_also_when_the_digests_were_made_again(stored):
    data = json.loads((stored.path / RECORD).read_text())
    rng, paths = random.Random(1), list(numbers(data["measures"]))
    for n in range(200):
        path = ("measures", *paths[n % len(paths)])
        forge(stored, with_number(data, path, rng.choice(CHANGES)))
        assert refused(stored.path.parent), path


def forge(stored, data):
    """Writes a changed record.json together with digests that fit it."""
    (stored.path / RECORD).write_text(json.dumps(data))
    import hashlib

    sha = hashlib.sha256((stored.path / RECORD).read_bytes()).hexdigest()
    sums = (stored.path / SUMS).read_text()
    (stored.path / SUMS).write_text(re.sub(rf"^\w+  {RECORD}$", f"{sha}  {RECORD}", sums, flags=re.MULTILINE))


def test_every_changed_byte_of_an_array_is_refused(stored):
    record, raw = stored.record, stored.raw()
    rng = random.Random(2)
    for n in range(200):
        name = sorted(raw)[n % len(raw)]
        body = bytearray(raw[name].tobytes())
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        changed = np.frombuffer(bytes(body), dtype=raw[name].dtype).reshape(raw[name].shape)
        # digests of the files made again, as a forger would: the record's own digest still tells
        for file, content in _contents(record, raw | {name: changed}, None, None).items():
            (stored.path / file).write_bytes(content)
        assert "raw_sha256 is not the digest of the raw arrays" in verify(read_again(stored), REGISTRY), name


def test_every_changed_byte_of_a_stored_file_is_refused(stored):
    rng = random.Random(3)
    for n in range(200):
        file = sorted(stored.path.iterdir())[n % len(list(stored.path.iterdir()))]
        whole = file.read_bytes()
        body = bytearray(whole)
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(body))
        assert refused(stored.path.parent), (file.name, n)
        file.write_bytes(whole)
    assert verify(read_again(stored), REGISTRY) == []


def test_missing_and_extra_measures_are_mismatches(stored):
    data = json.loads((stored.path / RECORD).read_text())
    name = sorted(data["measures"])[0]
    forge(stored, {**data, "measures": {k: v for k, v in data["measures"].items() if k != name}})
    assert verify(read_again(stored), REGISTRY) == [f"measure {name!r} is missing"]
    forge(stored, {**data, "measures": {**data["measures"], "speed": {"value": 1.0, "unit": "", "n": 1}}})
    assert verify(read_again(stored), REGISTRY) == ["measure 'speed' does not follow from the raw arrays"]


@pytest.mark.parametrize(("field", "value"), [("unit", "furlongs"), ("spread", "none"), ("low", None), ("high", 9.0)])
def test_unit_and_interval_are_compared_too(stored, field, value):
    data = json.loads((stored.path / RECORD).read_text())
    name = next(n for n, measure in data["measures"].items() if measure["low"] is not None)
    data["measures"][name][field] = value
    forge(stored, data)
    (line,) = verify(read_again(stored), REGISTRY)
    assert name in line
    assert field in line


def test_another_config_beside_the_record_is_a_mismatch(stored):
    (stored.path / "config.json").write_text("{}")
    assert any("config.json is not the config" in line for line in verify(stored, REGISTRY))


def test_a_key_that_is_no_digest_is_a_mismatch(tmp_path):
    raw = raw_arrays("train")
    record = dataclasses.replace(a_record("train", raw), key="not-a-digest")
    assert verify(Store(tmp_path).write(record, raw), REGISTRY) == [
        "key 'not-a-digest' is not 16 to 64 hexadecimal digits"
    ]


def test_a_task_that_is_not_installed_is_said(tmp_path):
    raw = raw_arrays("train")
    (line,) = verify(Store(tmp_path).write(a_record("train", raw), raw), Registry())
    assert "unknown task 'copy'" in line


def test_arrays_that_cannot_be_scored_are_said(tmp_path):
    raw = raw_arrays("train")
    short = raw | {"targets": raw["targets"][:3]}
    (line,) = verify(Store(tmp_path).write(a_record("train", raw), short), REGISTRY)
    assert "cannot be scored" in line


def test_a_failed_record_without_arrays_is_good_and_may_show_nothing(tmp_path):
    failed = dataclasses.replace(a_record("train", raw_arrays("train")), status="failed", reason="x", measures={})
    assert verify(Store(tmp_path / "a").write(failed, {}), REGISTRY) == []
    shows = dataclasses.replace(failed, measures={"accuracy": Measure(value=1.0, unit="fraction", n=1)})
    assert verify(Store(tmp_path / "b").write(shows, {}), REGISTRY) != []


def test_a_test_record_has_one_row_of_answers_for_each_distinct_seed(tmp_path):
    raw = raw_arrays("test")
    record = a_record("test", raw)
    for n, change in enumerate(
        ({"seeds": np.array([0, 0])}, {"seeds": np.array([0])}, {"seeds": np.array([], dtype=int)})
    ):
        assert verify(Store(tmp_path / str(n)).write(record, raw | change), REGISTRY) != []
    without = {name: array for name, array in raw.items() if name != "seeds"}
    assert "seeds" in verify(Store(tmp_path / "none").write(record, without), REGISTRY)[0]


def test_a_perplexity_that_overflowed_is_kept_and_agrees(tmp_path):
    raw = raw_arrays("test")
    raw["nll"][1] = np.inf
    stored = Store(tmp_path).write(a_record("test", raw), raw)
    assert stored.record.measures["perplexity"].value == math.inf
    assert verify(read_again(stored), REGISTRY) == []


def test_labels_of_the_wrong_split_are_found(stored, kind):
    assert verify_labels(stored, CopyTask()) == []

    class Moved(CopyTask):
        def labels(self, split):
            return super().labels("validation" if split == "test" else "test") | {"new": np.zeros(R)}

    found = verify_labels(stored, Moved())
    assert len(found) == (0 if kind == "time" else 3)


def test_over_seeds_gives_the_mean_with_the_extremes():
    def one(value, n=10):
        return {"a": Measure(value=value, unit="nats", n=n, low=0.0, high=1.0, spread="95 %")}

    assert over_seeds([one(0.2)]) == one(0.2)
    assert over_seeds([one(0.5), one(0.75)])["a"] == Measure(
        value=0.625, unit="nats", n=20, low=0.5, high=0.75, spread="min–max of 2 seeds, 10 answers each"
    )
    assert over_seeds([one(0.5, 1000), one(0.5, 2000)])["a"].spread == "min–max of 2 seeds, 1,000 to 2,000 answers each"
    equal = over_seeds([one(0.1)] * 3)["a"]
    assert equal.low == equal.value == equal.high == 0.1
    assert math.isnan(over_seeds([one(math.nan), one(0.5)])["a"].value)
    with pytest.raises(RecordError, match="at least one seed"):
        over_seeds([])
    with pytest.raises(RecordError, match="same measures: b"):
        over_seeds([one(0.2), {**one(0.2), "b": one(0.2)["a"]}])
