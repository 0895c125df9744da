"""The check trial: one mixer held against its contract, in a process that may die of it."""

from collections.abc import Callable

from harness.check.kit import run_kit
from harness.check.subject import Subject
from harness.pattern import parse_mixer
from harness.plugins import Registry
from harness.sweep.bench import Outcome
from harness.sweep.trial import Job


def check(job: Job, registry: Registry, report: Callable[[int, int, str], None]) -> Outcome:
    """Returns the findings of every promise; `report` hears which one begins."""
    subject = Subject(registry, parse_mixer(job.trial.mixer), job.device)
    return Outcome({}, run_kit(subject, job.trial.promises, report).to_facts(), {})
