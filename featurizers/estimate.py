"""Times of words that nobody measured: by their length, always marked as estimated. Pure."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Word

PACE_S = 0.4


def spread(spoken: Sequence[str], start: float, seconds: float) -> tuple[Word, ...]:
    """Words that share a span by their length in letters, each with the pause after it."""
    ends = list(itertools.accumulate(len(word) + 1 for word in spoken))
    scale = seconds / ends[-1] if ends else 0.0
    begins = [0, *ends][:-1]
    return tuple(
        Word(text=word, start=start + begin * scale, end=start + end * scale, estimated=True)
        for word, begin, end in zip(spoken, begins, ends, strict=True)
    )


def words_from_text(text: str, seconds: float, start: float = 0.0) -> tuple[Word, ...]:
    """Words of a bare text, spread over a duration."""
    spoken = text.split()
    # Words without media still need an order in time: a usual pace of speech stands in.
    return spread(spoken, start, seconds or PACE_S * len(spoken))


def words_in_voice(text: str, voiced: NDArray[np.float64]) -> tuple[Word, ...]:
    """Words of a bare text, spread over the spans in which somebody speaks.

    Letters are taken to come at one pace while there is voice, and none in the pauses. A word over
    which a pause would fall goes where its middle lies, and the words of each span then share it:
    no word lies in a pause, and what was said stays in order. A span may be too short for any.

    Args:
        text: The words; where there are none, none are given.
        voiced: [V, 2] in seconds, in order of time, apart from each other, V and the length of each
            more than 0.

    Raises:
        ValueError: There is no voice, or spans are out of order or without length.
    """
    if not len(voiced) or (np.diff(voiced.ravel()) < 0).any() or not (np.diff(voiced) > 0).all():
        raise ValueError(
            f"voiced spans are {voiced.tolist()[:4]}...; wanted one at least, in order of time, "
            f"each longer than 0; spread the words over the whole duration where there is no voice"
        )
    spoken = text.split()
    lengths = np.array([len(word) + 1 for word in spoken])
    middles = np.cumsum(lengths) - lengths / 2
    voice = np.cumsum(np.diff(voiced)[:, 0])
    place = np.searchsorted(voice, middles / max(1, lengths.sum()) * voice[-1], side="right")
    words: list[Word] = []
    for number, own in itertools.groupby(range(len(spoken)), key=place.tolist().__getitem__):
        begin, end = voiced[number].tolist()
        words += spread([spoken[i] for i in own], begin, end - begin)
    return tuple(words)
