"""What `h3` declares."""

from dataclasses import dataclass
from typing import Any

from harness import InputError, MixerConfig, MixerSpec
from harness_zoo.options import FLOAT_BYTES


@dataclass(frozen=True)
class H3Options:
    """The options of `h3`. The published MQAR runs have d_state=length, head_dim=2."""

    d_state: str = "64"  # size of each state space, an even number, or "length": max_len
    head_dim: int = 1  # channels of a head, which keeps the products of all its pairs of key and value channels


def sizes_of(config: MixerConfig) -> tuple[int, int]:
    """Returns d_state and head_dim, or raises InputError where they do not fit the config."""
    options: H3Options = config.options or H3Options()
    D, hd = config.d_model, options.head_dim
    if hd < 1 or D % hd:
        divisors = ", ".join(str(n) for n in range(1, D + 1) if D % n == 0)
        raise InputError(f"h3: head_dim = {hd} does not divide d_model = {D}; choose one of {divisors}")
    if options.d_state == "length":
        return config.max_len + config.max_len % 2, hd  # conjugate pairs: an even number
    text = options.d_state
    if not (text.isascii() and text.isdecimal() and int(text) >= 2 and int(text) % 2 == 0):
        raise InputError(f"h3: d_state = {text!r}; choose length, or an even number of at least 2")
    return int(text), hd


def build(config: MixerConfig) -> Any:
    """Returns the fast layer."""
    from harness_zoo.h3.layer import H3

    return H3(config.d_model, *sizes_of(config))


def reference(config: MixerConfig) -> Any:
    """Returns the layer as two state spaces, one position at a time."""
    from harness_zoo.h3.reference import ReferenceH3

    return ReferenceH3(config.d_model, *sizes_of(config))


def state_bytes(config: MixerConfig, T: int) -> int:
    """Returns the bytes of the last N - 1 keys, and of N / 2 complex numbers for each of the D hd products."""
    N, hd = sizes_of(config)
    return (N - 1 + hd * N) * config.d_model * FLOAT_BYTES


H3 = MixerSpec(
    name="h3",
    summary="shift and diagonal state spaces with multiplicative gates",
    source="arXiv:2212.14052",
    build=build,
    reference=reference,
    options=H3Options,
    max_error={"float32": 1e-5},  # of the largest output: Fourier transforms add T float32 terms
    state_bytes=state_bytes,
)
