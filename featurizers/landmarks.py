"""Landmarks, blendshapes and pose of a face, by MediaPipe and a model file of the user's."""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.pretrained import KnownFile, WeightsError, digest_of_file, model_file
from featurizers.spec import Chunk, Dim, Feature, FeatureSpec, VideoChunk, VideoWant

NAME = "landmarks"
INSTALL = "pip install 'fuseline[landmarks]'"
ADVICE = (
    "give the path of MediaPipe's face_landmarker.task, which `fuseline fetch face-landmarker` gets"
)
LANDMARKER = KnownFile(
    name="MediaPipe's Face Landmarker, version 1",
    file="face_landmarker.task",
    sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    licence="Apache-2.0 (MediaPipe); the model: Apache-2.0",
)
ATOL = 0.01
POINTS = 478
SIDES = "longer sides of the picture"
# fmt: off
SHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft",
    "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft",
    "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft",
    "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen",
    "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft",
    "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight",
    "mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthRight", "mouthRollLower",
    "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight",
    "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)
# fmt: on
_FACE = (
    Dim("found"),
    Dim("pitch", "degrees"),
    Dim("yaw", "degrees"),
    Dim("roll", "degrees"),
    Dim("right", "cm"),
    Dim("up", "cm"),
    Dim("towards", "cm"),
    *(Dim(f"shape_{name}", "0..1") for name in SHAPES),
)
_POINTS = tuple(Dim(f"point_{n:03d}_{axis}", SIDES) for n in range(POINTS) for axis in "xyz")
CHOICES = {"all": (*_FACE, *_POINTS), "none": _FACE}


class Point(Protocol):
    """A landmark as MediaPipe gives it: x and y are parts of the picture's sides."""

    x: float
    y: float
    z: float


class Shape(Protocol):
    """A blendshape as MediaPipe gives it."""

    category_name: str
    score: float


class Result(Protocol):
    """What MediaPipe gives of a picture; one entry a face in each list."""

    face_landmarks: Sequence[Sequence[Point]]
    face_blendshapes: Sequence[Sequence[Shape]]
    facial_transformation_matrixes: Sequence[NDArray[Any]]


class Landmarks:
    """The face of each picture: its pose, 52 blendshapes and 478 landmarks, one step a picture.

    `found` is 0 where MediaPipe saw no face; all else is 0 then too. With several faces in the
    picture it is the one that MediaPipe is surest of; no face is followed from picture to picture,
    so that each step is the picture's own. `pitch`, `yaw` and `roll` turn MediaPipe's model of a
    face about its axes to the right, upwards and towards the camera, in that order; `right`, `up`
    and `towards` are its place from the camera. Points are in the square around the picture, as
    `face-track` has it, their z from the middle of the head, less the nearer to the camera.

    Kartynnik et al. 2019 (landmarks), Grishchenko et al. 2022 (blendshapes). The promise is within
    0.01: MediaPipe calculates in floats.

    Args:
        fps: Pictures per second.
        model: MediaPipe's face_landmarker.task, which `fuseline fetch face-landmarker` gets.
        weights: Its sha256; where the file is not at `model`, it is looked for by it in the folders
            that FUSELINE_WEIGHTS lists.
        picture: Pixels of the picture's longer side.
        points: "all", or "none" for pose and blendshapes alone.
    """

    weights_from: ClassVar[str] = "model"

    def __init__(
        self,
        *,
        fps: float = 5,
        model: str = "",
        weights: str = "",
        picture: int = 320,
        points: str = "all",
    ) -> None:
        if not 0.1 <= fps <= 120 or not 64 <= picture <= 1024 or points not in CHOICES:
            raise ValueError(
                f"{NAME}: fps is {fps}, picture is {picture} and points is {points!r}; wanted 0.1 "
                f"to 120, 64 to 1024, and one of {', '.join(CHOICES)}"
            )
        try:
            path = model_file(model, weights, ".task", ADVICE)
        except ValueError as error:
            raise type(error)(f"{NAME}: {error}") from None
        self._path, self._dims = str(path), CHOICES[points]
        digest = digest_of_file(path)
        self.spec = FeatureSpec(
            name=NAME,
            version=1,
            modality="video",
            reads=("video",),
            parameters={"fps": float(fps), "picture": picture, "points": points},
            dims=self._dims,
            rate_hz=float(fps),
            weights=digest,
            licence=LANDMARKER.licence_of(digest),
            atol=ATOL,
            source=str(path),
        )
        self.wants = VideoWant(fps=float(fps), size=picture, colour="rgb", fit="whole")

    def begin(self, clip: Clip) -> "_Landmarks":
        """Start on a clip. Raises ValueError when MediaPipe is not installed."""
        if importlib.util.find_spec("mediapipe") is None:
            raise WeightsError(f"{NAME}: MediaPipe is not installed: {INSTALL}")
        return _Landmarks(self._path, len(self._dims))


