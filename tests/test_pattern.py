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


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("short_conv,,MIXER", "cannot read ''"),
        ("MIXER*0", "at least once"),
        ("MIXER(kernel=3)", "takes no options"),
        ("m(kernel)", "write OPTION=VALUE"),
        ("m(a=1,a=2)", "gives 'a' twice"),
        ("short conv", "cannot read 'short conv'"),
    ],
)
def test_a_wrong_pattern_says_what_is_wrong(pattern, says):
    with pytest.raises(InputError, match=says.replace("(", r"\(")):
        parse_layers(pattern, "m")


def test_a_mixer_name_takes_no_repetition():
    with pytest.raises(InputError, match="--layers"):
        parse_mixer("gla*2")
