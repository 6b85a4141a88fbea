"""Pictures without weights: how the face region looks and how it moves."""

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.spec import Chunk, Dim, Feature, FeatureSpec, VideoChunk, VideoWant

SIZE = 48
LOOKS = 8  # a grid of 8 x 8 cells of 6 pixels
CELLS = 4  # gradients and motion: 4 x 4 cells of 12 pixels
DECIMALS = 4
_DEGREES = ("0", "45", "90", "135")


class FaceMotion:
    """Brightness, edge directions and motion over a grid on the largest centred square.

    Edge directions are after Dalal and Triggs 2005. There is no face detector: it is meant for
    clips in which a face fills the middle of the picture, as in corpora of talking heads. All
    values are sums of whole numbers, divided and rounded to 1e-4: the promise is exact.

    Args:
        fps: Pictures per second that are looked at.
    """

    def __init__(self, *, fps: float = 5) -> None:
        if not 0.1 <= fps <= 120:
            raise ValueError(f"face-motion: fps is {fps}; wanted 0.1 to 120")
        grid = [(row, column) for row in range(CELLS) for column in range(CELLS)]
        self.spec = FeatureSpec(
            name="face-motion",
            version=1,
            modality="video",
            reads=("video",),
            parameters={"fps": float(fps)},
            dims=(
                *(Dim(f"look_{r}{c}", "deviations") for r in range(LOOKS) for c in range(LOOKS)),
                *(Dim(f"edge_{r}{c}_{angle}") for r, c in grid for angle in _DEGREES),
                *(Dim(f"motion_{r}{c}", "grey levels") for r, c in grid),
                Dim("brightness", "grey levels"),
                Dim("contrast", "grey levels"),
            ),
            rate_hz=float(fps),
        )
        self.wants = VideoWant(fps=float(fps), size=SIZE)

    def begin(self, clip: Clip) -> "_FaceMotion":
        """Start on a clip."""
        return _FaceMotion()


class _FaceMotion:
    def __init__(self) -> None:
        self._values: list[NDArray[np.float64]] = []
        self._times: list[NDArray[np.float64]] = []
        self._last: NDArray[np.uint8] | None = None

    def add(self, chunk: Chunk) -> None:
        if isinstance(chunk, VideoChunk):
            before = chunk.frames[:1] if self._last is None else self._last
            earlier = np.concatenate([before, chunk.frames[:-1]])
            self._last = chunk.frames[-1:]
            self._values.append(_describe(chunk.frames, earlier))
            self._times.append(chunk.times)

    def finish(self) -> Feature:
        if not self._values:
            raise BadClipError("empty", "there is no picture in the clip's span")
        values = (np.round(np.concatenate(self._values), DECIMALS) + 0.0).astype(np.float32)
        return Feature(values, np.concatenate(self._times))


def _describe(frames: NDArray[np.uint8], earlier: NDArray[np.uint8]) -> NDArray[np.float64]:
    pictures, before = frames.astype(np.int64), earlier.astype(np.int64)
    count, pixels = len(pictures), SIZE * SIZE
    total = pictures.sum(axis=(1, 2))
    mean = total / pixels
    # From whole sums: equal on every machine, whatever order it adds in.
    variance = ((pictures**2).sum(axis=(1, 2)) * pixels - total**2) / pixels**2
    contrast = np.sqrt(variance)
    scale = (contrast + 1.0)[:, np.newaxis]
    looks = _cell_sums(pictures, LOOKS).reshape(count, -1) / (SIZE // LOOKS) ** 2
    area = (SIZE // CELLS) ** 2
    edges = np.stack([_cell_sums(part, CELLS) for part in _edges(pictures)], axis=-1)
    motion = _cell_sums(np.abs(pictures - before), CELLS).reshape(count, -1) / area
    return np.concatenate(
        [
            (looks - mean[:, np.newaxis]) / scale,
            edges.reshape(count, -1) / area / scale,
            motion,
            mean[:, np.newaxis],
            contrast[:, np.newaxis],
        ],
        axis=1,
    )


def _edges(pictures: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Gradient sizes (|dx| + |dy|) [N, H, W], one array for each direction, 0 elsewhere."""
    across, down = np.zeros_like(pictures), np.zeros_like(pictures)
    across[:, :, 1:-1] = pictures[:, :, 2:] - pictures[:, :, :-2]
    down[:, 1:-1, :] = pictures[:, 2:, :] - pictures[:, :-2, :]
    size = np.abs(across) + np.abs(down)
    # tan(22.5 degrees) as a ratio of whole numbers keeps the decision exact.
    flat = 1000 * np.abs(down) < 414 * np.abs(across)
    steep = 1000 * np.abs(across) < 414 * np.abs(down)
    slanted = ~flat & ~steep
    same = across * down > 0
    return [np.where(chosen, size, 0) for chosen in (flat, slanted & same, steep, slanted & ~same)]


def _cell_sums(pictures: NDArray[np.int64], cells: int) -> NDArray[np.int64]:
    """Sums over a grid: [N, cells, cells]."""
    step = SIZE // cells
    shaped = pictures.reshape(len(pictures), cells, step, cells, step)
    sums: NDArray[np.int64] = shaped.sum(axis=(2, 4))
    return sums
