"""A layer can be copied, saved and loaded, and is the same layer afterwards."""

import copy
import io

import torch

from harness.check.compare import require_equal_bits
from harness.check.promise import BrokenPromise
from harness.check.subject import Subject, load_weights


def copies(subject: Subject) -> str:
    """Returns the ways tried: deepcopy, a state dict into a fresh layer, torch.save and torch.load."""
    module, inputs = subject.build(), subject.inputs(63, subject.dtype)
    wanted = subject.value(module, inputs)
    require_equal_bits(subject.value(copy.deepcopy(module), inputs), wanted, "a deep copy")
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    try:
        weights = torch.load(buffer, map_location=subject.device, weights_only=True)
    except Exception as error:
        raise BrokenPromise(f"its state dict cannot be loaded with weights_only=True: {error}") from error
    fresh = subject.build(seed=11)
    fresh.load_state_dict(weights)
    require_equal_bits(subject.value(fresh, inputs), wanted, "a fresh layer with the saved weights")
    again = subject.build(seed=12)
    load_weights(again, module, "a fresh layer")
    require_equal_bits(subject.value(again, inputs), wanted, "a fresh layer with the state dict")
    return "deepcopy, state dict, torch.save"
