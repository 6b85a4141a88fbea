"""Features of pictures from the file on, beside PyAV, Pillow and OpenCV used by hand.

Ours decodes with `featurizers.media`; the other makes each picture RGB at full rate and size, then
scales it, and takes those that are wanted. Both decode with one thread.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers import face_detector
from featurizers.catalog import build
from featurizers.limits import Limits
from featurizers.media import decode, encode
from featurizers.pretrained import FOLDERS
from featurizers.spec import Featurizer, VideoChunk, VideoWant
from featurizers.visual import SIZE
from rivals import Floats, Race, Size, Skipped, clip_of, close, extracted

VIDEO_S, FACE_S = 8, 4
FPS = 25
WIDTH, HEIGHT = 1280, 720
WANTED = slice(2, None, FPS // 5)
"""The pictures in the middle of each fifth of a second."""


def races(size: Size) -> Iterator[Race | Skipped]:
    """Every featurizer that sees, but encoders."""
    files = [video(size.folder, number) for number in range(1 if size.quick else 4)]
    race = partial(_race, files, VIDEO_S)
    yield race(build("face-motion"), name="video", theirs=their_motion, compare=same_motion)
    yield race(build("frames"), name="frames", theirs=their_frames, compare=same_frames)
    yield race(build("appearance"), name="appearance")
    seconds = 1 if size.quick else FACE_S
    of_face = partial(_race, [face(size.folder, seconds)], seconds)
    cascade = build("face-track", detector="cascade")
    yield of_face(cascade, name="face track", theirs=their_faces, compare=same_faces, most=2)
    marks = landmarks()
    if isinstance(marks, Skipped):
        yield marks
    else:
        yield of_face(marks, name="landmarks")


def _race(
    files: Sequence[Path],
    seconds: float,
    featurizer: Featurizer,
    *,
    name: str,
    theirs: Any = None,  # noqa: ANN401 - a function of a file
    compare: Any = None,  # noqa: ANN401 - a function of both arrays
    most: int = 7,
) -> Race:
    return Race(
        name=name,
        featurizer=featurizer.spec.name,
        seconds=len(files) * seconds,
        ours=lambda: [ours(featurizer, path) for path in files],
        theirs=None if theirs is None else lambda: [theirs(path) for path in files],
        compare=compare,
        most=most,
    )


def landmarks() -> Featurizer | Skipped:
    """The featurizer, where MediaPipe and a model file for it are here."""
    if find_spec("mediapipe") is None:
        return Skipped("landmarks", "MediaPipe is not installed: pip install 'fuseline[landmarks]'")
    folders = [Path(each) for each in os.environ.get(FOLDERS, "").split(os.pathsep) if each]
    files = sorted(path for folder in folders for path in folder.rglob("*.task"))
    if not files:
        return Skipped(
            "landmarks", f"no .task file lies below {FOLDERS}: fuseline fetch face-landmarker"
        )
    return build("landmarks", model=str(files[0]))


def video(folder: Path, number: int) -> Path:
    """A disc that wanders over a slope, under the noise of a camera."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grain = random.integers(0, 7, (HEIGHT, WIDTH))

    def picture(at: int) -> NDArray[np.uint8]:
        centre = 640 + 200 * np.cos(at / 9), 360 + 150 * np.sin(at / 7)
        disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 150**2
        grey = np.where(disc, 200, 60 + x // 16) + np.roll(grain, 3 * at, axis=1)
        return np.repeat(grey.astype(np.uint8)[:, :, np.newaxis], 3, axis=2)

    frames = [picture(at) for at in range(VIDEO_S * FPS)]
    path = folder / f"{number}.mp4"
    encode(path, frames=frames, fps=FPS, samples=None, rate_hz=16_000)
    return path


def face(folder: Path, seconds: int) -> Path:
    """A drawn face that wanders."""
    from tests.drawn_faces import draw, rgb

    drawn = draw(480, 400, [(200, 240, 130)])

    def picture(at: int) -> NDArray[np.uint8]:
        grey = np.full((HEIGHT, WIDTH), 110, dtype=np.uint8)
        left, top = _corner(at)
        grey[top : top + 480, left : left + 400] = drawn
        return np.asarray(rgb(grey))

    path = folder / "face.mp4"
    frames = [picture(at) for at in range(seconds * FPS)]
    encode(path, frames=frames, fps=FPS, samples=None, rate_hz=16_000)
    return path


def _corner(at: int) -> tuple[int, int]:
    return round(440 + 60 * np.cos(at / 9)), round(120 + 40 * np.sin(at / 7))


def ours(featurizer: Featurizer, path: Path) -> Floats:
    """Decoded, shrunk and computed by the project."""
    want = featurizer.wants
    if not isinstance(want, VideoWant):
        raise TypeError(f"{featurizer.spec.name} reads no pictures")
    # Faces of the last pictures are remembered: here they are the same ones in each round.
    face_detector._REMEMBERED.clear()  # noqa: SLF001 - a job never needs it
    events = decode(path, 0.0, None, [want], Limits())
    chunks = [event for _, event in events if isinstance(event, VideoChunk)]
    return extracted(featurizer, clip_of(), chunks)


def pictures_of(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Each picture of a file, RGB, by PyAV."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            yield frame.to_ndarray(format="rgb24")


def squares_of(path: Path, side: int, mode: str) -> NDArray[np.uint8]:
    """Each picture cut and resized by Pillow; then those that are wanted."""
    from PIL import Image

    small: list[NDArray[np.uint8]] = []
    for picture in pictures_of(path):
        left = (WIDTH - HEIGHT) // 2
        square = Image.fromarray(picture).crop((left, 0, left + HEIGHT, HEIGHT))
        scaled = square.resize((side, side), Image.Resampling.BOX)
        small.append(np.asarray(scaled.convert(mode)))
    return np.stack(small[WANTED])


def their_motion(path: Path) -> Floats:
    """Our features of their pictures: what is compared is decoding."""
    squares = squares_of(path, SIZE, "L")
    times = np.arange(len(squares))[:, np.newaxis] / 5 + np.array([0.0, 0.2])
    return extracted(build("face-motion"), clip_of(), [VideoChunk(times, squares)])


def their_frames(path: Path) -> Floats:
    """[T, 64 * 64 * 3]."""
    squares = squares_of(path, 64, "RGB")
    return squares.reshape(len(squares), -1)


def their_faces(path: Path) -> Floats:
    """[T, 4]: the largest face of every picture at full size, as parts of it; those wanted."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    boxes = []
    for picture in pictures_of(path):
        gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        found = cascade.detectMultiScale(gray)
        boxes.append(max(found, key=lambda box: box[2], default=np.zeros(4)))
    cv2.setNumThreads(before)
    return np.stack(boxes[WANTED]).astype(np.float64)


def same_motion(mine: Floats, theirs: Floats) -> None:
    """Brightness and the look of the cells."""
    close("brightness", mine[:, -2] - theirs[:, -2], 1.5)
    close("looks", mine[:, :64] - theirs[:, :64], 0.1, 0.99)


def same_frames(mine: Floats, theirs: Floats) -> None:
    """Within six levels of 255: the other side's colours are swscale's, with its rounding."""
    close("pixels", mine.astype(np.float64) - theirs, 6, 0.99)


def same_faces(mine: Floats, theirs: Floats) -> None:
    """The middle of the face within 40 pixels of where it was drawn, by both sides.

    Our faces are told by their middle, in parts of the square around the picture.
    """
    count = len(mine)
    corners = np.array([_corner(at) for at in range(count * FPS // 5)[WANTED]])
    true = corners + np.array([200, 240])
    ours_at = mine[:, :2] * WIDTH - np.array([0, (WIDTH - HEIGHT) / 2])
    theirs_at = theirs[:, :2] + theirs[:, 2:] / 2
    close("our face", np.abs(ours_at - true).max(axis=1), 40, 0.9)
    close("their face", np.abs(theirs_at - true).max(axis=1), 40, 0.8)
