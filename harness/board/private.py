"""What a record says of the machine it was measured on, without saying whose machine that is."""

import contextlib
import dataclasses
import getpass
import re
import socket
from collections.abc import Callable
from typing import Any

from harness.record import Record

# Everything else in `environment` stays at home; a test asks for a decision when device_facts learns a new key.
PUBLIC = (
    "device",
    "class",
    "name",
    "memory_mib",
    "driver",
    "cuda",
    "compute_capability",
    "power_limit_w",
    "clock_max_mhz",
    "mig",
    "cpu",
    "cores",
    "threads",
    "host_memory_mib",
    "python",
    "os",
    "libraries",
    "governor",
    "quota_cores",
    "memory_limit_mib",
)
ABSOLUTE = re.compile(r"(?:/|~|[A-Za-z]:[\\/]|\\\\|file:)")  # how an absolute path begins
INSIDE = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:[\\/]|/(?!(?:proc|sys|dev)/)[\w.@+-]+/)[^\s'\"]*[\w.]")
TOO_COMMON = {"root", "user", "admin", "localhost"}  # words of every machine: they tell nothing, and occur in prose
SHORTEST = 4


def public(record: Record) -> Record:
    """Returns the record without absolute paths, host names, user names, and unknown facts of the machine."""
    clean = _cleaner(_names())
    environment = {name: clean(value) for name, value in record.environment.items() if name in PUBLIC}
    return dataclasses.replace(
        record,
        config={**record.config, "options": clean(record.config.get("options"))},
        environment=environment,
        facts=clean(record.facts),
        plugin={name: clean(value) for name, value in record.plugin.items()},
    )


def _names() -> list[str]:
    """Returns the words that tell this machine or its user."""
    found = [socket.gethostname(), socket.gethostname().partition(".")[0]]
    with contextlib.suppress(OSError, KeyError):  # a user without a name, as in a container
        found.append(getpass.getuser())
    return [name for name in found if len(name) >= SHORTEST and name.lower() not in TOO_COMMON]


def _cleaner(names: list[str]) -> Callable[[Any], Any]:
    words = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)") if names else None

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if not isinstance(value, str):
            return value
        text = _last_part(value) if ABSOLUTE.match(value) else INSIDE.sub(lambda found: _last_part(found[0]), value)
        return words.sub("(private)", text) if words else text

    return clean


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or "(private)"
