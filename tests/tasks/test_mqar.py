import hashlib
import json

import numpy as np
import pytest
import torch

from harness import MQAR, InputError
from harness.config import to_json
from harness.tasks import mqar
from harness.tasks.options import MQAROptions

# The bytes of the data are part of the contract: a change here needs a new version of the task.
GOLDEN = {
    "default": (
        {},
        "7d8ee860d4a803d6bb9e75b63165f3e4f183f1a1827c22f11470bc067a5fbd66",
        "8d40c7bc09abd89fb8f16614b43aa550d3548fffb1466fa62f191074a0fbc3a4",
        "2995325b0cfed73e93a77e1b893fbfa55068b5cdc1b798f8c510fb69a5b4403e",
    ),
    "longest": (
        {"cell": (512, 64)},
        "75a62d6e0be479bcd5c5b2df23a9cdee0f713dd57a7bacc8b2e2bed6630a4b2a",
        "aff602537882d983ee6e9112618f1b72ef5c9a9d58679c6a32befede90969775",
        "7bd4144fa275d82a5612f789b761a36f9526969a8453b94a45729248c12fff9f",
    ),
    "fillers": (
        {"cell": (256, 16), "random_non_queries": True},
        "d4dd3b42cf37fb3e594b81b54768bb2c3bce7b2dc04d4532525d6442140d4674",
        "e01df9984f1e0fa7c54bee0c992620b0e4984bf4ee19b5c2f659202be8ba3aaa",
        "c6f1c64376dd2989f68795e1ec316cce59b77284c5b890361f6b1695b4932e21",
    ),
    "clean fillers": (
        {"cell": (128, 8), "random_non_queries": True, "avoid_keys": True},
        "9c78196433f6a5cc1e704b1861d18e8c910e521ed8129a2ac46ff366789e7760",
        "7b827c2adc813733fb4fb342ff054a96a81b262866f20e5f5e3691a8da15cf13",
        "0845716f969a916c8788160a61c00baf020259732a663f7adbfbe805bd391099",
    ),
    "two passes": (
        {"cell": (64, 4), "num_passes": 2, "seed": 7},
        "73e2d3073746f5a21f23565813f378f3ca047107db67914e36afa531f2a72ba8",
        "71ee81cc300f1cf9d62c44d562146183865157161bf70bd5058f2808e0a924e1",
        "1b563f008a977ea00f8ffc5737a7b0645be50c7ed7d2923efbfca5a6aa16e496",
    ),
    "tiny, uniform gaps": (
        {"cell": (16, 2), "vocab_size": 17, "power_a": 1.0},
        "50761275a4b9cb4fa467a3674f43b9b5ce3c60d4171da1cdbf6d6d7a7d751258",
        "9d01627081a723ae1b80d8053eb5cae08e27fc0337337f0fa76527edc9ac3512",
        "8bcfe7f8ef2144e15e446aa5fc10465dffc22291f888bce6dbd49081305b639b",
    ),
}
VARIANTS = {
    "plain": {},
    "fillers": {"random_non_queries": True},
    "clean": {"random_non_queries": True, "avoid_keys": True},
    "two passes": {"num_passes": 2},
    "three passes": {"num_passes": 3, "random_non_queries": True},
}


def options(cell=(64, 4), counts=(300, 60, 100), **settings):
    cells = {f"{split}_cells": ((*cell, n),) for split, n in zip(mqar.SPLITS, counts, strict=True)}
    return MQAROptions(**{**cells, **settings})


def joined(batches):
    """The examples of several equally long batches: tokens [B, N], labels [B, N]."""
    tokens, labels = [], []
    for batch in batches:
        dense = np.full(batch.tokens.size, -100)
        dense[batch.rows] = batch.targets
        tokens.append(batch.tokens)
        labels.append(dense.reshape(batch.tokens.shape))
    return np.concatenate(tokens), np.concatenate(labels)


def sequences(task, split):
    batches = task.evaluate(split, 64) if split != "train" else task.train(64, task.epoch_steps(64), seed=0)
    return {batch.tokens[b].tobytes() for batch in batches for b in range(len(batch.tokens))}


# --- bytes


@pytest.mark.parametrize("name", GOLDEN)
def test_the_data_have_the_bytes_they_always_had(name):
    settings, *expected = GOLDEN[name]
    found = MQAR(options(**settings)).data_sha256()
    assert [found["train"], found["validation"], found["test"]] == expected


