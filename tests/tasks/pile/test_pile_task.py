import dataclasses
import json
import multiprocessing
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from made_text import document, sentence

from harness.errors import InputError, UnavailableError
from harness.tasks.options import PileOptions
from harness.tasks.pile import corpora, prepare, tokenizers
from harness.tasks.pile.task import load, open_task, score, spread


def quiet(what, fraction):
    pass


@pytest.fixture
def options(corpus_file):
    return PileOptions(corpus=str(corpus_file), T=16, eval_tokens=640)


@pytest.fixture
def task(options, tmp_path):
    return open_task(options, quiet, tmp_path / "cache")


def stored(task, split):
    return np.concatenate([batch.targets for batch in task.evaluate(split, 3)])


def test_windows_hold_the_documents_with_one_end_of_text_between(task, corpus_file, tmp_path):
    folder = next(path for path in (tmp_path / "cache" / "pile").iterdir() if (path / "meta.json").exists())
    tokenizer = tokenizers.load(folder / "tokenizer.json")
    tokens = np.load(folder / "test_tokens.npy").tolist()
    texts, start = [], 0
    for place, token in enumerate(tokens):
        if token == task.end_of_text:
            texts.append(b"".join(tokenizer.tokens[i] for i in tokens[start:place]).decode())
            start = place + 1
    records = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    kept = [
        record["text"]
        for record, made in zip(records, iter_corpus(corpus_file), strict=True)
        if corpora.split_of(made, 0) == "test"
    ]
    assert texts == kept
    assert start == len(tokens)


def iter_corpus(path):
    from harness.tasks.pile.jsonl import JsonlCorpus

    return list(JsonlCorpus(path))


def test_every_position_predicts_the_next_token_and_all_are_predicted_once(options, tmp_path):
    task = open_task(dataclasses.replace(options, eval_tokens=10**6), quiet, tmp_path / "cache")
    stream = task._prepared.array("test_tokens")
    assert stored(task, "test").tolist() == stream[1 : task.windows("test") * 16 + 1].tolist()
    for batch in task.evaluate("test", 3):
        B, T = batch.tokens.shape
        assert (T, batch.tokens.dtype) == (16, np.int64)
        assert batch.rows.tolist() == list(range(B * T))
        assert batch.targets.reshape(B, T)[:, :-1].tolist() == batch.tokens[:, 1:].tolist()


def test_the_evaluated_tokens_are_bounded_and_hold_every_subset(task):
    for split in ("validation", "test"):
        labels = task.labels(split)
        assert 0 < len(labels["targets"]) <= 640
        assert len(labels["targets"]) == sum(batch.targets.size for batch in task.evaluate(split, 7))
        assert set(labels["subset"].tolist()) == {0, 1, 2}
    assert task.scored_windows("test")[-1] > task.windows("test") * 0.8


def test_labels_agree_with_the_definition_on_the_whole_task(task):
    train = task._prepared.array("train_tokens").tolist()
    labels, end = task.labels("test"), task.end_of_text
    counts = {}
    for pair in pairwise(train):
        counts[pair] = counts.get(pair, 0) + (end not in pair)
    place = 0
    for batch in task.evaluate("test", 4):
        for row, targets in zip(batch.tokens.tolist(), batch.targets.reshape(batch.tokens.shape).tolist(), strict=True):
            seen = set()
            for pair in zip(row, targets, strict=True):
                seen = set() if pair[0] == end else seen
                assert labels["repeated"][place] == (pair in seen and end not in pair)
                assert labels["train_count"][place] == counts.get(pair, 0)
                assert labels["targets"][place] == pair[1]
                seen.add(pair)
                place += 1
    assert place == len(labels["targets"])
    kinds = {name: labels[name].dtype.name for name in ("targets", "subset", "repeated", "train_count")}
    assert kinds == {"targets": "int32", "subset": "int16", "repeated": "bool", "train_count": "int32"}


def test_the_score_needs_nothing_but_the_raw_arrays(task, tmp_path):
    labels = task.labels("validation")
    R = len(labels["targets"])
    np.savez_compressed(tmp_path / "raw.npz", **labels, predicted=np.zeros(R, np.int32), nll=np.ones(R, np.float32))
    with np.load(tmp_path / "raw.npz", allow_pickle=False) as stored_raw:
        measures = score(dict(stored_raw))
    assert measures["perplexity"].value == pytest.approx(np.e)
    assert measures["perplexity"].n == R
    assert {"perplexity/made:A", "perplexity/made:B", "perplexity/made:Rare"} <= set(measures)


