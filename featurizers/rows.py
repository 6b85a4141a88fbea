"""Rows that somebody else measured: read, placed in time, cut to a clip, bridged where bad."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.opening import is_file
from featurizers.spec import Feature
from featurizers.store import read_input

T = TypeVar("T")


def read(path: Path, parse: Callable[[Path], T]) -> T:
    """What `parse` makes of a file.

    Args:
        path: Of the file.
        parse: Raises ValueError, OSError or EOFError when the file is not what it should be.

    Raises:
        BadClipError: "missing", or "bad_stream" with what is wrong.
        StorageError: It cannot be read now.
    """
    try:
        if not read_input(path, lambda: is_file(path)):
            raise BadClipError("missing", "no such file")
        return read_input(path, lambda: parse(path))
    except (ValueError, OSError, EOFError) as error:
        raise BadClipError("bad_stream", str(error)) from None


def paced(count: int, rate_hz: float) -> NDArray[np.float64]:
    """Times [T, 2] of rows that follow each other at a rate."""
    edges = np.arange(count, dtype=np.float64)[:, np.newaxis] + np.array([0.0, 1.0])
    times: NDArray[np.float64] = edges / rate_hz
    return times


def lasting(starts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times [T, 2]: a row lasts until the next one begins, the last one as long as is usual.

    Raises BadClipError "bad_stream" unless the starts rise.
    """
    if not np.isfinite(starts).all() or (np.diff(starts) <= 0).any():
        raise BadClipError("bad_stream", "times do not rise from row to row")
    usual = float(np.median(np.diff(starts))) if len(starts) > 1 else 0.0
    ends = np.append(starts[1:], starts[-1] + usual)
    return np.stack([starts, ends], axis=1).astype(np.float64)


def within(clip: Clip, values: NDArray[np.float32], times: NDArray[np.float64]) -> Feature:
    """The rows that overlap a clip's span, counted from its start.

    Raises BadClipError "empty" when there is none.
    """
    last = np.inf if clip.end is None else clip.end
    # A single row may have no length.
    inside = np.maximum(times[:, 1] > clip.start, times[:, 0] >= clip.start) & (times[:, 0] < last)
    if not inside.any():
        raise BadClipError("empty", "no row lies in the clip's span")
    return Feature(values[inside], times[inside] - clip.start)


def bridged(values: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values [T, D] with bad rows in a straight line between the good ones beside them.

    Before the first good row and behind the last it is that row; without any, all is 0.
    """
    rows = np.flatnonzero(good)
    if not len(rows):
        return np.zeros_like(values)
    places = np.arange(len(values))
    after = np.searchsorted(rows, places).clip(max=len(rows) - 1)
    before = np.maximum(np.searchsorted(rows, places, side="right") - 1, 0)
    low, high = rows[before], rows[after]
    # Each product and sum by itself: `np.interp` may fuse them, on some machines.
    part = np.where(high > low, (places - low) / np.maximum(high - low, 1), 0.0)
    whole: NDArray[np.float64] = values[low] + (values[high] - values[low]) * part[:, np.newaxis]
    return whole
