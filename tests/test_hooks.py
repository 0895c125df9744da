"""Each hook, as docs/plugins.md shows it: a plugin that implements it is heard."""

import re
from pathlib import Path

import pytest

from harness.config import ModelConfig, RunConfig, TrainingConfig
from harness.plugins import load_registry
from harness.verify import score_arrays

PAGE = (Path(__file__).parents[1] / "docs/plugins.md").read_text()


def shown(hook):
    """Returns the python under the heading of the hook."""
    section = PAGE[PAGE.index(f"### `{hook}(") :]
    return re.search(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL).group(1)


@pytest.fixture
def registry_with(tmp_path):
    def load(*sources):
        files = []
        for number, source in enumerate(sources):
            file = tmp_path / f"plugin_{number}.py"
            file.write_text(source)
            files.append(str(file))
        registry = load_registry(files)
        assert registry.problems == ()
        return registry

    return load


def test_harness_mixers_adds_mixers(registry_with):
    source = re.search(r'title="plugins/example/one_file.py"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL).group(1)
    registry = registry_with(source)
    assert str(registry.mixer("running_mean")) == "running_mean/torch"
    assert registry.origin(registry.mixers["running_mean/torch"]).plugin == "plugin_0.py"


def test_harness_tasks_adds_a_task_that_can_be_trained_and_scored(registry_with):
    from harness.model import build_model
    from harness.train import train

    registry = registry_with(shown("harness_tasks"))
    spec = registry.task("before")
    options = spec.options()
    assert spec.floor(options) == 1 / 16
    task = spec.load(options, lambda what, fraction: None)
    model_config = ModelConfig(d_model=8, layers="attention")
    config = RunConfig(task="before", model=model_config, training=TrainingConfig(steps=2, batch_size=4, eval_every=2))
    model = build_model(config.model, "attention", task.vocab_size, task.max_len, registry)
    result = train(spec=spec, task=task, config=config, model=model, lr=1e-3, seed=0, device="cpu", report=print)
    raw = {**task.labels("validation"), **result.predictions}
    assert 0 <= score_arrays(spec, raw)["accuracy"].value <= 1
    assert set(task.data_sha256()) == {"validation", "test"}


def test_harness_suites_adds_a_preset_whose_task_may_come_from_another_plugin(registry_with):
    registry = registry_with(shown("harness_tasks"), shown("harness_suites"))
    (run,) = registry.suite("tutorial").runs
    assert registry.task(run.task).name == "before"
    assert run.training.seeds == (0, 1)


def test_harness_record_is_told_of_a_record(registry_with, capsys):
    registry = registry_with(shown("harness_record"))
    assert registry.record_hooks({"mixer": "ema", "task": "mqar", "status": "done"}) == []
    assert capsys.readouterr().err == "ema mqar done\n"
