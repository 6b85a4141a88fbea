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


def _wav_seconds(file: BinaryIO) -> float | None:
    bytes_per_second, large = 0, 0
    for name, size in _chunks(file):
        if name == b"ds64":
            large = struct.unpack("<Q", file.read(16).ljust(16, b"\0")[8:])[0]
        if name == b"fmt ":
            bytes_per_second = struct.unpack("<I", file.read(12).ljust(12, b"\0")[8:])[0]
        if name == b"data":
            size = large if size == _ALL_ONES and large else size
            known = size and size != _ALL_ONES and not _UNKNOWN_FROM <= size < _UNKNOWN_TO
            return size / bytes_per_second if known and bytes_per_second else None
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
