"""Fetch model files that featurizers take by path: shown first, and never taken unchecked."""

import difflib
import hashlib
import http.client
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from featurizers.face_detector import YUNET
from featurizers.landmarks import LANDMARKER
from featurizers.store import publish
from featurizers.transient import passes, patiently, pause_s, reason
from pipelines.experiment import FailedError, InputError

WAIT_S = 60.0
PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model's file, as its authors publish it.

    Attributes:
        what: What it is, and from whom.
        digest_from: Whose word the digest is.
        use: The settings that take it; FILE stands for its path.
    """

    name: str
    what: str
    file: str
    address: str
    size: int
    sha256: str
    digest_from: str
    licence: str
    use: str


KNOWN: Mapping[str, ModelFile] = {
    model.name: model
    for model in (
        ModelFile(
            name="yunet",
            what="YuNet, March 2023: finds faces (OpenCV Zoo)",
            file=YUNET.file,
            address=(
                "https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/"
                "face_detection_yunet_2023mar.onnx"
            ),
            size=232_589,
            sha256=YUNET.sha256,
            digest_from="its authors: the Git LFS pointer in their repository",
            licence="MIT",
            use="{featurizer: face-track, detector: yunet, model: FILE}",
        ),
        ModelFile(
            name="face-landmarker",
            what="Face Landmarker, version 1, float16: landmarks, blendshapes, pose (MediaPipe)",
            file=LANDMARKER.file,
            address=(
                "https://storage.googleapis.com/mediapipe-models/face_landmarker/"
                "face_landmarker/float16/1/face_landmarker.task"
            ),
            size=3_758_596,
            sha256=LANDMARKER.sha256,
            digest_from="others who downloaded it from this address; its authors publish none",
            licence="Apache-2.0",
            use="{featurizer: landmarks, model: FILE}",
        ),
    )
}


def find(name: str) -> ModelFile:
    """What is known of a model. Raises InputError, which names the nearest, when nothing is."""
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(
            f"there is no model {name!r} to be fetched{meant}; there are {', '.join(KNOWN)}"
        )
    return KNOWN[name]


def is_there(model: ModelFile, folder: Path) -> bool:
    """Whether a folder holds the model's file, whole.

    Raises:
        FailedError: It holds another one of that name.
    """
    path = folder / model.file
    if not path.exists():
        return False
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != model.sha256:
        raise FailedError(
            f"{path} has the sha256 {digest}, wanted is {model.sha256}: remove it, or choose "
            f"another folder"
        )
    return True


def fetch(model: ModelFile, folder: Path, address: str = "") -> Path:
    """Download a model's file; it appears whole and right, or not at all.

    Args:
        model: Which.
        folder: Where to; made when it is not there.
        address: Of a mirror; empty for its authors' own.

    Raises:
        InputError: The address is none of the web.
        FailedError: It cannot be had, or it is another file.
    """
    path, where = folder / model.file, address or model.address
    if is_there(model, folder):
        return path
    content = _content(where, model.size)
    digest = hashlib.sha256(content).hexdigest()
    if digest != model.sha256:
        # At most one byte over the size is read.
        size = f"more than {model.size}" if len(content) > model.size else str(len(content))
        raise FailedError(
            f"{where} gave another file: {size} bytes with the sha256 {digest}; wanted are "
            f"{model.size} with {model.sha256}. Nothing was kept"
        )
    publish(path, content)
    return path


class BusyError(FailedError):
    """A server answers, and has no time; more of the same question would not help it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sends.

    Attributes:
        begins: The first byte of the file that it sends: what was asked for, or 0 where the server
            sends files as wholes only.
        read: At most so many further bytes; none at the end.
    """

    begins: int
    read: Callable[[int], bytes]


@contextmanager
def opened(address: str, begin: int = 0, *, wait_s: float = WAIT_S) -> Iterator[Answer]:
    """Ask for a file of the web, from some byte on.

    A server that is busy is asked again, as `featurizers.transient.patiently` does.

    Args:
        address: Of the file.
        begin: Which byte.
        wait_s: How long the server may be silent.

    Raises:
        InputError: The address is none of the web.
        BusyError: The server has not been able to answer.
        FailedError: It cannot be had, also while it is read.
    """
    if urlsplit(address).scheme not in {"http", "https"}:
        raise InputError(
            f"{address} is no address; wanted one that begins with https:// or http://"
        )
    asked = urllib.request.Request(address)  # noqa: S310 - http(s) only, looked at above
    if begin:
        asked.add_header("Range", f"bytes={begin}-")

    def ask() -> Any:  # noqa: ANN401 - the library names no type
        return urllib.request.urlopen(asked, timeout=wait_s)  # noqa: S310 - as above

    try:
        answer = patiently(ask, what=urlsplit(address).hostname or address)
    except _UNREACHED as error:
        raise _away(address, error) from None

    def read(size: int) -> bytes:
        try:
            content: bytes = answer.read(size)
        except _UNREACHED as error:
            raise _away(address, error) from None
        return content

    # Whatever else goes wrong while it is read, as a disk that is full, is none of the network's.
    with answer:
        yield Answer(begin if answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0, read)


_UNREACHED = (urllib.error.URLError, http.client.HTTPException, OSError, ValueError)


def _away(address: str, error: Exception) -> FailedError:
    if isinstance(error, urllib.error.HTTPError) and passes(error):
        asked_s = pause_s(error)
        later = f"in {math.ceil(asked_s / 60)} minutes" if asked_s else "later"
        return BusyError(
            f"{address} cannot be had now: {reason(error)}. Run the same command again {later}, "
            f"or name a mirror with --from"
        )
    why = getattr(error, "reason", None) or error
    return FailedError(
        f"{address} cannot be had: {why}. Fetch it on a machine with a network and copy it, "
        f"or name a mirror with --from"
    )


def _content(address: str, size: int) -> bytes:
    found = bytearray()
    with opened(address) as answer:
        while len(found) <= size:
            piece = answer.read(min(PIECE, size + 1 - len(found)))
            if not piece:
                break
            found += piece
    return bytes(found)
