"""How a face or the middle of the picture looks and how it changes, without weights."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.crops import Cutting, cutting
from featurizers.spec import Chunk, Dim, Feature, FeatureSpec, VideoChunk

SIZE = 64
CELLS = 4  # of 16 pixels: gradients and motion
BLOCKS = 2  # of 32 pixels: patterns
ANGLES = 8  # directions of 22.5 degrees; an edge and its reverse are one
DECIMALS = 4
MOVED = 12  # grey levels by which a pixel changes for more than noise
ATOL = 0.1
# tan of 11.25, 33.75, 56.25 and 78.75 degrees as ratios of whole numbers keep decisions exact.
_BORDERS = (1989, 6682, 14966, 50273)
_TEN_THOUSAND = 10_000
_CIRCLE = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
_CELLS = tuple((row, column) for row in range(CELLS) for column in range(CELLS))


def _dims() -> tuple[Dim, ...]:
    angles = [f"{number * 180 / ANGLES:g}" for number in range(ANGLES)]
    patterns = [*(f"spots_{bright}" for bright in range(9)), "mixed"]
    blocks = [(row, column) for row in range(BLOCKS) for column in range(BLOCKS)]
    return (
        *(Dim(f"edge_{r}{c}_{angle}", "share") for r, c in _CELLS for angle in angles),
        *(Dim(f"strength_{r}{c}", "grey levels") for r, c in _CELLS),
        *(Dim(f"pattern_{r}{c}_{p}", "share") for r, c in blocks for p in patterns),
        *(Dim(f"motion_{r}{c}", "grey levels") for r, c in _CELLS),
        Dim("moved", "share"),
        Dim("brighter", "grey levels"),
        Dim("brightness", "grey levels"),
        Dim("contrast", "grey levels"),
        Dim("sharpness", "grey levels"),
        Dim("shown"),
    )


class Appearance:
    """Edge directions, local patterns, brightness, sharpness and motion of a square of 64 pixels.

    - `edge_RC_A`: histograms of oriented gradients (Dalal and Triggs 2005) in 4 x 4 cells: which
      share of a cell's gradients, by their size |dx| + |dy|, points in direction A degrees;
      `strength_RC` is their mean size.
    - `pattern_RC_P`: uniform local binary patterns that no rotation changes (Ojala et al. 2002) in
      2 x 2 blocks: a pixel has `spots_N` when N of its 8 neighbours, all in one row, are as bright
      as itself or brighter, `mixed` when they are not in one row.
    - `motion_RC`: mean difference to the step before; `moved` is the share of pixels that differ by
      more than 12, `brighter` the mean change. 0 in the first step and after steps without a face.
    - `sharpness`: the mean size of the Laplacian.
    - `shown`: 1; with crop "face" 0 where there is no face, and all else is 0 too.

    All are sums of whole numbers, divided and rounded to 1e-4: the promise is exact, but for faces
    that YuNet found.

    Args:
        fps: Pictures per second.
        crop: "centre", the largest centred square, "whole" or "face", as `frames` has it.
        margin: With crop "face", as the others: see `frames`.
        detector: "yunet" or "cascade".
        model: YuNet's ONNX file.
        weights: Its sha256.
        picture: Pixels of the longer side of the picture that the face is found in.
        bridge_s: Longest gap that is bridged.
        smooth_s: Width of the smoothing window.
    """

    weights_from: ClassVar[str] = "model"

    def __init__(
        self,
        *,
        fps: float = 5,
        crop: str = "centre",
        margin: float = 1.3,
        detector: str = "yunet",
        model: str = "",
        weights: str = "",
        picture: int = 320,
        bridge_s: float = 0.5,
        smooth_s: float = 0.6,
    ) -> None:
        self._cutting = cutting(
            "appearance",
            crop=crop,
            size=SIZE,
            colour="gray",
            fps=fps,
            margin=margin,
            detector=detector,
            model=model,
            weights=weights,
            picture=picture,
            bridge_s=bridge_s,
            smooth_s=smooth_s,
        )
        self.caution = self._cutting.caution
        self.spec = FeatureSpec(
            name="appearance",
            version=1,
            modality="video",
            reads=("video",),
            parameters=self._cutting.parameters,
            dims=_dims(),
            rate_hz=float(fps),
            weights=self._cutting.weights,
            licence=self._cutting.licence,
            atol=self._cutting.atol(ATOL),
            source=self._cutting.source,
        )
        self.wants = self._cutting.wants

    def begin(self, clip: Clip) -> "_Appearance":
        """Start on a clip."""
        return _Appearance(self._cutting)


class _Appearance:
    def __init__(self, cutting: Cutting) -> None:
        self._cutter = cutting.begin(self._take)
        self._values: list[NDArray[np.float64]] = []
        self._times: list[NDArray[np.float64]] = []
        self._last = np.zeros((1, SIZE, SIZE), dtype=np.uint8)
        self._was_shown = False

    def add(self, chunk: Chunk) -> None:
        if isinstance(chunk, VideoChunk):
            self._cutter.add(chunk)

    def finish(self) -> Feature:
        self._cutter.finish()
        if not self._values:
            raise BadClipError("empty", "there is no picture in the clip's span")
        values = (np.round(np.concatenate(self._values), DECIMALS) + 0.0).astype(np.float32)
        return Feature(values, np.concatenate(self._times))

    def _take(
        self, squares: NDArray[np.uint8], times: NDArray[np.float64], shown: NDArray[np.bool_]
    ) -> None:
        before = np.concatenate([self._last, squares[:-1]])
        follows = shown & np.concatenate([[self._was_shown], shown[:-1]])
        self._last, self._was_shown = squares[-1:], bool(shown[-1])
        earlier = np.where(follows[:, np.newaxis, np.newaxis], before, squares)
        self._values.append(_described(squares, earlier) * shown[:, np.newaxis])
        self._times.append(times)


def _described(squares: NDArray[np.uint8], earlier: NDArray[np.uint8]) -> NDArray[np.float64]:
    pictures = squares.astype(np.int64)
    changes = pictures - earlier.astype(np.int64)
    count, pixels = len(pictures), SIZE * SIZE
    edges = _edges(pictures)
    strength = edges.sum(axis=-1, keepdims=True)
    area = (SIZE // CELLS) ** 2
    total = pictures.sum(axis=(1, 2))
    # From whole sums: equal on every machine, whatever order it adds in.
    variance = ((pictures**2).sum(axis=(1, 2)) * pixels - total**2) / pixels**2
    inner = (SIZE - 2) ** 2
    single = [
        (np.abs(changes) > MOVED).sum(axis=(1, 2)) / pixels,
        changes.sum(axis=(1, 2)) / pixels,
        total / pixels,
        np.sqrt(variance),
        np.abs(_laplacian(pictures)).sum(axis=(1, 2)) / inner,
        np.ones(count),
    ]
    return np.concatenate(
        [
            (edges / np.maximum(strength, 1)).reshape(count, -1),
            strength.reshape(count, -1) / area,
            _patterns(pictures).reshape(count, -1) / (SIZE // BLOCKS) ** 2,
            _sums(np.abs(changes), CELLS).reshape(count, -1) / area,
            np.stack(single, axis=1),
        ],
        axis=1,
    )


def _edges(pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of gradient sizes [N, CELLS, CELLS, ANGLES]; a pixel at the rim has half a gradient."""
    across, down = np.zeros_like(pictures), np.zeros_like(pictures)
    across[:, :, 1:-1] = pictures[:, :, 2:] - pictures[:, :, :-2]
    down[:, 1:-1, :] = pictures[:, 2:, :] - pictures[:, :-2, :]
    flat, steep = np.abs(across), np.abs(down)
    # How many borders lie below: 0 for level ... 4 for upright; leaning left counts on from there.
    borders = np.array(_BORDERS).reshape(-1, 1, 1, 1)
    above = (_TEN_THOUSAND * steep > borders * flat).sum(axis=0)
    leans = (across * down < 0) & (above > 0) & (above < ANGLES // 2)
    angle = np.where(leans, ANGLES - above, above)
    size = flat + steep
    return np.stack(
        [_sums(np.where(angle == number, size, 0), CELLS) for number in range(ANGLES)], axis=-1
    )


def _patterns(pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts of patterns [N, BLOCKS, BLOCKS, 10]; pixels at the rim repeat outwards."""
    wide = np.pad(pictures, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = np.stack(
        [wide[:, 1 + y : 1 + y + SIZE, 1 + x : 1 + x + SIZE] >= pictures for y, x in _CIRCLE]
    )
    turns = (around != np.roll(around, 1, axis=0)).sum(axis=0)
    pattern = np.where(turns <= 2, around.sum(axis=0), 9)
    return np.stack([_sums((pattern == each) * 1, BLOCKS) for each in range(10)], axis=-1)


def _laplacian(pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    middle = pictures[:, 1:-1, 1:-1]
    beside = pictures[:, 1:-1, :-2] + pictures[:, 1:-1, 2:]
    return beside + pictures[:, :-2, 1:-1] + pictures[:, 2:, 1:-1] - 4 * middle


def _sums(pictures: NDArray[np.int64], cells: int) -> NDArray[np.int64]:
    """Sums over a grid: [N, cells, cells]."""
    step = SIZE // cells
    sums: NDArray[np.int64] = pictures.reshape(-1, cells, step, cells, step).sum(axis=(2, 4))
    return sums
