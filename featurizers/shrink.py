"""Make pictures small, in whole numbers: the same bytes on every machine."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Limited range puts black at 16 and white at 235.
_LIMITED = np.clip((np.arange(256) - 16) * 255 / 219 + 0.5, 0, 255).astype(np.uint8).tobytes()


def centred(whole: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest centred square of [H, W] or [H, W, 3]."""
    side = min(whole.shape[:2])
    top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
    return whole[top : top + side, left : left + side]


def full_range(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness 0..255 of the limited range that videos are stored in."""
    return np.frombuffer(luma.tobytes().translate(_LIMITED), dtype=np.uint8).reshape(luma.shape)


def box_mean(square: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale [S, S] or [S, S, 3] to `size` by means over whole pixels, in integers.

    Pixels of smaller pictures are repeated.
    """
    side = len(square)
    if side < size:
        edges = np.arange(size) * side // size
        return square[edges][:, edges]
    boxes = _boxes(side, size)
    sums = np.add.reduceat(_row_sums(square, boxes), boxes.edges, axis=1, dtype=np.uint32)
    area = boxes.area if square.ndim == 2 else boxes.area[:, :, np.newaxis]
    sums += area // 2
    return (sums // area).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Where the boxes of whole pixels lie, the same along rows and columns.

    Attributes:
        edges: The first pixel of each.
        least: Pixels of the narrowest; no other has more than one more.
        longer: Which have one more.
        area: Pixels of each [size, size].
    """

    edges: NDArray[np.int64]
    least: int
    longer: NDArray[np.int64]
    area: NDArray[np.uint32]


@functools.lru_cache(maxsize=16)
def _boxes(side: int, size: int) -> _Boxes:
    edges = np.arange(size) * side // size
    counts = np.diff(edges, append=side)
    least = int(counts.min())
    area = np.multiply.outer(counts, counts).astype(np.uint32)
    return _Boxes(edges, least, np.flatnonzero(counts > least), area)


def _row_sums(square: NDArray[np.uint8], boxes: _Boxes) -> NDArray[np.uint32]:
    """np.add.reduceat(square, edges, axis=0), several times as fast: whole rows are added."""
    edges = boxes.edges
    sums = square[edges].astype(np.uint32)
    for below in range(1, boxes.least):
        sums += square[edges + below]
    if len(boxes.longer):
        sums[boxes.longer] += square[edges[boxes.longer] + boxes.least]
    return sums
