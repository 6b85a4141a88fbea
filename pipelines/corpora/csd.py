"""Labels of segments, and words with their times, in `.csd` files of the CMU Multimodal SDK."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.spoken import Spoken
from pipelines.exchange import csd
from pipelines.experiment import InputError

_PAUSES = frozenset({"", "sp"})


@dataclass(frozen=True, slots=True)
class Sequences:
    """What a file holds of each video.

    Attributes:
        dims: Names of the columns, where the file tells them.
        videos: Values [N, D] and intervals [N, 2] in seconds, by video.
    """

    dims: Sequence[str]
    videos: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def read_numbers(path: Path) -> Sequences:
    """A file of numbers: one root, `data/VIDEO/features` and `intervals`, and `metadata`.

    Raises:
        InputError: It is not laid out so, or is a pointer to a file that was not fetched.
    """
    with csd.Sequences.open(path) as file:
        videos = {
            name: (file.features(name).astype(np.float64), file.intervals(name))
            for name in file.entries
        }
        return Sequences(file.dims, videos)


def read_words(path: Path) -> dict[str, list[Spoken]]:
    """A file of words: for each video what is said, and from when to when; pauses are left out.

    Raises:
        InputError: As `read_numbers`, or it holds numbers.
    """
    found: dict[str, list[Spoken]] = {}
    with csd.Sequences.open(path) as file:
        for name in file.entries:
            words = file.features(name)
            if words.ndim != 1:
                raise InputError(f"{path}: {name}: wanted words, found numbers {words.shape}")
            spans = file.intervals(name).tolist()
            found[name] = [
                (str(word).strip(), start, end)
                for word, (start, end) in zip(words.tolist(), spans, strict=True)
                if str(word).strip() not in _PAUSES
            ]
    return found
