"""Labels of segments in a `.csd` file of the CMU Multimodal SDK."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.exchange import csd


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
