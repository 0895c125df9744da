"""Whether the options of a mixer fit a model: asked of its spec, without building it, before anything runs."""

from collections.abc import Iterable

from harness.errors import InputError
from harness.pattern import MixerChoice
from harness.plugins import Registry
from harness.spec import MixerConfig


def require_fit(choices: Iterable[MixerChoice], d_model: int, max_len: int, registry: Registry) -> None:
    """Raises the InputError with which a spec answers options that do not fit: a window beyond max_len, say.

    What a spec declares of its state and its operations is asked. Whatever else that raises belongs to the trial, which
    keeps the log.
    """
    for choice in dict.fromkeys(choices):
        spec = registry.spec(choice)
        config = MixerConfig(d_model=d_model, max_len=max_len, options=registry.options(choice))
        for declared in filter(None, (spec.state_bytes, spec.flops)):
            try:
                declared(config, max_len)
            except InputError:
                raise
            except Exception:  # a plugin's fault: its trial fails with the traceback in its log, and stops no other
                continue
