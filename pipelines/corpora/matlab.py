"""Numeric arrays of MATLAB files of version 5 (level 5 MAT-files, as MATLAB 5 to 7.2 write them).

Written after MathWorks' description of the format. SciPy reads more of it, but crashes the whole
process at some damaged files; files of a corpus are untrusted.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEADER = 128
MOST_BYTES = 1 << 30
"""A variable that is larger unpacked is none of a corpus."""

_MATRIX, _COMPRESSED, _INT32, _UINT32 = 14, 15, 5, 6
_COMPLEX = 0x08
_STORED = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
"""How numbers lie in the file, which may be smaller than what they are."""
_CLASSES = {
    6: "f8",
    7: "f4",
    8: "i1",
    9: "u1",
    10: "i2",
    11: "u2",
    12: "i4",
    13: "u4",
    14: "i8",
    15: "u8",
}


@dataclass(frozen=True, slots=True)
class _Element:
    """A piece of a file: its type, and its bytes."""

    type: int
    content: memoryview


def read_array(path: Path, name: str) -> NDArray[np.generic]:
    """The variable of a name, real numbers of any number of axes.

    Raises:
        ValueError: The file is no MAT-file of version 5, is damaged, or has no such variable.
    """
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("is no MATLAB file of version 5")
    for element in _elements(memoryview(content)[HEADER:], order):
        if element.type == _COMPRESSED:
            for inner in _elements(_unpacked(element.content), order):
                found = _named(inner, name, order)
                if found is not None:
                    return found
        else:
            found = _named(element, name, order)
            if found is not None:
                return found
    raise ValueError(f"has no variable {name}")


def _elements(content: memoryview, order: str) -> Iterator[_Element]:
    place = 0
    while place + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        if kind >> 16:  # small: type and size share four bytes, the content lies in the next four
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            # Only what is compressed is not filled up to eight bytes.
            end = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(content) or (size > 4 and start == place + 4):
            raise ValueError(f"ends within a variable, {start + size - len(content)} bytes early")
        yield _Element(kind, content[start : start + size])
        place = end


def _unpacked(content: memoryview) -> memoryview:
    inflate = zlib.decompressobj()
    try:
        unpacked = inflate.decompress(content, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"is damaged: {error}") from None
    if not inflate.eof:
        raise ValueError("is cut within a variable, or holds one of more than 1 GiB")
    return memoryview(unpacked)


def _named(element: _Element, name: str, order: str) -> NDArray[np.generic] | None:
    """The array of an element, if it is one of that name."""
    if element.type != _MATRIX:
        return None
    parts = list(_elements(element.content, order))
    if len(parts) < 3 or bytes(parts[2].content) != name.encode():
        return None
    flags, shape = parts[0], parts[1]
    if flags.type != _UINT32 or len(flags.content) != 8 or shape.type != _INT32:
        raise ValueError(f"is damaged where {name} begins")
    (word,) = struct.unpack_from(f"{order}I", flags.content)
    kind = word & 0xFF
    if kind not in _CLASSES or (word >> 8) & _COMPLEX or len(parts) != 4:
        raise ValueError(f"holds something else than real numbers as {name}")
    axes = [int(each) for each in np.frombuffer(shape.content, dtype=f"{order}i4")]
    stored = _STORED.get(parts[3].type)
    if stored is None or min(axes, default=-1) < 0:
        raise ValueError(f"is damaged within {name}")
    width = np.dtype(stored).itemsize
    if len(parts[3].content) != math.prod(axes) * width:
        raise ValueError(f"holds {len(parts[3].content)} bytes as {name}, wanted {axes}")
    numbers = np.frombuffer(parts[3].content, dtype=f"{order}{stored}")
    return numbers.astype(_CLASSES[kind]).reshape(axes, order="F")
