"""Open a file of media: without its name, and not what often lies in the place of media."""

import os
from pathlib import Path
from typing import BinaryIO

from featurizers import headers
from featurizers.clip import BadClipError

LFS_POINTER = b"version https://git-lfs"
LISTS = (b"#EXTM3U", b"ffconcat version", b"v=0\no=", b"v=0\r\no=")


def open_media(path: Path) -> BinaryIO:
    """Open a file so that FFmpeg does not see its name.

    By the name it would take any bytes for sound (.g722, .sln) or for pictures of text (.nfo).

    Raises:
        BadClipError: "missing", "empty", "unreadable": it is known at a glance to be no media.
    """
    file = _opened(path)
    try:
        _check_start(file)
    except BaseException:
        file.close()
        raise
    return file


def _opened(path: Path) -> BinaryIO:
    try:
        # Not opened before that is known: opening a named pipe waits for its other end.
        if not path.is_file():
            raise BadClipError("missing", _what_is_there(path))
        return os.fdopen(os.open(path, os.O_RDONLY), "rb")
    except OSError as error:
        raise BadClipError("unreadable", str(error.strerror)) from None


def _what_is_there(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a symbolic link that leads to no file"
    if path.is_dir():
        return "a folder, not a file"
    return "a special file" if path.exists() else "no such file"


def _check_start(file: BinaryIO) -> None:
    """Name what is often found in the place of media; FFmpeg would only call it invalid."""
    start = file.read(4096)
    file.seek(0)
    if not start:
        raise BadClipError("empty", "the file has 0 bytes")
    if start.startswith(LFS_POINTER):
        raise BadClipError("missing", "a Git LFS pointer; fetch the media with git lfs pull")
    if _is_list(start):
        raise BadClipError("unreadable", "a list of other files, which are not opened")
    if headers.lacks_index(file):
        text = "its index (the box moov) is missing, the file was cut"
        raise BadClipError("unreadable", text)


def _is_list(start: bytes) -> bool:
    """Whether this begins a playlist of one of the common forms.

    What is not known here is refused when FFmpeg asks to open the other file.
    """
    return start.startswith(LISTS) or b"<MPD" in start
