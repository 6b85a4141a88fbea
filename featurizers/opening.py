"""Open a file of media: without its name, and not what often lies in the place of media.

Whoever decodes must not take a fault of the disk or the network for the end or the damage of a
file: the same bytes would give another outcome each time. So a read that fails is tried again, and
when it fails for good, nothing is believed that was concluded from the file.
"""

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO, TypeVar

from featurizers import headers
from featurizers.clip import BadClipError
from featurizers.store import StorageError, read_input

T = TypeVar("T")

MOST = 1 << 20  # bytes that are asked for at once
LFS_POINTER = b"version https://git-lfs"
LISTS = (b"#EXTM3U", b"ffconcat version", b"v=0\no=", b"v=0\r\no=")


class MediaFile(FileIO):
    """A file of media.

    After a fault that stayed it reads as if it ended there: of an exception neither PyAV nor FFmpeg
    tells reliably, and either may go on. So whatever is concluded from it is to be `trusted`.
    """

    def __init__(self, path: Path, handle: int) -> None:
        super().__init__(handle)
        self._path = path
        self._fault: StorageError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes; fewer only at the end of the file, or where it cannot be read."""
        wanted = sys.maxsize if size is None or size < 0 else size
        whole = piece = self._once(wanted)
        # Some network file systems give less than there is.
        while piece and len(whole) < wanted:
            piece = self._once(wanted - len(whole))
            whole += piece
        return whole

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """The new place, or -1, which FFmpeg takes for an error."""
        return self._patient(lambda: os.lseek(self.fileno(), offset, whence), -1)

    def check(self) -> None:
        """Raise StorageError when it could not be read at some place."""
        if self._fault is not None:
            raise self._fault from None

    @contextmanager
    def trusted(self) -> Iterator[None]:
        """What is found inside of it, also that a clip is bad, counts if all could be read.

        Raises:
            StorageError: Something could not be read.
        """
        try:
            yield
        except BadClipError:
            self.check()
            raise
        self.check()

    def _once(self, size: int) -> bytes:
        return self._patient(lambda: os.read(self.fileno(), min(size, MOST)), b"")

    def _patient(self, call: Callable[[], T], failed: T) -> T:
        if self._fault is None:
            try:
                return read_input(self._path, call)
            except StorageError as fault:
                self._fault = fault
        return failed


def open_media(path: Path) -> MediaFile:
    """Open a file so that FFmpeg does not see its name.

    By the name it would take any bytes for sound (.g722, .sln) or for pictures of text (.nfo).

    Raises:
        BadClipError: "missing", "empty", "unreadable": it is known at a glance to be no media.
        StorageError: It cannot be read now.
    """
    file = MediaFile(path, _opened(path))
    try:
        with file.trusted():
            _check_start(file)
    except BaseException:
        file.close()
        raise
    return file


def is_file(path: Path) -> bool:
    """Whether there is a file, no folder and nothing special.

    Unlike `Path.is_file` it never takes for absent what could not be looked at.

    Raises:
        OSError: Nobody can say.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except ValueError:  # a name that no file can have
        return False
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return False


def _opened(path: Path) -> int:
    try:
        # Not opened before that is known: opening a named pipe waits for its other end.
        if not read_input(path, lambda: is_file(path)):
            raise BadClipError("missing", _what_is_there(path))
        return read_input(path, lambda: os.open(path, os.O_RDONLY))
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
