import dataclasses
import json
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from made_reports import checked

from harness.board.points import points
from harness.errors import HarnessError, InputError, RecordError
from harness.plugins import load_registry
from harness.record import PEAK, SPEED
from harness.spec import Measure
from harness.store import Store
from harness.sweep.duels import CompareRequest, Decided, decide, false_verdicts, run_compare
from harness.sweep.gate import gate
from harness.sweep.gated import Place
from harness.sweep.plan import check_trial
from harness.sweep.times import TimeRequest, exponents, ranks, run_times
from harness.timing.ceilings import Ceilings, ceilings_path, load_ceilings, save
from harness.timing.device import device_facts
from harness.timing.spread import Row
from harness.timing.verdict import judge
from harness.verify import verify


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture(scope="module")
def known_ceilings(tmp_path_factory):
    """Ceilings that need not be measured: a gigabyte and a gigaflop a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        from harness.sweep.local import alone

        facts, threads = device_facts("cpu"), alone("cpu").threads
        known = Ceilings(
            device_class=facts["class"],
            threads=threads,
            driver=None,
            torch=facts["libraries"]["torch"],
            copy_bytes_per_s=1e9,
            product_flops_per_s={"float32": 1e9, "bfloat16": None},
            measured="",
            other_cores=0.0,
        )
        save(known, ceilings_path(device_facts("cpu"), threads))
        yield known


@pytest.fixture(scope="module")
def timed(tmp_path_factory, registry, known_ceilings):
    """One mixer at one length, in three processes, and its memory in a fourth."""
    runs = tmp_path_factory.mktemp("times")
    checked(Store(runs), registry, "attention")
    request = TimeRequest(
        mixers=("attention",), lengths=(16,), modes=("forward",), place=Place(runs=runs, device="cpu")
    )
    return request, run_times(request, registry), Store(runs)


def of_kind(store, kind):
    return [stored for stored in store.records() if stored.record.kind == kind]


def test_a_row_rests_on_three_processes_and_its_own_memory(timed):
    _, found, store = timed
    assert found.failed == found.refused == ()
    (row,) = found.rows
    assert row.ms.low <= row.ms.value <= row.ms.high
    assert row.ms.spread == "min–max of the medians of 3 processes"
    assert row.peak_mib > 0
    assert row.floor_pct > 0
    assert found.rank(row) == 1
    assert (len(of_kind(store, SPEED)), len(of_kind(store, PEAK))) == (3, 1)
    assert json.loads(json.dumps(found.to_json()))["rows"][0]["clean"] == row.clean


def test_the_lengths_of_a_mixer_share_a_process_and_each_has_its_record(tmp_path, registry, known_ceilings):
    checked(Store(tmp_path), registry, "attention")
    request = TimeRequest(
        mixers=("attention",), lengths=(8, 16), modes=("forward",), place=Place(runs=tmp_path, device="cpu")
    )
    assert len(run_times(request, registry).rows) == 2
    started = defaultdict(set)
    for stored in of_kind(Store(tmp_path), SPEED):
        record = stored.record
        started[record.config["options"]["process"]].add(record.config["timing"]["T"])
        assert record.facts["together"] == f"attention/torch process {record.config['options']['process']}"
    assert dict(started) == {0: {8, 16}, 1: {8, 16}, 2: {8, 16}}


CRASHES = """
import os
import torch
from harness import MixerSpec, hookimpl

class Crashes(torch.nn.Module):
    def forward(self, x):
        return os._exit(7) if x.shape[1] == 16 else x.cumsum(1)

@hookimpl
def harness_mixers():
    yield MixerSpec(name="crashes", summary="s", source="here", build=lambda config: Crashes())
