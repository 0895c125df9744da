"""Mixers as text: `base_conv`, `gla/triton`, `base_conv(kernel=3)`, and layers `short_conv,MIXER*2`."""

import re
from dataclasses import dataclass, replace

from harness.errors import InputError

UNDER_TEST = "MIXER"
_CHOICE = re.compile(
    r"(?P<name>[A-Za-z]\w*)(?:/(?P<implementation>\w+))?(?:\((?P<settings>[^()]*)\))?(?:\s*\*\s*(?P<times>\d+))?"
)


@dataclass(frozen=True)
class MixerChoice:
    """A mixer as a user chose it: name, implementation (None: the preferred one), settings of its options."""

    name: str
    implementation: str | None = None
    settings: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Returns the canonical text, which `parse_mixer` reads back."""
        inside = ",".join(f"{key}={value}" for key, value in self.settings)
        return (
            self.name + (f"/{self.implementation}" if self.implementation else "") + (f"({inside})" if inside else "")
        )

    def pinned(self, implementation: str) -> "MixerChoice":
        """Returns the same choice with its implementation named."""
        return replace(self, implementation=implementation)


def parse_mixer(text: str) -> MixerChoice:
    """Returns the one mixer that `text` names."""
    choice, times = _parse(text)
    if times != 1:
        raise InputError(f"{text!r}: a repetition (*{times}) belongs into --layers, not into a mixer's name")
    return choice


def parse_layers(pattern: str, under_test: str) -> tuple[MixerChoice, ...]:
    """Returns one choice a layer, first layer first; the word MIXER stands for the mixer under test."""
    layers: list[MixerChoice] = []
    for part in re.split(r",(?![^()]*\))", pattern):
        choice, times = _parse(part)
        if choice.name == UNDER_TEST:
            if choice.implementation or choice.settings:
                raise InputError(f"layers {pattern!r}: {UNDER_TEST} takes no options there; give them with --mixer")
            choice = parse_mixer(under_test)
        layers.extend([choice] * times)
    return tuple(layers)


def _parse(text: str) -> tuple[MixerChoice, int]:
    match = _CHOICE.fullmatch(text.strip())
    if not match:
        raise InputError(
            f"cannot read {text!r}: write NAME, NAME/IMPLEMENTATION or NAME(OPTION=VALUE,…), e.g. base_conv(kernel=3)"
        )
    times = int(match["times"] or 1)
    if times < 1:
        raise InputError(f"{text!r}: a layer is repeated at least once")
    return MixerChoice(match["name"], match["implementation"], _settings(match["settings"] or "", text)), times


def _settings(inside: str, text: str) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in inside.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise InputError(f"cannot read {part!r} in {text!r}: write OPTION=VALUE")
        if key.strip() in pairs:
            raise InputError(f"{text!r} gives {key.strip()!r} twice")
        pairs[key.strip()] = value.strip()
    return tuple(sorted(pairs.items()))
