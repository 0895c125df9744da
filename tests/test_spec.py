"""A spec with a wrong field is refused where it is made, by one line that says what is allowed."""

from dataclasses import dataclass, field

import pytest

from harness import MixerSpec, RunConfig, SuiteSpec, TaskSpec
from harness.errors import SpecError


@dataclass(frozen=True)
class Options:
    heads: int = 1
    names: tuple = field(default_factory=tuple)


@dataclass
class Thawed:
    heads: int = 1


@dataclass(frozen=True)
class NoDefault:
    heads: int


def mixer(**fields):
    return MixerSpec(**{"name": "mine", "summary": "s", "source": "here", "build": print, **fields})


def task(**fields):
    needed = {"options": Options, "load": print, "score": print, "primary": "accuracy", "higher_is_better": True}
    return TaskSpec(**{"name": "copy", "summary": "s", "source": "here", **needed, **fields})


def suite(**fields):
    return SuiteSpec(**{"name": "tiny", "summary": "s", "runs": (RunConfig(task="mqar"),), **fields})


def test_a_mixer_with_every_field_right_is_made():
    spec = mixer(
        implementation="fast",
        reference=print,
        options=Options,
        dtypes=("float32", "bfloat16"),
        max_error={"float32": 1e-5},
        len_multiple=16,
        devices=("cuda",),
        preference=-1,
        state_bytes=print,
        expected_failures={"causal": "looks at the whole sequence, see arXiv:2105.01601"},
    )
    assert spec.full_name == "mine/fast"


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"name": "My Mixer"}, "lower-case letters"),
        ({"name": 3}, "lower-case letters"),
        ({"implementation": ""}, "lower-case letters"),
        ({"summary": None}, "one line of text"),
        ({"source": "two\nlines"}, "one line of text"),
        ({"build": 3}, "build must be callable"),
        ({"build": None}, "build must be callable"),
        ({"reference": "softmax"}, "reference must be callable"),
        ({"flops": 12}, "flops must be callable"),
        ({"causal": 1}, "causal must be of type bool"),
        ({"needs_tokens": "no"}, "needs_tokens must be of type bool"),
        ({"preference": 1.0}, "preference must be of type int"),
        ({"len_multiple": True}, "len_multiple must be of type int"),
        ({"len_multiple": 0}, "at least 1"),
        ({"dtypes": ["float32"]}, "a tuple out of float64, float32, bfloat16, float16"),
        ({"dtypes": ("fp32",)}, "a tuple out of float64, float32, bfloat16, float16"),
        ({"dtypes": ()}, "a tuple out of"),
        ({"dtypes": "float32"}, "a tuple out of"),
        ({"devices": ("gpu",)}, "a tuple out of cpu, cuda"),
        ({"max_error": {"bfloat16": 1e-2}}, "a mapping from float32 to an error between 0 and 1"),
        ({"max_error": {"float32": "1e-5"}}, "between 0 and 1"),
        ({"max_error": {"float32": 0.0}}, "between 0 and 1"),
        ({"max_error": 1e-5}, "between 0 and 1"),
        ({"options": Options()}, "the class itself"),
        ({"options": dict}, "frozen=True"),
        ({"options": Thawed}, "frozen=True"),
        ({"options": NoDefault}, "'heads' has none"),
        ({"expected_failures": {"causal": ""}}, "the reason"),
        ({"expected_failures": {"causal": "  "}}, "the reason"),
        ({"expected_failures": ("causal",)}, "the reason"),
    ],
    ids=str,
)
def test_a_wrong_field_of_a_mixer_is_refused(fields, allowed):
    with pytest.raises(SpecError) as refused:
        mixer(**fields)
    assert allowed in str(refused.value)
    assert repr(next(iter(fields.values()))) in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"name": "Copy"}, "lower-case letters"),
        ({"options": object}, "frozen=True"),
        ({"load": None}, "load must be callable"),
        ({"floor": 0.5}, "floor must be callable"),
        ({"primary": 1}, "one line of text"),
        ({"higher_is_better": "yes"}, "of type bool"),
        ({"version": "1"}, "of type int"),
    ],
    ids=str,
)
def test_a_wrong_field_of_a_task_is_refused(fields, allowed):
    with pytest.raises(SpecError, match=allowed):
        task(**fields)


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"name": None}, "lower-case letters"),
        ({"runs": ()}, "one or more RunConfig"),
        ({"runs": [RunConfig(task="mqar")]}, "one or more RunConfig"),
        ({"runs": ("mqar",)}, "one or more RunConfig"),
        ({"default_on": ("gpu",)}, "a tuple out of cpu, cuda"),
    ],
    ids=str,
)
def test_a_wrong_field_of_a_suite_is_refused(fields, allowed):
    with pytest.raises(SpecError, match=allowed):
        suite(**fields)


def test_tasks_and_suites_with_every_field_right_are_made():
    assert task(floor=print, version=2).version == 2
    assert suite(default_on=("cpu",)).default_on == ("cpu",)
