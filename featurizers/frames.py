"""Pictures as they are, for networks that are trained from end to end."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.crops import Cutting, cutting
from featurizers.spec import Axis, Chunk, Feature, FeatureSpec, Grid, VideoChunk

SIZES = (8, 512)
MOST_BYTES = 1 << 29
"""Of one clip's pixels: a worker holds them twice for a moment, and is to stay below 2 GiB."""
CHANNELS = {"gray": ("grey",), "rgb": ("red", "green", "blue")}


class Frames:
    """Square pictures, one a step, uint8 0..255.

    A step holds rows from above, in a row pixels from the left, of a pixel its channels:
    `values.reshape(T, size, size, channels)` are the pictures. With crop "face" they show the face
    that `face-track` finds with the same settings; steps without a face are black, and
    `face-track` beside it says which and why. A minute at 5 pictures a second takes 3.7 MB at the
    defaults, and 45 MB at 224 x 224; a clip of more than 512 MB is "too_large".

    The promise is exact, but for faces that YuNet found: a step of 1 in brightness.

    Args:
        fps: Pictures per second.
        size: Pixels of a side, 8 to 512.
        colour: "rgb" or "gray".
        crop: "centre", the largest centred square; "whole", all of the picture, black at its sides;
            or "face".
        margin: With crop "face": the square's side as a multiple of the face's longer side.
        detector: See `face-track`, with crop "face" only; so are the others.
        model: YuNet's ONNX file.
        weights: Its sha256.
        picture: Pixels of the longer side of the picture that the face is found in and cut out of.
        bridge_s: Longest gap that is bridged.
        smooth_s: Width of the smoothing window.
    """

    weights_from: ClassVar[str] = "model"

    def __init__(
        self,
        *,
        fps: float = 5,
        size: int = 64,
        colour: str = "rgb",
        crop: str = "centre",
        margin: float = 1.3,
        detector: str = "yunet",
        model: str = "",
        weights: str = "",
        picture: int = 320,
        bridge_s: float = 0.5,
        smooth_s: float = 0.6,
    ) -> None:
        if not SIZES[0] <= size <= SIZES[1] or colour not in CHANNELS:
            raise ValueError(
                f"frames: size is {size} and colour is {colour!r}; wanted {SIZES[0]} to "
                f"{SIZES[1]}, and one of {', '.join(CHANNELS)}"
            )
        self._cutting = cutting(
            "frames",
            crop=crop,
            size=size,
            colour="gray" if colour == "gray" else "rgb",
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
            name="frames",
            version=2,
            modality="video",
            reads=("video",),
            parameters={"size": size, "colour": colour, **self._cutting.parameters},
            dims=Grid(
                axes=(
                    Axis(name="row", size=size),
                    Axis(name="column", size=size),
                    Axis(name="channel", size=len(CHANNELS[colour]), places=CHANNELS[colour]),
                ),
                unit="brightness, 0..255",
            ),
            rate_hz=float(fps),
            dtype="uint8",
            weights=self._cutting.weights,
            licence=self._cutting.licence,
            atol=self._cutting.atol(1.0),
            source=self._cutting.source,
        )
        self.wants = self._cutting.wants

    def begin(self, clip: Clip) -> "_Frames":
        """Start on a clip."""
        return _Frames(self._cutting)


class _Frames:
    def __init__(self, cutting: Cutting) -> None:
        self._cutter = cutting.begin(self._take)
        self._bytes = 0
        self._values: list[NDArray[np.uint8]] = []
        self._times: list[NDArray[np.float64]] = []

    def add(self, chunk: Chunk) -> None:
        if isinstance(chunk, VideoChunk):
            self._cutter.add(chunk)

    def finish(self) -> Feature:
        self._cutter.finish()
        if not self._values:
            raise BadClipError("empty", "there is no picture in the clip's span")
        return Feature(np.concatenate(self._values), np.concatenate(self._times))

    def _take(
        self, squares: NDArray[np.uint8], times: NDArray[np.float64], shown: NDArray[np.bool_]
    ) -> None:
        self._bytes += squares.nbytes
        if self._bytes > MOST_BYTES:
            self._values.clear()
            raise BadClipError(
                "too_large",
                f"its pixels take more than {MOST_BYTES >> 20} MiB; lower size or fps of "
                f"'frames', or cut the clip into shorter ones",
            )
        self._values.append(squares.reshape(len(squares), -1))
        self._times.append(times)
