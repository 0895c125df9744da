import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from made_plugins import GOOD, install, install_fifty

from harness.cli import harness
from harness.cli.listing import column_widths, wrapped


def command(*args, site=None, **environment):
    paths = [str(site) if site else "", *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **environment}
    return subprocess.run(
        [sys.executable, "-m", "harness", *args], capture_output=True, text=True, timeout=120, env=environment
    )


def test_the_list_says_what_each_plugin_registers_and_its_state():
    out = command("plugins", "list", COLUMNS="100")
    assert out.returncode == 0, out.stderr
    (baselines,) = [line for line in out.stdout.splitlines() if line.startswith("harness_baselines")]
    assert baselines.split() == ["harness_baselines", "mixer-harness", "0.1.0", "mixers:", "attention/torch", "ok"]


def test_the_list_as_json_is_complete(tmp_path):
    install(tmp_path, "bad-one", "bad_one", "import nothing_of_that_name\n", requires="mixer-harness<9")
    out = command("plugins", "list", "--json", site=tmp_path)
    rows = {row["plugin"]: row for row in json.loads(out.stdout)}
    assert rows["harness_tasks"]["tasks"] == ["mqar", "pile"]
    assert rows["harness_tasks"]["hooks"] == ["harness_tasks"]
    bad = rows["bad_one"]
    assert (bad["distribution"], bad["version"], bad["state"]) == ("bad-one", "1.0", "failed")
    assert bad["requires"] == ["mixer-harness<9"]
    assert "nothing_of_that_name" in bad["problem"]["cause"]
    assert bad["problem"]["fix"].endswith("pip uninstall bad-one")


def test_a_skipped_plugin_is_listed_as_skipped(tmp_path):
    install(tmp_path, "good-one", "good_one", GOOD.format(name="one"))
    rows = json.loads(command("plugins", "list", "--json", site=tmp_path, HARNESS_PLUGINS="").stdout)
    assert {row["plugin"]: row["state"] for row in rows}["good_one"] == "skipped"


@pytest.mark.parametrize("listing", [["mixers"], ["plugins", "list"], ["plugins", "doctor"]])
def test_a_plugin_that_prints_does_not_corrupt_json(tmp_path, listing):
    install(tmp_path, "noisy", "noisy_plugin", "print('hello')\n" + GOOD.format(name="noisy"))
    out = command(*listing, "--json", site=tmp_path, HARNESS_PLUGINS="noisy_plugin")
    assert "noisy" in json.dumps(json.loads(out.stdout))
    assert "hello" in out.stderr


def test_with_fifty_plugins_tables_fit_a_hundred_columns_and_warnings_are_one_line_each(tmp_path):
    install_fifty(tmp_path)
    out = command("plugins", "list", site=tmp_path, COLUMNS="100")
    assert max(map(len, out.stdout.splitlines())) <= 100
    assert out.stderr.count("\n") == 10
    assert all(line.startswith("warning: bad-") for line in out.stderr.splitlines())


def test_the_doctor_ends_with_0_where_nothing_is_broken_though_something_is_unavailable(tmp_path):
    source = GOOD.format(name="away").replace("build=print", "build=print, unavailable=lambda: 'needs a moon'")
    install(tmp_path, "away", "away_plugin", source)
    out = command("plugins", "doctor", site=tmp_path, HARNESS_PLUGINS="away_plugin")
    assert out.returncode == 0, out.stdout
    assert "unavailable here: away/torch: needs a moon" in out.stdout
    assert "Nothing is broken." in out.stdout


