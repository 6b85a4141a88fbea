"""Faces in single pictures, by a detector that is chosen by name; the only user of OpenCV.

Of OpenCV only what looks at pictures is used, never what reads video.
"""

import contextlib
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from featurizers.pretrained import (
    KnownFile,
    WeightsError,
    check_digest,
    digest_of_file,
    model_file,
)

Name: TypeAlias = Literal["yunet", "cascade"]
NAMES: tuple[str, ...] = get_args(Name)

INSTALL = "pip install 'fuseline[faces]'"
ADVICE = (
    "give the path of YuNet's ONNX file, which `fuseline fetch yunet` gets, or take detector "
    "'cascade' to try things out"
)
CASCADE = "haarcascade_frontalface_alt2.xml"
CASCADE_LICENCE = "Apache-2.0 (OpenCV); the cascade: Intel, BSD-like"
YUNET = KnownFile(
    name="YuNet of March 2023",
    file="face_detection_yunet_2023mar.onnx",
    sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    licence="Apache-2.0 (OpenCV); the model: MIT",
)
YUNET_ATOL = 1e-3
LEAST_SHARE = 10  # the cascade's smallest face is this part of the picture's side
NEIGHBOURS = 4  # so many windows of the cascade must agree
STEP = 1.1  # between two sizes of its windows
SCORE, OVERLAP, MOST = 0.6, 0.3, 100  # of YuNet: least score, non-maximum suppression, faces

Faces: TypeAlias = NDArray[np.float64]
"""[K, 5]: left, top, width and height in pixels, score 0..1."""

REMEMBERED = 256  # pictures
_REMEMBERED: dict[tuple[str, tuple[int, ...], bytes], Faces] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """What finds faces.

    Attributes:
        weights: sha256 of its file.
        source: Where the file lies; empty of the one that comes with OpenCV.
        atol: None where it gives equal numbers on every machine.
        see: The faces in a picture, uint8 [S, S, 3]: red, green, blue.
        caution: What is to be said to whoever uses it; may be empty.
    """

    name: str
    weights: str
    licence: str
    source: str
    atol: float | None
    see: Callable[[NDArray[np.uint8]], Faces]
    caution: str

    def find(self, picture: NDArray[np.uint8]) -> Faces:
        """The faces in a picture; those of the last pictures are remembered.

        Several featurizers look at the pictures of a clip, and still ones come again and again.
        """
        seen = hashlib.blake2b(np.ascontiguousarray(picture).data, digest_size=16).digest()
        key = (self.weights, picture.shape, seen)
        faces = _REMEMBERED.pop(key, None)
        _REMEMBERED[key] = self.see(picture) if faces is None else faces
        if len(_REMEMBERED) > REMEMBERED:
            del _REMEMBERED[next(iter(_REMEMBERED))]
        return _REMEMBERED[key]


def detector(name: str, model: str, weights: str) -> Detector:
    """The detector of this name.

    Args:
        name: "yunet" (Wu et al. 2023), a network in a file of the user's; or "cascade" (Viola and
            Jones 2001), which comes with OpenCV.
        model: YuNet's file. May be empty when `weights` is given.
        weights: The sha256 that its file must have. A file that is not there is looked for by it
            in the folders that FUSELINE_WEIGHTS lists.

    Raises:
        MissingWeightsError: The file is not on this machine.
        ValueError: There is no such detector, OpenCV is not installed or has no cascades, or the
            file is another.
    """
    if name not in NAMES:
        raise ValueError(f"detector is {name!r}; wanted one of {', '.join(NAMES)}")
    package = _opencv()
    if name == "yunet":
        path = model_file(model, weights, ".onnx", ADVICE)
        digest = digest_of_file(path)
        return Detector(
            name=name,
            weights=digest,
            licence=YUNET.licence_of(digest),
            source=str(path),
            atol=YUNET_ATOL,
            see=functools.partial(_by_yunet, str(path)),
            caution="",
        )
    if model:
        raise ValueError(f"model is {model!r}; the cascade is OpenCV's own and takes none")
    path = _cascade(package, weights)
    return Detector(
        name=name,
        weights=digest_of_file(path),
        licence=CASCADE_LICENCE,
        source="",
        atol=None,
        see=functools.partial(_by_cascade, str(path)),
        caution=(
            "detector 'cascade' is for trying things out: it loses faces that are turned, tilted "
            "or dark, and sees some that are none; `fuseline fetch yunet` gets a better one"
        ),
    )


