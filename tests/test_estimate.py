"""Times of words that nobody measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.estimate import spread, words_from_text, words_in_voice


def told(words):
    return [(word.text, round(word.start, 3), round(word.end, 3)) for word in words]


def test_bare_words_are_spread_by_their_length_and_marked():
    words = words_from_text("a bcd", 3.0, start=1.0)
    assert told(words) == [("a", 1.0, 2.0), ("bcd", 2.0, 4.0)]
    assert all(word.estimated for word in words)
    assert words_from_text("  \n", 3.0) == ()
    assert spread([], 1.0, 2.0) == ()


def test_bare_words_without_a_duration_keep_an_order_in_time():
    starts = [word.start for word in words_from_text("one two three", 0.0)]
    assert starts == sorted(set(starts))


def test_words_lie_where_somebody_speaks():
    voiced = np.array([[1.0, 2.0], [5.0, 6.0]])
    assert told(words_in_voice("so it goes on", voiced)) == [
        ("so", 1.0, 1.5),
        ("it", 1.5, 2.0),
        ("goes", 5.0, 5.625),
        ("on", 5.625, 6.0),
    ]
    assert words_in_voice("", voiced) == ()


@st.composite
def spans(draw):
    """Spans of eighths of a second, in order and apart."""
    edges = sorted(draw(st.sets(st.integers(0, 80), min_size=2, max_size=8)))
    return np.array(edges[: len(edges) // 2 * 2], dtype=np.float64).reshape(-1, 2) / 8


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(spans(), st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=9))
def test_no_word_lies_in_a_pause_and_all_come_in_order(voiced, spoken):
    words = words_in_voice(" ".join(spoken), voiced)
    assert [word.text for word in words] == spoken
    at = 0.0
    for word in words:
        assert word.estimated
        assert at - 1e-9 <= word.start < word.end
        assert any(b - 1e-9 <= word.start and word.end <= e + 1e-9 for b, e in voiced)
        at = word.end


@pytest.mark.parametrize(
    "voiced", [np.zeros((0, 2)), np.array([[2.0, 3.0], [1.0, 1.5]]), np.array([[1.0, 1.0]])]
)
def test_spans_that_cannot_be_are_refused(voiced):
    with pytest.raises(ValueError, match="wanted one at least, in order of time"):
        words_in_voice("so", voiced)
