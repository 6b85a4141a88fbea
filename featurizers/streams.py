"""Which featurizer fits a file of numbers that belongs to a clip."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from featurizers import rows
from featurizers.skeletal import read_numbers
from featurizers.spec import Scalar
from featurizers.track import CONFIDENCES, FRAME, SUCCESS, TIMES, read_header

_TRACKERS = {*CONFIDENCES, SUCCESS, FRAME, "timestamp"}
_NO_NUMBERS = {*_TRACKERS, *TIMES, "", "face_id", "input", "approx_time"}


def fitting(path: Path) -> tuple[str, Mapping[str, Scalar]]:
    """A featurizer's name and its settings, the stream's name left out.

    A .skeleton file and an array of joints want `skeleton`, a CSV file with a tracker's columns
    `track` (with its action units where it has some, else with all), and all else `numbers`.

    Raises:
        BadClipError: "missing", or "bad_stream" with what is wrong.
        StorageError: It cannot be read now.
    """
    if path.suffix == ".skeleton":
        return "skeleton", {}
    if path.suffix == ".npy":
        shape = rows.read(path, lambda path: np.load(path, allow_pickle=False).shape)
        if len(shape) in (3, 4):
            persons = {"persons": int(shape[1])} if len(shape) == 4 else {}
            plane = {"coordinates": 2} if shape[-1] == 2 else {}
            return "skeleton", {"joints": int(shape[-2]), **persons, **plane}
    if path.suffix == ".csv":
        header = rows.read(path, read_header)
        if _TRACKERS & set(header):
            units = [name for name in header if re.fullmatch(r"AU\d+(_r)?", name)]
            chosen = units or [name for name in header if name not in _NO_NUMBERS]
            return "track", {"columns": ", ".join(chosen)}
    return "numbers", {"dims": read_numbers(path, 1.0)[0].shape[1]}
