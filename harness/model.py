"""The model around a mixer: embed, N x (norm, mixer, norm, channel mixer), norm, tied head. Pre-norm, residual."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config import ModelConfig
from harness.errors import InputError
from harness.pattern import parse_layers
from harness.plugins import Registry
from harness.spec import MixerConfig, MixerSpec

EMBEDDING_STD = 0.02


class SwiGLU(nn.Module):
    """Returns down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * hidden, bias=False)
        self.out_proj = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., D] from [..., D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate) * up)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: x + mixer(norm(x)), then x + channel_mixer(norm(x)) where there is one."""

    def __init__(self, mixer: nn.Module, spec: MixerSpec, config: ModelConfig) -> None:
        super().__init__()
        D = config.d_model
        self.norm = nn.LayerNorm(D)
        self.mixer = mixer
        self.needs_tokens = spec.needs_tokens
        if config.channel_mixer == "swiglu":
            self.channel_norm: nn.LayerNorm | None = nn.LayerNorm(D)
            self.channel_mixer: SwiGLU | None = SwiGLU(D, config.expansion * D)
        else:
            self.channel_norm = self.channel_mixer = None

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Returns [B, T, D] from x [B, T, D] and tokens [B, T]."""
        return self._channel(self._mixed(x, tokens))

    def forward_at(self, x: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
        """Returns the rows [R, D] of what `forward` returns; those of a mixer with `forward_at` are all it computes.

        Rows are int64 [R], numbered through; as [B, Q], the same numbers, every sequence has as many.
        """
        if rows.dim() == 1 or not hasattr(self.mixer, "forward_at"):
            # chosen before what follows: neither it nor its gradient is then taken at positions that nobody asks for
            return self._channel(rows_of(self._mixed(x, tokens), rows))
        (_, T, D), (B, Q) = x.shape, rows.shape
        skipped = rows_of(x, rows)  # before the mixer: backward comes to it last, so its gradient is not kept meanwhile
        y = self.mixer.forward_at(self.norm(x), rows % T, *((tokens,) if self.needs_tokens else ()))  # type: ignore[operator]
        _require_shape(y, (B, Q, D), f"{tuple(x.shape)} at {Q} position{'s' if Q > 1 else ''}")
        return self._channel(skipped + y.flatten(0, 1))

    def step(self, x_t: Tensor, state: Any, tokens_t: Tensor) -> tuple[Tensor, Any]:
        """Returns ([B, D], state) from x_t [B, D], the state of this layer and tokens_t [B]."""
        tokens = (tokens_t,) if self.needs_tokens else ()
        y_t, state = self.mixer.step(self.norm(x_t), state, *tokens)  # type: ignore[operator]
        return self._channel(x_t + y_t), state

    def prefill(self, x: Tensor, tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """Returns ([B, T, D], the state after x) from x [B, T, D] and tokens [B, T]: in one pass where a mixer can."""
        if hasattr(self.mixer, "prefill"):
            y, state = self.mixer.prefill(self.norm(x), *((tokens,) if self.needs_tokens else ()))  # type: ignore[operator]
            return self._channel(x + y), state
        state, outputs = self.mixer.initial_state(x.shape[0], x.device, dtype), []  # type: ignore[operator]
        for x_t, tokens_t in zip(x.unbind(1), tokens.unbind(1), strict=True):
            y_t, state = self.step(x_t, state, tokens_t)
            outputs.append(y_t)
        return torch.stack(outputs, dim=1), state

    def _mixed(self, x: Tensor, tokens: Tensor) -> Tensor:
        h = self.norm(x)
        y = self.mixer(h, tokens) if self.needs_tokens else self.mixer(h)
        _require_shape(y, tuple(x.shape), f"{tuple(x.shape)}")
        return x + y  # type: ignore[no-any-return]

    def _channel(self, x: Tensor) -> Tensor:
        if self.channel_mixer is None or self.channel_norm is None:
            return x
        return x + self.channel_mixer(self.channel_norm(x))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """A decoder whose time mixing is the mixers under test."""

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        blocks: list[Block],
        specs: list[MixerSpec],
        mixer_configs: list[MixerConfig],
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.d_model)
        self.specs = specs
        self.mixer_configs = mixer_configs
        self.not_deterministic: str | None = None  # the operation of a training step that has no deterministic kernel

    def forward(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns the hidden state [B, T, D] after the last norm, from tokens [B, T].

        With rows, int64 [R], it is that of those of the B * T positions only, [R, D]. Rows [B, Q], the same numbers,
        say that every sequence has as many: a mixer with `forward_at` then computes no others in the last layer.
        """
        x = self.dropout(self.embedding(tokens))  # [B, T, D]
        *before, last = self.layers
        for block in before:
            x = block(x, tokens)
        x = last(x, tokens) if rows is None else last.forward_at(x, tokens, rows)  # type: ignore[operator]
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns [..., V] from hidden [..., D]; the head is the embedding (tied)."""
        return F.linear(hidden, self.embedding.weight)

    @property
    def can_step(self) -> bool:
        """Returns whether every layer decodes token by token."""
        return all(hasattr(b.mixer, "step") and hasattr(b.mixer, "initial_state") for b in self.layers)

    def initial_state(self, B: int, device: torch.device | str, dtype: torch.dtype) -> list[Any]:
        """Returns the state before the first token, one entry a layer."""
        return [block.mixer.initial_state(B, device, dtype) for block in self.layers]  # type: ignore[union-attr, operator]

    def prefill(self, tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Any]]:
        """Returns (hidden state [B, T, D] after the last norm, the state after tokens [B, T]), layer by layer."""
        x, state = self.embedding(tokens), []  # [B, T, D]
        for block in self.layers:
            x, layer_state = block.prefill(x, tokens, dtype)  # type: ignore[operator]
            state.append(layer_state)
        return self.norm(x), state

    def step(self, tokens_t: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """Returns (logits [B, V], state) from the next tokens [B] and the state."""
        x_t = self.embedding(tokens_t)  # [B, D]
        new = []
        for block, layer_state in zip(self.layers, state, strict=True):
            x_t, layer_state = block.step(x_t, layer_state, tokens_t)  # type: ignore[operator]
            new.append(layer_state)
        return self.logits(self.norm(x_t)), new

    def auxiliary_loss(self) -> Tensor | None:
        """Returns the sum of the mixers' auxiliary losses, or None where no mixer has one."""
        losses = [b.mixer.auxiliary_loss() for b in self.layers if hasattr(b.mixer, "auxiliary_loss")]  # type: ignore[operator]
        return torch.stack(losses).sum() if losses else None


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """Returns the rows [R, D] of x [B, T, D], numbered through, ascending, each once; all of them without a copy."""
    flat = x.flatten(0, 1)
    return flat if rows.numel() == flat.shape[0] else flat.index_select(0, rows.flatten())


def _require_shape(y: Tensor, shape: tuple[int, ...], given: str) -> None:
    if y.shape != shape:
        raise InputError(f"the mixer returned shape {tuple(y.shape)} for input {given}; it must be {shape}")


def operators_by_layer(model: LanguageModel) -> list[str | None]:
    """Returns the kernels that each layer, or a part of it, says it ran last; None where it leaves that to torch."""
    return [_operator(block.mixer) for block in model.layers]  # type: ignore[arg-type]


def _operator(mixer: nn.Module) -> str | None:
    names = [getattr(part, "operator", None) for part in mixer.modules()]  # an attribute of that name may be no name
    return "; ".join(dict.fromkeys(name for name in names if isinstance(name, str))) or None


def build_model(
    config: ModelConfig, under_test: str, vocab_size: int, max_len: int, registry: Registry
) -> LanguageModel:
    """Returns a freshly initialised model; seed torch first: the weights come from its generator."""
    if config.channel_mixer not in ("none", "swiglu"):
        raise InputError(f"model.channel_mixer is {config.channel_mixer!r}; choose none or swiglu")
    choices = [registry.mixer(str(choice)) for choice in parse_layers(config.layers, under_test)]
    blocks: list[Block] = []
    specs: list[MixerSpec] = []
    mixer_configs: list[MixerConfig] = []
    for layer, choice in enumerate(choices):
        spec = registry.spec(choice)
        built = MixerConfig(
            d_model=config.d_model,
            max_len=max_len,
            layer=layer,
            n_layers=len(choices),
            options=registry.options(choice),
        )
        mixer = spec.build(built)
        initialise(mixer, config.init_std)
        blocks.append(Block(mixer, spec, config))
        specs.append(spec)
        mixer_configs.append(built)
    model = LanguageModel(config, vocab_size, blocks, specs, mixer_configs)
    _initialise_model(model, config.init_std)
    return model


def initialise(module: nn.Module, std: float) -> None:
    """Draws the linear weights from N(0, std), biases zero; a plugin's other parameters keep its own values."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _initialise_model(model: LanguageModel, std: float) -> None:
    nn.init.normal_(model.embedding.weight, std=EMBEDDING_STD)
    n_residual = 2 * len(model.layers)
    for block in model.layers:
        if isinstance(block.channel_mixer, SwiGLU):
            initialise(block.channel_mixer, std)
    for name, parameter in model.named_parameters():
        if name.endswith("out_proj.weight"):  # GPT-2's scaling of what is added to the residual stream
            with torch.no_grad():
                parameter.mul_(n_residual**-0.5)
