import json
from html.parser import HTMLParser

import pytest

from harness.board.caption import spreads
from harness.board.cells import Column, fill
from harness.board.points import points
from harness.board.render import FORMATS, render
from harness.board.table import MEASURED_ONCE, leaderboard
from harness.check.promise import NOT_APPLICABLE, Finding
from harness.check.report import CheckReport
from harness.errors import InputError
from harness.spec import Measure

REASON = "RuntimeError: shape '[8, 256]' is | invalid <b>"


def rows_of(table):
    return {row.mixer: dict(zip([c.key for c in table.columns], row.cells, strict=True)) for row in table.rows}


@pytest.fixture
def one_table(maker, registry):
    maker.point("attention/torch")
    maker.point("base_conv/torch(kernel=3)", (0.30, 0.34), ar=30.0, other=40.2, decode=False)
    maker.time("attention/xformers", "mqar", 0.9)
    maker.time("attention/xformers", "pile", 0.9)
    for kind, task in (("test", "mqar"), ("test", "pile"), ("time", "mqar"), ("time", "pile")):
        maker.failed(kind, "ema/torch", task, REASON)
    (table,) = leaderboard(maker.store, registry)
    return table


def test_rows_are_ranked_and_unscored_ones_follow(one_table):
    assert [(row.rank, row.mixer) for row in one_table.rows] == [
        (1, "attention/torch"),
        (2, "base_conv/torch(kernel=3)"),
        (None, "attention/xformers"),
        (None, "ema/torch"),
    ]


def test_a_row_joins_quality_cost_and_state_beside_the_floor(one_table):
    cells = rows_of(one_table)["attention/torch"]
    assert cells["mqar_accuracy"].text == "0.992 ±0.003"
    assert cells["mqar_floor"].text == "0.500"
    assert cells["pile_perplexity_ar"].measure.value < cells["pile_perplexity_other"].measure.value
    assert cells["state_kib"].text == "20.0"
    assert cells["parameters"].text == "654,321"
    assert cells["lr"].text == "0.003 of 2 / 0.003 of 1"
    assert cells["seeds"].text == "2 / 1"
    assert cells["depth"].text == "2 / 2"


def test_every_dash_has_its_reason(one_table):
    for row in one_table.rows:
        for cell in row.cells:
            assert cell.note or cell.text != "–", (row.mixer, cell)
    cells = rows_of(one_table)
    assert "no step()" in cells["base_conv/torch(kernel=3)"]["decode_us_per_token"].note
    assert "no step()" in cells["base_conv/torch(kernel=3)"]["state_kib"].note
    assert cells["attention/xformers"]["mqar_accuracy"].note == MEASURED_ONCE
    assert cells["ema/torch"]["forward_ms"].note == f"failed: {REASON}"


def test_the_caption_says_what_was_asked_and_on_what_it_was_measured(one_table):
    text = " ".join([one_table.device, *one_table.caption, *one_table.notes])
    for said in ("Test Processor, 2 cores", "(32, 2)", "8×128", "2 threads", "torch 2.13.0", "0.001, 0.003"):
        assert said in text
    assert "min–max of 2 seeds" in text
    assert "quartiles of 20 samples" in text


@pytest.mark.parametrize(
    ("counts", "said"),
    [((20, 20), "± forward ms: quartiles of 20 samples"), ((28, 109), "± forward ms: quartiles of n samples")],
)
def test_how_many_samples_is_said_once_or_in_every_cell(counts, said):
    column = Column("forward_ms", "forward ms", "pile", "forward_ms", kind="time")
    measures = [
        Measure(value=2.0, unit="ms", n=n, low=1.5, high=2.5, spread=f"quartiles of {n} samples") for n in counts
    ]
    cells = fill(column, measures, [None, None])
    assert spreads([column], {column.key: cells})[0] == said
    assert [f"(n={n})" in cell.text for n, cell in zip(counts, cells, strict=True)] == [len(set(counts)) > 1] * 2


def test_two_classes_of_device_are_two_tables(maker, registry, other_gpu):
    maker.point("attention/torch")
    maker.point("attention/torch", environment=other_gpu, scale=0.01)
    tables = leaderboard(maker.store, registry)
    assert [(t.device_class, len(t.rows)) for t in tables] == [("cpu-test-processor-2c", 1), ("nvidia-test", 1)]


