import json
import os

import pytest
import zstandard

from harness.errors import InputError
from harness.tasks.pile.jsonl import JsonlCorpus, check_path

GOOD = b'{"text": "moss and quill", "meta": {"pile_set_name": "made:A"}}\n'


def write(folder, data, name="made.jsonl"):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"meta": {}}', 'no "text"'),
        (b'{"text": 7}', 'no "text"'),
        (b'["text"]', 'no "text"'),
        (b'{"text": "moss', "not valid JSON"),
        (b"moss", "not valid JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"9" * 5000, "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"text": "moss", "meta": "made:A"}', 'no "pile_set_name"'),
        (b'{"text": "moss", "meta": {"pile_set_name": 3}}', 'no "pile_set_name"'),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_what_is_expected(tmp_path, line, cause):
    path = write(tmp_path, GOOD + line + b"\n" + GOOD)
    with pytest.raises(InputError) as caught:
        list(JsonlCorpus(path))
    message = str(caught.value)
    assert f"{path}, line 2" in message
    assert cause in message
    assert 'expected one JSON object a line: {"text"' in message


def test_an_empty_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="is empty"):
        list(JsonlCorpus(write(tmp_path, b"")))


@pytest.mark.parametrize("name", ["made.txt", "mimi", "nowhere.jsonl", "folder.jsonl"])
def test_a_corpus_that_is_no_readable_file_names_what_is_allowed(tmp_path, name):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r'allowed: "mini", or the path of a \.jsonl'):
        check_path(str(tmp_path / name))


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_an_input_error(tmp_path):
    path = write(tmp_path, GOOD)
    path.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        list(JsonlCorpus(path))


def test_blank_lines_and_a_missing_last_newline_are_fine(tmp_path):
    path = write(tmp_path, GOOD + b"\n" + GOOD.strip())
    assert [d["text"] for d in JsonlCorpus(path)] == ["moss and quill"] * 2


def test_a_record_is_named_by_its_content_and_defaults_to_an_unnamed_subset(tmp_path):
    path = write(tmp_path, b'{"text": "moss"}\n{"text": "moss", "meta": null}\n{"text": "quill"}\n')
    first, second, third = JsonlCorpus(path)
    assert first == second
    assert first["meta"]["pile_set_name"] == "unnamed"
    assert first["meta"]["id"] != third["meta"]["id"]


def test_half_a_surrogate_pair_is_replaced_and_breaks_nothing(tmp_path):
    (found,) = JsonlCorpus(write(tmp_path, b'{"text": "a\\ud800b"}\n'))
    assert found["text"] == "a?b"


def test_a_compressed_corpus_reads_like_the_plain_one_in_any_number_of_frames(tmp_path):
    lines = b"".join(json.dumps({"text": f"moss {i} " * 40}).encode() + b"\n" for i in range(3000))
    plain = write(tmp_path, lines)
    pack = zstandard.ZstdCompressor().compress
    packed = write(tmp_path, pack(lines[:100_001]) + pack(lines[100_001:]), "made.jsonl.zst")
    assert list(JsonlCorpus(packed)) == list(JsonlCorpus(plain))


def test_a_truncated_compressed_corpus_is_an_input_error(tmp_path):
    packed = zstandard.ZstdCompressor().compress(os.urandom(1000).hex().encode() + GOOD * 1000)
    for keep in (len(packed) - 1, len(packed) // 2, 5):
        path = write(tmp_path, packed[:keep], "made.jsonl.zst")
        with pytest.raises(InputError, match=f"{keep:,} bytes.*fetch it again"):
            list(JsonlCorpus(path))


def test_a_corrupt_compressed_corpus_is_an_input_error(tmp_path):
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(GOOD * 1000))
    packed[len(packed) // 2] ^= 0xFF
    with pytest.raises(InputError, match=r"not intact zstandard data|not valid JSON"):
        list(JsonlCorpus(write(tmp_path, bytes(packed), "made.jsonl.zst")))
    with pytest.raises(InputError, match="not intact zstandard data"):
        list(JsonlCorpus(write(tmp_path, GOOD, "plain.jsonl.zst")))
