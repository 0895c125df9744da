"""What one `harness time` or `harness compare` process is asked for. Standard library only."""

from dataclasses import dataclass

MODES = {
    "forward": "one layer, [B, T, D] to [B, T, D], no gradients",
    "train": "a whole training step of the model: forward, loss, backward, AdamW",
    "prefill": "the model over T tokens, logits of the last position",
    "decode": "one token through the model after T tokens of context",
}


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """The options of a process that times one mixer at one length."""

    modes: tuple[str, ...] = tuple(MODES)
    process: int = 0  # which of the repeated processes; it seeds the order of the modes
    max_s: float = 1.2  # of sampling a mode


@dataclass(frozen=True, kw_only=True)
class DuelOptions:
    """The options of a process that times two mixers against each other."""

    other: str = ""  # the second mixer; the first is the trial's own
    mode: str = "forward"
    process: int = 0
    duels: int = 1  # comparisons in this process, each with freshly built layers
    planted: float = 0.0  # added to every call of the second, as a share of the first's time: tests of the ruler
    max_s: float = 1.0  # of sampling a comparison
