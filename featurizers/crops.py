"""Squares out of pictures: their middle, all of them, or around the face that is followed."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.face_detector import brightness
from featurizers.face_track import Step, Tracking
from featurizers.spec import Scalar, VideoChunk, VideoWant

CROPS = ("centre", "whole", "face")
FINE = 1024  # parts of a pixel in which squares are placed

Pictures: TypeAlias = NDArray[np.uint8]
Take: TypeAlias = Callable[[Pictures, NDArray[np.float64], NDArray[np.bool_]], None]
"""Takes squares [N, S, S] or [N, S, S, 3], their times [N, 2], and which of them show a face."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """What is cut out of pictures; see `cutting`."""

    size: int
    colour: Literal["gray", "rgb"]
    fps: float
    fit: Literal["centre", "whole"]
    margin: float
    tracking: Tracking | None

    @property
    def wants(self) -> VideoWant:
        """The pictures that it is cut out of."""
        if self.tracking is None:
            return VideoWant(fps=self.fps, size=self.size, colour=self.colour, fit=self.fit)
        return self.tracking.wants

    @property
    def parameters(self) -> dict[str, Scalar]:
        """What a spec says of it."""
        if self.tracking is None:
            return {"fps": self.fps, "crop": self.fit}
        followed = self.tracking.parameters
        return {"fps": self.fps, "crop": "face", "margin": self.margin, **followed}

    @property
    def weights(self) -> str:
        """The detector's digest; empty where no face is looked for."""
        return self.tracking.detector.weights if self.tracking else ""

    @property
    def licence(self) -> str:
        """Of the code and the detector."""
        return self.tracking.detector.licence if self.tracking else "Apache-2.0"

    @property
    def source(self) -> str:
        """Where the detector's file lay."""
        return self.tracking.detector.source if self.tracking else ""

    @property
    def caution(self) -> str:
        """What is to be said to whoever uses it; may be empty."""
        return self.tracking.detector.caution if self.tracking else ""

    def atol(self, atol: float) -> float | None:
        """This much where the detector's places are not exact; else None."""
        exact = self.tracking is None or self.tracking.detector.atol is None
        return None if exact else atol

    def begin(self, take: Take) -> "Cutter":
        """Start on a clip."""
        return Cutter(self, take)


def cutting(
    who: str,
    *,
    crop: str,
    size: int,
    colour: Literal["gray", "rgb"],
    fps: float,
    margin: float,
    detector: str,
    model: str,
    weights: str,
    picture: int,
    bridge_s: float,
    smooth_s: float,
) -> Cutting:
    """Checked settings.

    `who` is the featurizer's name, for errors. `crop` is "centre", the largest centred square, or
    "whole", all of the picture in the middle of a black square, for which no face is looked for; or
    "face", a square around the face that `face-track` finds with
    the same settings, of `margin` times the face's longer side. `size` is the square's in pixels.

    Raises:
        MissingWeightsError, ValueError: As of `Tracking.of`; or a setting is out of range.
    """
    if crop not in CROPS:
        raise ValueError(f"{who}: crop is {crop!r}; wanted one of {', '.join(CROPS)}")
    if not 0.1 <= fps <= 120 or not 0.5 <= margin <= 3:
        raise ValueError(
            f"{who}: fps is {fps} and margin is {margin}; wanted 0.1 to 120, and 0.5 to 3"
        )
    if crop != "face" and (model or weights):
        raise ValueError(f"{who}: crop {crop!r} looks for no face; for `model` give crop: face")
    tracking = None
    if crop == "face":
        tracking = Tracking.of(
            who,
            fps=fps,
            detector=detector,
            model=model,
            weights=weights,
            picture=picture,
            bridge_s=bridge_s,
            smooth_s=smooth_s,
        )
    return Cutting(
        size=size,
        colour=colour,
        fps=float(fps),
        fit="whole" if crop == "whole" else "centre",
        margin=float(margin),
        tracking=tracking,
    )