def _opencv() -> Path:
    """OpenCV's folder, found without loading it."""
    found = importlib.util.find_spec("cv2")
    places = found.submodule_search_locations if found else None
    if not places:
        raise WeightsError(f"faces are found by OpenCV, which is not installed: {INSTALL}")
    return Path(places[0])


def _cascade(package: Path, weights: str) -> Path:
    path = package / "data" / CASCADE
    if not path.is_file():
        raise ValueError(
            f"this OpenCV has no {CASCADE}, as from version 5 on: {INSTALL}, or use detector "
            f"'yunet'"
        )
    check_digest(path, weights)
    return path


# What finds them.


def _by_cascade(path: str, picture: NDArray[np.uint8]) -> Faces:
    least = max(20, len(picture) // LEAST_SHARE)
    with _alone() as cv2:
        boxes, votes = cv2.CascadeClassifier.detectMultiScale2(
            _loaded_cascade(path), brightness(picture), STEP, NEIGHBOURS, minSize=(least, least)
        )
    return faces_of_cascade(np.asarray(boxes), np.asarray(votes))


def brightness(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W] of [H, W, 3]: 77 parts of red, 150 of green and 29 of blue, of 256."""
    red, green, blue = np.moveaxis(picture.astype(np.uint32), -1, 0)
    gray: NDArray[np.uint8] = ((77 * red + 150 * green + 29 * blue + 128) >> 8).astype(np.uint8)
    return gray


def faces_of_cascade(boxes: NDArray[Any], votes: NDArray[Any]) -> Faces:
    """Faces of what OpenCV's cascade gives: boxes [K, 4] and how many windows saw each [K].

    The score is votes / (votes + 4), so that it begins at 0.5.
    """
    counted = votes.reshape(-1, 1).astype(np.float64)
    scores = counted / (counted + NEIGHBOURS)
    return np.concatenate([boxes.reshape(-1, 4).astype(np.float64), scores], axis=1)


def _by_yunet(path: str, picture: NDArray[np.uint8]) -> Faces:
    with _alone() as cv2:
        _, found = cv2.FaceDetectorYN.detect(
            _loaded_yunet(path, len(picture)), np.ascontiguousarray(picture[:, :, ::-1])
        )
    return faces_of_yunet(found)


def faces_of_yunet(found: NDArray[Any] | None) -> Faces:
    """Faces of what OpenCV's FaceDetectorYN gives.

    Args:
        found: None when there is no face; else [K, 15]: left, top, width, height, five points of
            the face, score.
    """
    if found is None:
        return np.zeros((0, 5))
    return found[:, [0, 1, 2, 3, 14]].astype(np.float64)


@functools.lru_cache(maxsize=2)
def _loaded_cascade(path: str) -> Any:  # noqa: ANN401 - OpenCV's own
    import cv2

    return cv2.CascadeClassifier(path)


@functools.lru_cache(maxsize=2)
def _loaded_yunet(path: str, side: int) -> Any:  # noqa: ANN401 - OpenCV's own
    import cv2

    try:
        return cv2.FaceDetectorYN.create(
            path,
            "",
            (side, side),
            SCORE,
            OVERLAP,
            MOST,
            cv2.dnn.DNN_BACKEND_OPENCV,
            cv2.dnn.DNN_TARGET_CPU,
        )
    except cv2.error as error:
        line = " ".join(str(error).split())
        raise WeightsError(f"{path}: no YuNet in ONNX form: {line}") from None


@contextlib.contextmanager
def _alone() -> Iterator[Any]:
    """OpenCV in one thread: a worker has one core, and the order of what is found is fixed."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield cv2
    finally:
        cv2.setNumThreads(before)
