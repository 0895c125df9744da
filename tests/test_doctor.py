import pytest
from made_plugins import BROKEN, GOOD, HEAD, install, install_good

from harness.doctor import examine


@pytest.fixture(autouse=True)
def core_alone(monkeypatch):
    monkeypatch.setenv("HARNESS_PLUGINS", "")  # of what is installed


def chosen(monkeypatch, *names):
    monkeypatch.setenv("HARNESS_PLUGINS", ",".join(names))
    return {one.plugin.origin.plugin: one for one in examine().plugins if one.plugin.state != "skipped"}


def test_the_core_is_healthy():
    found = examine()
    assert found.problems == ()
    core = [one for one in found.plugins if one.plugin.origin.distribution == "mixer-harness"]
    assert len(core) == 3
    assert all(one.probe.imports == [] and one.probe.import_ms > 0 for one in core)


def test_a_module_that_imports_torch_at_its_top_is_found_with_the_fix(site, monkeypatch):
    install(site, "slow-one", "slow_one_plugin", "import torch\n" + GOOD.format(name="slow_one"))
    install_good(site, 71)
    found = chosen(monkeypatch, "slow_one_plugin", "good_71_plugin")
    assert found["slow_one_plugin"].probe.imports == ["torch"]
    (problem,) = found["slow_one_plugin"].problems
    assert str(problem).startswith("slow-one 1.0 (slow_one_plugin): listing it imports torch (")
    assert "import torch inside build()" in problem.fix
    assert found["good_71_plugin"].probe.imports == []
    assert found["good_71_plugin"].problems == ()


def test_an_availability_test_that_imports_torch_is_told_but_not_wrong(site, monkeypatch):
    source = HEAD + (
        "def unavailable():\n    import torch\n    return 'no such device'\n"
        "@hookimpl\ndef harness_mixers():\n"
        "    yield MixerSpec(name='asks', summary='s', source='here', build=print, unavailable=unavailable)\n"
    )
    install(site, "asks", "asks_plugin", source)
    found = chosen(monkeypatch, "asks_plugin")["asks_plugin"]
    assert (found.probe.imports, found.probe.asks) == ([], ["torch"])
    assert found.unavailable == {"asks/torch": "no such device"}
    assert found.problems == ()


def test_a_refused_name_is_told_of_both_sides_and_counted_once(site, monkeypatch):
    install(site, "first", "first_71", GOOD.format(name="same"))
    install(site, "second", "second_71", GOOD.format(name="same"))
    monkeypatch.setenv("HARNESS_PLUGINS", "first_71,second_71")
    found = examine()
    assert len(found.problems) == 1
    assert [len(one.problems) for one in found.plugins if one.plugin.origin.plugin.endswith("_71")] == [1, 1]
    assert found.others == ()


def test_a_broken_plugin_is_told_and_not_probed(site, monkeypatch):
    install(site, "bad-71", "bad_71", BROKEN["sys.exit on import"][0])
    found = chosen(monkeypatch, "bad_71")["bad_71"]
    assert found.probe is None
    assert "SystemExit: 3" in found.problems[0].cause


def test_a_plugin_that_kills_a_fresh_process_is_told(site, monkeypatch):
    kills = "import os, sys\nif 'pytest' not in sys.modules:\n    os._exit(9)\n"
    install(site, "kills", "kills_plugin", kills + GOOD.format(name="kills"))
    (problem,) = chosen(monkeypatch, "kills_plugin")["kills_plugin"].problems
    assert "does not end well" in problem.cause
    assert "9" in problem.cause


def test_a_plugin_file_is_examined_like_any_other(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import torch\n" + GOOD.format(name="mine"))
    (problem,) = examine([str(file)]).problems
    assert str(problem).startswith("mine.py: listing it imports torch")


def test_a_problem_of_no_plugin_is_told_too(monkeypatch):
    monkeypatch.setenv("HARNESS_PLUGINS", "nobody")
    found = examine()
    assert [problem.plugin for problem in found.others] == ["HARNESS_PLUGINS"]
    assert found.problems == found.others
