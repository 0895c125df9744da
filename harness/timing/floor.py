"""The least a mode must do: bytes that any implementation moves and operations that it counts, against the ceilings."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from harness.timing.workload import LABEL_EVERY, VOCAB, Workload

COUNTER, DECLARED = "torch.utils.flop_counter", "the spec's flops()"
BACKWARD = 2  # a backward pass has two products for each one of the forward pass
ADAMW_PASSES = 7  # weights, gradients and two moments read; weights and two moments written
TOKEN_BYTES = 8


def counted_flops(fn: Callable[[], object]) -> int | None:
    """Returns the operations of products, convolutions and attention in one call; None where none was seen.

    Kernels that torch does not know, Triton's among them, count as nothing; causal attention counts as if it were full.
    """
    from torch.utils.flop_counter import FlopCounterMode  # a tenth of a second that no other worker should pay

    counter = FlopCounterMode(display=False, custom_mapping=_cpu_attention())
    with contextlib.suppress(Exception), counter:  # a plugin's op may not survive being watched
        fn()
        return int(counter.get_total_flops()) or None
    return None


def flops(work: Workload, mode: str, fn: Callable[[], object], units: int) -> tuple[int | None, str | None]:
    """Returns (operations of one call of the mode, who counted them); the specs' own formulas go before the counter.

    A formula counts one layer over T tokens of one sequence; the products of the rest of the model are added.
    """
    model = work.layer if mode == "forward" else work.model
    layers = list(zip(model.specs, model.mixer_configs, strict=True))
    if mode == "decode" or any(spec.flops is None for spec, _ in layers):
        found = counted_flops(fn)
        return (None, None) if found is None else (found // units, COUNTER)
    declared = work.B * sum(int(spec.flops(config, work.T)) for spec, config in layers if spec.flops is not None)
    if mode == "forward":
        return declared, DECLARED
    rows = work.B if mode == "prefill" else work.B * work.T // LABEL_EVERY
    forward = declared + 2 * rows * work.D * VOCAB + _channel_flops(work)
    return forward * (1 + BACKWARD if mode == "train" else 1), DECLARED


def least_bytes(work: Workload, mode: str) -> int:
    """Returns the bytes that every implementation must move: weights, input, output, and in decode the state."""
    size = torch.finfo(torch.float32).bits // 8
    if mode == "forward":
        layer: Any = work.layer.layers[0]
        return _weight_bytes(layer.mixer) + 2 * work.B * work.T * work.D * size
    weights = _weight_bytes(work.model)
    if mode == "train":
        return (1 + BACKWARD + ADAMW_PASSES) * weights + work.B * work.T * TOKEN_BYTES
    tokens = work.B * (work.T if mode == "prefill" else 1) * TOKEN_BYTES
    state = sum(work.state_bytes) if mode == "decode" else 0
    return weights + state + tokens + work.B * VOCAB * size


def _channel_flops(work: Workload) -> int:
    mixers = [block.channel_mixer for block in work.model.layers]
    linear = [
        m for mixer in mixers if isinstance(mixer, nn.Module) for m in mixer.modules() if isinstance(m, nn.Linear)
    ]
    return 2 * work.B * work.T * sum(m.in_features * m.out_features for m in linear)


def _weight_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _cpu_attention() -> dict[Any, Any]:
    """Returns the formulas of attention on CPU, which torch's counter does not know."""

    from torch.utils.flop_counter import sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
        # five products, where the forward pass has two
        return 5 * int(sdpa_flop_count(query, key, value)) // 2  # type: ignore[no-untyped-call]

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
