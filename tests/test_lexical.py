"""Hashed words: equal spellings are equal, and nothing depends on the machine."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from featurizers.clip import BadClipError, Clip, Word
from featurizers.lexical import HashedWords
from featurizers.spec import AudioChunk

TEXTS = ("So", "it", "goes", "don't", "naïve")


def clip(texts, times=None):
    times = times or [(i / 2, i / 2 + 0.5) for i in range(len(texts))]
    words = tuple(
        Word(text=text, start=start, end=end)
        for text, (start, end) in zip(texts, times, strict=True)
    )
    return Clip(key="a", id="a", media="a", media_digest="", words=words)


def feature(*texts, dims=64):
    return HashedWords(dims=dims).begin(clip(texts)).finish()


def row(text, dims=64):
    return feature(text, dims=dims).values[0]


def slow(text, dims):
    """Add a sign for the word, twice, and one half for each of its groups of three letters."""
    letters = "".join(char for char in text.casefold() if char.isalnum())
    marked = f"<{letters}>"
    parts = {}
    for part in [f"part:{marked[i : i + 3]}" for i in range(len(letters))]:
        parts[part] = parts.get(part, 0.0) + 0.5
    parts[f"word:{letters}"] = 2.0
    values = np.zeros(dims)
    for part, weight in parts.items():
        number = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
        sign, place = number & 1, (number >> 1) % dims
        values[place] += weight if sign else -weight
    return values


@pytest.mark.parametrize("dims", [8, 64, 301])
@pytest.mark.parametrize("text", [*TEXTS, "a", "Mississippi"])
def test_a_word_is_what_the_slow_sum_says(text, dims):
    np.testing.assert_array_equal(row(text, dims), slow(text, dims).astype(np.float32))


def test_there_is_one_step_a_word_at_the_words_time():
    found = feature(*TEXTS)
    assert found.values.shape == (5, 64)
    assert found.values.dtype == np.float32
    assert found.times.tolist() == [[i / 2, i / 2 + 0.5] for i in range(5)]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Hello", "hello,"), ("don't", "dont"), ("STRASSE", "straße"), ("ﬁne", "fine"), ("…", "—")],
)
def test_case_marks_and_ligatures_make_no_difference(one, other):
    np.testing.assert_array_equal(row(one), row(other))


def test_different_words_differ_and_words_of_one_stem_are_nearer():
    def likeness(one, other):
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    walk, walked, stone = (row(text, 512) for text in ("walking", "walked", "stone"))
    assert likeness(walk, walked) > likeness(walk, stone) + 0.1
    assert not np.array_equal(row("naïve"), row("naive"))


def test_a_word_does_not_depend_on_its_neighbours():
    np.testing.assert_array_equal(feature(*TEXTS).values[2], row("goes"))


def test_words_without_letters_are_finite():
    assert np.isfinite(feature("...", "🙂", "").values).all()


def test_another_process_gives_the_same_numbers():
    program = (
        "from tests.test_lexical import feature, TEXTS; "
        "import sys; sys.stdout.buffer.write(feature(*TEXTS).values.tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={"PYTHONHASHSEED": "7", "LC_ALL": "C"},
        cwd=__file__.removesuffix("/tests/test_lexical.py"),
        timeout=60,
        check=True,
    )
    assert done.stdout == feature(*TEXTS).values.tobytes()


@pytest.mark.parametrize("words", [None, ()])
def test_no_words_are_empty(words):
    made = Clip(key="a", id="a", media="a", media_digest="", words=words)
    with pytest.raises(BadClipError) as caught:
        HashedWords().begin(made).finish()
    assert caught.value.fault == "empty"


def test_media_are_no_words():
    with pytest.raises(TypeError, match="reads no media"):
        HashedWords().begin(clip(TEXTS)).add(AudioChunk(0.0, np.zeros(1, np.int16)))


@pytest.mark.parametrize("dims", [7, 4097])
def test_widths_out_of_range_are_refused_with_the_range(dims):
    with pytest.raises(ValueError, match="wanted 8 to 4096"):
        HashedWords(dims=dims)
