"""Labels of segments in a `.csd` file of the CMU Multimodal SDK."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.tree import state
from pipelines.experiment import InputError


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
    import h5py

    wrong = state(path)
    if wrong is not None:
        raise InputError(f"{path}: is {wrong}: fetch the file itself")
    try:
        with h5py.File(path, "r") as file:
            (root,) = file.values()
            videos = {
                str(name): (
                    np.array(each["features"], dtype=np.float64),
                    np.array(each["intervals"], dtype=np.float64),
                )
                for name, each in root["data"].items()
            }
            dims = _dims(root)
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not a computational sequence of the CMU SDK (root/data/VIDEO/features and "
            f"intervals): {error}"
        ) from None
    for name, (values, intervals) in videos.items():
        if values.ndim != 2 or intervals.shape != (len(values), 2):
            raise InputError(
                f"{path}: {name}: features are {values.shape} and intervals {intervals.shape}; "
                f"wanted [N, D] and [N, 2]"
            )
    return Sequences(dims, videos)


def _dims(root: Mapping[str, Mapping[str, NDArray[np.void]]]) -> list[str]:
    import json

    told = root.get("metadata", {}).get("dimension names")
    if told is None:
        return []
    text = np.asarray(told).reshape(-1)[0]
    try:
        names = json.loads(text if isinstance(text, str) else bytes(text))
    except (ValueError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
