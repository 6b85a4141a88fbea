"""Joints of bodies over time: NTU RGB+D's .skeleton files, and arrays."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizers import rows
from featurizers.clip import BadClipError, Clip
from featurizers.spec import Chunk, Dim, Feature, FeatureSpec

AXES = ("x", "y", "z")
KINECT_HZ = 30.0
BODY = 10  # numbers that describe a body in a .skeleton file, its identity first
JOINT = 12  # numbers for each joint: x, y, z, seven more, and at last how it is tracked
TRACKED = 2  # 1 is inferred, 0 is not tracked


class Skeleton:
    """Where the joints of one or more bodies are.

    A `.skeleton` file is as NTU RGB+D has it (Shahroudy et al. 2016): coordinates in metres from
    the camera, 30 frames a second unless the clip gives another rate. Bodies stand in the order of
    how many frames they are in, the first seen first where that is equal; more than `persons` are
    left out. A `.npy` file is [T, joints, C] or [T, persons, joints, C] at the clip's rate, where C
    is the coordinates and may have a confidence behind them.

    Beside its coordinates each joint has `seen`: in a .skeleton file 1 where it is tracked, 0.5
    where it is inferred, else 0; in an array its confidence, or 1 where all its coordinates are
    numbers and 0 where one is NaN. Where a joint is not seen its coordinates are those of a
    straight line between the frames beside that it is seen in, and 0 when it never is. So nothing
    is ever NaN. The promise is exact.

    Args:
        stream: The stream's name, as in the column `stream:NAME` of the table of clips.
        joints: Of each body; 25 in NTU RGB+D.
        persons: Bodies; where there are fewer, all of the others' numbers are 0.
        coordinates: 3, or 2 in a picture.
    """

    wants = None

    def __init__(
        self, *, stream: str, joints: int = 25, persons: int = 1, coordinates: int = 3
    ) -> None:
        if not stream or not 1 <= joints <= 1024 or not 1 <= persons <= 8:
            raise ValueError(
                f"skeleton: stream is {stream!r}, joints is {joints} and persons is {persons}; "
                f"wanted a name, 1 to 1024 and 1 to 8"
            )
        if coordinates not in (2, 3):
            raise ValueError(f"skeleton: coordinates is {coordinates}; wanted 2 or 3")
        self.spec = FeatureSpec(
            name="skeleton",
            version=1,
            modality="stream",
            reads=(f"stream:{stream}",),
            parameters={
                "stream": stream,
                "joints": joints,
                "persons": persons,
                "coordinates": coordinates,
            },
            dims=tuple(_dims(persons, joints, AXES[:coordinates])),
            rate_hz=None,
            licence="as the user's data",
        )
        self._stream, self._shape = stream, (persons, joints, coordinates)

    def begin(self, clip: Clip) -> "_Skeleton":
        """Start on a clip."""
        return _Skeleton(clip, self._stream, self._shape)


def _dims(persons: int, joints: int, axes: tuple[str, ...]) -> Iterator[Dim]:
    digits = len(str(joints - 1))
    for person in range(persons):
        for joint in range(joints):
            name = f"body{person}_joint{joint:0{digits}d}"
            yield from (Dim(f"{name}_{axis}", "as measured") for axis in axes)
            yield Dim(f"{name}_seen")


class _Skeleton:
    def __init__(self, clip: Clip, stream: str, shape: tuple[int, int, int]) -> None:
        self._clip, self._stream, self._shape = clip, stream, shape

    def add(self, chunk: Chunk) -> None:
        raise TypeError("skeleton reads no media")

    def finish(self) -> Feature:
        path = Path(self._clip.streams[self._stream])
        rate_hz = self._clip.stream_rates.get(self._stream)
        persons, joints, coordinates = self._shape
        if path.suffix == ".skeleton":
            found = rows.read(path, lambda path: _kinect(path, joints, coordinates))
            rate_hz = rate_hz or KINECT_HZ
        else:
            found = rows.read(path, lambda path: _array(path, joints, coordinates))
        if not rate_hz:
            raise BadClipError("bad_stream", "a .npy file of joints wants rows per second")
        bodies = np.zeros((len(found), persons, joints, coordinates + 1))
        there = min(persons, found.shape[1])
        bodies[:, :there] = _bridged(found[:, :there])
        values = bodies.reshape(len(bodies), -1).astype(np.float32)
        return rows.within(self._clip, values, rows.paced(len(values), rate_hz))


def _bridged(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bodies [T, P, J, C + 1] whose joints that are not seen lie between those that are."""
    bodies = found.copy()
    seen = bodies[..., -1] > 0
    for person, joint in np.ndindex(seen.shape[1:]):
        good = seen[:, person, joint]
        if not good.all():
            bodies[:, person, joint, :-1] = rows.bridged(found[:, person, joint, :-1], good)
    return bodies


