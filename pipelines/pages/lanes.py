"""What lies beside an axis of time on a page: heat maps, waveforms, words, ticks.

Everything is placed by its own time in percent of the axis, so that lanes of any width lie under
each other. Heat maps are small pictures of one picture row for each dimension; the page makes them
as large as it likes. Their colours are matplotlib's cividis, made for people who are colour-blind
(Nunez, Anderton and Renslow 2018), and PuOr (Brewer) where both signs count.
"""

import base64
import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Word
from featurizers.spec import Dims, Feature, Grid

COLUMNS = 600  # of a heat map: about the pixels of a lane
ROWS = 96  # of a heat map at most; more dimensions than that are averaged
BLOCKS = 120  # more heat maps than that are drawn as one
WAVE = 800  # columns of a waveform
WORD_ROWS = 4
TICKS = 10

_LEVELS = 255  # the last colour of 256 is for nothing
_BOTH = 0.25  # the weaker sign must reach this share of the stronger one
_EVEN = 0.2  # of the whole range: rows that vary by less look even
_LETTER = 0.0088  # of a lane's width, as wide as a page shows it at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A heat map: dimensions of one kind and unit, the first at the bottom.

    Attributes:
        first, last: Names of the dimensions at the bottom and at the top.
        count: How many dimensions.
        averaged: How many of them are one row of the picture.
        unit: "1" for plain numbers.
        low, high: Values of the ends of the colours.
        signed: Whether the middle of the colours is 0.
        own: Whether each row has its own colours, from its lowest to its highest value.
        uri: The picture.
        height: Of the drawn map, in pixels.
    """

    first: str
    last: str
    count: int
    averaged: int
    unit: str
    low: float
    high: float
    signed: bool
    own: bool
    uri: str
    height: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Something on the axis: where it begins and how long it is, in percent."""

    left: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A word on the axis.

    Attributes:
        at: Where its text begins, in percent.
        row: In which there is room for its text; None where there is none.
    """

    word: Word
    piece: Piece
    at: float
    row: int | None


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of the axis."""

    left: float
    text: str


def placed(start: float, end: float, seconds: float) -> Piece:
    """A span on an axis of so many seconds, cut to it."""
    low, high = (min(max(each / seconds, 0.0), 1.0) for each in (start, end))
    return Piece(round(100 * low, 3), round(100 * (high - low), 3))


def ticks(seconds: float) -> list[Tick]:
    """At most TICKS round times on an axis, from 0."""
    step = 10.0 ** math.floor(math.log10(seconds / TICKS))
    step *= next(each for each in (1, 2, 5, 10) if seconds / (step * each) <= TICKS)
    digits = max(0, -math.floor(math.log10(step)))
    count = math.floor(seconds / step + 1e-9)
    return [
        Tick(round(100 * at * step / seconds, 3), f"{at * step:,.{digits}f}")
        for at in range(count + 1)
    ]


def blocks(feature: Feature, dims: Dims, seconds: float) -> list[Block]:
    """The heat maps of a feature: dimensions that are numbered alike and have one unit share one.

    Args:
        feature: Its values and times.
        dims: Of its spec.
        seconds: Of the axis of time.
    """
    return [_block(feature, dims, group, seconds) for group in _groups(dims)]


def _groups(dims: Dims) -> list[NDArray[np.int64]]:
    """Which dimensions share a heat map, in the order in which the first of each comes."""
    if isinstance(dims, Grid):
        return _groups_of_grid(dims)
    kinds = [(re.sub(r"\d+", "#", dim.name), dim.unit) for dim in dims]
    if len(set(kinds)) > BLOCKS:
        kinds = [("", dim.unit) for dim in dims]
    found: dict[tuple[str, str], list[int]] = {}
    for at, kind in enumerate(kinds):
        found.setdefault(kind, []).append(at)
    groups = found.values() if len(found) <= BLOCKS else [range(len(dims))]
    return [np.array(group, dtype=np.int64) for group in groups]


