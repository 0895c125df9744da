"""Planted cheats and faults: each a tiny plugin that does one thing wrong, and where it must be caught.

Every source continues `HONEST`, a mixer that keeps its contract, and defines `build`.
"""

import textwrap
from dataclasses import dataclass

HONEST = '''
from functools import partial
from harness import MixerSpec, hookimpl


def honest():
    """The running mean of the past, projected. Imports torch on use, as listing must not."""
    import torch
    from torch import nn

    class Honest(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.out_proj = nn.Linear(config.d_model, config.d_model)

        def mix(self, x):
            counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
            return x.cumsum(1) / counts[:, None]

        def forward(self, x):
            return self.out_proj(self.mix(x))

        def initial_state(self, B, device, dtype):
            return torch.zeros(B, self.out_proj.in_features + 1, device=device, dtype=dtype)

        def step(self, x_t, state):
            state = state + torch.cat((x_t, torch.ones_like(x_t[:, :1])), dim=1)
            return self.out_proj(state[:, :-1] / state[:, -1:]), state

    class Reference(Honest):
        def mix(self, x):
            return torch.stack([x[:, : t + 1].mean(1) for t in range(x.shape[1])], dim=1)

    return Honest, Reference


def reference(config):
    return honest()[1](config)


@hookimpl
def harness_mixers():
    yield MixerSpec(
        name="cheat", summary="s", source="here", build=lambda config: build(config), reference=reference,
        max_error={"float32": 1e-5}, state_bytes=lambda config, T: 4 * (config.d_model + 1),
    )
'''

BUILD = """
def build(config):
    import torch
    from torch import nn

    Honest, _ = honest()

    class Cheat(Honest):
        {body}

    return Cheat(config)
"""


@dataclass(frozen=True)
class Cheat:
    """A wrongdoing in words, the promise that is broken by it, and the code."""

    name: str
    caught_by: str
    source: str


def cheat(name: str, caught_by: str, body: str) -> Cheat:
    inside = textwrap.indent(textwrap.dedent(body).strip(), "        ").lstrip()
    return Cheat(name, caught_by, HONEST + BUILD.replace("{body}", inside))


def whole(name: str, caught_by: str, source: str) -> Cheat:
    return Cheat(name, caught_by, HONEST + textwrap.dedent(source))


