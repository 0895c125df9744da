import dataclasses
import json

import pytest

from harness.config import RunConfig, from_json, run_config_from_json, to_json, with_setting
from harness.errors import InputError
from harness.tasks.options import MQAROptions

RUN = RunConfig(task="mqar", options=MQAROptions())


def test_a_dotted_setting_changes_that_value_only():
    changed = with_setting(RUN, "training.steps", "7")
    assert changed.training.steps == 7
    assert dataclasses.replace(changed, training=RUN.training) == RUN


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("training.lrs", "1e-3,1e-2", (1e-3, 1e-2)),
        ("training.lrs", "1e-3", (1e-3,)),
        ("training.clip", "none", None),
        ("training.clip", "1", 1.0),
        ("model.layers", "short_conv,MIXER", "short_conv,MIXER"),
        ("model.layers", "'MIXER*2'", "MIXER*2"),
        ("model.channel_mixer", "none", "none"),
        ("options.avoid_keys", "false", False),
        ("options.random_non_queries", "true", True),
        ("options.test_cells", "(64,4,10),(128,8,20)", ((64, 4, 10), (128, 8, 20))),
        ("options.test_cells", "((64,4,10),)", ((64, 4, 10),)),
        ("options.test_cells", "(64,4,10)", ((64, 4, 10),)),
    ],
)
def test_settings_are_read_as_the_type_they_have(path, text, value):
    config = with_setting(RUN, path, text)
    for name in path.split("."):
        config = getattr(config, name)
    assert config == value


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("training.step", "7", "did you mean 'steps'"),
        ("trainning.steps", "7", "did you mean 'training'"),
        ("options.vocabsize", "7", "did you mean 'vocab_size'"),
        ("training", "7", "group of settings"),
        ("task.x", "7", "single setting"),
        ("training.steps", "many", "type int, got 'many'"),
        ("training.steps", "1.5", "type int, got 1.5"),
        ("training.steps", "true", "type int, got True"),
        ("options.random_non_queries", "1", "type bool, got 1"),
        ("training.betas", "0.9", "takes 2 values"),
    ],
)
def test_a_wrong_setting_is_one_error_that_names_the_fix(path, text, says):
    with pytest.raises(InputError, match=says):
        with_setting(RUN, path, text)


def test_json_round_trip_is_the_same_config():
    text = json.dumps(to_json(RUN))
    assert run_config_from_json(json.loads(text), MQAROptions) == RUN


def test_unknown_keys_in_json_are_refused():
    with pytest.raises(InputError, match="unknown setting stepz"):
        from_json(type(RUN.training), {"stepz": 1})
