"""What headers promise, read from the bytes: FFmpeg corrects some by the file's size and is silent.

Only WAV, AVI and MP3 need this. A promise is seconds for each stream, in the order of streams; None
stands for a header that is silent.
"""

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

HEAD_BYTES = 1 << 16
# Who writes into a pipe cannot know the size, and says 0, all ones or one near 2 GiB.
_UNKNOWN_FROM, _UNKNOWN_TO = (1 << 31) - (1 << 20), (1 << 31) + 1
_ALL_ONES = 0xFFFFFFFF
_MANY_CHUNKS = 1000
_UNCOMPRESSED = (1, 3, 0xFFFE)  # whole numbers, floats, and both in the extended form


def told_seconds(file: BinaryIO) -> list[float | None]:
    """What the header says of each stream; an empty list for forms that need no such look."""
    try:
        head = file.read(HEAD_BYTES)
        if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
            return [_wav_seconds(file)]
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return _avi_seconds(head)
    finally:
        file.seek(0)
    return []


def counts_its_frames(file: BinaryIO) -> bool:
    """Whether an MP3 file says how many frames it has, in a Xing header in its first frame."""
    try:
        start = file.read(10)
        skipped = 0
        if start[:3] == b"ID3" and len(start) == 10:
            skipped = 10 + sum(
                (byte & 127) << 7 * (9 - at) for at, byte in enumerate(start) if at > 5
            )
        file.seek(skipped)
        found = re.search(b"(?:Xing|Info)...(.)", file.read(4096), re.DOTALL)
    finally:
        file.seek(0)
    return found is not None and bool(found[1][0] & 1)


def lacks_index(file: BinaryIO) -> bool:
    """Whether an MP4 or QuickTime file has no index: it was cut, or its writer never closed it."""
    try:
        names = _boxes(file)
        return next(names) == b"ftyp" and b"moov" not in names
    finally:
        file.seek(0)


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    """The names of the outermost boxes."""
    at = 0
    for _ in range(_MANY_CHUNKS):
        file.seek(at)
        head = file.read(16).ljust(16, b"\0")
        size, name, large = struct.unpack(">I4sQ", head)
        yield name
        size = large if size == 1 else size
        at += size
        if size < 8 or at >= 1 << 62:  # the file's last one, or no box at all
            return


def _wav_seconds(file: BinaryIO) -> float | None:
    """From the size of the samples; None where they are compressed."""
    bytes_per_second, large = 0, 0
    for name, size in _chunks(file):
        if name == b"ds64":
            large = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        if name == b"fmt ":
            form, bytes_per_second = struct.unpack("<H6xI", file.read(12).ljust(12, b"\0"))
            if form not in _UNCOMPRESSED:
                return None
        if name == b"data":
            told = large if size == _ALL_ONES else size
            is_known = told and not _UNKNOWN_FROM <= told < _UNKNOWN_TO
            return told / bytes_per_second if is_known and bytes_per_second else None
    return None


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and size of each chunk of a RIFF file; the file stands at its content."""
    at = 12
    for _ in range(_MANY_CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        size = struct.unpack("<I", head[4:])[0]
        yield head[:4], size
        at += 8 + size + size % 2


def _avi_seconds(head: bytes) -> list[float | None]:
    """From the headers of streams: length x scale / rate."""
    told: list[float | None] = []
    for found in re.finditer(b"strh....", head, re.DOTALL):
        fields = head[found.end() : found.end() + 36]
        if len(fields) < 36:
            break
        scale, rate, _, length = struct.unpack("<4I", fields[20:])
        told.append(length * scale / rate if length and rate else None)
    return told
