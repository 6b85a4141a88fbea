"""UTD-MHAD: 27 actions as film, depth, skeleton and the numbers of a worn sensor."""

import io
import re
from functools import partial
from itertools import product
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.gathering import Gathering, Place
from pipelines.corpora.matlab import read_array
from pipelines.corpora.reading import Note, Read, RowDict
from pipelines.corpora.tree import VIDEO, Tree
from pipelines.experiment import InputError
from pipelines.sections import Section

ACTIONS = (
    *("swipe left", "swipe right", "wave", "clap", "throw", "cross arms", "basketball shoot"),
    *("draw x", "draw circle clockwise", "draw circle counter clockwise", "draw triangle"),
    *("bowling", "boxing", "baseball swing", "tennis swing", "arm curl", "tennis serve", "push"),
    *("knock", "catch", "pick up and throw", "jog", "walk", "sit to stand", "stand to sit"),
    *("lunge", "squat"),
)
SUBJECTS, TRIALS = 8, 4
REMOVED = frozenset({"a8_s1_t4", "a23_s6_t4", "a27_s8_t4"})
"""Three recordings were damaged and are not handed out: 861 are."""

KINECT_HZ, INERTIAL_HZ = 30.0, 50.0
GRID = (12, 16)
"""Rows and columns of the cells that depth is averaged over."""

_NAME = re.compile(r"a(\d{1,2})_s([1-8])_t([1-4])_(skeleton|inertial|depth|color)")


class Options(Section):
    """Who of the odd subjects validate, and whether depth is read as well, which takes minutes."""

    valid: tuple[int, ...] = (7,)
    depth: bool = False


def read(tree: Tree, options: Options) -> Read:
    """A clip for each recording, with its sensors as streams; its film is not needed for them.

    Sensors are written as arrays beside the table: `skeleton` [T, 20, 3] in metres at 30 Hz,
    `inertial` [T, 6] (acceleration in g, angular velocity in degrees a second) at 50 Hz, and
    `depth` [T, 192], the mean in millimetres of what is measured in each of 12 x 16 cells, 0 where
    nothing is.

    Raises:
        InputError: A validating subject is even, or two files of one name differ.
    """
    if wrong := sorted(set(options.valid) - {1, 3, 5, 7}):
        raise InputError(
            f"source.options.valid: subject {wrong[0]} is not of the training half, 1, 3, 5 and 7"
        )
    gathering = Gathering(tree)
    recordings = _recordings(gathering)
    films = any("color" in kinds for kinds in recordings.values())
    if not films:
        said = "there are no films (..._color.avi)"
        gathering.read.notes.append(Note(kind="incomplete", message=said))
    for code, (action, subject, trial) in sorted(_all().items(), key=lambda each: each[1]):
        kinds = recordings.get(code, set())
        place = Place(clip=code, file=code)
        if not kinds:
            if recordings and code not in REMOVED:
                gathering.note(place, "missing", "there is no file of it")
            continue
        row = _sensors(gathering, place, kinds, options)
        if films:
            row.pop("end", None)
            row["media"] = gathering.media(place, [(f"{code}_color", VIDEO)])
        else:
            row |= {"media": str(tree.root / f"{code}_color.avi"), "start": 0.0}
        if films or "end" in row:
            split = "test" if subject % 2 == 0 else "valid" if subject in options.valid else "train"
            about = {"speaker": f"subject-{subject}", "split": split, "trial": f"trial-{trial}"}
            gathering.add(place, {**row, **about, "action": ACTIONS[action - 1]})
    return gathering.read


def _all() -> dict[str, tuple[int, int, int]]:
    numbers = product(range(1, len(ACTIONS) + 1), range(1, SUBJECTS + 1), range(1, TRIALS + 1))
    return {
        f"a{action}_s{subject}_t{trial}": (action, subject, trial)
        for action, subject, trial in numbers
    }


def _recordings(gathering: Gathering) -> dict[str, set[str]]:
    """Which files there are of each recording."""
    found: dict[str, set[str]] = {}
    for name in gathering.tree.names:
        if name.suffix.lower() not in (".mat", *VIDEO):
            continue
        told = _NAME.fullmatch(name.stem)
        if told is None or not 1 <= int(told[1]) <= len(ACTIONS):
            why = "its name is none of UTD-MHAD"
            gathering.read.notes.append(Note(kind="unlisted", file=str(name), message=why))
            continue
        found.setdefault(name.stem.removesuffix(f"_{told[4]}"), set()).add(told[4])
    return found


def _sensors(gathering: Gathering, place: Place, kinds: set[str], options: Options) -> RowDict:
    """The streams of a recording, and when the longest of them ends."""
    row: RowDict = {}
    ends = []
    for kind, rate_hz, variable in _STREAMS:
        if kind == "depth" and not options.depth:
            continue
        if kind not in kinds:
            gathering.note(place, "incomplete", f"there is no {place.clip}_{kind}.mat")
            continue
        name = gathering.find(place, [(f"{place.clip}_{kind}", (".mat",))])
        if name is None or gathering.tree.state(name) is not None:
            continue
        path = gathering.tree.root / name
        if kind == "depth":  # large, and made only when it is written
            array = None
            make = partial(_depth_bytes, path)
        else:
            array = _checked(gathering, place, name, variable, _WIDTHS[kind])
            if array is None:
                continue
            ends.append(len(array) / rate_hz)
            make = partial(_npy, array)
        file = f"streams/{place.clip}_{kind}.npy"
        gathering.read.files[file] = make
        row |= {f"stream:{kind}": file, f"stream:{kind}:hz": rate_hz}
    return {**row, "end": max(ends)} if ends else row


_STREAMS = (
    ("skeleton", KINECT_HZ, "d_skel"),
    ("inertial", INERTIAL_HZ, "d_iner"),
    ("depth", KINECT_HZ, "d_depth"),
)
_WIDTHS = {"skeleton": (20, 3), "inertial": (6,)}


def _checked(
    gathering: Gathering, place: Place, name: PurePath, variable: str, width: tuple[int, ...]
) -> NDArray[np.float32] | None:
    """The array of a file, time first; None, and a note, where it is not what it should be."""
    try:
        array = read_array(gathering.tree.root / name, variable)
        array = np.moveaxis(array, -1, 0) if len(width) > 1 else array
    except ValueError as error:
        gathering.note(place, "broken", f"{name} {error}")
        return None
    if array.shape[1:] != width or not len(array):
        found = f"{variable} is {array.shape}, time first; wanted {('T', *width)}"
        gathering.note(place, "broken", f"{name}: {found}")
        return None
    return np.ascontiguousarray(array, dtype=np.float32)


def _npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _depth_bytes(path: Path) -> bytes:
    try:
        return _npy(averaged(read_array(path, "d_depth")))
    except ValueError as error:
        raise InputError(f"{path} {error}; get it again") from None


def averaged(depth: NDArray[np.generic]) -> NDArray[np.float32]:
    """Depth [H, W, T] to [T, cells]: the mean of what is not 0 in each cell."""
    rows, columns = GRID
    height, width, steps = depth.shape
    if height % rows or width % columns:
        raise ValueError(f"d_depth is {depth.shape}, wanted (240, 320, T)")
    measured = depth.astype(np.float64)
    cells = measured.reshape(rows, height // rows, columns, width // columns, steps)
    counts = (cells > 0).sum(axis=(1, 3))
    means: NDArray[np.float64] = cells.sum(axis=(1, 3)) / np.maximum(counts, 1)
    return np.moveaxis(means, -1, 0).reshape(steps, -1).astype(np.float32)