def test_the_digest_is_that_of_tokens_then_labels_of_each_example_as_little_endian_int32():
    task = MQAR(options())
    tokens, labels = joined(task.evaluate("test", 7))
    expected = hashlib.sha256(np.stack([tokens, labels], axis=1).astype("<i4").tobytes()).hexdigest()
    assert task.data_sha256()["test"] == expected


def test_no_global_generator_has_a_say():
    found = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(seed)
        task = MQAR(options(random_non_queries=True))
        torch.rand(3), np.random.rand(3)
        found.append(joined(task.train(32, 20, seed=3))[0])
    assert np.array_equal(*found)


def test_the_training_seed_changes_the_training_data_and_nothing_else():
    task = MQAR(options())
    one, other = (joined(task.train(50, 6, seed))[0] for seed in (0, 1))
    assert not np.array_equal(one, other)
    before = joined(task.evaluate("test", 50))[0]
    list(task.train(50, 6, seed=5))
    assert np.array_equal(before, joined(task.evaluate("test", 50))[0])


def test_the_options_seed_changes_every_split():
    one, other = MQAR(options(seed=0)), MQAR(options(seed=1))
    assert not sequences(one, "test") & sequences(other, "test")
    assert not sequences(one, "train") & sequences(other, "train")


def test_fewer_examples_are_the_first_of_more():
    few, many = (MQAR(options(counts=(10, 10, n))) for n in (70, 2500))
    assert np.array_equal(joined(few.evaluate("test", 64))[0], joined(many.evaluate("test", 64))[0][:70])


def test_a_block_is_reached_without_the_former_ones():
    chosen = options(counts=(3000, 10, 10))
    stream = joined(MQAR(chosen).train(100, 30, seed=4))[0]
    assert np.array_equal(stream[1024:2048], MQAR(chosen).block("train", 0, 1, seed=4).tokens)
    assert np.array_equal(stream[2048:], MQAR(chosen).block("train", 0, 2, seed=4).tokens[: 3000 - 2048])


# --- answers and scores


