from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.tasks.pile import slices

END = 5
VOCAB = 6


def by_definition(window):
    """Returns, for each target, whether its bigram ended earlier in the same document of the window; no cleverness."""
    answers = []
    for t in range(1, len(window)):
        answer = END not in window[t - 1 : t + 1]
        earlier = [s for s in range(1, t) if window[s - 1 : s + 1] == window[t - 1 : t + 1]]
        answers.append(answer and any(END not in window[s - 1 : t + 1] for s in earlier))
    return answers


@settings(max_examples=300, deadline=None)
@given(
    st.integers(2, 40).flatmap(lambda T: st.lists(st.lists(st.integers(0, END), min_size=T, max_size=T), min_size=1))
)
def test_repeated_bigrams_are_those_of_the_definition(windows):
    found = slices.repeated(np.array(windows), VOCAB, END)
    assert found.tolist() == [by_definition(window) for window in windows]


def test_an_example_read_by_eye():
    #          a  b  a  b  |  a  b  c  b  b  b
    window = [[0, 1, 0, 1, END, 0, 1, 2, 1, 1, 1]]
    assert slices.repeated(np.array(window), VOCAB, END).tolist() == [
        [False, False, True, False, False, False, False, False, False, True]
    ]


def test_nothing_is_remembered_from_another_window():
    windows = np.array([[0, 1, 2, 3], [0, 1, 2, 3]])
    assert not slices.repeated(windows, VOCAB, END).any()


def test_a_separator_ends_no_hit_even_when_it_repeats():
    windows = np.array([[0, END, 0, END, 0, END]])
    assert not slices.repeated(windows, VOCAB, END).any()


def test_large_vocabularies_do_not_overflow():
    top = 50_255
    windows = np.array([[top, top - 1, top, top - 1]], dtype=np.uint16)
    assert slices.repeated(windows, 50_257, 50_256).tolist() == [[False, False, True]]
    keys, counts = slices.count_bigrams(windows[0], 50_257, 50_256)
    assert slices.look_up(windows, 50_257, keys, counts).tolist() == [[2, 1, 2]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, END), max_size=80), st.integers(1, 17))
def test_bigram_counts_are_those_of_the_definition_whatever_the_block(tokens, block):
    keys, counts = slices.count_bigrams(np.array(tokens, np.uint16), VOCAB, END, block)
    expected = Counter((a, b) for a, b in pairwise(tokens) if END not in (a, b))
    assert {divmod(int(key), VOCAB): int(count) for key, count in zip(keys, counts, strict=True)} == expected
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    asked = np.array([[a, b] for a in range(VOCAB) for b in range(VOCAB)])
    answers = slices.look_up(asked, VOCAB, keys, counts)[:, 0]
    assert [expected.get((a, b), 0) for a, b in asked.tolist()] == answers.tolist()
