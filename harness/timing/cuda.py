"""What only a CUDA device has: a cache to flush, operands to rotate, a graph to replay."""

from collections.abc import Callable
from statistics import median

import torch

from harness.timing.sample import Call, draw

ROTATE_CACHES = 3  # operands in turn fill so many times the cache, so that none is still there
MOST_ROTATIONS = 64
TYPICAL_CALLS = 5
SPIN_CYCLES = 1_000_000
HELD = 2.0  # times what the host takes to launch: a hiccup shall not empty the queue
CAPTURE_CALLS = 3  # on a side stream, before a capture: lazy initialisation must not be recorded


def cache_bytes(device: str) -> int:
    """Returns the size of the last-level cache of the GPU."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def rotations(device: str, operand_bytes: int) -> int:
    """Returns how many inputs take turns on the device; one on a CPU."""
    if torch.device(device).type != "cuda":
        return 1
    wanted = -(-ROTATE_CACHES * cache_bytes(device) // max(operand_bytes, 1))
    return max(1, min(wanted, MOST_ROTATIONS))


def flush(device: str) -> Callable[[], object]:
    """Returns a function that writes a buffer of twice the cache: what was in it is gone. It runs in the stream."""
    buffer = torch.empty(2 * cache_bytes(device), dtype=torch.uint8, device=device)
    return buffer.zero_


def cold(call: Call, device: str) -> Call:
    """Returns the call with the cache flushed before each sample, outside the timed window, and all launches queued.

    After the flush the device spins for as long as the host takes to launch the call: what is timed is the device.
    """
    launch_us = median(draw([call] * TYPICAL_CALLS, device)[2].tolist())
    empty, hold = flush(device), spin(HELD * launch_us / 1e3, device)

    def before() -> None:
        if call.before is not None:
            call.before()
        empty()
        hold()

    return Call(fn=call.fn, before=before, units=call.units)


def spin(delay_ms: float, device: str) -> Callable[[], object]:
    """Returns a function that keeps the device busy for so long, its launch included, and touches no memory."""
    sleep: Callable[[int], object] = torch.cuda._sleep

    def lasts_ms(*cycles: int) -> float:
        """Returns how long spins of so many cycles take behind one that keeps the device busy."""
        call = Call(fn=lambda: [sleep(n) for n in (SPIN_CYCLES, *cycles)])
        return float(median(draw([call] * TYPICAL_CALLS, device)[0]))

    # Behind work, as where it is planted: before an idle device the launch would last until the host is done with it.
    launch_ms = lasts_ms(1) - lasts_ms()  # a slowdown of 0.2 % may be shorter: then the launch alone is planted
    cycles_per_ms = SPIN_CYCLES / (lasts_ms(SPIN_CYCLES) - lasts_ms(1))
    cycles = max(1, int(cycles_per_ms * (delay_ms - launch_ms)))
    return lambda: sleep(cycles)


def graphed(call: Call, device: str) -> Call:
    """Returns the replay of the call as one CUDA graph: what is left when launches cost nothing.

    Raises whatever torch raises where the call cannot be captured: it copies from the host, say, or waits.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(CAPTURE_CALLS):
            call.fn()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    draws = torch.cuda.default_generators[torch.cuda.current_device()]
    before = draws.clone_state()  # an attempt that fails leaves the generator believing that it is recorded
    try:
        with torch.cuda.graph(graph):
            call.fn()
    except Exception:
        draws.graphsafe_set_state(before)
        raise
    held = call  # the inputs: the graph knows their addresses and does not keep them alive

    def replay(_: Call = held) -> None:
        graph.replay()

    return Call(fn=replay, units=call.units)