@pytest.mark.parametrize("variant", VARIANTS)
def test_reading_the_context_answers_every_query(variant):
    task = MQAR(options(vocab_size=128, **VARIANTS[variant]))
    predicted = []
    for batch in task.evaluate("test", 32):
        N = batch.tokens.shape[1]
        for row in batch.rows:
            tokens = batch.tokens[row // N]
            predicted.append(tokens[int(np.flatnonzero(tokens == tokens[row % N])[0]) + 1])
    labels = task.labels("test")
    nll = np.zeros(len(predicted), np.float32)
    measures = mqar.score({**labels, "predicted": np.array(predicted, np.int32), "nll": nll})
    assert measures["accuracy"].value == 1.0
    assert measures["accuracy"].high == 1.0
    assert measures["accuracy"].n == 400


def test_scores_are_told_by_cell_with_their_floor_and_interval():
    raw = {
        "targets": np.arange(10),
        "predicted": np.array([0, 1, 2, 3, 9, 9, 9, 9, 9, 0]),
        "nll": np.full(10, 0.5, np.float32),
        "N": np.array([8] * 2 + [64] * 8),
        "D": np.array([2] * 2 + [4] * 8),
    }
    measures = mqar.score(raw)
    assert list(measures) == ["accuracy", "accuracy/8x2", "accuracy/64x4", "nll", "floor"]
    assert measures["accuracy"].value == 0.4
    assert measures["accuracy"].low == pytest.approx(0.1682, abs=1e-4)  # Wilson for 4 of 10
    assert measures["accuracy"].high == pytest.approx(0.6873, abs=1e-4)
    assert (measures["accuracy/8x2"].value, measures["accuracy/8x2"].n) == (1.0, 2)
    assert measures["floor"].value == pytest.approx((2 * 0.5 + 8 * 0.25) / 10)
    assert measures["nll"].value == 0.5


def test_guessing_a_value_of_the_context_scores_the_floor():
    chosen = options(test_cells=((64, 4, 2000), (32, 2, 2000)))
    task, rng, right = MQAR(chosen), np.random.default_rng(0), []
    for batch in task.evaluate("test", 500):
        N = batch.tokens.shape[1]
        D = N // 16
        guess = batch.tokens[batch.rows // N, 1 + 2 * rng.integers(0, D, len(batch.rows))]
        right.append(guess == batch.targets)
    floor = mqar.floor(chosen)
    assert floor == pytest.approx(4000 / (2000 * 4 + 2000 * 2))
    assert np.concatenate(right).mean() == pytest.approx(floor, abs=0.015)


def test_labels_follow_the_order_of_evaluate_and_name_the_cell():
    task = MQAR(options(test_cells=((64, 4, 30), (32, 2, 50)), vocab_size=200))
    labels = task.labels("test")
    for size in (7, 1000):
        assert np.array_equal(labels["targets"], np.concatenate([b.targets for b in task.evaluate("test", size)]))
    assert labels["D"].tolist() == [4] * 120 + [2] * 100
    assert labels["N"].tolist() == [64] * 120 + [32] * 100


# --- splits


def test_splits_never_share_a_sequence_even_where_sequences_are_few():
    # 3 keys, 4 values, one slot: 12 sequences.
    task = MQAR(options((4, 1), vocab_size=8, counts=(500, 4, 4)))
    train, validation, test = (sequences(task, split) for split in mqar.SPLITS)
    assert not train & test
    assert not train & validation
    assert not validation & test
    assert len(train | validation | test) == 12


def test_splits_stay_apart_across_cells_and_training_seeds():
    chosen = options((8, 2), vocab_size=9, counts=(3000, 20, 30), random_non_queries=False)
    task = MQAR(chosen)
    held = sequences(task, "test") | sequences(task, "validation")
    for seed in range(3):
        assert not held & {row.tobytes() for row in joined(task.train(100, 30, seed))[0]}


def test_too_few_sequences_are_an_error_before_anything_is_drawn():
    with pytest.raises(InputError, match=r"has 12 sequences at vocab_size=8.*raise vocab_size"):
        MQAR(options((4, 1), vocab_size=8, counts=(500, 6, 6)))


def test_a_split_that_nothing_is_left_for_is_an_error_not_an_endless_loop():
    # The test cell alone holds all 12 sequences many times over; no training cell is of that shape.
    chosen = options(validation_cells=((4, 1, 5),), test_cells=((4, 1, 1000),), train_cells=((6, 1, 5),), vocab_size=8)
    with pytest.raises(InputError, match="validation split: 1000 draws"):
        list(MQAR(chosen).evaluate("validation", 5))


# --- training batches


def test_the_examples_are_the_same_whatever_the_batch_size():
    task = MQAR(options(counts=(1500, 10, 10)))
    for passes in (1, 2):
        streams = [joined(task.train(size, passes * task.epoch_steps(size), 0)) for size in (1, 64, 1100, 4000)]
        for tokens, labels in streams[1:]:
            assert np.array_equal(tokens, streams[0][0])
            assert np.array_equal(labels, streams[0][1])


def test_a_further_pass_takes_the_same_examples_in_another_order():
    task = MQAR(options(counts=(2500, 10, 10)))
    tokens, labels = joined(task.train(100, 75, seed=1))
    both = [np.concatenate([tokens, labels], axis=1)[i : i + 2500] for i in (0, 2500, 5000)]
    assert not np.array_equal(both[0], both[1])
    assert not np.array_equal(both[1], both[2])
    rows = [sorted(map(bytes, part)) for part in both]
    assert rows[0] == rows[1] == rows[2]


def test_a_batch_holds_one_cell_and_a_pass_takes_each_as_often_as_it_says():
    cells = ((64, 4, 500), (32, 2, 130), (64, 8, 1))
    task = MQAR(options(train_cells=cells))
    batches = list(task.train(100, task.epoch_steps(100), seed=0))
    assert task.epoch_steps(100) == len(batches) == 5 + 2 + 1
    shapes = [(b.tokens.shape[1], len(b.rows) // len(b.tokens)) for b in batches]
    for N, D, count in cells:
        assert sum(len(b.tokens) for b, shape in zip(batches, shapes, strict=True) if shape == (N, D)) == count
    assert shapes != sorted(shapes, key=[c[:2] for c in cells].index)  # interleaved
    assert task.max_len == 64


def test_rows_are_ascending_and_batches_are_int64():
    for batch in MQAR(N=64, D=4).train(batch_size=512, steps=3, seed=0):
        assert batch.tokens.dtype == batch.rows.dtype == batch.targets.dtype == np.int64
        assert batch.tokens.shape == (512, 64)
        assert (np.diff(batch.rows) > 0).all()
        assert len(batch.rows) == len(batch.targets) == 512 * 4


def test_zero_steps_yield_nothing():
    assert list(MQAR(options()).train(8, 0, seed=0)) == []


def test_loading_reports_progress_to_the_end():
    told = []
    mqar.load(options(), lambda what, fraction: told.append(fraction))
    assert told[-1] == 1.0


# --- export


@pytest.mark.parametrize("split", mqar.SPLITS)
def test_an_exported_npz_holds_the_examples(split, tmp_path):
    chosen = options(random_non_queries=True, counts=(1100, 60, 100))
    written = mqar.export(chosen, split, tmp_path / "out.npz")
    task = MQAR(chosen)
    batches = task.evaluate(split, 64) if split != "train" else task.train(64, task.epoch_steps(64), seed=0)
    tokens, labels = joined(batches)
    with np.load(written["path"]) as stored:
        assert np.array_equal(stored["tokens"], tokens)
        assert np.array_equal(stored["labels"], labels)
        assert set(stored["N"]) == {64}
        assert set(stored["D"]) == {4}
    assert written["examples"] == len(tokens)
    if split != "train":
        assert written["sha256"] == task.data_sha256()[split]
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]


def test_an_exported_npz_pads_shorter_cells(tmp_path):
    mqar.export(options(test_cells=((32, 2, 3), (64, 4, 2))), "test", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as stored:
        assert stored["tokens"].shape == (5, 64)
        assert (stored["tokens"][:3, 32:] == 0).all()
        assert (stored["labels"][:3, 32:] == -100).all()
        assert stored["N"].tolist() == [32, 32, 32, 64, 64]


def test_an_exported_jsonl_holds_the_examples_one_a_line(tmp_path):
    chosen = options(test_cells=((32, 2, 30), (64, 4, 20)))
    written = mqar.export(chosen, "test", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == written["examples"] == 50
    read = iter(lines)
    for batch in MQAR(chosen).evaluate("test", 8):
        N = batch.tokens.shape[1]
        for b, tokens in enumerate(batch.tokens):
            line = next(read)
            mine = batch.rows // N == b
            pairs = np.stack([batch.rows[mine] % N, batch.targets[mine]], axis=1)
            assert line == {"tokens": tokens.tolist(), "targets": pairs.tolist()}


def test_a_failed_export_leaves_the_former_file(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    chosen = options(validation_cells=((4, 1, 5),), test_cells=((4, 1, 1000),), train_cells=((6, 1, 5),), vocab_size=8)
    with pytest.raises(InputError):
        mqar.export(chosen, "validation", out)
    assert out.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("name", ["out.csv", "out", "missing/out.npz"])
def test_a_file_that_cannot_be_written_is_an_input_error(name, tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        mqar.export(options(), "test", tmp_path / name)


# --- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": (64, 17)}, "D must be from 1 to 16.*D=17 needs N >= 68"),
        ({"cell": (64, 12), "num_passes": 2}, "D must be from 1 to 10"),
        ({"cell": (64, 0)}, "D must be from 1 to 16"),
        ({"cell": (63, 4)}, "N must be even and at least 4; the next such N is 64"),
        ({"cell": (2, 1)}, "N must be even and at least 4"),
        ({"cell": (64, 4), "vocab_size": 64}, "vocab_size must be larger than N, got vocab_size=64"),
        ({"vocab_size": 4}, "vocab_size takes a whole number from 5"),
        ({"vocab_size": 2**21}, "vocab_size takes a whole number from 5 to 1048576"),
        ({"counts": (10, 10, 0)}, "test_cells: .*examples must be at least 1, got 0"),
        ({"num_passes": 0}, "num_passes takes a whole number of at least 1, got 0"),
        ({"power_a": float("nan")}, "power_a takes a number from -10 to 10, got nan"),
        ({"seed": 0.5}, "seed takes a whole number, got 0.5"),
        ({"train_cells": ()}, "train_cells is empty"),
        ({"test_cells": ((64, 4),)}, r"test_cells takes whole numbers \(N, D, examples\)"),
    ],
)
def test_options_that_cannot_work_say_what_is_allowed(settings, message):
    with pytest.raises(InputError, match=message):
        MQAR(options(**settings))


def test_one_cell_takes_both_its_numbers():
    with pytest.raises(InputError, match="takes both N"):
        MQAR(N=64)


@pytest.mark.parametrize("call", [lambda t: t.evaluate("train", 8), lambda t: t.evaluate("tets", 8)])
def test_evaluate_takes_the_evaluation_splits(call):
    with pytest.raises(InputError, match="split takes validation or test"):
        list(call(MQAR(options())))


def test_a_batch_size_below_one_is_refused():
    task = MQAR(options())
    for call in (
        lambda: list(task.train(0, 1, 0)),
        lambda: task.epoch_steps(0),
        lambda: list(task.evaluate("test", 0)),
    ):
        with pytest.raises(InputError, match="batch_size takes a whole number of at least 1, got 0"):
            call()


def test_the_options_survive_json():
    chosen = options(random_non_queries=True)
    from harness.config import from_json

    assert from_json(MQAROptions, json.loads(json.dumps(to_json(chosen)))) == chosen
