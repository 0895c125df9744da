import json
import os
import re

import pytest
import torch

from harness.timing.device import (
    cpu_name,
    device_class,
    device_facts,
    facts_from_outside,
    library_versions,
    usable_cores,
)


@pytest.mark.parametrize(
    ("kind", "name", "cores", "slug"),
    [
        ("cpu", "Intel(R) Xeon(R) CPU E5-2676 v3 @ 2.40GHz", 2, "cpu-intel-xeon-e5-2676-v3-2c"),
        ("cpu", "AMD EPYC 7B13", 8, "cpu-amd-epyc-7b13-8c"),
        ("cpu", "Apple M3 Pro", 12, "cpu-apple-m3-pro-12c"),
        ("cpu", "", 4, "cpu-unknown-4c"),
        ("cuda", "NVIDIA H200", 16, "nvidia-h200"),
        ("cuda", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", 16, "nvidia-a100-sxm4-40gb-mig-1g-5gb"),
    ],
)
def test_the_device_class_is_a_slug(kind, name, cores, slug):
    assert device_class(kind, name, cores) == slug


def test_the_facts_are_json_and_name_what_is_missing():
    facts = device_facts("cpu")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["driver"] is None
    assert facts["compute_capability"] is None
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_mib"] > 0
    assert re.fullmatch(r"cpu-[a-z0-9-]+-\d+c", facts["class"])
    assert facts["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # builds differ in the rest
    assert "xformers" in facts["libraries"]  # null where it is not installed


def test_another_process_finds_the_same_device():
    ours, theirs = device_facts("cpu"), facts_from_outside("cpu")
    assert {**theirs, "threads": None} == {**ours, "threads": None}


def test_cores_are_those_this_process_may_use():
    assert 1 <= usable_cores() <= os.cpu_count()


def test_the_processor_has_a_name():
    assert cpu_name()


def test_plugins_are_among_the_libraries():
    versions = library_versions()
    assert versions["mixer-harness"] is None or re.match(r"\d", versions["mixer-harness"])
    assert list(versions)[:3] == ["mixer-harness", "torch", "numpy"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_has_a_driver_and_a_class_without_cores():
    facts = device_facts("cuda")
    assert re.match(r"\d+\.\d+", facts["driver"])
    assert facts["class"] == re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
