"""A copy of this process for one piece of work: it begins with all imports done, and nothing it allocates stays."""

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from harness.check.seals import require_unbroken, seal
from harness.errors import HarnessError

Result = TypeVar("Result")


def can_fork() -> bool:
    """Returns whether this system copies processes; macOS does, and its libraries do not survive it."""
    return sys.platform == "linux"


def in_a_copy(work: Callable[[], Result]) -> Result:
    """Returns what the work returns, JSON values, done in a copy of this process; an error there is raised here.

    Start no threads before: only the thread that asks is copied. A GPU's context does not survive the copy.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of other threads: numpy's sleep, and fork's users know
        pid = os.fork()
    if pid == 0:
        os.close(reader)
        _answer(work, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not text:
        raise HarnessError(f"a copy of the process ended without an answer, with status {status}")
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise HarnessError(answer["error"])
    result: Result = answer["result"]
    return result


def _answer(work: Callable[[], object], writer: int) -> None:
    """Writes the result to the pipe and ends the process."""
    try:
        before = seal()
        answer = {"result": work()}
        require_unbroken(before)
    except BaseException as error:  # sys.exit() of a plugin too
        traceback.print_exc()
        text = " ".join(str(error).split())
        answer = {"error": text if isinstance(error, HarnessError) else f"{type(error).__name__}: {text}".rstrip(": ")}
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(json.dumps(answer).encode())
    sys.stderr.flush()
    os._exit(0)
