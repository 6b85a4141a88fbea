"""Numbers that somebody else measured over time: skeletons, sensors, another tool's track."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers import rows
from featurizers.clip import BadClipError, Clip
from featurizers.spec import Chunk, Feature, FeatureSpec, names

FORMATS = (".npy", ".csv")
TIME = "time"


class Numbers:
    """The rows of a table of numbers as they are, placed in time. The promise is exact.

    The table belongs to the media, so its clock is the media's; of a clip that is a span of longer
    media, the steps that overlap the span are taken. A .npy file is [T, dims]; a .csv file may have
    a header, and then a column `time` in seconds from the start of the media. Without that column
    the rows follow each other at the rate that the clip gives.

    Args:
        stream: The stream's name, as in the column `stream:NAME` of the table of clips.
        dims: Numbers in a row, the time left out.
    """

    wants = None

    def __init__(self, *, stream: str, dims: int) -> None:
        if not 1 <= dims <= 65536 or not stream:
            raise ValueError(
                f"numbers: stream is {stream!r} and dims is {dims}; wanted a name, 1 to 65536"
            )
        self.spec = FeatureSpec(
            name="numbers",
            version=1,
            modality="stream",
            reads=(f"stream:{stream}",),
            parameters={"stream": stream, "dims": dims},
            dims=tuple(names(stream, dims)),
            rate_hz=None,
            licence="as the user's data",
        )

    def begin(self, clip: Clip) -> "_Numbers":
        """Start on a clip."""
        return _Numbers(clip, str(self.spec.parameters["stream"]), self.spec.width)


class _Numbers:
    def __init__(self, clip: Clip, stream: str, dims: int) -> None:
        self._clip, self._stream, self._dims = clip, stream, dims

    def add(self, chunk: Chunk) -> None:
        raise TypeError("numbers reads no media")

    def finish(self) -> Feature:
        path = Path(self._clip.streams[self._stream])
        values, times = read_numbers(path, self._clip.stream_rates.get(self._stream))
        if values.shape[1] != self._dims:
            raise BadClipError(
                "bad_stream",
                f"{values.shape[1]} numbers in a row, {self._dims} wanted",
            )
        return rows.within(self._clip, values, times)


def read_numbers(
    path: Path, rate_hz: float | None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Values [T, D] and times [T, 2] in seconds from the start of the media.

    Raises:
        BadClipError: "missing", or "bad_stream" with what is wrong.
        StorageError: It cannot be read now.
    """
    table, header = rows.read(path, _npy if path.suffix == ".npy" else _csv)
    if table.ndim != 2 or not table.size:
        raise BadClipError("bad_stream", f"shape {table.shape}; wanted [T, D]")
    if TIME in header:
        column = header.index(TIME)
        starts = table[:, column].astype(np.float64)
        return np.delete(table, column, axis=1).astype(np.float32), rows.lasting(starts)
    if not rate_hz:
        raise BadClipError("bad_stream", f"there is no column {TIME!r}, and the clip gives no rate")
    return table.astype(np.float32), rows.paced(len(table), rate_hz)


def _npy(path: Path) -> tuple[NDArray[Any], list[str]]:
    table: NDArray[Any] = np.load(path, allow_pickle=False)
    if table.dtype.kind not in "fiub":
        raise ValueError(f"holds {table.dtype}, wanted numbers")
    return (table[:, np.newaxis] if table.ndim == 1 else table), []


def _csv(path: Path) -> tuple[NDArray[Any], list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise ValueError("the file is empty")
    first = text.partition("\n")[0].strip().split(",")
    header = [] if all(_is_number(cell) for cell in first) else [cell.strip() for cell in first]
    table = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=int(bool(header)), ndmin=2)
    return table, header


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
