"""How long clips are and how many steps they have, and how these numbers are spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featurizers.clip import Clip
from pipelines.accounts import Counted
from pipelines.parts import NONE, SPLITS

_BINS = 30
_LONG_TAIL = 20  # the longest clip over the median: beyond it, a histogram is logarithmic


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How some numbers are spread."""

    count: int
    minimum: float
    median: float
    p95: float
    maximum: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Seconds of the clips.

    Attributes:
        unknown: Clips whose media could not be read; they have no duration.
        hours: Media hours by split.
        edges: Seconds, between which `counts` clips lie; one more than counts.
        log: Whether the edges are equally far apart on a logarithmic scale.
    """

    spread: Spread | None
    unknown: int
    hours: Mapping[str, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    log: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The steps of a column's samples."""

    stream: str
    column: str
    rate_hz: float | None
    spread: Spread | None


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    low, middle, most, high = (float(q) for q in np.quantile(values, (0, 0.5, 0.95, 1)))
    return Spread(
        count=len(values), minimum=low, median=middle, p95=most, maximum=high, total=sum(values)
    )


def durations_of(clips: Sequence[Clip]) -> Durations:
    """The durations of all clips."""
    known = [clip for clip in clips if np.isfinite(clip.seconds) and clip.seconds > 0]
    seconds = [clip.seconds for clip in known]
    spread = _spread(seconds)
    log = spread is not None and spread.maximum > _LONG_TAIL * spread.median
    counts, edges = np.array([], dtype=np.int64), np.array([], dtype=np.float64)
    if spread is not None:
        places = np.log(seconds) if log else np.asarray(seconds)
        ends = (float(places.min()) if log else 0.0, float(places.max()))
        counts, edges = np.histogram(places, bins=_BINS, range=ends)
        edges = np.exp(edges) if log else edges
    hours: dict[str, float] = {}
    for clip in sorted(known, key=lambda each: _rank(each.split)):
        split = clip.split or NONE
        hours[split] = hours.get(split, 0.0) + clip.seconds / 3600
    return Durations(
        spread=spread,
        unknown=len(clips) - len(known),
        hours=hours,
        edges=tuple(float(edge) for edge in edges),
        counts=tuple(int(count) for count in counts),
        log=log,
    )


def _rank(split: str | None) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split or "")


def steps_of(stream: str, column: Counted) -> Steps:
    """The steps of a column's samples."""
    return Steps(
        stream=stream,
        column=column.spec.fingerprint,
        rate_hz=column.spec.rate_hz,
        spread=_spread([row.steps for row in column.rows.values() if row.state == "sample"]),
    )