"""


def test_a_length_that_kills_its_process_takes_no_other_length_with_it(tmp_path, known_ceilings):
    file = tmp_path / "mine.py"
    file.write_text(CRASHES)
    registry = load_registry([str(file)])
    checked(Store(tmp_path / "runs"), registry, "crashes")
    place = Place(runs=tmp_path / "runs", device="cpu")
    found = run_times(TimeRequest(mixers=("crashes",), lengths=(8, 16, 32), modes=("forward",), place=place), registry)
    assert [(row.T, row.peak_mib is not None) for row in found.rows] == [(8, True), (32, True)]
    assert [line.partition(":")[0] for line in found.failed] == [
        "crashes/torch T=16 peak",
        *["crashes/torch T=16 speed"] * 3,
    ]
    assert "exit code 7" in found.failed[1]


def test_every_number_of_a_process_follows_from_its_raw_arrays(timed, registry):
    for stored in timed[2].records():
        assert verify(stored, registry) == []


def test_a_record_names_its_check_its_conditions_and_its_policy(timed):
    record = of_kind(timed[2], SPEED)[0].record
    (named,) = record.facts["gates"]
    assert (named["mixer"], named["green"], named["errors"]) == ("attention/torch", True, {"reference": "as seen"})
    assert set(record.facts["conditions"]) == {"before", "after"}
    assert record.facts["policy"]["threads"] == record.environment["threads"]
    assert record.facts["ceilings"]["copy_bytes_per_s"] == 1e9
    assert record.facts["series"]["forward"]["ended"] in ("quiet", "settled", "time")
    assert record.environment["governor"] is None or record.environment["governor"]


def test_finished_processes_are_kept_and_the_same_command_does_the_rest(timed, registry):
    request, before, store = timed
    lost, *kept = of_kind(store, SPEED)
    store.remove(lost.record.key)
    again = run_times(request, registry)
    started = {stored.record.key: stored.record for stored in store.records()}
    assert all(started[stored.record.key] == stored.record for stored in kept)
    assert started[lost.record.key] != lost.record
    assert len(again.rows) == len(before.rows)


def test_a_time_without_its_check_is_no_record(timed):
    store, stored = timed[2], of_kind(timed[2], SPEED)[0]
    facts, environment = stored.record.facts, stored.record.environment
    for changes in (
        {"facts": {**facts, "gates": []}},
        {"facts": {**facts, "gates": [{**facts["gates"][0], "green": False}]}},
        {"facts": {**facts, "gates": [{**facts["gates"][0], "code_sha256": "another"}]}},
        {"facts": {**facts, "gates": [{**facts["gates"][0], "mixer": "ema/torch"}]}},
        {"environment": {**environment, "class": "another"}},
        {"config": {**stored.record.config, "options": {"other": "ema/torch"}}},
    ):
        with pytest.raises(RecordError, match=r"needs a green check of .*make one: harness check"):
            store.write(dataclasses.replace(stored.record, key="f" * 64, **changes), stored.raw())


def test_a_time_whose_check_was_taken_out_by_hand_is_not_read(timed, tmp_path):
    stored = of_kind(timed[2], SPEED)[0]
    copy = Store(tmp_path).write(stored.record, stored.raw())
    path = copy.path / "record.json"
    data = json.loads(path.read_text())
    del data["facts"]["gates"]
    path.write_text(json.dumps(data))
    assert Store(tmp_path).records() == []
    assert "needs a green check" in str(Store(tmp_path).damaged[0])


def test_it_is_no_point_of_a_preset(timed):
    assert points(timed[2]) == []


def test_a_mixer_that_breaks_a_promise_is_refused_with_the_command_that_shows_it(tmp_path, registry):
    checked(Store(tmp_path), registry, "ema", broken=("reference",))
    place = Place(runs=tmp_path, device="cpu")
    found = run_times(TimeRequest(mixers=("ema",), place=place), registry)
    assert found.rows == []
    assert found.refused == ("ema/torch is not timed: it breaks reference (as seen); see harness check ema/torch",)
    with pytest.raises(HarnessError, match="ema/torch is not timed: it breaks reference"):
        run_compare(CompareRequest(a="ema", b="ema", place=place), registry)


def test_a_worker_does_not_time_without_its_check(tmp_path, registry):
    store, here = Store(tmp_path), device_facts("cpu")["class"]
    key = check_trial(registry, registry.mixer("attention"), "cpu").key
    with pytest.raises(RecordError, match=r"the check record .* is missing"):
        gate(store, key, here)
    checked(store, registry, "attention", broken=("step",))
    with pytest.raises(HarnessError, match=r"no green check \(step\)"):
        gate(store, key, here)
    store.remove(key)
    checked(store, registry, "attention")
    assert gate(store, key, here)["green"]
    with pytest.raises(HarnessError, match="another class of device"):
        gate(store, key, "cpu-another-2c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ("forwrd",)}, "unknown mode 'forwrd': did you mean 'forward'?"),
        ({"lengths": (1, 16)}, "--T takes lengths of at least 2, got 1"),
        ({"processes": 2}, "--processes takes at least 3, got 2"),
        ({"layers": "MIXER*"}, "cannot read 'MIXER*'"),
        ({"mixers": ("atention",)}, "did you mean 'attention'"),
    ],
)
def test_bad_requests_are_answered_before_anything_runs(tmp_path, registry, changes, message):
    request = TimeRequest(**({"mixers": ("attention",), "place": Place(runs=tmp_path, device="cpu")} | changes))
    with pytest.raises(InputError, match=message.replace("?", r"\?").replace("*", r"\*")):
        run_times(request, registry)
    assert list(tmp_path.iterdir()) == []


def a_row(mixer, T=128, low=1.0, value=1.1, high=1.2, peak=10.0):
    ms = Measure(value=value, unit="ms", n=30, low=low, high=high)
    rest = {"within_pct": 1.0, "between_pct": 1.0, "per_probe": ms, "floor_pct": None, "flops_by": None}
    return Row(
        mixer=mixer,
        T=T,
        series="forward",
        ms=ms,
        first_ms=5.0,
        launch_us=None,
        peak_mib=peak,
        state_kib=None,
        notes=(),
        **rest,
    )


def test_rows_whose_processes_overlap_share_a_rank():
    rows = [a_row("a"), a_row("b", low=1.15, value=1.2, high=1.25), a_row("c", low=2.0, value=2.0, high=2.0)]
    found = ranks(rows)
    assert [found["forward", 128, name] for name in "abc"] == [1, 1, 3]


def test_exponents_are_of_one_mixer_and_mode():
    rows = [a_row("a", T=T, value=T / 100, peak=float(T**2)) for T in (128, 256, 512)] + [a_row("b")]
    (found,) = exponents(rows)
    assert (found["mixer"], found["lengths"]) == ("a", 3)
    assert found["time"][0] == pytest.approx(1.0)
    assert found["memory"][0] == pytest.approx(2.0)


class Fought:
    """The stored record of a process with two duels."""

    def __init__(self, ratio, flags=0, launches="plain launches"):
        self.record = SimpleNamespace(facts={"policy": {"launches": launches}})
        a = np.array([1.0, 1.1, 1.2, 1.3])
        self.arrays = {
            "a_ms": a,
            "b_ms": a * np.repeat([ratio, 1.0], 2),
            "duel": np.array([0, 0, 1, 1]),
            "flags": np.full(4, flags, dtype=np.uint8),
        }

    def raw(self):
        return self.arrays


def test_each_duel_is_decided_over_the_processes_that_fought_it(registry):
    pair = (registry.mixer("attention"), registry.mixer("ema"))
    processes = [Fought(1.05 + 0.001 * i, flags=2 * (i == 3)) for i in range(8)]
    slower, same = decide(pair, ("forward", 16), processes, CompareRequest(a="attention", b="ema"))
    assert (slower.verdict.verdict, same.verdict.verdict) == ("slower", "same")
    assert slower.verdict.ratio == pytest.approx(1.0535)
    assert slower.disturbed == ("other processes",)
    assert str(slower).startswith("forward, T = 16: ema/torch is slower: ema/torch takes 1.0535 times as long as")
    assert json.loads(json.dumps(slower.to_json()))["processes"] == 8
    assert "launches" not in str(slower)


def test_a_verdict_says_where_graphs_were_replayed_and_where_one_process_could_not(registry):
    pair = (registry.mixer("attention"), registry.mixer("ema"))
    processes = [Fought(1.05, launches="a graph" if i else "plain launches: why") for i in range(8)]
    slower, _ = decide(pair, ("forward", 16), processes, CompareRequest(a="attention", b="ema"))
    assert str(slower).endswith("; a graph or plain launches: why")
    assert slower.to_json()["launches"] == ["a graph", "plain launches: why"]


def test_false_verdicts_are_counted_and_the_smallest_slowdown_is_told():
    def of(*ratios):
        logs = tuple(map(math.log, ratios))
        return Decided("a", "a", "forward", 16, judge(logs), (), logs)

    found = false_verdicts([of(*[1.0] * 8), of(*[1.5] * 8), of(*[0.9] * 4, *[1.2] * 4)], 0.01)
    assert (found.pairs, found.wrong, found.verdicts) == (3, 1, {"same": 1, "slower": 1, "undecided": 1})
    assert found.smallest_found == pytest.approx(1.01 / 0.9 - 1)
    assert str(found).startswith("A/A: 1 of 3 comparisons of a mixer with itself were called faster or slower (33.3%)")


def test_ceilings_that_cannot_be_read_are_unknown(known_ceilings):
    path = ceilings_path(device_facts("cpu"), 99)
    assert load_ceilings(device_facts("cpu"), 99) is None
    save(known_ceilings, path)
    assert load_ceilings(device_facts("cpu"), 99) == known_ceilings
    path.write_text("{}")
    assert load_ceilings(device_facts("cpu"), 99) is None
    assert known_ceilings.flops_per_s("float16") is None
