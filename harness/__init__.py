"""Mixer Harness: which sequence mixers can really recall, at what cost, with how much state.

Names load on first use, so that `import harness` imports neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.attention import AttentionHeads as AttentionHeads
    from harness.attention import ReferenceAttention as ReferenceAttention
    from harness.attention import ReferenceTokenAttention as ReferenceTokenAttention
    from harness.attention import SelfAttention as SelfAttention
    from harness.attention import TokenAttention as TokenAttention
    from harness.baselines import AttentionOptions as AttentionOptions
    from harness.baselines import DocumentAttentionOptions as DocumentAttentionOptions
    from harness.baselines import SlidingWindowOptions as SlidingWindowOptions
    from harness.baselines import attention_bytes as attention_bytes
    from harness.baselines import check_attention as check_attention
    from harness.baselines import check_window as check_window
    from harness.config import LimitsConfig as LimitsConfig
    from harness.config import ModelConfig as ModelConfig
    from harness.config import RunConfig as RunConfig
    from harness.config import TimingConfig as TimingConfig
    from harness.config import TrainingConfig as TrainingConfig
    from harness.errors import HarnessError as HarnessError
    from harness.errors import InputError as InputError
    from harness.hookspecs import hookimpl as hookimpl
    from harness.spec import Batch as Batch
    from harness.spec import Measure as Measure
    from harness.spec import MixerConfig as MixerConfig
    from harness.spec import MixerSpec as MixerSpec
    from harness.spec import SuiteSpec as SuiteSpec
    from harness.spec import Task as Task
    from harness.spec import TaskSpec as TaskSpec
    from harness.tasks.mqar import MQAR as MQAR

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(("AttentionHeads", "ReferenceAttention", "ReferenceTokenAttention"), "harness.attention"),
    **dict.fromkeys(("SelfAttention", "TokenAttention"), "harness.attention"),
    **dict.fromkeys(("AttentionOptions", "DocumentAttentionOptions"), "harness.baselines"),
    "SlidingWindowOptions": "harness.baselines",
    **dict.fromkeys(("attention_bytes", "check_attention", "check_window"), "harness.baselines"),
    **dict.fromkeys(("ModelConfig", "TrainingConfig", "TimingConfig", "LimitsConfig", "RunConfig"), "harness.config"),
    **dict.fromkeys(("HarnessError", "InputError"), "harness.errors"),
    "hookimpl": "harness.hookspecs",
    **dict.fromkeys(("Batch", "Measure", "MixerConfig", "MixerSpec", "SuiteSpec", "Task", "TaskSpec"), "harness.spec"),
    "MQAR": "harness.tasks.mqar",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