def _groups_of_grid(grid: Grid) -> list[NDArray[np.int64]]:
    """A group for each named place: the pixels of a colour, say."""
    named = [at for at, axis in enumerate(grid.axes) if axis.places]
    numbers = np.moveaxis(np.arange(len(grid)).reshape(grid.shape), named, range(len(named)))
    kinds = math.prod(grid.shape[at] for at in named)
    return list(numbers.reshape(kinds if kinds <= BLOCKS else 1, -1))


def _binned(feature: Feature, seconds: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Means of the steps that touch each column of a map: [D, COLUMNS], and where there are any."""
    values, times = feature.values, feature.times
    order = np.argsort(times[:, 0], kind="stable")
    starts, ends = times[order, 0], np.maximum.accumulate(times[order, 1])
    edges = np.linspace(0.0, seconds, COLUMNS + 1)
    # A step belongs to the columns that it touches, and at least to the one that it begins in.
    first = np.searchsorted(ends, edges[:-1], side="right")
    last = np.searchsorted(starts, edges[1:], side="left")
    out = np.zeros((values.shape[1], COLUMNS), dtype=np.float32)
    there = last > first
    for column in np.flatnonzero(there):
        steps = values[order[first[column] : last[column]]]
        out[:, column] = steps.mean(axis=0, dtype=np.float64)
    return out, there


def _block(feature: Feature, dims: Dims, group: NDArray[np.int64], seconds: float) -> Block:
    averaged = math.ceil(len(group) / ROWS)
    cuts = np.arange(0, len(group), averaged)
    # Averaged before the steps are: of pixels there are many more than rows.
    counts = np.diff(np.append(cuts, len(group)))
    means = np.add.reduceat(feature.values[:, group], cuts, axis=1, dtype=np.float64) / counts
    binned, there = _binned(Feature(means, feature.times), seconds)
    rows = binned.astype(np.float64)
    known = rows[:, there]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    own = len(known) > 1 and known.size > 0 and _is_uneven(known, high - low)
    signed = not own and low < 0 < high and min(-low, high) > _BOTH * max(-low, high)
    if signed:
        high = max(-low, high)
        low = -high
    lows, highs = (known.min(1), known.max(1)) if own else (np.array([low]), np.array([high]))
    ranges = np.where(highs > lows, highs - lows, 1.0)
    shares = (rows - lows[:, np.newaxis]) / ranges[:, np.newaxis]
    scaled = np.round(shares * (_LEVELS - 1)).astype(np.uint8)
    scaled[:, ~there] = _LEVELS
    return Block(
        first=dims[int(group[0])].name,
        last=dims[int(group[-1])].name,
        count=len(group),
        averaged=averaged,
        unit=dims[int(group[0])].unit,
        low=low,
        high=high,
        signed=signed,
        own=own,
        uri=_indexed(scaled[::-1], _palette("PuOr_r" if signed else "cividis")),
        height=_height(len(cuts)),
    )


def _is_uneven(rows: NDArray[np.float64], span: float) -> bool:
    """Whether rows differ so much from each other that in common colours each would look even."""
    return 0 < float(np.median(np.ptp(rows, axis=1))) < _EVEN * span


def _height(rows: int) -> int:
    """Pixels: a single dimension is as high as its name, many are as low as can be told apart."""
    return 18 if rows == 1 else max(48, min(9 * rows, max(120, 2 * rows)))


def colours(*, signed: bool) -> list[str]:
    """Some colours of a map from low to high, as CSS writes them."""
    palette = _palette("PuOr_r" if signed else "cividis")
    return [f"#{palette[at].tobytes().hex()}" for at in range(0, _LEVELS, (_LEVELS - 1) // 8)]


def _palette(name: str) -> NDArray[np.uint8]:
    """255 colours, [255, 3]."""
    import matplotlib as mpl

    places = np.linspace(0.0, 1.0, _LEVELS)
    colours_: NDArray[np.uint8] = mpl.colormaps[name](places, bytes=True)[:, :3]
    return np.ascontiguousarray(colours_)


def picture(frame: NDArray[np.uint8]) -> str:
    """A picture [H, W, 3] as the address of an image that a page holds itself."""
    height, width, _ = frame.shape
    return _png(width, height, 2, frame.reshape(height, -1), b"")


def _indexed(levels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> str:
    """Numbers of colours [H, W]; the one after the last colour is clear."""
    height, width = levels.shape
    told = palette.tobytes() + b"\0\0\0"
    extra = _chunk(b"PLTE", told) + _chunk(b"tRNS", b"\xff" * len(palette) + b"\0")
    return _png(width, height, 3, levels, extra)


def _png(width: int, height: int, kind: int, rows: NDArray[np.uint8], extra: bytes) -> str:
    """A PNG file of 8 bits; the format is ISO/IEC 15948."""
    unfiltered = np.zeros((height, 1), dtype=np.uint8)
    content = zlib.compress(np.hstack([unfiltered, rows]).tobytes(), 9)
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = [_chunk(b"IHDR", head), extra, _chunk(b"IDAT", content), _chunk(b"IEND", b"")]
    whole = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return f"data:image/png;base64,{base64.b64encode(whole).decode()}"


def _chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


@dataclass(frozen=True, slots=True)
class Wave:
    """A waveform: an outline in a box of WAVE x 200; its peak is a share of full scale."""

    path: str
    peak: float
    columns: int = WAVE


def wave(
    lows: NDArray[np.int16],
    highs: NDArray[np.int16],
    rate_hz: float,
    seconds: float,
    gaps: Sequence[tuple[float, float]] = (),
) -> Wave:
    """The outline of a sound.

    Args:
        lows: The lowest sample of each 1/rate_hz seconds.
        highs: The highest one.
        rate_hz: Of these.
        seconds: Of the axis of time.
        gaps: Seconds between which there is no sound, and no outline.
    """
    heard = np.ones(len(lows), dtype=np.bool_)
    for begin, end in gaps:
        heard[math.ceil(begin * rate_hz) : math.floor(end * rate_hz)] = False
    places = np.flatnonzero(heard)
    if not len(places):
        return Wave("", 0.0)
    peak = max(int(highs.max()), -int(lows.min()))
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    paths = [
        _outline(run / rate_hz / seconds, lows[run], highs[run], 99 / max(peak, 1)) for run in runs
    ]
    return Wave("".join(paths), peak / 32768)


def _outline(
    places: NDArray[np.float64], lows: NDArray[np.int16], highs: NDArray[np.int16], scale: float
) -> str:
    """A closed line around sound without gaps; `places` are shares of the axis."""
    at = np.minimum(places * WAVE, WAVE - 1).astype(np.int64)
    columns, first = np.unique(at, return_index=True)
    bottom = np.minimum.reduceat(lows.astype(np.int64), first)
    top = np.maximum.reduceat(highs.astype(np.int64), first)
    upper = [f"{x},{100 - y * scale:.0f}" for x, y in zip(columns, top, strict=True)]
    # A little lower than it is: silence is a thin line.
    lower = [f"{x},{102 - y * scale:.0f}" for x, y in zip(columns, bottom, strict=True)]
    return f"M{'L'.join([*upper, *reversed(lower)])}Z"


def spoken(words: Sequence[Word], seconds: float) -> list[Spoken]:
    """Words on the axis; each text stands in the first of WORD_ROWS rows with room for it."""
    free = [0.0] * WORD_ROWS
    return [_spoken(word, placed(word.start, word.end, seconds), free) for word in words]


def _spoken(word: Word, piece: Piece, free: list[float]) -> Spoken:
    width = 100 * _LETTER * (len(word.text) + 1)
    left = round(max(0.0, min(piece.left, 100 - width)), 3)
    row = next((row for row, end in enumerate(free) if end <= left), None)
    if row is not None:
        free[row] = left + width
    return Spoken(word=word, piece=piece, at=left, row=row)
