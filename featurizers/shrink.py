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
    return _scaled(square, size, size)


def letterboxed(whole: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale [H, W] or [H, W, 3] so that its longer side is `size`, in the middle of a black square.

    Means and repeated pixels are those of `box_mean`.
    """
    longer = max(whole.shape[:2])
    height, width = (max(1, (side * size + longer // 2) // longer) for side in whole.shape[:2])
    square = np.zeros((size, size, *whole.shape[2:]), dtype=np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = _scaled(whole, height, width)
    return square


def _scaled(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Both sides become longer, or neither does."""
    rows, columns = picture.shape[:2]
    if rows < height or columns < width:
        larger: NDArray[np.uint8] = picture[np.arange(height) * rows // height]
        return larger[:, np.arange(width) * columns // width]
    down, across = _boxes(rows, height), _boxes(columns, width).edges
    sums = np.add.reduceat(_row_sums(picture, down), across, axis=1, dtype=np.uint32)
    area = _areas(rows, height, columns, width)
    if picture.ndim == 3:
        area = area[:, :, np.newaxis]
    sums += area // 2
    return (sums // area).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Where the boxes of whole pixels lie along one side.

    Attributes:
        edges: The first pixel of each.
        counts: Pixels of each.
        least: Pixels of the narrowest; no other has more than one more.
        longer: Which have one more.
    """

    edges: NDArray[np.int64]
    counts: NDArray[np.int64]
    least: int
    longer: NDArray[np.int64]


@functools.lru_cache(maxsize=32)
def _boxes(side: int, size: int) -> _Boxes:
    edges = np.arange(size) * side // size
    counts = np.diff(edges, append=side)
    least = int(counts.min())
    return _Boxes(edges, counts, least, np.flatnonzero(counts > least))


@functools.lru_cache(maxsize=16)
def _areas(rows: int, height: int, columns: int, width: int) -> NDArray[np.uint32]:
    """Pixels of each box [height, width]."""
    counts = _boxes(rows, height).counts, _boxes(columns, width).counts
    return np.multiply.outer(*counts).astype(np.uint32)


def _row_sums(picture: NDArray[np.uint8], boxes: _Boxes) -> NDArray[np.uint32]:
    """np.add.reduceat(picture, edges, axis=0), several times as fast: whole rows are added."""
    edges = boxes.edges
    sums = picture[edges].astype(np.uint32)
    for below in range(1, boxes.least):
        sums += picture[edges + below]
    if len(boxes.longer):
        sums[boxes.longer] += picture[edges[boxes.longer] + boxes.least]
    return sums