def test_a_pass_takes_every_window_once_in_an_order_of_the_seed(task):
    n = task.windows("train")
    size = 5
    batches = list(task.train(size, task.epoch_steps(size), 0))
    rows = [tuple(row) for batch in batches for row in batch.tokens.tolist()][:n]
    stream = task._prepared.array("train_tokens")
    every = [tuple(stream[i * 16 : i * 16 + 16].tolist()) for i in range(n)]
    assert all(batch.tokens.shape == (size, 16) for batch in batches)
    assert sorted(rows) == sorted(every)
    assert rows != every


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(task):
    def first(seed):
        return [batch.tokens.tolist() for batch in task.train(4, 3, seed)]

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_batches_larger_than_the_training_split_start_the_next_pass(task):
    (batch,) = task.train(task.windows("train") + 3, 1, 0)
    assert batch.tokens.shape[0] == task.windows("train") + 3
    assert task.epoch_steps(10**6) == 1


def test_splits_share_no_document(corpus_file, tmp_path, options):
    task = open_task(options, quiet, tmp_path / "cache")
    tokenizer = tokenizers.load(task._prepared.folder / "tokenizer.json")
    documents = {}
    for split in corpora.SPLITS:
        stream = task._prepared.array(f"{split}_tokens").tolist()
        text = b"".join(b"\0" if i == task.end_of_text else tokenizer.tokens[i] for i in stream)
        documents[split] = set(text.split(b"\0")) - {b""}
    assert sum(map(len, documents.values())) == len(set().union(*documents.values())) == 400


def test_the_digests_name_the_file_the_tokenizer_and_each_split(task, corpus_file):
    from harness.tasks.pile.archives import sha256_file

    digests = task.data_sha256()
    assert set(digests) == {"corpus", "tokenizer", "train", "validation", "test"}
    assert digests["corpus"] == sha256_file(corpus_file)
    assert all(len(digest) == 64 for digest in digests.values())


def test_building_twice_gives_the_same_bytes(options, tmp_path):
    first = open_task(options, quiet, tmp_path / "one").data_sha256()
    assert open_task(options, quiet, tmp_path / "two").data_sha256() == first


def test_another_seed_is_another_split_of_the_same_corpus(options, tmp_path):
    first = open_task(options, quiet, tmp_path / "cache").data_sha256()
    second = open_task(dataclasses.replace(options, seed=1), quiet, tmp_path / "cache").data_sha256()
    assert first["corpus"] == second["corpus"]
    assert first["test"] != second["test"]


def test_the_second_load_neither_builds_nor_imports_a_tokenizer(options, task, tmp_path, monkeypatch):
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.tasks.options import PileOptions\n"
        "from harness.tasks.pile.task import open_task\n"
        f"options = PileOptions(corpus={options.corpus!r}, T=16, eval_tokens=640)\n"
        f"task = open_task(options, print, Path({str(tmp_path / 'cache')!r}))\n"
        "task.labels('test'), next(task.train(2, 1, 0))\n"
        "sys.exit(bool({'tokenizers', 'tiktoken', 'torch', 'zstandard'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    monkeypatch.setattr(prepare, "build", lambda *_: pytest.fail("built again"))
    open_task(options, quiet, tmp_path / "cache")


def test_a_corpus_that_changed_is_built_again(options, corpus_file, tmp_path, task):
    before = task.data_sha256()
    with corpus_file.open("a") as file:
        file.writelines(json.dumps({"text": sentence(n, 30) + " more"}) + "\n" for n in range(900, 960))
    assert open_task(options, quiet, tmp_path / "cache").data_sha256()["corpus"] != before["corpus"]


def _open(arguments):
    options, root = arguments
    return open_task(options, quiet, root).data_sha256()


def test_two_processes_can_build_the_same_corpus_at_once(options, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_open, [(options, tmp_path / "cache")] * 2)
    assert first == second
    folders = [path for path in (tmp_path / "cache" / "pile").iterdir() if path.is_dir() and path.name != "files"]
    assert len(folders) == 1


def test_what_a_killed_build_left_behind_is_no_corpus(options, tmp_path):
    cache = tmp_path / "cache"
    expected = open_task(options, quiet, cache).data_sha256()
    folder = next(path for path in (cache / "pile").iterdir() if (path / "meta.json").exists())
    (folder / "meta.json").write_text('{"half": ')
    folder.with_suffix(".part").mkdir()
    (folder.with_suffix(".part") / "train.raw").write_bytes(b"junk")
    assert open_task(options, quiet, cache).data_sha256() == expected
    assert not folder.with_suffix(".part").exists()


