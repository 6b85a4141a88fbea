"""Make pictures small, in whole numbers: the same bytes on every machine."""

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
    edges = np.arange(size) * side // size
    if side < size:
        return square[edges][:, edges]
    counts = np.diff(edges, append=side)
    sums = np.add.reduceat(_row_sums(square, edges, counts), edges, axis=1, dtype=np.uint32)
    area = np.multiply.outer(counts, counts).astype(np.uint32)
    if square.ndim == 3:
        area = area[:, :, np.newaxis]
    return ((sums + area // 2) // area).astype(np.uint8)


def _row_sums(
    square: NDArray[np.uint8], edges: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """np.add.reduceat(square, edges, axis=0), several times as fast: whole rows are added."""
    least = int(counts.min())
    sums = square[edges].astype(np.uint32)
    for below in range(1, least):
        sums += square[edges + below]
    longer = np.flatnonzero(counts > least)  # by one row
    sums[longer] += square[edges[longer] + least]
    return sums