def test_the_doctor_ends_with_1_and_says_what_to_type(tmp_path):
    install(tmp_path, "other-api", "other_api", GOOD.format(name="other"), version="4.2", requires="mixer-harness>=7")
    table = command("plugins", "doctor", site=tmp_path, HARNESS_PLUGINS="other_api", COLUMNS="100")
    assert table.returncode == 1
    assert (
        "broken: other-api 4.2 (other_api): it declares mixer-harness>=7, and this is mixer-harness 0.1.0; "
        "pip install --upgrade other-api, or pip install 'mixer-harness>=7'\n"
    ) in table.stdout
    out = command("plugins", "doctor", "--json", site=tmp_path, HARNESS_PLUGINS="other_api,nobody")
    assert out.returncode == 1
    found = json.loads(out.stdout)
    assert found["ok"] is False
    assert [problem["plugin"] for problem in found["problems"]] == ["HARNESS_PLUGINS"]
    rows = {row["plugin"]: row for row in found["plugins"]}
    assert rows["other_api"]["problems"][0]["fix"].startswith("pip install --upgrade other-api")
    assert rows["harness_tasks"]["imports"] == []
    assert rows["harness_tasks"]["import_ms"] > 0


def test_a_new_plugin_is_told_as_files_and_as_json(tmp_path):
    out = CliRunner().invoke(harness, ["plugins", "new", "my_mixer", "--dir", str(tmp_path)])
    assert out.exit_code == 0, out.output
    assert "pip install -e '.[test]'" in out.output
    assert "harness check my_mixer" in out.output
    out = CliRunner().invoke(harness, ["plugins", "new", "other", "--dir", str(tmp_path), "--json"])
    written = json.loads(out.output)
    assert written["mixer"] == "other"
    assert all(os.path.isfile(file) for file in written["files"])


def test_a_bad_name_is_one_message_and_exit_code_2(tmp_path):
    out = command("plugins", "new", "Gated-Conv", "--dir", str(tmp_path))
    assert (out.returncode, out.stderr.count("\n")) == (2, 1)
    assert "for example 'gated_conv'" in out.stderr


def test_the_widest_columns_give_way_and_words_stay_whole():
    rows = [{"mixer": "attention/xformers", "summary": "word " * 30, "options": "a=1, b=2"}]
    widths = column_widths(rows, 60)
    assert sum(widths) + 2 * (len(widths) - 1) == 60
    assert widths[0] == len("attention/xformers")
    assert column_widths([], 60) == []


def test_a_word_that_cannot_be_broken_may_pass_the_edge_but_ends_the_search():
    assert column_widths([{"a": "x" * 20, "b": "y" * 20}], 10) == [20, 20]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("mixers: h3/torch, rwkv4/torch", 18, ["mixers: h3/torch,", "rwkv4/torch"]),
        ("one sliding_window/xformers, two", 16, ["one", "sliding_window/", "xformers, two"]),
        ("selective_attention_published/torch", 20, ["selective_attention_", "published/torch"]),
        ("a" * 30, 20, ["a" * 30]),
        ("", 20, [""]),
    ],
)
def test_a_name_longer_than_its_column_is_broken_where_its_parts_meet(text, width, lines):
    assert wrapped(text, width).split("\n") == lines


ANOTHER = "    yield MixerSpec(name='b', summary='s', source='here', build=print)\n"


def test_the_doctor_counts_what_a_plugin_registers_and_its_json_names_it(tmp_path):
    install(tmp_path, "two", "two_plugin", GOOD.format(name="a_name_that_is_rather_long") + ANOTHER)
    out = command("plugins", "doctor", site=tmp_path, HARNESS_PLUGINS="two_plugin", COLUMNS="80")
    (row,) = [line for line in out.stdout.splitlines() if line.startswith("two_plugin")]
    assert "  2 mixers  " in row
    assert max(map(len, out.stdout.splitlines())) <= 80
    found = json.loads(command("plugins", "doctor", "--json", site=tmp_path, HARNESS_PLUGINS="two_plugin").stdout)
    (plugin,) = [row for row in found["plugins"] if row["plugin"] == "two_plugin"]
    assert plugin["mixers"] == ["a_name_that_is_rather_long/torch", "b/torch"]
