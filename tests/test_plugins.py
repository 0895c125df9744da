import subprocess
import sys
import textwrap

import pytest
from made_plugins import BROKEN, GOOD, install, install_fifty, install_good

from harness.errors import InputError, SpecError, UnavailableError
from harness.plugins import load_registry
from harness.spec import MixerSpec

GOOD_FILE = """
    from harness import MixerSpec, hookimpl

    @hookimpl
    def harness_mixers():
        yield MixerSpec(name="{name}", summary="s", source="here", build=lambda config: None{more})
"""


def plugin(folder, file, name="mine", more=""):
    path = folder / file
    path.write_text(textwrap.dedent(GOOD_FILE.format(name=name, more=more)))
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


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_one_line_of_cause_and_the_others_work(site, what):
    source, cause = BROKEN[what]
    install(site, "bad-one", "bad_one", source.format(name="bad"), version="2.5")
    install_good(site, 1)
    registry = load_registry()
    assert "good_1/torch" in registry.mixers
    assert not any(name.startswith(("bad", "x/")) for name in registry.mixers)
    (problem,) = registry.problems
    assert str(problem).startswith("bad-one 2.5 (bad_one): ")
    assert cause in problem.cause
    assert problem.fix.endswith("pip uninstall bad-one")
    assert "\n" not in str(problem)
    assert len(str(problem)) < 600


@pytest.mark.parametrize("what", ["an import that is not there", "a generator that raises half-way"])
def test_a_broken_file_is_one_line_too_and_the_fix_is_to_drop_it(tmp_path, what):
    bad = broken(tmp_path, "bad.py", BROKEN[what][0].format(name="bad"))
    (problem,) = load_registry([bad, plugin(tmp_path, "good.py")]).problems
    assert str(problem).startswith("bad.py: ")
    assert problem.fix.endswith("drop --plugin bad.py")


def test_the_cause_names_the_line_of_the_plugin_where_it_went_wrong(site):
    install(site, "bad-one", "bad_one", "import json\n\njson.loads('{')\n")
    (problem,) = load_registry().problems
    assert problem.cause.endswith("(bad_one.py:3)")


FIFTY = """
import sys
from harness.plugins import load_registry
registry = load_registry()
print(len([m for m in registry.mixers if m.startswith("good_")]))
for problem in registry.problems:
    print(problem)
assert "torch" not in sys.modules
"""


def test_ten_broken_plugins_of_fifty_leave_forty_usable_and_ten_lines_of_cause(site):
    mixers, bad = install_fifty(site)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{FIFTY}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(out[0]) == len(mixers) == 40
    lines = out[1:]
    assert len(lines) == len(bad) == 10
    for distribution_and_version, line in zip(bad, lines, strict=True):
        assert line.startswith(f"{distribution_and_version} (")
        assert "pip " in line


