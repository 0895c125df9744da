"""Whether xformers runs here. The cheap questions come first; torch is imported only for the last ones."""

import ctypes
import importlib.util
import logging
import platform
import sys
import warnings
from importlib import metadata
from types import ModuleType

USE_TORCH = "use attention/torch: `harness run --mixer attention/torch`"


def reason() -> str | None:
    """Returns why attention/xformers cannot run here and the command that helps, or None where it can."""
    if importlib.util.find_spec("xformers") is None:
        return not_installed(platform.system(), platform.machine())
    if not has_driver():
        return no_device()
    import torch

    if not torch.cuda.is_available():
        return no_device()
    try:
        operators = import_operators()
        probe(operators)
    except (ImportError, OSError, RuntimeError) as error:  # NotImplementedError, which xformers raises, is among them
        return no_operator(error, extension_failure())
    return None


def has_driver() -> bool:
    """Returns whether a CUDA driver can be loaded: the question that needs no torch, so that listings stay quick."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def no_device() -> str:
    """Returns the reason and the fix where there is no CUDA device."""
    return (
        f"xformers needs a CUDA device and torch {metadata.version('torch')} sees none; {USE_TORCH}, "
        "or check the driver with `nvidia-smi` and torch with `python -m torch.utils.collect_env`"
    )


def not_installed(system: str, machine: str) -> str:
    """Returns the reason and the fix where the package is missing."""
    if (system, machine) == ("Linux", "x86_64"):
        return "xformers is not installed; install it with `pip install xformers`"
    return f"xformers has wheels for Linux x86_64 only and this is {system} {machine}; {USE_TORCH}"


def no_operator(error: BaseException, extension: BaseException | None = None) -> str:
    """Returns the reason and the fix where xformers is installed but no operator accepts a small CUDA input.

    `extension` is why its C++ extension did not load, where that is known: the cause behind the cause.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    cause = next((line for line in lines if "build" in line or "built" in line), lines[0])
    while extension is not None and extension.__cause__ is not None:
        extension = extension.__cause__
    because = f"; its extension did not load: {extension}" if extension is not None else ""
    return (
        f"xformers has no working CUDA operator ({cause}{because}); `python -m xformers.info` shows the torch and CUDA "
        f"it was built for: install a build that fits with `pip install --upgrade xformers`, or {USE_TORCH}"
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


def probe(operators: ModuleType) -> None:
    """Raises what xformers raises where it cannot attend, forward and backward, on the CUDA device."""
    import torch

    q, k, v = (torch.zeros(1, 16, 1, 32, device="cuda", requires_grad=True) for _ in range(3))
    operators.memory_efficient_attention(q, k, v, attn_bias=operators.LowerTriangularMask()).sum().backward()


def _is_not_extension_notice(record: logging.LogRecord) -> bool:
    return "can't load C++" not in record.getMessage()
