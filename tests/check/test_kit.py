import json

import pytest
import torch
from cheats import HONEST
from click.testing import CliRunner
from test_cheats import PLAIN, subject, write

from harness.check.kit import NAMES, PROMISES, find, run_kit
from harness.check.promise import BROKEN, KEPT, NOT_APPLICABLE, WAIVED, Finding
from harness.check.report import KIT_VERSION, CheckReport, report_from_facts
from harness.check.seals import broken_seals, seal
from harness.cli.check import check
from harness.errors import InputError, RecordError
from harness.plugins import load_registry
from harness.testing import mixer_contract

TWICE = """
def build(config):
    import torch

    class Twice(honest()[0]):
        def mix(self, x):
            return 2 * super().mix(x)

    return Twice(config)

@hookimpl
def harness_mixers():
    yield MixerSpec(
        name="cheat", summary="s", source="here", build=build, reference=reference,
        state_bytes=lambda config, T: 4 * (config.d_model + 1), expected_failures={expected},
    )
"""


def promise(name):
    return next(promise for promise in PROMISES if promise.name == name)


def with_expected(tmp_path, expected):
    return subject(write(tmp_path, HONEST + TWICE.replace("{expected}", repr(expected))))


def test_every_promise_has_a_name_of_its_own_and_a_reason_in_one_sentence():
    assert len(set(NAMES)) == len(NAMES)
    for one in PROMISES:
        assert one.why
        assert one.why[0].islower()
        assert not one.why.endswith(".")


def test_an_expected_failure_is_waived_with_its_reason(tmp_path):
    finding = find(with_expected(tmp_path, {"reference": "twice the mean is wanted"}), promise("reference"))
    assert finding.verdict == WAIVED
    assert finding.detail.startswith("twice the mean is wanted (float")


def test_an_expected_failure_that_does_not_fail_is_broken(tmp_path):
    finding = find(with_expected(tmp_path, {"shape": "odd lengths"}), promise("shape"))
    assert finding.verdict == BROKEN
    assert "remove it from expected_failures" in finding.detail


def test_a_promise_that_keeps_the_board_fair_cannot_be_waived(tmp_path):
    source = HONEST + TWICE.replace("{expected}", "{'causality': 'we like the future'}")
    source = source.replace("2 * super().mix(x)", "super().mix(x) + x.mean(1, keepdim=True)")
    finding = find(subject(write(tmp_path, source)), promise("causality"))
    assert finding.verdict == BROKEN
    assert "expected_failures cannot excuse causality" in finding.detail


def test_an_expected_failure_that_names_no_promise_is_broken_and_the_nearest_is_named(tmp_path):
    report = run_kit(with_expected(tmp_path, {"referense": "a typo"}), ["shape"])
    assert [f.promise for f in report.broken] == ["referense"]
    assert "did you mean 'reference'?" in report.broken[0].detail


def test_a_layer_that_is_no_module_is_one_line(tmp_path):
    finding = find(subject(write(tmp_path, HONEST + "\ndef build(config):\n    return 3\n")), promise("shape"))
    assert (finding.verdict, finding.detail) == (BROKEN, "build() must return a torch.nn.Module, got int")


def test_a_layer_without_step_is_not_concerned_by_decoding(tmp_path):
    body = "\n    class Cheat(torch.nn.Linear):\n        pass\n\n    return Cheat(config.d_model, config.d_model)\n"
    found = subject(write(tmp_path, HONEST + "\ndef build(config):\n    import torch\n" + body))
    for name in ("step", "state_bytes", "isolation"):
        assert find(found, promise(name)).verdict == NOT_APPLICABLE


def test_a_report_survives_its_record():
    report = CheckReport((Finding("shape", KEPT, "fine", 0.25), Finding("step", BROKEN, "no", 0.5)))
    again = report_from_facts(json.loads(json.dumps(report.to_facts())))
    assert again == report
    assert not again.green
    assert again.kit_version == KIT_VERSION


def test_an_empty_report_is_not_green_and_a_damaged_one_is_an_error():
    assert not CheckReport(()).green
    with pytest.raises(RecordError, match="not a check report"):
        report_from_facts({"kit_version": 1, "findings": [{"promise": "shape"}]})


def test_seals_see_a_replaced_function_and_a_replaced_body(monkeypatch):
    before = seal()
    assert broken_seals(before) == []
    monkeypatch.setattr(torch, "equal", lambda a, b: True)
    monkeypatch.setattr(run_kit, "__code__", find.__code__)
    assert broken_seals(before) == ["torch.equal", "harness.check.kit.run_kit"]


def test_the_device_in_float64_or_not_is_found_by_trying(tmp_path):
    body = (
        "\n        def mix(self, x):\n            assert x.dtype == torch.float32\n            return super().mix(x)\n"
    )
    source = HONEST + PLAIN.replace("return honest()[0](config)", "import torch\n    class C(honest()[0]):" + body)
    single = subject(write(tmp_path, source + "\n    return C(config)\n"))
    assert single.exact == torch.float32
    assert find(single, promise("slope")).verdict == NOT_APPLICABLE


test_the_contract_in_one_line = mixer_contract("attention(heads=2,positions=learned)")


def test_the_contract_of_an_unknown_mixer_names_the_plugin_that_did_not_load(tmp_path):
    with pytest.raises(InputError, match=r"(?s)unknown mixer 'cheat'.*cheat\.py: ModuleNotFoundError"):
        mixer_contract("cheat", plugin=write(tmp_path, "import nothing_of_that_name"))


def test_a_report_on_disk_is_shown_and_not_made_again(tmp_path, monkeypatch):
    registry = load_registry()
    from harness.sweep.checks import CheckRequest, run_checks

    request = CheckRequest(mixers=("short_conv",), runs=tmp_path, device="cpu")
    (first,) = run_checks(request, registry).records
    assert first.record.kind == "check"
    assert report_from_facts(first.record.facts).green
    monkeypatch.setattr("harness.sweep.checks.LocalExecutor", None)  # would raise
    (again,) = run_checks(request, registry).records
    assert again.record == first.record


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to check"),
        (["ema", "--all"], "say what to check"),
        (["attentoin", "--device", "cpu"], "did you mean 'attention'"),
        (["attention", "--promise", "casuality", "--device", "cpu"], "did you mean 'causality'"),
        (["nowhere.py"], "'nowhere.py' does not exist"),
    ],
)
def test_wrong_words_are_one_clear_error(words, message, tmp_path):
    result = CliRunner().invoke(check, [*words, "--runs", str(tmp_path / "runs")])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_a_file_without_a_mixer_says_why(tmp_path):
    file = write(tmp_path, "import nothing_of_that_name", "empty.py")
    result = CliRunner().invoke(check, [str(file), "--runs", str(tmp_path / "runs")])
    assert "registers no mixer" in str(result.exception)
    assert "nothing_of_that_name" in str(result.exception)


def test_the_list_of_promises_is_a_table_and_json():
    assert [row["promise"] for row in json.loads(CliRunner().invoke(check, ["--list", "--json"]).stdout)] == list(NAMES)
    assert "causality" in CliRunner().invoke(check, ["--list"]).stdout
