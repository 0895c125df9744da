import re

import pytest

from harness.errors import InputError
from harness.pattern import MixerChoice, parse_layers, parse_mixer


@pytest.mark.parametrize("text", ["gla", "gla/triton", "base_conv(kernel=3)", "gla/triton(a=1,b=x)"])
def test_canonical_text_reads_back_as_itself(text):
    assert str(parse_mixer(text)) == text


def test_settings_are_ordered_so_that_equal_choices_are_equal():
    assert parse_mixer("m(b=1, a=2)") == parse_mixer("m(a=2,b=1)")


def test_mixer_stands_for_the_mixer_under_test_and_stars_repeat():
    layers = parse_layers("short_conv,MIXER*2", "base_conv(kernel=3,filter=implicit)")
    under_test = MixerChoice("base_conv", None, (("filter", "implicit"), ("kernel", "3")))
    assert layers == (MixerChoice("short_conv"), under_test, under_test)


def names(pattern, under_test="m"):
    return "".join(str(choice)[0] for choice in parse_layers(pattern, under_test))


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("b*12,every=4:attention", "bbbabbbabbba"),
        ("b*8,every=8:attention", "bbbbbbba"),
        ("b*10,every=5 from=2:MIXER,every=5 from=3:window", "bmwbbbmwbb"),
        ("b*5,at=3:MIXER", "bbmbb"),
        ("b*5, at = 2 + 5 : a/torch", "babba"),
        ("s,b*4,every=1:a", "aaaaa"),
        ("MIXER*7,a,at=1:s", "smmmmmma"),
        ("b*48,every=16:a", ("b" * 15 + "a") * 3),
    ],
)
def test_positions_in_words_take_the_places_they_name(pattern, layers):
    assert names(pattern) == layers


def test_a_mixer_placed_in_words_takes_options():
    layers = parse_layers("b(kernel=3)*3,at=2:sliding_window(window=8,heads=2)", "m")
    assert list(map(str, layers)) == ["b(kernel=3)", "sliding_window(heads=2,window=8)", "b(kernel=3)"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("b*4,every=5:a", "every=5 does not fit the 4 layers, which are counted from 1"),
        ("b*4,every=2 from=5:a", "does not fit the 4 layers"),
        ("b*4,at=0:a", "at=0 does not fit"),
        ("b*4,at=2+9:a", "does not fit the 4 layers"),
        ("b*4,every=0:a", "every=0 does not fit"),
        ("b*4,every=2 from=0:a", "does not fit"),
        ("every=2:a", "has no layers to be placed in; write base_conv*12,every=4:attention"),
        ("b*4,each=2:a", "cannot read 'each=2'; write base_conv*12"),
        ("b*4,every=two:a", "cannot read 'every=two'"),
        ("b*4,at=2:a,every=2:c", "layer 2 is given to at=2 and to every=2"),
        ("b*4,at=2+2:a", "layer 2 is given to at=2+2 and to at=2+2"),
        ("b*4,every=2:a*2", "every=2 names the places, so 'a*2' is not repeated"),
        ("b*4,at=2:MIXER(k=3)", "takes no options"),
        ("b*4,at=2:", "cannot read ''"),
        ("b*4,at=2", "cannot read 'at=2'"),
        ("short_conv,,MIXER", "cannot read ''"),
        ("MIXER*0", "at least once"),
        ("MIXER(kernel=3)", "takes no options"),
        ("m(kernel)", "write OPTION=VALUE"),
        ("m(a=1,a=2)", "gives 'a' twice"),
        ("short conv", "cannot read 'short conv'"),
    ],
)
def test_a_wrong_pattern_says_what_is_wrong(pattern, says):
    with pytest.raises(InputError, match=re.escape(says)):
        parse_layers(pattern, "m")


def test_a_mixer_name_takes_no_repetition():
    with pytest.raises(InputError, match="--layers"):
        parse_mixer("gla*2")