class Cutter:
    """Cuts the squares of one clip; holds whole pictures only until their face is settled."""

    def __init__(self, cutting: Cutting, take: Take) -> None:
        self._cutting, self._take, self._tracking = cutting, take, cutting.tracking
        self._follower = cutting.tracking.follower() if cutting.tracking else None
        self._waiting: deque[tuple[Pictures, NDArray[np.float64]]] = deque()
        self._cut = 0

    def add(self, chunk: VideoChunk) -> None:
        """Take the next pictures."""
        if self._tracking is None or self._follower is None:
            self._take(chunk.frames, chunk.times, np.ones(len(chunk.frames), dtype=np.bool_))
            return
        is_gray = self._cutting.colour == "gray"
        for frame, times in zip(chunk.frames, chunk.times, strict=True):
            self._follower.add(self._tracking.detector.find(frame))
            self._waiting.append((brightness(frame) if is_gray else frame, times))
        self._settle()

    def finish(self) -> None:
        """No picture follows."""
        if self._follower is not None:
            self._follower.end()
            self._settle()

    def _settle(self) -> None:
        if self._follower is None:
            return
        squares, times, shown = [], [], []
        while self._cut < self._follower.settled:
            step = self._follower.step(self._cut)
            frame, when = self._waiting.popleft()
            squares.append(self._square(frame, step))
            times.append(when)
            shown.append(step.found or step.bridged)
            self._cut += 1
        if squares:
            self._take(np.stack(squares), np.stack(times), np.array(shown, dtype=np.bool_))

    def _square(self, picture: Pictures, step: Step) -> Pictures:
        if not (step.found or step.bridged):
            size = self._cutting.size
            return np.zeros((size, size, *picture.shape[2:]), dtype=np.uint8)
        x, y, width, height = (part * len(picture) for part in step.box)
        side = max(1.0, self._cutting.margin * max(width, height))
        return cut_out(picture, x - side / 2, y - side / 2, side, self._cutting.size)


def cut_out(picture: Pictures, left: float, top: float, side: float, size: int) -> Pictures:
    """A square of a picture, scaled by the means of areas; black where it lies outside.

    Places are taken to 1/1024 of a pixel, and areas are counted in whole numbers: a square that
    moves by a part of a pixel changes little, and the same place gives the same bytes everywhere.

    Args:
        picture: [H, W] or [H, W, 3].
        left: Where the square begins, in pixels.
        top: The same, downwards.
        side: Of the square, in pixels.
        size: Of the result, [size, size] or [size, size, 3].
    """
    length = max(1, round(side * FINE))
    rows = _area_sums(picture, round(top * FINE), length, size)
    sums = _area_sums(np.swapaxes(rows, 0, 1), round(left * FINE), length, size)
    area = length * length
    scaled: Pictures = ((np.swapaxes(sums, 0, 1) + area // 2) // area).astype(np.uint8)
    return scaled


def _area_sums(lines: NDArray[Any], start: int, length: int, size: int) -> NDArray[np.int64]:
    """Sums of lines [N, ...] over `size` cells from `start` on, `length` long in all: [size, ...].

    Places are counted in 1/1024 of a line. A line that lies wholly in a cell counts 1024 * size, so
    that all are whole numbers.
    """
    unit = FINE * size
    edges = np.clip(start * size + length * np.arange(size + 1), 0, unit * len(lines))
    first = int(edges[0]) // unit
    part = lines[first : int(edges[-1]) // unit + 1].astype(np.int64)
    # Both have a line more than there is, for an edge at the very end.
    beyond = np.zeros((1, *part.shape[1:]), dtype=np.int64)
    part = np.concatenate([part, beyond])
    before = np.cumsum(np.concatenate([beyond, part[:-1]]), axis=0)
    whole, rest = np.divmod(edges - first * unit, unit)
    shape = (-1,) + (1,) * (part.ndim - 1)
    upto = before[whole] * unit + part[whole] * rest.reshape(shape)
    return np.diff(upto, axis=0)