# caught by a promise of the kit, inside one process
KIT = (
    cheat(
        "looks at the future through a normalisation over time",
        "causality",
        """
        def forward(self, x):
            return super().forward((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True, correction=0) + 1))
        """,
    ),
    cheat(
        "looks at the future in training only",
        "causality",
        """
        def mix(self, x):
            past = super().mix(x)
            return past + 0.01 * x.mean(1, keepdim=True) if self.training else past
        """,
    ),
    cheat(
        "passes a gradient back from the future",
        "causality",
        """
        def mix(self, x):
            past = super().mix(x)
            total = x.sum(1, keepdim=True)
            return past + total - total.detach()
        """,
    ),
    cheat(
        "caches outputs by a hash of the input",
        "fresh",
        """
        def forward(self, x):
            key = hash(x.detach().cpu().numpy().tobytes())
            cache = self.__dict__.setdefault("cache", {})
            if torch.is_grad_enabled() or key not in cache:
                y = super().forward(x)
                if torch.is_grad_enabled():
                    return y
                cache[key] = y
            return cache[key].clone()
        """,
    ),
    cheat(
        "returns a stale output when the input buffer is reused",
        "fresh",
        """
        def forward(self, x):
            if torch.is_grad_enabled():
                return super().forward(x)
            seen = self.__dict__.setdefault("seen", {})
            key = (x.data_ptr(), tuple(x.shape), float(self.out_proj.weight.sum()))
            if key not in seen:
                seen.clear()
                seen[key] = (x, super().forward(x))
            return seen[key][1].clone()
        """,
    ),
    cheat(
        "hands out one output buffer again and again",
        "fresh",
        """
        def forward(self, x):
            y = super().forward(x)
            if torch.is_grad_enabled():
                return y
            buffers = self.__dict__.setdefault("buffers", {})
            kept = buffers.setdefault((tuple(y.shape), y.dtype), torch.empty_like(y))
            return kept.copy_(y)
        """,
    ),
    cheat(
        "finishes the output on a thread after forward has returned",
        "on_time",
        """
        def forward(self, x):
            import threading
            import time

            y = super().forward(x)
            if torch.is_grad_enabled():
                return y
            late = torch.zeros_like(y)
            threading.Thread(target=lambda: (time.sleep(0.01), late.copy_(y))).start()
            return late
        """,
    ),
    cheat(
        "returns a lazy tensor that computes when it is looked at",
        "shape",
        """
        def forward(self, x):
            class Lazy(torch.Tensor):
                pass

            return super().forward(x).as_subclass(Lazy)
        """,
    ),
    cheat(
        "drops to half precision inside",
        "reference",
        """
        def mix(self, x):
            return super().mix(x.to(torch.bfloat16)).to(x.dtype)
        """,
    ),
    whole(
        "drops to half precision in its reference too",
        "slope",
        """
        def build(config):
            import torch

            class Cheat(honest()[0]):
                def mix(self, x):
                    return super().mix(x).to(torch.bfloat16).to(x.dtype)

            return Cheat(config)

        reference = build
        """,
    ),
    whole(
        "allows itself a large error",
        "reference",
        """
        def build(config):
            return honest()[0](config)

        @hookimpl
        def harness_mixers():
            yield MixerSpec(
                name="cheat", summary="s", source="here", build=build, reference=reference, max_error={"float32": 0.1},
                state_bytes=lambda config, T: 4 * (config.d_model + 1),
            )
        """,
    ),
    cheat(
        "computes something else than its reference",
        "reference",
        """
        def mix(self, x):
            return super().mix(x) * 1.001
        """,
    ),
    whole(
        "declares a smaller state than it carries",
        "state_bytes",
        """
        def build(config):
            return honest()[0](config)

        @hookimpl
        def harness_mixers():
            yield MixerSpec(
                name="cheat", summary="s", source="here", build=build, reference=reference,
                state_bytes=lambda config, T: config.d_model,
            )
        """,
    ),
    cheat(
        "grows its state inside step",
        "state_bytes",
        """
        def initial_state(self, B, device, dtype):
            return [super().initial_state(B, device, dtype)]

        def step(self, x_t, state):
            y_t, now = super().step(x_t, state[0])
            return y_t, [now, *state[1:], x_t.clone()]
        """,
    ),
    cheat(
        "keeps its state in the layer instead",
        "isolation",
        """
        def initial_state(self, B, device, dtype):
            self.__dict__["hidden"] = super().initial_state(B, device, dtype)
            return ()

        def step(self, x_t, state):
            hidden = self.__dict__["hidden"]
            y_t, self.__dict__["hidden"] = super().step(x_t, hidden)
            return y_t, ()
        """,
    ),
    cheat(
        "decodes something else than it trains",
        "step",
        """
        def step(self, x_t, state):
            y_t, state = super().step(x_t, state)
            return y_t * 0.99, state
        """,
    ),
    cheat(
        "computes something else where positions are asked for",
        "forward_at",
        """
        def forward_at(self, x, positions):
            return self(x).take_along_dim(positions[:, :, None], 1) * 1.001
        """,
    ),
    cheat(
        "learns something else where positions are asked for",
        "forward_at",
        """
        def forward_at(self, x, positions):
            mean = self.mix(x).take_along_dim(positions[:, :, None], 1)
            return self.out_proj(mean.detach() + 0.5 * (mean - mean.detach()))
        """,
    ),
    cheat(
        "computes something else in prefill",
        "step",
        """
        def prefill(self, x):
            state = self.initial_state(x.shape[0], x.device, x.dtype)
            for x_t in x[:, 1:].unbind(1):
                _, state = self.step(x_t, state)
            return self(x), state
        """,
    ),
    cheat(
        "keeps more in prefill than it steps with",
        "state_bytes",
        """
        def prefill(self, x):
            sums = torch.cat((x, torch.ones_like(x[:, :, :1])), dim=2).cumsum(1)
            return self(x), sums[:, -1]
        """,
    ),
    cheat(
        "depends on its neighbours in the batch",
        "batch",
        """
        def mix(self, x):
            return super().mix(x) + 0.01 * x.mean(0, keepdim=True)
        """,
    ),
    cheat(
        "is not deterministic",
        "determinism",
        """
        def mix(self, x):
            noise = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(self.again()))
            return super().mix(x) + 1e-6 * noise

        def again(self):
            self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
            return self.__dict__["calls"]
        """,
    ),
    cheat(
        "reads uninitialised memory",
        "scratch",
        """
        def mix(self, x):
            y = torch.empty_like(x)
            y[:, 1:] = super().mix(x)[:, 1:]
            return y
        """,
    ),
    cheat(
        "has a parameter that learns nothing",
        "gradients",
        """
        def __init__(self, config):
            super().__init__(config)
            self.extra = nn.Parameter(torch.ones(3))
        """,
    ),
    cheat(
        "cannot be copied",
        "copies",
        """
        def __deepcopy__(self, memo):
            other = Cheat(config)
            return other
        """,
    ),
)