class _Landmarks:
    def __init__(self, path: str, width: int) -> None:
        self._path, self._width = path, width
        self._values: list[NDArray[np.float32]] = []
        self._times: list[NDArray[np.float64]] = []
        self._landmarker: Any = None

    def add(self, chunk: Chunk) -> None:
        if isinstance(chunk, VideoChunk):
            self._landmarker = self._landmarker or _landmarker(self._path)
            self._values += [row_of(_seen(self._landmarker, frame)) for frame in chunk.frames]
            self._times.append(chunk.times)

    def finish(self) -> Feature:
        if not self._values:
            raise BadClipError("empty", "there is no picture in the clip's span")
        self._landmarker.close()  # MediaPipe's own way to end at exit comes too late
        values = np.stack(self._values)[:, : self._width]
        return Feature(values, np.concatenate(self._times))


def row_of(result: Result) -> NDArray[np.float32]:
    """All dimensions of a picture's first face; 0 without one.

    Raises:
        ValueError: The model gives other blendshapes or points than are declared.
    """
    if not result.face_landmarks:
        return np.zeros(len(_FACE) + len(_POINTS), dtype=np.float32)
    if not result.face_blendshapes or not len(result.facial_transformation_matrixes):
        raise ValueError(f"{NAME}: this .task file gives no blendshapes or no pose; {ADVICE}")
    points, shapes = result.face_landmarks[0], result.face_blendshapes[0]
    scores = {shape.category_name: shape.score for shape in shapes}
    if set(scores) != set(SHAPES) or len(points) != POINTS:
        raise ValueError(
            f"{NAME}: this .task file gives {len(points)} points and {len(scores)} blendshapes; "
            f"wanted {POINTS} and MediaPipe's {len(SHAPES)}: {ADVICE}"
        )
    places = np.array([[point.x, point.y, point.z] for point in points], dtype=np.float32)
    pose = pose_of(result.facial_transformation_matrixes[0])
    face = np.array([1.0, *pose, *(scores[name] for name in SHAPES)], dtype=np.float32)
    return np.concatenate([face, places.reshape(-1)])


def pose_of(matrix: NDArray[Any]) -> tuple[float, float, float, float, float, float]:
    """Pitch, yaw and roll in degrees, and where the face is, of a matrix [4, 4].

    The matrix turns by pitch about x, then by yaw about y, then by roll about z, and moves; it may
    scale, the same in all directions.
    """
    turn = np.asarray(matrix, dtype=np.float64)
    pitch = math.atan2(turn[2, 1], turn[2, 2])
    yaw = math.atan2(-turn[2, 0], math.hypot(turn[2, 1], turn[2, 2]))
    roll = math.atan2(turn[1, 0], turn[0, 0])
    right, up, towards = (float(each) for each in turn[:3, 3])
    return math.degrees(pitch), math.degrees(yaw), math.degrees(roll), right, up, towards


def _seen(landmarker: Any, picture: NDArray[np.uint8]) -> Result:  # noqa: ANN401 - MediaPipe's own
    import mediapipe

    image = mediapipe.Image(
        image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(picture)
    )
    result: Result = landmarker.detect(image)
    return result


def _landmarker(path: str) -> Any:  # noqa: ANN401 - MediaPipe's own
    """One for each clip, which takes some hundredths of a second."""
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=path),
        num_faces=1,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    try:
        return vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError, OSError) as error:
        raise WeightsError(f"{path}: no face landmarker of MediaPipe: {error}") from None
