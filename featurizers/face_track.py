"""One face of a clip, followed from picture to picture."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.face_detector import Detector, Faces, detector
from featurizers.spec import Chunk, Dim, Feature, FeatureSpec, Scalar, VideoChunk, VideoWant

DECIMALS = 4
SIZES = (0.5, 2.0)  # the same face grows and shrinks by less
SIDES = "longer sides of the picture"
DIMS = (
    Dim("centre_x", SIDES),
    Dim("centre_y", SIDES),
    Dim("width", SIDES),
    Dim("height", SIDES),
    Dim("score"),
    Dim("found"),
    Dim("bridged"),
    Dim("faces"),
)


class FaceTrack:
    """Where the face of a clip is, one step a picture.

    Places are in the square around the picture whose side is the picture's longer side: 0 is its
    left or upper edge, 1 its right or lower one. `found` is 1 where the detector saw the face, and
    `bridged` where it was lost for a moment and is placed on a straight line between what was found
    before and after; in all other steps there is no face, and the box is 0. `score` is the
    detector's, 0 where nothing was found. `faces` counts all faces of the picture.

    Which face: the one with the greatest area, less the farther it is from the middle. From then on
    the face that is nearest to the last one, as long as its middle moved by less than its width and
    its width changed by less than twice. Another is chosen when it is lost for longer than a gap
    that may be bridged. Places are smoothed by a triangular window that is symmetric also at the
    ends, so that steady motion is not delayed.

    The cascade gave equal bits with and without vector instructions and threads: its promise is
    exact. YuNet calculates in floats: within 1e-3.

    Args:
        fps: Pictures per second that are looked at.
        detector: "yunet", or "cascade" to try things out.
        model: YuNet's ONNX file, which `fuseline fetch yunet` gets.
        weights: Its sha256; where the file is not at `model`, it is looked for by it in the folders
            that FUSELINE_WEIGHTS lists.
        picture: Pixels of the picture's longer side for the detector.
        bridge_s: Longest gap that is bridged.
        smooth_s: Width of the smoothing window; 0 for none.
    """

    weights_from: ClassVar[str] = "model"

    def __init__(
        self,
        *,
        fps: float = 5,
        detector: str = "yunet",
        model: str = "",
        weights: str = "",
        picture: int = 320,
        bridge_s: float = 0.5,
        smooth_s: float = 0.6,
    ) -> None:
        self._tracking = Tracking.of(
            "face-track",
            fps=fps,
            detector=detector,
            model=model,
            weights=weights,
            picture=picture,
            bridge_s=bridge_s,
            smooth_s=smooth_s,
        )
        finder = self._tracking.detector
        self.caution = finder.caution
        self.spec = FeatureSpec(
            name="face-track",
            version=1,
            modality="video",
            reads=("video",),
            parameters={"fps": float(fps), **self._tracking.parameters},
            dims=DIMS,
            rate_hz=float(fps),
            weights=finder.weights,
            licence=finder.licence,
            atol=finder.atol,
            source=finder.source,
        )
        self.wants = self._tracking.wants

    def begin(self, clip: Clip) -> "_FaceTrack":
        """Start on a clip."""
        return _FaceTrack(self._tracking)


class _FaceTrack:
    def __init__(self, tracking: "Tracking") -> None:
        self._tracking, self._follower = tracking, tracking.follower()
        self._times: list[NDArray[np.float64]] = []

    def add(self, chunk: Chunk) -> None:
        if isinstance(chunk, VideoChunk):
            self._times.append(chunk.times)
            for frame in chunk.frames:
                self._follower.add(self._tracking.detector.find(frame))

    def finish(self) -> Feature:
        if not self._times:
            raise BadClipError("empty", "there is no picture in the clip's span")
        self._follower.end()
        steps = [self._follower.step(index) for index in range(self._follower.settled)]
        rows = [[*step.box, step.score, step.found, step.bridged, step.faces] for step in steps]
        values = (np.round(np.array(rows, dtype=np.float64), DECIMALS) + 0.0).astype(np.float32)
        return Feature(values, np.concatenate(self._times))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """How a face is followed: checked settings, and the detector.

    Attributes:
        reach: Longest gap that is bridged, in steps.
        radius: Steps that smoothing takes on either side.
    """

    detector: Detector
    fps: float
    picture: int
    reach: int
    radius: int
    parameters: dict[str, Scalar]

    @staticmethod
    def of(
        who: str,
        *,
        fps: float,
        detector: str,
        model: str,
        weights: str,
        picture: int,
        bridge_s: float,
        smooth_s: float,
    ) -> "Tracking":
        """Settings as featurizers take them.

        Raises:
            MissingWeightsError: The detector's file is not on this machine.
            ValueError: A setting is out of range, or the detector cannot be had.
        """
        if not 0.1 <= fps <= 120 or not 64 <= picture <= 1024 or picture % 32:
            raise ValueError(
                f"{who}: fps is {fps} and picture is {picture}; wanted 0.1 to 120, and 64 to 1024 "
                f"in steps of 32"
            )
        if not 0 <= bridge_s <= 10 or not 0 <= smooth_s <= 10:
            raise ValueError(
                f"{who}: bridge_s is {bridge_s} and smooth_s is {smooth_s}; wanted 0 to 10 s"
            )
        return Tracking(
            detector=_named(who, detector, model, weights),
            fps=float(fps),
            picture=picture,
            reach=int(bridge_s * fps),
            radius=int(smooth_s * fps / 2),
            parameters={
                "detector": detector,
                "picture": picture,
                "bridge_s": float(bridge_s),
                "smooth_s": float(smooth_s),
            },
        )

    @property
    def wants(self) -> VideoWant:
        """Whole pictures: a face need not be in the middle."""
        return VideoWant(fps=self.fps, size=self.picture, colour="rgb", fit="whole")

    def follower(self) -> "Follower":
        """For one clip."""
        return Follower(side=self.picture, reach=self.reach, radius=self.radius)


def _named(who: str, name: str, model: str, weights: str) -> Detector:
    try:
        return detector(name, model, weights)
    except ValueError as error:
        raise type(error)(f"{who}: {error}") from None


@dataclass(frozen=True, slots=True)
class Step:
    """The face in one picture.

    Attributes:
        box: centre_x, centre_y, width and height, as parts of the picture's side; 0 without a face.
        faces: How many there were.
    """

    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    score: float = 0.0
    found: bool = False
    bridged: bool = False
    faces: int = 0


@dataclass(slots=True, kw_only=True)
class Follower:
    """Follows one face through pictures, as they come; see `FaceTrack` for the rules.

    Holds a few numbers a picture. A step is settled when no later picture can change it, which is
    after at most `reach + radius + 1` of them.

    Args:
        side: Pixels of the pictures' sides.
        reach: Longest gap that is bridged, in steps.
        radius: Steps that smoothing takes on either side.
    """

    side: int
    reach: int
    radius: int
    _steps: list[Step] = field(default_factory=list)
    _runs: list[int] = field(default_factory=list)  # 0 without a face; of one face the same number
    _last: int = -1  # the step in which it was found last
    _run: int = 0
    _ended: bool = False

    def add(self, faces: Faces) -> None:
        """Take the faces of the next picture, in pixels."""
        boxes = _centred(faces[(faces[:, 2:4] > 0).all(axis=1)])
        boxes[:, :4] /= self.side
        chosen, follows = self._choose(boxes)
        if chosen is None:
            self._steps.append(Step(faces=len(boxes)))
            self._runs.append(0)
            return
        x, y, width, height, score = map(float, boxes[chosen])
        step = Step((x, y, width, height), score, found=True, faces=len(boxes))
        if follows:
            self._bridge(step)
        else:
            self._run += 1
        self._last = len(self._steps)
        self._steps.append(step)
        self._runs.append(self._run)

    def end(self) -> None:
        """No picture follows."""
        self._ended = True

    @property
    def settled(self) -> int:
        """How many steps no later picture changes."""
        count = len(self._steps)
        if self._ended:
            return count
        waits = self._last >= 0 and count - self._last - 1 <= self.reach
        return max(0, (self._last + 1 if waits else count) - self.radius)

    def step(self, index: int) -> Step:
        """A settled step, smoothed."""
        step, run = self._steps[index], self._runs[index]
        if not run:
            return step
        wide = 0
        while wide < self.radius and self._is_of(run, index, wide + 1):
            wide += 1
        around = np.array([each.box for each in self._steps[index - wide : index + wide + 1]])
        weights = wide + 1.0 - np.abs(np.arange(-wide, wide + 1))
        x, y, width, height = (float(sum(weights * column) / sum(weights)) for column in around.T)
        return Step((x, y, width, height), step.score, step.found, step.bridged, step.faces)

    def _is_of(self, run: int, index: int, away: int) -> bool:
        low, high = index - away, index + away
        return low >= 0 and high < len(self._runs) and self._runs[low] == self._runs[high] == run

    def _choose(self, boxes: Faces) -> tuple[int | None, bool]:
        """Which of the faces, and whether it is the one that was followed."""
        if not len(boxes):
            return None, False
        waited = len(self._steps) - self._last - 1
        if self._last >= 0 and waited <= self.reach:
            distances = _distances(self._steps[self._last].box, boxes)
            nearest = int(np.argmin(distances))
            if distances[nearest] < 1:
                return nearest, True
            if waited < self.reach:
                return None, False
        return int(np.argmax(_prominence(boxes))), False

    def _bridge(self, after: Step) -> None:
        """Lay the steps since the last one on a straight line."""
        before, gap = self._steps[self._last], len(self._steps) - self._last
        for number in range(1, gap):
            part = number / gap
            at = self._last + number
            x, y, width, height = (
                (1 - part) * one + part * other
                for one, other in zip(before.box, after.box, strict=True)
            )
            self._steps[at] = Step((x, y, width, height), bridged=True, faces=self._steps[at].faces)
            self._runs[at] = self._run


def _centred(faces: Faces) -> Faces:
    """From left and top to the middle."""
    moved = faces.astype(np.float64)
    moved[:, :2] += moved[:, 2:4] / 2
    return moved


def _prominence(boxes: Faces) -> NDArray[np.float64]:
    """Area, less the farther from the middle: none in a corner of the square."""
    away = np.hypot(boxes[:, 0] - 0.5, boxes[:, 1] - 0.5)
    part: NDArray[np.float64] = boxes[:, 2] * boxes[:, 3] * (1 - away / np.hypot(0.5, 0.5))
    return part


def _distances(last: tuple[float, ...], boxes: Faces) -> NDArray[np.float64]:
    """How far each middle is from the last one, in widths; infinite where the size is another."""
    x, y, width, _ = last
    away: NDArray[np.float64] = np.hypot(boxes[:, 0] - x, boxes[:, 1] - y) / width
    grown = boxes[:, 2] / width
    return np.where((grown > SIZES[0]) & (grown < SIZES[1]), away, np.inf)