def test_other_configurations_are_another_table_and_presets_can_be_chosen(maker, registry):
    maker.point("attention/torch")
    maker.point("attention/torch", suite="tiny*", suite_key="b7" * 32)
    maker.point("attention/torch", suite="large", suite_key="c8" * 32)
    assert [t.suite for t in leaderboard(maker.store, registry)] == ["large", "tiny", "tiny*"]
    assert [t.suite for t in leaderboard(maker.store, registry, suite="tiny")] == ["tiny", "tiny*"]
    assert [t.suite for t in leaderboard(maker.store, registry, suite="tiny*")] == ["tiny*"]
    with pytest.raises(InputError, match="large, tiny"):
        leaderboard(maker.store, registry, suite="quick")


def test_scores_on_other_data_are_another_table(maker, registry):
    maker.point("attention/torch")
    maker.pile_test("short_conv/torch", data_sha256={"test": "ee" * 32})
    assert [len(t.rows) for t in leaderboard(maker.store, registry)] == [1, 1]


def test_a_registered_preset_of_another_version_is_retired(maker, registry):
    from harness.sweep.plan import suite_key
    from harness.sweep.settings import complete

    now = suite_key(complete(registry.suite("quick"), registry), registry)
    maker.point("attention/torch", suite="quick", suite_key="00" * 32)
    maker.point("attention/torch", suite="quick", suite_key=now)
    new, old = leaderboard(maker.store, registry)
    assert (new.suite_key, new.retired, old.retired) == (now, False, True)
    assert "retired" in render([old], "plain")


def test_edited_code_replaces_the_row_of_the_former_code(maker, registry):
    maker.point("ema/torch", (0.5, 0.5))
    newer = {"plugin": {"code_sha256": "c1" * 32}, "started": "2026-02-01T00:00:00+00:00"}
    maker.mqar_test("ema/torch", (0.8, 0.8), **newer)
    (table,) = leaderboard(maker.store, registry)
    assert rows_of(table)["ema/torch"]["mqar_accuracy"].text == "0.800 ±0.000"
    assert rows_of(table)["ema/torch"]["forward_ms"].text == "–"


def test_a_row_timed_differently_says_so(maker, registry):
    for name in ("a", "b", "c"):
        maker.point(f"{name}/torch", environment={**maker.environment, "threads": 1 if name == "c" else 2})
    (table,) = leaderboard(maker.store, registry)
    assert {row.mixer: row.note for row in table.rows if row.note} == {"c/torch": "cost measured with 1 thread"}


def test_a_row_timed_on_a_busy_machine_says_so(maker, registry):
    for name, busy in (("a", 0.02), ("b", 0.98)):
        facts = {"B": 16, "T": 32, "dtype": "float32", "depth": 2, "busy_cores": busy}
        maker.time(f"{name}/torch", "mqar", facts=facts)
    (table,) = leaderboard(maker.store, registry)
    noted = {row.mixer: row.note for row in table.rows if row.note}
    assert noted == {"b/torch": "other processes kept 0.98 cores busy: its times may be far too long"}


def test_a_learning_rate_without_a_result_is_told(maker, registry):
    facts = {"lr": 1e-3, "lrs": [1e-3, 3e-3], "seeds": [0, 1], "depth": 2, "lrs_failed": [3e-3]}
    maker.mqar_test("a/torch", facts=facts)
    (table,) = leaderboard(maker.store, registry)
    assert rows_of(table)["a/torch"]["lr"].note == "mqar: no result at learning rate 0.003"


def test_a_training_that_another_run_would_not_repeat_is_told(maker, registry):
    facts = {"lr": 1e-3, "lrs": [1e-3], "seeds": [0, 1], "depth": 2}
    maker.mqar_test("a/torch", facts={**facts, "not_deterministic": "put_"})
    maker.mqar_test("b/torch", facts={**facts, "not_deterministic": None})
    (table,) = leaderboard(maker.store, registry)
    notes = {name: cells["seeds"].note for name, cells in rows_of(table).items()}
    assert notes == {
        "a/torch": "mqar: put_ has no deterministic kernel: another run gives other numbers",
        "b/torch": None,
    }


def test_training_that_failed_is_a_row_with_its_reason(maker, registry):
    maker.point("attention/torch")
    maker.failed("train", "ema/torch", "mqar", "out of memory", lr=1e-3, seed=0)
    (table,) = leaderboard(maker.store, registry)
    assert rows_of(table)["ema/torch"]["mqar_accuracy"].note == "failed: out of memory"


def test_training_alone_is_no_row(maker, registry):
    maker.record("train", "attention/torch", "mqar", {}, lr=1e-3, seed=0)
    assert leaderboard(maker.store, registry) == []
    assert points(maker.store) == []


