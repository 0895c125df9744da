"""The code that decides what a trial computes, as one digest: edited code cannot reuse an old result."""

from collections.abc import Sequence
from pathlib import Path

import harness
from harness.pattern import MixerChoice
from harness.plugins import Registry, source_sha256
from harness.record import CHECK, GATED, digest

PROTOCOL = (
    "model.py",
    "train.py",
    "determinism.py",
    "capture.py",
    "attention.py",
    "tasks",
)  # files and folders of the package
TIMING = (*PROTOCOL, "timing")
KIT = ("check", "determinism.py", "model.py")


def code_sha256(kind: str, task: str, layers: Sequence[MixerChoice], registry: Registry) -> str:
    """Returns the digest of the sources of the protocol, the task (others have none) and every layer's mixer."""
    root = Path(harness.__file__).parent
    sources = {"time": TIMING, CHECK: KIT, **dict.fromkeys(GATED, TIMING)}
    parts = [root / part for part in sources.get(kind, PROTOCOL)]
    files = [file for part in parts for file in (sorted(part.rglob("*.py")) if part.is_dir() else [part])]
    asked = [] if kind in (CHECK, *GATED) else [registry.origin(registry.task(task)).code_sha256()]
    plugins = [registry.origin(registry.spec(layer)).code_sha256() for layer in layers]
    return digest([source_sha256(files, root), *asked, plugins])
