"""The core's own tasks, registered through its own entry point. Listing them imports neither numpy nor torch."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness.hookspecs import hookimpl
from harness.spec import Measure, Task, TaskSpec
from harness.tasks.options import MQAROptions, PileOptions

if TYPE_CHECKING:
    import numpy as np


def _mqar_load(options: Any, progress: Callable[[str, float], None]) -> Task:
    from harness.tasks.mqar import load

    return load(options, progress)


def _mqar_score(raw: "Mapping[str, np.ndarray]") -> dict[str, Measure]:
    from harness.tasks.mqar import score

    return score(raw)


def _mqar_floor(options: Any) -> float:
    from harness.tasks.mqar import floor

    return floor(options)


def _pile_load(options: Any, progress: Callable[[str, float], None]) -> Task:
    from harness.tasks.pile.task import load

    return load(options, progress)


def _pile_score(raw: "Mapping[str, np.ndarray]") -> dict[str, Measure]:
    from harness.tasks.pile.task import score

    return score(raw)


@hookimpl
def harness_tasks() -> Iterator[TaskSpec]:
    """Yields MQAR and the Pile slices."""
    yield TaskSpec(
        name="mqar",
        summary="multi-query associative recall on synthetic tokens",
        source="arXiv:2312.04927",
        options=MQAROptions,
        load=_mqar_load,
        score=_mqar_score,
        primary="accuracy",
        higher_is_better=True,
        floor=_mqar_floor,
    )
    yield TaskSpec(
        name="pile",
        summary="perplexity of recalled (AR hits) and of other tokens on real text",
        source="arXiv:2312.04927",
        options=PileOptions,
        load=_pile_load,
        score=_pile_score,
        primary="perplexity",
        higher_is_better=False,
    )