def test_a_run_of_one_task_has_no_columns_of_the_other(maker, registry):
    maker.mqar_test("attention/torch")
    maker.time("attention/torch", "mqar")
    (table,) = leaderboard(maker.store, registry)
    assert not [column.key for column in table.columns if column.key.startswith("pile")]
    assert rows_of(table)["attention/torch"]["forward_ms"].measure is not None


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text, self.loaded = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta",):
            self.open.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_one_well_formed_page_that_loads_nothing(one_table):
    page = render([one_table], "html")
    parser = Cells()
    parser.feed(page)
    assert parser.open == []
    assert parser.loaded == []
    assert "url(" not in page
    assert "@import" not in page
    assert any(REASON in text for text in parser.text)  # its <b> is text, not a tag


def test_json_holds_values_units_and_counts(one_table):
    (table,) = json.loads(render([one_table], "json"))
    cell = table["rows"][0]["cells"]["forward_ms"]
    assert (cell["unit"], cell["n"]) == ("ms", 20)
    assert cell["low"] <= cell["value"] <= cell["high"]
    assert len(table["rows"][0]["records"]) == 5  # two tests, two times, one check
    assert table["rows"][-1]["cells"]["forward_ms"]["note"] == f"failed: {REASON}"


def test_a_diverged_perplexity_is_shown_and_still_json(maker, registry):
    maker.pile_test("a/torch", ar=1e200, other=1e300)
    maker.pile_test("b/torch")
    raw = maker.store.records()[0].raw()
    assert raw
    tables = leaderboard(maker.store, registry)
    assert json.loads(render(tables, "json"))


def test_github_rows_have_as_many_cells_as_the_header(one_table):
    lines = [line for line in render([one_table], "github").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_plain_lines_fit_a_wide_terminal(one_table):
    assert max(map(len, render([one_table], "plain").splitlines())) <= 210


def test_an_unknown_format_is_answered_with_the_nearest(one_table):
    with pytest.raises(InputError, match="did you mean 'github'"):
        render([one_table], "gihub")
    assert all(render([one_table], name) for name in FORMATS)


def ranks(maker, registry):
    (table,) = leaderboard(maker.store, registry)
    return {row.mixer: (row.rank, row.note) for row in table.rows}


def test_a_row_without_a_report_of_its_code_on_its_device_is_shown_and_not_ranked(maker, registry):
    maker.point("a/torch")
    for mixer in ("b/torch", "c/torch"):
        maker.mqar_test(mixer, (1.0, 1.0))
    maker.check("c/torch", plugin={"distribution": "x", "version": "1", "code_sha256": "0d" * 32})
    found = ranks(maker, registry)
    assert found["a/torch"] == (1, None)
    for mixer in ("b/torch", "c/torch"):
        rank, note = found[mixer]
        assert rank is None
        assert note.startswith("unchecked: no report of this code on this class of device")


def test_a_row_that_breaks_its_contract_is_not_ranked_and_says_how(maker, registry):
    maker.mqar_test("a/torch")
    maker.check("a/torch", broken=("causality",))
    assert ranks(maker, registry)["a/torch"] == (None, "not ranked: breaks causality (as seen)")


def test_a_check_that_died_says_of_what(maker, registry):
    maker.mqar_test("a/torch")
    maker.check("a/torch", status="failed", reason="killed by SIGSEGV; last heard at 3/21 reference", facts={})
    note = "unchecked: its check failed: killed by SIGSEGV; last heard at 3/21 reference"
    assert ranks(maker, registry)["a/torch"] == (None, note)


def test_a_non_causal_mixer_is_shown_and_not_ranked(maker, registry):
    maker.mqar_test("a/torch")
    finding = Finding("causality", NOT_APPLICABLE, "declared non-causal: its rows are shown and not ranked")
    maker.check("a/torch", facts=CheckReport((finding,)).to_facts())
    rank, note = ranks(maker, registry)["a/torch"]
    assert rank is None
    assert "declared non-causal" in note


def test_a_report_of_an_older_contract_does_not_count(maker, registry):
    maker.mqar_test("a/torch")
    maker.check("a/torch", facts=CheckReport((Finding("causality", "kept", ""),), kit_version=0).to_facts())
    assert "its report is of contract 0" in ranks(maker, registry)["a/torch"][1]


def test_a_waived_promise_stands_beside_the_ranked_row_with_its_reason(maker, registry):
    maker.mqar_test("a/torch")
    findings = (Finding("causality", "kept", ""), Finding("slope", "waived", "the selection is discrete (off by 2 %)"))
    maker.check("a/torch", facts=CheckReport(findings).to_facts())
    assert ranks(maker, registry)["a/torch"] == (1, "waived: slope: the selection is discrete (off by 2 %)")
