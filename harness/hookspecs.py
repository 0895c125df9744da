"""The hooks a plugin may implement. All but `harness_record` are called on listing: they never import torch."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from harness.spec import MixerSpec, SuiteSpec, TaskSpec

PROJECT = "mixer_harness"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def harness_mixers() -> "Iterable[MixerSpec]":  # type: ignore[empty-body]
    """Returns the mixers this plugin adds."""


@hookspec
def harness_tasks() -> "Iterable[TaskSpec]":  # type: ignore[empty-body]
    """Returns the tasks this plugin adds."""


@hookspec
def harness_suites() -> "Iterable[SuiteSpec]":  # type: ignore[empty-body]
    """Returns the suites (presets) this plugin adds."""


@hookspec
def harness_record(record: Mapping[str, Any]) -> None:
    """Is told of each finished record, as the JSON object that was stored."""
