"""What a mixer leaves behind: nothing, in the process, in scratch memory, in the listing."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.check.compare import require_close
from harness.check.promise import BrokenPromise
from harness.check.seals import broken_seals, seal
from harness.check.subject import Subject
from harness.plugins import FILE, ONLY

LISTING_S = 60
LISTING = """
import sys
from harness.doctor import HEAVY
from harness.plugins import load_registry
registry = load_registry(sys.argv[1:])
print(";".join(m for m in HEAVY if m in sys.modules))
"""


def side_effects(subject: Subject) -> str:
    """Returns how many settings were watched: building, calling and stepping change none of the process."""
    inputs, before = subject.inputs(33, subject.dtype), switches()
    subject.gradients(subject.build(), inputs)  # may import: that may add to the environment, but turn no switch
    seals, kept = seal(), _surroundings()
    module: Any = subject.build()
    random_state = _random_states()
    subject.value(module, inputs)
    subject.gradients(module, inputs)
    if hasattr(module, "step") and hasattr(module, "initial_state") and subject.spec.len_multiple == 1:
        state = module.initial_state(inputs.x.shape[0], inputs.x.device, inputs.x.dtype)
        subject.decode(module, inputs, state)
        if hasattr(module, "prefill"):
            subject.prefill(module, inputs)
    if hasattr(module, "forward_at"):
        subject.at(module, inputs, torch.zeros_like(inputs.tokens[:, :1]))
    require_same(random_state, _random_states(), "forward, backward or step")
    require_same({**before, **kept}, {**switches(), **_surroundings()}, "building, calling or stepping")
    replaced = broken_seals(seals)
    if replaced:
        raise BrokenPromise(f"it replaced {', '.join(replaced[:3])}: what measures a mixer is not the mixer's")
    watched = len(before) + len(kept) + len(random_state)
    return f"{watched} settings of the process, {len(seals):,} functions of torch and the harness"


def switches() -> dict[str, Any]:
    """Returns what decides how every mixer of the process computes."""
    backends = torch.backends
    return {
        "the number of threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "the default dtype": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "TF32": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "cuDNN's benchmark mode": backends.cudnn.benchmark,
        "the working directory": os.getcwd(),
        "numpy's error state": np.geterr(),
    }


def require_same(before: dict[str, Any], after: dict[str, Any], who: str) -> None:
    """Breaks the promise where a setting changed."""
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise BrokenPromise(f"{who} changed {', '.join(changed)}: other mixers in the process would run differently")


def _surroundings() -> dict[str, Any]:
    return {
        "environment variables": dict(os.environ),
        "sys.path": list(sys.path),
        "the recursion limit": sys.getrecursionlimit(),
    }


def _random_states() -> dict[str, Any]:
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch's random state": torch.random.get_rng_state().numpy().tobytes(),
        "CUDA's random state": [state.numpy().tobytes() for state in on_gpu],
        "numpy's random state": str(np.random.get_state()),
        "Python's random state": random.getstate(),
    }


def scratch(subject: Subject) -> str:
    """Returns what was tried: memory that torch.empty hands out full of NaN does not reach a result."""
    module, inputs = subject.build(), subject.inputs(63, subject.dtype)
    was_on, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    results = []
    try:
        for filled in (False, True):
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
            results.append({"output": subject.value(module, inputs), **subject.gradients(module, inputs)})
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
    for name, wanted in results[0].items():
        what = f"{name} with NaN in uninitialised memory"
        require_close(results[1][name], wanted, subject.twice_error, what)
    return f"output and {len(results[0]) - 1} gradients with NaN in uninitialised memory"


def listing(subject: Subject) -> str:
    """Returns what was imported: finding and describing the plugin imports neither torch nor another heavy library."""
    origin = subject.registry.origin(subject.spec)
    from_file = origin.version == FILE
    files = [str(Path(path).resolve()) for path in subject.registry.files] if from_file else []
    environment = {**os.environ, ONLY: "" if from_file else origin.plugin}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", LISTING, *files],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LISTING_S,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise BrokenPromise(f"listing the plugin in a fresh process failed: {' '.join(last)}")
    heavy = done.stdout.strip().splitlines()[-1:]
    if heavy and heavy[0]:
        raise BrokenPromise(
            f"listing imports {heavy[0].replace(';', ', ')}: import it inside build(), or every command becomes slow"
        )
    return "neither torch nor triton"
