"""Mixers as text: `base_conv`, `gla/triton`, `base_conv(kernel=3)`, and layers `short_conv,MIXER*2`.

Layers in words: `base_conv*12,every=4:attention`, or `base_conv*12,every=5 from=2:MIXER,at=3+8:sliding_window`. The
parts without words are laid one after the other; each part with words then takes the places it names, counted from 1.
"""

import re
from dataclasses import dataclass, replace

from harness.errors import InputError

UNDER_TEST = "MIXER"
_CHOICE = re.compile(
    r"(?P<name>[A-Za-z]\w*)(?:/(?P<implementation>\w+))?(?:\((?P<settings>[^()]*)\))?(?:\s*\*\s*(?P<times>\d+))?"
)
_PLACED = re.compile(r"(?P<words>[a-z]+\s*=[^:()]*):(?P<mixer>.*)", re.DOTALL)
_EVERY = re.compile(r"every\s*=\s*(?P<step>\d+)(?:\s+from\s*=\s*(?P<first>\d+))?")
_AT = re.compile(r"at\s*=\s*(?P<places>\d+(?:\s*\+\s*\d+)*)")
WORDS_EXAMPLE = "base_conv*12,every=4:attention, or base_conv*12,every=5 from=2:attention,at=3+8:sliding_window"


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
    placed: list[tuple[str, str]] = []
    for part in re.split(r",(?![^()]*\))", pattern):
        match = _PLACED.fullmatch(part.strip())
        if match:
            placed.append((match["words"].strip(), match["mixer"]))
            continue
        choice, times = _parse(part)
        layers.extend([_resolved(choice, pattern, under_test)] * times)
    taken: dict[int, str] = {}
    for words, mixer in placed:
        choice, times = _parse(mixer)
        if times != 1:
            raise InputError(f"layers {pattern!r}: {words} names the places, so {mixer.strip()!r} is not repeated")
        for place in _places(words, len(layers), pattern):
            if place in taken:
                raise InputError(f"layers {pattern!r}: layer {place} is given to {taken[place]} and to {words}")
            taken[place] = words
            layers[place - 1] = _resolved(choice, pattern, under_test)
    return tuple(layers)


def _resolved(choice: MixerChoice, pattern: str, under_test: str) -> MixerChoice:
    if choice.name != UNDER_TEST:
        return choice
    if choice.implementation or choice.settings:
        raise InputError(f"layers {pattern!r}: {UNDER_TEST} takes no options there; give them with --mixer")
    return parse_mixer(under_test)


def _places(words: str, depth: int, pattern: str) -> list[int]:
    """Returns the layers, counted from 1, that `every=N`, `every=N from=M` or `at=A+B` name among `depth`."""
    if not depth:
        raise InputError(f"layers {pattern!r}: {words} has no layers to be placed in; write {WORDS_EXAMPLE}")
    every, at = _EVERY.fullmatch(words), _AT.fullmatch(words)
    if every:
        step = int(every["step"])
        first = int(every["first"] or step)
        places = list(range(first, depth + 1, step)) if step and first else [0]
    elif at:
        places = [int(place) for place in at["places"].split("+")]
    else:
        raise InputError(f"layers {pattern!r}: cannot read {words!r}; write {WORDS_EXAMPLE}")
    if not places or not all(1 <= place <= depth for place in places):
        raise InputError(f"layers {pattern!r}: {words} does not fit the {depth} layers, which are counted from 1")
    return places


def _parse(text: str) -> tuple[MixerChoice, int]:
    match = _CHOICE.fullmatch(text.strip())
    if not match:
        raise InputError(
            f"cannot read {text!r}: write NAME, NAME/IMPLEMENTATION or NAME(OPTION=VALUE,…), e.g. base_conv(kernel=3); "
            f"in --layers also {WORDS_EXAMPLE}"
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