def test_interrupting_a_slow_import_is_no_broken_plugin(site):
    install(site, "bad-one", "bad_one", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_registry()


def test_unreadable_metadata_is_one_line_that_names_the_folder(site):
    install_good(site, 1)
    install(site, "no-name", "no_name", GOOD.format(name="no_name"))
    (site / "no_name-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    registry = load_registry()
    assert "good_1/torch" in registry.mixers
    (problem,) = registry.problems
    assert problem.plugin.endswith("no_name-1.0.dist-info")
    assert "METADATA has no Name" in problem.cause


@pytest.mark.parametrize("entry", ["two words", "bad_one:missing", ""])
def test_an_entry_point_that_leads_nowhere_is_one_line(site, entry):
    install(site, "bad-one", "bad_one", "x = 1\n")
    (site / "bad_one-1.0.dist-info" / "entry_points.txt").write_text(f"[mixer_harness]\nbad = {entry}\n")
    (problem,) = load_registry().problems
    assert str(problem).startswith("bad-one 1.0 (bad): ")


@pytest.mark.parametrize(
    "requires",
    [
        "mixer-harness>=0.0.1",
        "Mixer_Harness (>=0.0.1)",
        "mixer-harness",
        "mixer-harness>=7; extra == 'x'",
        "mixer-harness-zoo>=7",
    ],
)
def test_a_plugin_whose_range_holds_this_core_is_loaded(site, requires):
    install(site, "good-one", "good_one", GOOD.format(name="good"), requires=requires)
    registry = load_registry()
    assert registry.problems == ()
    assert "good/torch" in registry.mixers


@pytest.mark.parametrize(
    "requires", ["mixer-harness>=7,<8", "mixer.harness<0.0.1", "mixer-harness[x]==7.* ; python_version > '3'"]
)
def test_a_plugin_made_for_another_core_is_not_even_imported(site, requires):
    install(site, "other-api", "other_api", "raise SystemError('imported')\n", version="4.2", requires=requires)
    (problem,) = load_registry().problems
    assert problem.plugin == "other-api 4.2 (other_api)"
    assert "it declares mixer-harness" in problem.cause
    assert "this is mixer-harness 0.1.0" in problem.cause
    assert "pip install --upgrade other-api" in problem.fix


def test_a_range_that_nobody_can_read_is_one_line(site):
    install(site, "other-api", "other_api", GOOD.format(name="good"), requires="mixer-harness>>7")
    (problem,) = load_registry().problems
    assert "Requires-Dist: mixer-harness>>7" in problem.cause


def test_two_distributions_with_one_name_lose_that_name_only(site):
    both = GOOD + "    " + "yield MixerSpec(name='{other}', summary='s', source='here', build=print)\n"
    install(site, "first", "first_plugin", both.format(name="same", other="one"), version="1.1")
    install(site, "second", "second_plugin", both.format(name="same", other="two"), version="2.2")
    registry = load_registry()
    assert {"one/torch", "two/torch"} <= set(registry.mixers)
    assert "same/torch" not in registry.mixers
    (problem,) = registry.problems
    assert str(problem) == (
        "first 1.1 (first_plugin) and second 2.2 (second_plugin): each registers mixer 'same/torch', so none is used; "
        "keep one: pip uninstall first or pip uninstall second"
    )
    with pytest.raises(InputError, match=r"first 1\.1 .* and second 2\.2 .*pip uninstall first"):
        registry.mixer("same")


def test_another_implementation_of_a_refused_mixer_is_used(tmp_path):
    fast = plugin(tmp_path, "c.py", more=', implementation="fast"')
    registry = load_registry([plugin(tmp_path, "a.py"), plugin(tmp_path, "b.py"), fast])
    assert str(registry.mixer("mine")) == "mine/fast"
    with pytest.raises(InputError, match=r"a\.py and b\.py"):
        registry.mixer("mine/torch")


def test_three_plugins_with_one_name_are_one_line(tmp_path):
    registry = load_registry([plugin(tmp_path, f"{x}.py") for x in "abc"])
    assert "mine/torch" not in registry.mixers
    (problem,) = registry.problems
    assert problem.plugin == "a.py and b.py and c.py"


def test_the_yardstick_of_the_core_stays_whoever_takes_its_name(tmp_path):
    registry = load_registry([plugin(tmp_path, "mine.py", name="attention")])
    assert registry.origin(registry.mixers["attention/torch"]).distribution == "mixer-harness"
    (problem,) = registry.problems
    assert "mine.py: mixer 'attention/torch' belongs to mixer-harness 0.1.0" in str(problem)


def test_one_file_named_twice_is_one_plugin(tmp_path, monkeypatch):
    file = plugin(tmp_path, "mine.py")
    monkeypatch.chdir(tmp_path)
    assert load_registry([file, "mine.py"]).problems == ()


def test_what_a_plugin_prints_does_not_reach_stdout(tmp_path, capsys):
    noisy = "print('on import')\n" + textwrap.dedent(
        GOOD_FILE.format(name="noisy", more=", unavailable=lambda: print('asked')")
    )
    registry = load_registry([broken(tmp_path, "noisy.py", noisy)])
    registry.mixer("noisy")
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err == "on import\nasked\n"


def test_a_hidden_older_copy_is_known(site, tmp_path, monkeypatch):
    install(site, "same-dist", "same_dist", GOOD.format(name="mine"), version="2.0")
    install(tmp_path / "behind", "same-dist", "same_dist", GOOD.format(name="mine"), version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "behind")])
    registry = load_registry()
    assert registry.problems == ()
    (found,) = [p.found for p in registry.plugins if p.origin.distribution == "same-dist"]
    assert found.hides == (f"same-dist 1.0 in {tmp_path / 'behind'}",)


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


@pytest.mark.parametrize(("given", "shown"), [("1", "1"), ("''", "''"), ("sys.exit(1)", "SystemExit: 1")])
def test_an_availability_test_that_gives_no_reason_is_a_reason(tmp_path, given, shown):
    source = "import sys\n" + textwrap.dedent(GOOD_FILE.format(name="mine", more=f", unavailable=lambda: {given}"))
    with pytest.raises(UnavailableError, match=f"its availability test .*{shown}"):
        load_registry([broken(tmp_path, "a.py", source)]).mixer("mine")


def test_an_unknown_mixer_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'attention'"):
        load_registry().mixer("atention")


def test_options_of_a_mixer_without_options_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no options"):
        load_registry([plugin(tmp_path, "a.py")]).mixer("mine(kernel=3)")


def test_a_missing_plugin_file_is_an_error():
    with pytest.raises(InputError, match=r"'nowhere\.py' does not exist"):
        load_registry(["nowhere.py"])


def test_a_plugin_file_that_is_no_python_is_an_error(tmp_path):
    with pytest.raises(InputError, match="is not a Python file"):
        load_registry([broken(tmp_path, "mine.txt", "")])
    with pytest.raises(InputError, match="is not a Python file"):
        load_registry([str(tmp_path)])


def test_only_the_plugins_named_in_the_environment_load(site, monkeypatch):
    install_good(site, 1)
    install(site, "bad-one", "bad_one", "import nothing_of_that_name\n")
    monkeypatch.setenv("HARNESS_PLUGINS", "good_1_plugin")
    registry = load_registry()
    assert {name.split("/")[0] for name in registry.mixers} == {"attention", "good_1"}
    assert registry.problems == ()
    assert {p.origin.plugin: p.state for p in registry.plugins}["bad_one"] == "skipped"


@pytest.mark.parametrize("names", ["", " , "])
def test_an_empty_list_loads_the_core_alone(monkeypatch, names):
    monkeypatch.setenv("HARNESS_PLUGINS", names)
    registry = load_registry()
    assert set(registry.mixers) == {"attention/torch"}
    assert registry.problems == ()


def test_a_name_in_the_environment_that_is_no_plugin_is_one_line(site, monkeypatch):
    install_good(site, 1)
    monkeypatch.setenv("HARNESS_PLUGINS", "good_1_plugin,good_2_plugin")
    (problem,) = load_registry().problems
    assert str(problem) == (
        "HARNESS_PLUGINS: 'good_2_plugin' is no installed plugin: did you mean 'good_1_plugin'?; "
        "list them: harness plugins list"
    )


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
