"""Some positions alone: the same outputs and gradients as among all, where a layer has `forward_at`."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.check.compare import require_close, require_equal_bits
from harness.check.numbers import require_close_gradients
from harness.check.promise import NotApplicable
from harness.check.subject import HALVES, B, Inputs, Subject
from harness.determinism import as_trained

LENGTH = 63
ASKED = (1, 9)  # positions of each sequence


def forward_at(subject: Subject) -> str:
    """Returns how many positions were asked for: what comes back for them is what forward returns there."""
    module: Any = subject.build(subject.exact)
    if not hasattr(module, "forward_at"):
        raise NotApplicable("no forward_at(): every position is computed, whichever are asked for")
    inputs, worst = subject.inputs(LENGTH), 0.0
    T = inputs.x.shape[1]
    for Q in ASKED:
        alone = partial(subject.at, positions=_positions(inputs, Q))
        among_all = partial(_chosen, subject, positions=_positions(inputs, Q))
        for training in (False, True):
            wanted = _results(subject, module.train(training), inputs, among_all)
            again = _results(subject, module, inputs, among_all)
            if training and not torch.equal(again["output"], wanted["output"]):
                continue  # dropout: masks are drawn for what is computed, so the two cannot be compared
            got = _results(subject, module, inputs, alone)
            worst = max(worst, _compared(subject, got, wanted, f"{Q} of {T} positions"))
    _require_repeatable(subject, partial(subject.at, positions=_positions(inputs, ASKED[-1])))
    asked = " and ".join(map(str, ASKED))
    return f"{asked} of {T} positions, output and {len(got) - 1} gradients: largest error {worst:.1g}"


def _positions(inputs: Inputs, Q: int) -> Tensor:
    """Returns int64 [B, Q], other ones in each sequence, ascending."""
    generator = torch.Generator().manual_seed(Q)
    T = inputs.x.shape[1]
    drawn = [torch.randperm(T, generator=generator)[:Q].sort().values for _ in range(B)]
    return torch.stack(drawn).to(inputs.x.device)


def _chosen(subject: Subject, module: nn.Module, inputs: Inputs, positions: Tensor) -> Tensor:
    rows = torch.arange(B, device=positions.device)[:, None]
    return subject.call(module, inputs)[rows, positions]


def _results(subject: Subject, module: nn.Module, inputs: Inputs, output: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        y = output(module, inputs)
    return {"output": y, **subject.gradients(module, inputs, output)}


def _compared(subject: Subject, got: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> float:
    output, expected = (found["output"].flatten(0, -2) for found in (got, wanted))
    error = require_close(output, expected, subject.exact_error, f"{what} against forward")
    slopes, expected_slopes = ({k: v for k, v in found.items() if k != "output"} for found in (got, wanted))
    half = subject.widest in HALVES
    return max(error, require_close_gradients(slopes, expected_slopes, subject.exact_error, half, what))


def _require_repeatable(subject: Subject, alone: Any) -> None:
    inputs = subject.inputs(LENGTH, subject.dtype)

    def run() -> dict[str, Tensor]:
        module = subject.build(seed=3).train()
        torch.manual_seed(4)
        return _results(subject, module, inputs, alone)

    runs = [as_trained(run) for _ in range(2)]
    for name, first in runs[0].items():
        require_equal_bits(runs[1][name], first, f"two runs from one seed, {name}")
