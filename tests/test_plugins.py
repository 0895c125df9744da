import textwrap

import pytest

from harness.errors import InputError, SpecError, UnavailableError
from harness.plugins import load_registry
from harness.spec import MixerSpec

GOOD = """
    from harness import MixerSpec, hookimpl

    @hookimpl
    def harness_mixers():
        yield MixerSpec(name="{name}", summary="s", source="here", build=lambda config: None{more})
"""


def plugin(folder, file, name="mine", more=""):
    path = folder / file
    path.write_text(textwrap.dedent(GOOD.format(name=name, more=more)))
    return str(path)


def broken(folder, file, source):
    path = folder / file
    path.write_text(textwrap.dedent(source))
    return str(path)


def test_the_core_registers_its_own_tasks_and_baseline_and_presets_like_anyone():
    registry = load_registry()
    assert {"mqar", "pile"} <= set(registry.tasks)
    assert "attention/torch" in registry.mixers
    assert {"smoke", "quick", "paper"} <= set(registry.suites)
    assert registry.origin(registry.task("mqar")).distribution == "mixer-harness"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("raise RuntimeError('boom')", "boom"),
        ("from harness import hookimpl\n@hookimpl\ndef harness_mixers(config): return []", "config"),
        ("from harness import hookimpl\n@hookimpl\ndef harness_mixers(): raise ValueError('no')", "no"),
        ("from harness import hookimpl\n@hookimpl\ndef harness_mixers(): return [3]", "expected a MixerSpec"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_broken_plugin_is_one_line_of_cause_and_the_others_work(tmp_path, source, cause):
    registry = load_registry([broken(tmp_path, "bad.py", source), plugin(tmp_path, "good.py")])
    assert "mine/torch" in registry.mixers
    (problem,) = registry.problems
    assert "bad.py" in str(problem)
    assert cause in str(problem)
    assert "\n" not in str(problem)


def test_two_plugins_with_one_name_lose_that_name_only(tmp_path):
    files = [plugin(tmp_path, "a.py"), plugin(tmp_path, "b.py"), plugin(tmp_path, "c.py", "other")]
    registry = load_registry(files)
    assert "mine/torch" not in registry.mixers
    assert "other/torch" in registry.mixers
    (problem,) = registry.problems
    assert "a.py" in str(problem)
    assert "b.py" in str(problem)


def test_three_plugins_with_one_name_do_not_bring_it_back(tmp_path):
    registry = load_registry([plugin(tmp_path, f"{x}.py") for x in "abc"])
    assert "mine/torch" not in registry.mixers
    assert len(registry.problems) == 2


def test_loading_twice_is_harmless(tmp_path):
    file = plugin(tmp_path, "good.py")
    assert load_registry([file]).mixers.keys() == load_registry([file]).mixers.keys()
    assert load_registry([file]).problems == ()


def test_editing_a_plugin_changes_its_code_digest(tmp_path):
    file = plugin(tmp_path, "good.py")
    before = load_registry([file])
    digest = before.origin(before.mixers["mine/torch"]).code_sha256()
    with open(file, "a") as more:
        more.write("\n# edited\n")
    assert before.origin(before.mixers["mine/torch"]).code_sha256() != digest


def test_the_preferred_available_implementation_is_taken(tmp_path):
    files = [
        plugin(tmp_path, "a.py"),
        plugin(tmp_path, "b.py", more=', implementation="fast", preference=5'),
        plugin(tmp_path, "c.py", more=', implementation="best", preference=9, unavailable=lambda: "no device"'),
    ]
    registry = load_registry(files)
    assert str(registry.mixer("mine")) == "mine/fast"
    assert str(registry.mixer("mine/torch")) == "mine/torch"
    with pytest.raises(UnavailableError, match="mine/best is unavailable here: no device"):
        registry.mixer("mine/best")


def test_an_availability_test_that_raises_is_a_reason(tmp_path):
    registry = load_registry([plugin(tmp_path, "a.py", more=", unavailable=lambda: 1 / 0")])
    with pytest.raises(UnavailableError, match="ZeroDivisionError"):
        registry.mixer("mine")


def test_an_unknown_mixer_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'attention'"):
        load_registry().mixer("atention")


def test_options_of_a_mixer_without_options_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no options"):
        load_registry([plugin(tmp_path, "a.py")]).mixer("mine(kernel=3)")


def test_a_missing_plugin_file_is_an_error():
    with pytest.raises(InputError, match=r"'nowhere\.py' does not exist"):
        load_registry(["nowhere.py"])


def test_only_the_plugins_named_in_the_environment_load(monkeypatch):
    monkeypatch.setenv("HARNESS_PLUGINS", "none_of_them")
    registry = load_registry()
    assert {name.split("/")[0] for name in registry.mixers} == {"attention"}


def test_a_spec_with_a_wrong_field_is_refused_where_it_is_made():
    with pytest.raises(SpecError, match="lower-case"):
        MixerSpec(name="My Mixer", summary="", source="", build=print)
    with pytest.raises(SpecError, match="build must be callable"):
        MixerSpec(name="mine", summary="", source="", build=3)


def test_every_record_hook_is_told_even_when_one_fails(tmp_path):
    log = tmp_path / "told"
    source = "from pathlib import Path\nfrom harness import hookimpl\n@hookimpl\ndef harness_record(record): "
    good = broken(tmp_path, "good.py", f"{source}Path({str(log)!r}).write_text(record['key'])")
    bad = broken(tmp_path, "bad.py", "from harness import hookimpl\n@hookimpl\ndef harness_record(record): 1 / 0")
    failures = load_registry([bad, good]).record_hooks({"key": "abc"})
    assert log.read_text() == "abc"
    assert len(failures) == 1
    assert "ZeroDivisionError" in failures[0]
