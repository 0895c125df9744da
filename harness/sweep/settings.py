"""From a preset to the task runs of one command: `--set`, `--layers`, `--corpus`, `--task`."""

import dataclasses
from collections.abc import Sequence

from harness.config import RunConfig, with_setting
from harness.errors import InputError, nearest
from harness.pattern import parse_layers
from harness.plugins import Registry
from harness.spec import SuiteSpec

GROUPS = tuple(f.name for f in dataclasses.fields(RunConfig) if f.name != "task")


def complete(suite: SuiteSpec, registry: Registry) -> SuiteSpec:
    """Returns the suite with every run's options filled in; a task nobody registered raises InputError."""
    runs = tuple(
        run if run.options is not None else dataclasses.replace(run, options=registry.task(run.task).options())
        for run in suite.runs
    )
    for run in runs:
        registry.task(run.task)
    return dataclasses.replace(suite, runs=runs)


def with_settings(suite: SuiteSpec, settings: Sequence[str]) -> SuiteSpec:
    """Returns the suite with each "KEY=VALUE" applied: to the task the key begins with, else to every task."""
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise InputError(f"--set takes KEY=VALUE, got {setting!r}; for example --set training.steps=100")
        suite = _with_one(suite, path.strip(), text.strip())
    return suite


def with_layers(suite: SuiteSpec, pattern: str | None) -> SuiteSpec:
    """Returns the suite with these layers in every task's model."""
    if pattern is None:
        return suite
    parse_layers(pattern, "attention")  # a pattern that cannot be read is the user's error, before anything starts
    return _with_one(suite, "model.layers", repr(pattern))


def with_corpus(suite: SuiteSpec, corpus: str | None) -> SuiteSpec:
    """Returns the suite with the Pile slices taken from that file."""
    if corpus is None:
        return suite
    if "pile" not in task_names(suite):
        raise InputError(f"--corpus is for the task pile, and preset {suite.name!r} runs {_listed(suite)} only")
    return _with_one(suite, "pile.options.corpus", repr(corpus))


def chosen_tasks(suite: SuiteSpec, tasks: Sequence[str], registry: Registry) -> list[str]:
    """Returns the tasks to run: those named, or all of the suite."""
    for task in tasks:
        if task not in task_names(suite):
            registry.task(task)  # a name nobody registered is answered with the nearest one
            raise InputError(f"task {task!r} is not part of preset {suite.name!r}; it runs {_listed(suite)}")
    return [name for name in task_names(suite) if not tasks or name in tasks]


def task_names(suite: SuiteSpec) -> list[str]:
    """Returns the suite's tasks, each once, in order."""
    return list(dict.fromkeys(run.task for run in suite.runs))


def _listed(suite: SuiteSpec) -> str:
    return ", ".join(task_names(suite))


def _with_one(suite: SuiteSpec, path: str, text: str) -> SuiteSpec:
    head, _, rest = path.partition(".")
    names = task_names(suite)
    if head in names and not rest:
        raise InputError(f"{head} is a task: write {head}.training.steps=100, with one of: {', '.join(GROUPS)}")
    if head in names:
        return _replace(suite, head, rest, text)
    if head not in GROUPS:
        raise InputError(f"unknown setting {path}: {nearest(head, [*GROUPS, *names])}")
    if head == "options" and len(names) > 1:
        raise InputError(f"options belong to one task, so name it: {' or '.join(f'{n}.{path}' for n in names)}")
    for name in names:
        suite = _replace(suite, name, path, text, where="")
    return suite


def _replace(suite: SuiteSpec, task: str, path: str, text: str, where: str | None = None) -> SuiteSpec:
    where = f"{task}." if where is None else where
    head = path.partition(".")[0]
    if head not in GROUPS:
        raise InputError(f"unknown setting {where}{path}: {nearest(head, GROUPS)}")
    runs = tuple(with_setting(run, path, text, where) if run.task == task else run for run in suite.runs)
    return dataclasses.replace(suite, runs=runs)
