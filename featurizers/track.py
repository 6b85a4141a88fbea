"""What a tracker of faces or bodies wrote to a CSV file, by the names of its columns."""

import csv
import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizers import rows
from featurizers.clip import BadClipError, Clip
from featurizers.spec import Chunk, Dim, Feature, FeatureSpec

TIMES = ("time", "timestamp")  # in seconds
FRAME = "frame"  # counted from 0
CONFIDENCES = ("confidence", "FaceScore")
SUCCESS = "success"
MOST = 65536


class Track:
    """Chosen columns of a CSV file with a header, such as OpenFace's or py-feat's.

    Time is that of a column `time` or `timestamp`, in seconds from the start of the media; else of
    a column `frame`, counted from 0, over the clip's rate; else rows follow each other at that
    rate. Of rows of the same time, which are several faces, the one with the highest confidence is
    taken, the first of equal ones.

    A row is bad when one of the chosen cells is empty or no finite number, when a column `success`
    says 0, or when a column `confidence` or `FaceScore` says less than `least`. Bad rows are
    bridged by a straight line between the good rows beside them (the nearest one at the ends; 0
    when all are bad), and a last dimension `valid` is 0 there and 1 elsewhere. So nothing is ever
    NaN. All else is as it was written; the promise is exact.

    Args:
        stream: The stream's name, as in the column `stream:NAME` of the table of clips.
        columns: Their names with commas between them; braces stand for each of what they hold:
            `AU{01,02,04}_r`, `pose_R{x,y,z}`, `x_{0..67}`.
        least: Confidence of a row that counts.
        time: Another column of seconds.
    """

    wants = None

    def __init__(self, *, stream: str, columns: str, least: float = 0.5, time: str = "") -> None:
        chosen = expand(columns)
        if not stream or not 0 <= least <= 1:
            raise ValueError(
                f"track: stream is {stream!r} and least is {least}; wanted a name, 0 to 1"
            )
        self.spec = FeatureSpec(
            name="track",
            version=1,
            modality="stream",
            reads=(f"stream:{stream}",),
            parameters={
                "stream": stream,
                "columns": columns,
                "least": float(least),
                "time": time,
            },
            dims=(*(Dim(name, "as measured") for name in chosen), Dim("valid")),
            rate_hz=None,
            licence="as the user's data",
        )
        times = (time,) if time else TIMES
        self._choice = _Choice(stream, chosen, times, float(least))

    def begin(self, clip: Clip) -> "_Track":
        """Start on a clip."""
        return _Track(clip, self._choice)


@dataclass(frozen=True, slots=True)
class _Choice:
    stream: str
    columns: tuple[str, ...]
    times: tuple[str, ...]
    least: float


class _Track:
    def __init__(self, clip: Clip, choice: _Choice) -> None:
        self._clip, self._choice = clip, choice

    def add(self, chunk: Chunk) -> None:
        raise TypeError("track reads no media")

    def finish(self) -> Feature:
        clip, choice = self._clip, self._choice
        table = rows.read(Path(clip.streams[choice.stream]), _read)
        values = np.stack([table.numbers(name) for name in choice.columns], axis=1)
        confidence = _confidence(table)
        good = np.isfinite(values).all(axis=1) & (confidence >= choice.least)
        starts = _starts(table, choice.times, clip.stream_rates.get(choice.stream))
        best = _best(starts, np.where(good, confidence, -1.0))
        values, good = values[best], good[best]
        whole = np.concatenate([rows.bridged(values, good), good[:, np.newaxis]], axis=1)
        return rows.within(clip, whole.astype(np.float32), rows.lasting(starts[best]))