def test_a_failed_build_leaves_nothing_behind(options, corpus_file, tmp_path):
    with corpus_file.open("a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match="line 401"):
        open_task(options, quiet, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache" / "pile").iterdir() if path.suffix == ".part"] == []


def test_a_corpus_too_small_for_its_splits_or_for_a_window_says_so(options, tmp_path):
    small = tmp_path / "small.jsonl"
    small.write_text('{"text": "moss"}\n')
    with pytest.raises(InputError, match=r"no document .* split"):
        open_task(dataclasses.replace(options, corpus=str(small)), quiet, tmp_path / "cache")
    with pytest.raises(InputError, match="smaller T or a larger corpus"):
        open_task(dataclasses.replace(options, T=10**6, eval_tokens=10**6), quiet, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_one_clear_error(options, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match=r"cannot write.*XDG_CACHE_HOME"):
        open_task(options, quiet, tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "gpt-2"}, "did you mean 'gpt2'"),
        ({"corpus": "mimi"}, 'allowed: "mini"'),
        ({"T": 1}, "T takes a whole number of at least 2, got 1"),
        ({"threshold": 0}, "threshold takes"),
        ({"eval_tokens": 8}, "eval_tokens takes a whole number of at least 16"),
        ({"permissive": True}, "permissive chooses sources of the mini corpus"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        open_task(dataclasses.replace(options, **change), quiet, tmp_path / "cache")


def test_an_unknown_split_and_a_batch_of_nothing_are_refused(task):
    with pytest.raises(InputError, match="did you mean 'validation'"):
        list(task.evaluate("validate", 4))
    with pytest.raises(InputError, match="batch_size"):
        next(task.train(0, 1, 0))


def test_load_uses_the_users_cache_folder(options, tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "user" / name)
    load(options, quiet)
    assert (tmp_path / "user" / "mixer-harness" / "pile").is_dir()


@pytest.fixture
def made_mini(monkeypatch, make_archive, tmp_path):
    """Makes the mini corpus of two invented archives, which lie in a user's folder."""
    sources = []
    for number, package in enumerate(("made-a", "made-b")):
        files = {f"made/{n}.txt": document(n + 1000 * number, length=250)["text"].ljust(1100, ".") for n in range(150)}
        archive = make_archive(package, files, folder="mine")
        sources.append(corpora.Source(f"mini:Made{number}", archive, corpora.text_files(r"made/.*\.txt")))
    monkeypatch.setattr(corpora, "mini_sources", lambda **_: sources)
    return PileOptions(archives=str(tmp_path / "mine"), T=16, eval_tokens=1024)


def test_the_mini_corpus_comes_from_a_users_folder_of_archives(made_mini, tmp_path):
    task = open_task(made_mini, quiet, tmp_path / "cache")
    assert task.subset_names == ["mini:Made0", "mini:Made1", "mini:DMMath"]
    assert {"made-a==1.0", "made-b==1.0"} < set(task.data_sha256())


def test_a_missing_archive_is_a_warning_and_its_slice_is_left_out(made_mini, tmp_path):
    (tmp_path / "mine" / "made_b-1.0-py3-none-any.whl").unlink()
    said = []
    task = open_task(made_mini, lambda what, _: said.append(what), tmp_path / "cache")
    assert task.subset_names == ["mini:Made0", "mini:DMMath"]
    assert "made-b==1.0" not in task.data_sha256()
    assert [what for what in said if what.startswith("warning")] == [
        f"warning: made-b==1.0 is left out of the corpus: not in {tmp_path / 'mine'}"
    ]


def test_without_any_archive_the_error_names_the_cause_and_the_fix(made_mini, tmp_path):
    for path in (tmp_path / "mine").iterdir():
        path.unlink()
    with pytest.raises(UnavailableError, match=r"none of the 2 archives.*not in.*archives=DIR"):
        open_task(made_mini, quiet, tmp_path / "cache")


def test_without_network_the_error_names_the_cause_and_the_fix(made_mini, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UnavailableError, match=r"none of the 2 archives.*made-a==1.0.*archives=DIR"):
        open_task(dataclasses.replace(made_mini, archives=None), quiet, tmp_path / "cache")


def test_a_missing_gpt2_vocabulary_names_the_other_tokenizer(made_mini, tmp_path):
    with pytest.raises(UnavailableError, match=r"GPT-2 vocabulary.*tokenizer=bpe4k"):
        open_task(dataclasses.replace(made_mini, tokenizer="gpt2"), quiet, tmp_path / "cache")


def test_windows_are_spread_evenly_and_small_subsets_keep_one():
    subset = np.array([0] * 900 + [1] * 99 + [2])
    chosen = spread(subset, 100)
    assert len(chosen) <= 100
    assert (np.diff(chosen) > 0).all()
    assert np.unique(subset[chosen], return_counts=True)[1].tolist() == [90, 9, 1]
    assert spread(subset, 5000).tolist() == list(range(1000))
    assert len(spread(subset, 2)) == 2
