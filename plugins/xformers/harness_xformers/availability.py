"""Whether xformers runs here. The cheap questions come first; torch is imported only for the last ones."""

import ctypes
import importlib.util
import logging
import platform
import re
import sys
import warnings
from importlib import metadata
from types import ModuleType

from harness import InputError

PROBE_T, PROBE_WINDOW = 16, 8


def reason(mixer: str) -> str | None:
    """Returns why mixer/xformers cannot run here and the command that helps, or None where it can."""
    if importlib.util.find_spec("xformers") is None:
        return not_installed(mixer, platform.system(), platform.machine())
    if not has_driver():
        return no_device(mixer)
    import torch

    if not torch.cuda.is_available():
        return no_device(mixer)
    try:
        probe(mixer)
    except (ImportError, OSError, RuntimeError, InputError) as error:
        return no_operator(mixer, error, extension_failure())
    return None


def use_torch(mixer: str) -> str:
    """Returns what always helps."""
    return f"use {mixer}/torch: `harness run --mixer {mixer}/torch`"


def has_driver() -> bool:
    """Returns whether a CUDA driver can be loaded: the question that needs no torch, so that listings stay quick."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def no_device(mixer: str) -> str:
    """Returns the reason and the fix where there is no CUDA device."""
    return (
        f"xformers needs a CUDA device and torch {metadata.version('torch')} sees none; {use_torch(mixer)}, "
        "or check the driver with `nvidia-smi` and torch with `python -m torch.utils.collect_env`"
    )


def not_installed(mixer: str, system: str, machine: str) -> str:
    """Returns the reason and the fix where the package is missing."""
    if (system, machine) == ("Linux", "x86_64"):
        return "xformers is not installed; install it with `pip install xformers`"
    return f"xformers has wheels for Linux x86_64 only and this is {system} {machine}; {use_torch(mixer)}"


def no_operator(mixer: str, error: BaseException, extension: BaseException | None = None) -> str:
    """Returns the reason and the fix where xformers is installed but no operator accepts a small CUDA input.

    `extension` is why its C++ extension did not load, where that is known: the cause behind the cause.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    cause = next((line for line in lines if "build" in line or "built" in line), lines[0])
    while extension is not None and extension.__cause__ is not None:
        extension = extension.__cause__
    because = f"; its extension did not load: {extension}" if extension is not None else ""
    return f"xformers has no working CUDA operator ({cause}{because}); {fix(str(extension))}, or {use_torch(mixer)}"


def fix(failure: str) -> str:
    """Returns what helps against the failure to load the extension."""
    missing = re.search(r"libcudart\.so\.(\d+)", failure)
    if missing is None:
        return (
            "`python -m xformers.info` shows the torch and CUDA it was built for: install a build that fits with "
            "`pip install --upgrade xformers`"
        )
    package, folder = f"nvidia-cuda-runtime-cu{missing[1]}", "import nvidia.cuda_runtime as r; print(*r.__path__)"
    return (
        f"it was built for CUDA {missing[1]}, whose runtime is not here: `pip install {package}`, then "
        f"`export LD_LIBRARY_PATH=$(python -c '{folder}')/lib:$LD_LIBRARY_PATH`"
    )


def import_operators() -> ModuleType:
    """Returns `xformers.ops`, imported without its notice that the C++ extension does not fit this torch.

    The operators used here are torch's own; where xformers refuses them for want of the extension, `probe` says so.
    """
    if (loaded := sys.modules.get("xformers.ops")) is not None:
        return loaded  # the layer asks at every call
    logger = logging.getLogger("xformers")
    logger.addFilter(_is_not_extension_notice)
    try:
        with warnings.catch_warnings():  # it calls Triton in a deprecated way, which must not end a strict run
            warnings.simplefilter("ignore", DeprecationWarning)
            import xformers.ops
    finally:
        logger.removeFilter(_is_not_extension_notice)
    return xformers.ops  # type: ignore[no-any-return]


def extension_failure() -> BaseException | None:
    """Returns what xformers caught when it loaded its C++ extension, or None."""
    return getattr(sys.modules.get("xformers._cpp_lib"), "_cpp_library_load_exception", None)


def probe(mixer: str) -> None:
    """Raises what the mixer's operator raises where it cannot attend, forward and backward, on the CUDA device.

    Half precision: it is what every mixer here declares, and in float32 a window has no backward operator.
    """
    import torch

    from harness_xformers.operator import MemoryEfficientAttention, PackedDocuments

    like = {"device": "cuda", "dtype": torch.float16, "requires_grad": True}
    q, k, v = (torch.zeros(1, 1, PROBE_T, 32, **like) for _ in range(3))
    if mixer == "document_attention":
        y = PackedDocuments(separator=PROBE_WINDOW)(q, k, v, torch.arange(PROBE_T, device="cuda").unsqueeze(0))
    else:
        y = MemoryEfficientAttention(PROBE_WINDOW if mixer == "sliding_window" else None)(q, k, v)
    y.sum().backward()


def _is_not_extension_notice(record: logging.LogRecord) -> bool:
    return "can't load C++" not in record.getMessage()