@dataclass(frozen=True, slots=True)
class _Table:
    header: list[str]
    cells: list[list[str]]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column; NaN where a cell is empty. Raises BadClipError "bad_stream"."""
        if name not in self.header:
            near = difflib.get_close_matches(name, self.header, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise BadClipError("bad_stream", f"there is no column {name!r}{hint}")
        place = self.header.index(name)
        try:
            return np.array([float(row[place].strip() or "nan") for row in self.cells])
        except ValueError as error:
            raise BadClipError("bad_stream", f"column {name!r}: {error}") from None


def _read(path: Path) -> _Table:
    header, *cells = _lines(path)
    for number, row in enumerate(cells, 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, and the header {len(header)}")
    if not cells:
        raise ValueError("there is no row below the header")
    return _Table([name.strip() for name in header], cells)


def read_header(path: Path) -> list[str]:
    """The names in the first line. Raises ValueError when there is none, and OSError."""
    return [name.strip() for name in _lines(path)[0]]


def _lines(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            lines = [row for row in csv.reader(file, skipinitialspace=True) if row]
        except csv.Error as error:
            raise ValueError(str(error)) from None
    if not lines:
        raise ValueError("the file is empty")
    return lines


def _confidence(table: _Table) -> NDArray[np.float64]:
    """Of each row, 1 where the file does not say; -1 where the tracker failed."""
    name = next((name for name in CONFIDENCES if name in table.header), None)
    found = np.ones(len(table.cells)) if name is None else table.numbers(name)
    if SUCCESS in table.header:
        found = np.where(table.numbers(SUCCESS) > 0, found, -1.0)
    return np.nan_to_num(found, nan=-1.0)


def _starts(table: _Table, times: Sequence[str], rate_hz: float | None) -> NDArray[np.float64]:
    """When each row begins, in seconds from the start of the media."""
    name = next((name for name in times if name in table.header), None)
    if name is not None:
        return table.numbers(name)
    if times is not TIMES:
        return table.numbers(times[0])  # which says that there is none
    if not rate_hz:
        raise BadClipError(
            "bad_stream",
            f"there is no column {' or '.join(TIMES)}, and the clip gives no rate",
        )
    rows_ = table.numbers(FRAME) if FRAME in table.header else np.arange(len(table.cells))
    return rows_ / rate_hz


def _best(starts: NDArray[np.float64], score: NDArray[np.float64]) -> NDArray[np.intp]:
    """Of rows with the same time that follow each other, the one with the highest score."""
    group = np.cumsum(np.append(0, np.diff(starts) != 0))
    order = np.lexsort((-score, group))  # which keeps the order of equal ones
    first = np.flatnonzero(np.append(1, np.diff(group[order])))
    return order[first]


def expand(columns: str) -> tuple[str, ...]:
    """The names that a text with commas and braces stands for.

    Raises ValueError when it stands for none, for one twice, or for too many.
    """
    found = [name for part in _parts(columns) for name in _expanded(part)]
    twice = next((name for name in found if found.count(name) > 1), None) if found else None
    if not found or len(found) > MOST or twice is not None or "valid" in found:
        said = f"{twice!r} twice" if twice is not None else f"{len(found)} names"
        raise ValueError(
            f"track: columns is {columns!r}, which gives {said}; "
            f"wanted names, as in 'AU{{01,02}}_r, x_{{0..67}}', each once and none 'valid'"
        )
    return tuple(found)


def _parts(columns: str) -> list[str]:
    """The text cut at commas that are in no braces."""
    parts = re.split(r",(?![^{]*\})", columns)
    return [part.strip() for part in parts if part.strip()]


def _expanded(part: str) -> list[str]:
    pieces = re.split(r"\{([^{}]*)\}", part)
    choices = [_choices(piece) if at % 2 else [piece] for at, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    span = re.fullmatch(r"\s*(\d+)\.\.(\d+)\s*", inside)
    if span is None:
        return [choice.strip() for choice in inside.split(",")]
    first, last = span.groups()
    digits = len(first) if first.startswith("0") else 0
    return [f"{number:0{digits}d}" for number in range(int(first), int(last) + 1)]
