"""Planted cheats that change their process, or end it: see cheats.py."""

from cheats import cheat, whole

# changes the process, so it gets one of its own
PROCESS = (
    cheat(
        "draws from the global random generator in evaluation",
        "side_effects",
        """
        def mix(self, x):
            torch.rand(1)
            return super().mix(x)
        """,
    ),
    cheat(
        "changes the number of threads",
        "side_effects",
        """
        def mix(self, x):
            torch.set_num_threads(torch.get_num_threads() + 1)
            return super().mix(x)
        """,
    ),
    cheat(
        "lets TF32 in for everybody",
        "side_effects",
        """
        def mix(self, x):
            torch.set_float32_matmul_precision("medium")
            return super().mix(x)
        """,
    ),
    cheat(
        "patches the clock in forward",
        "side_effects",
        """
        def mix(self, x):
            import time

            time.perf_counter_ns = lambda: 0
            return super().mix(x)
        """,
    ),
    whole(
        "imports torch when it is listed",
        "listing",
        """
        import torch

        def build(config):
            return honest()[0](config)
        """,
    ),
)

# the process dies of it, or must be stopped: the record says why, and the other mixers go on
FATAL = (
    whole(
        "patches torch.cuda.synchronize on import",
        "a plugin replaced torch.cuda.synchronize",
        """
        def build(config):
            import torch

            torch.cuda.synchronize = lambda device=None: None
            return honest()[0](config)
        """,
    ),
    cheat(
        "segfaults",
        "killed by SIGSEGV; last heard at",
        """
        def mix(self, x):
            import ctypes

            ctypes.string_at(0)
        """,
    ),
    cheat(
        "hangs",
        "its time limit (limits.trial_minutes); last heard at",
        """
        def mix(self, x):
            import threading

            threading.Event().wait()
        """,
    ),
    cheat(
        "allocates without end",
        "over its limit of 1 GiB (limits.memory_gib); last heard at",
        """
        def mix(self, x):
            import time

            hoard = []
            while True:
                hoard.append(bytearray(b"x") * (32 << 20))
                time.sleep(0.01)
        """,
    ),
    cheat(
        "leaves the process in the middle",
        "exit code 0 before its record was written",
        """
        def mix(self, x):
            import os

            os._exit(0)
        """,
    ),
    cheat(
        "raises SystemExit",
        "SystemExit",
        """
        def mix(self, x):
            raise SystemExit(0)
        """,
    ),
)