def _array(path: Path, joints: int, coordinates: int) -> NDArray[np.float64]:
    """[T, P, J, C + 1], the last of each joint how far it is seen."""
    array = np.load(path, allow_pickle=False)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"holds {array.dtype}, wanted numbers")
    shape = array.shape
    array = array[:, np.newaxis] if array.ndim == 3 else array
    widths = (coordinates, coordinates + 1)
    if (
        array.ndim != 4
        or array.shape[2] != joints
        or array.shape[3] not in widths
        or not len(array)
    ):
        raise ValueError(
            f"shape {list(shape)}; wanted [T, {joints}, {coordinates}], with bodies behind T where "
            f"there are several, and a confidence behind the coordinates where there is one"
        )
    whole = array[..., :coordinates].astype(np.float64)
    told = array[..., coordinates].astype(np.float64) if array.shape[3] > coordinates else 1.0
    seen = np.where(np.isfinite(whole).all(axis=-1), np.nan_to_num(told), 0.0)
    return np.concatenate([whole, np.maximum(seen, 0.0)[..., np.newaxis]], axis=-1)


def _kinect(path: Path, joints: int, coordinates: int) -> NDArray[np.float64]:
    """[T, P, J, C + 1] of a .skeleton file; a body that is not in a frame is not seen there."""
    frames = list(_frames(path.read_text(encoding="ascii"), joints))
    if not frames:
        raise ValueError("it has no frame")
    counts: dict[int, int] = {}
    for frame in frames:
        for body in frame:
            counts[body] = counts.get(body, 0) + 1
    order = sorted(counts, key=lambda body: -counts[body])  # in order of coming where equal
    found = np.zeros((len(frames), len(order), joints, coordinates + 1))
    for number, frame in enumerate(frames):
        for body, measured in frame.items():
            place = found[number, order.index(body)]
            place[:, :coordinates] = measured[:, :coordinates]
            known = np.isfinite(place).all(axis=1)
            place[:, -1] = np.where(known, measured[:, -1].clip(0, TRACKED) / TRACKED, 0.0)
    return found


def _frames(text: str, joints: int) -> Iterator[dict[int, NDArray[np.float64]]]:
    """Of each frame the joints [J, JOINT] of each body, by its identity."""
    words = text.split()
    place = 0

    def take(count: int) -> list[str]:
        nonlocal place
        if place + count > len(words):
            raise ValueError(f"the file ends within a frame, after {len(words)} numbers")
        place += count
        return words[place - count : place]

    for _ in range(int(take(1)[0])):
        frame: dict[int, NDArray[np.float64]] = {}
        for _ in range(int(take(1)[0])):
            body = int(take(BODY)[0])
            given = int(take(1)[0])
            if given != joints:
                raise ValueError(f"a body has {given} joints, {joints} wanted")
            frame[body] = np.array(take(JOINT * joints), dtype=np.float64).reshape(joints, JOINT)
        yield frame
    if place != len(words):
        raise ValueError(f"{len(words) - place} numbers follow the last frame")
