"""Arithmetic of time: pool steps to words, to cells of equal length, or to so many parts. Pure."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip
from featurizers.overlap import FEW, Clock, Lines, Touched, joined
from featurizers.spec import Feature

How: TypeAlias = Literal["mean", "overlap", "max", "first", "last"]
HOWS: tuple[How, ...] = get_args(How)

HELD = 1 << 20
"""Numbers of the steps under some targets that are held at one time: 8 MiB, a few times over."""

TOGETHER = 1 << 17
"""Numbers of neighbouring clips that are pooled in one go: what a core holds in its cache."""

EDGE_S = 1e-6


def word_times(clip: Clip) -> NDArray[np.float64]:
    """Start and end of each word in seconds from the clip's start: [W, 2]."""
    spans = [[word.start, word.end] for word in clip.words or ()]
    return np.array(spans, dtype=np.float64).reshape(-1, 2)


def cells(seconds: float, cell_s: float) -> NDArray[np.float64]:
    """Cells of one length that cover a duration, at least one: [W, 2]. A rate is 1 / cell_s."""
    count = max(1, math.ceil(seconds / cell_s - 1e-9))
    edges = np.arange(count + 1, dtype=np.float64) * cell_s
    return np.stack([edges[:-1], edges[1:]], axis=1)


def parts(seconds: float, count: int) -> NDArray[np.float64]:
    """So many equal parts of a duration, however long it is: [count, 2]."""
    edges = np.linspace(0.0, seconds, count + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def gaps(times: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    """The spans of a clip in which a stream has no step, in order of time.

    Args:
        times: [T, 2] in seconds from the clip's start, in any order.
        seconds: The clip's duration.

    Returns:
        [G, 2] in seconds; what is no longer than a microsecond is rounding, and no gap.
    """
    rising = times[np.argsort(times[:, 0], kind="stable")]
    ends = np.maximum.accumulate(np.concatenate([[0.0], rising[:, 1]]))
    begins = np.minimum(np.concatenate([rising[:, 0], [seconds]]), seconds)
    spans: NDArray[np.float64] = np.stack([ends, begins], axis=1)[begins - ends > EDGE_S]
    return spans


def pool(
    feature: Feature, targets: NDArray[np.float64], how: How = "mean"
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One value a target, of the steps that it overlaps.

    - "mean": weighted by the overlap. A target that is shorter than a hop, that is the time from
      one step's middle to the next, has the value at its own middle of the line that joins the two:
      two short words in one step differ as smoothly as the stream does. Where steps are of one
      length, a target that is as long as a hop has the same value by either rule, so that nothing
      jumps when a word grows. There is no line over a gap, nor between a step and one that lasts
      more than twice as long (a picture that was held), nor before the first step's middle or after
      the last one's, nor for whole numbers such as pixels: there a short target has the value of
      the step that it lies in.
    - "overlap": weighted by the overlap, however short the target. Two halves of a word average to
      the word, and nothing is made up between steps.
    - "max": the largest of each dimension, of real steps alone.
    - "first", "last": the step that begins first, or last.

    A target without any step (the stream had ended, or not begun, or paused) is 0 and not valid. A
    target without length lies in the step that contains it, a step without length in the target
    that does.

    Work grows with the number of overlaps, memory with the stream and the targets alone, and no
    target's value depends, in any bit, on which others are pooled beside it.

    Args:
        feature: Values [T, D] with times [T, 2] in seconds; steps may overlap, in any order.
        targets: [W, 2] in seconds, in any order.
        how: See above.

    Returns:
        Values float32 [W, D] and valid bool [W].
    """
    ((_, values, valid),) = Pooled([targets]).stream([feature], how)
    return values, valid


class Pooled:
    """Streams of several clips, each pooled to its own clip's targets in every bit as by `pool`.

    Many short clips are pooled in one go, which costs far less than one after the other; what
    follows from times alone is found once for all streams that share them.

    Args:
        targets: Of each clip, see `pool`.
    """

    def __init__(self, targets: Sequence[NDArray[np.float64]]) -> None:
        self._targets = targets
        self._clocks: dict[tuple[int, int, bytes], Clock] = {}

    def stream(
        self, features: Sequence[Feature | None], how: How = "mean"
    ) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.bool_]]]:
        """A stream of all clips, some neighbours at a time.

        Args:
            features: Of each clip; None where it has none.
            how: See `pool`.

        Yields:
            Which clips, all of which have the stream; and one after the other their values float32
            [W, D] and valid bool [W].
        """
        for clips in self._neighbours(features):
            found = [feature for feature in features[clips] if feature is not None]
            values = joined([feature.values for feature in found])
            clock = self._clock(clips, [feature.times for feature in found])
            yield clips, *_pooled(values, clock, how)

    def _neighbours(self, features: Sequence[Feature | None]) -> Iterator[slice]:
        """Runs of clips that have the stream: of short ones many, of long ones each alone."""
        first, held = 0, 0
        for at, feature in enumerate(features):
            size = 0
            if feature is not None:
                size = (len(feature.times) + len(self._targets[at])) * feature.values.shape[1]
            if first < at and (feature is None or held + size > TOGETHER):
                yield slice(first, at)
                first, held = at, 0
            held += size
            if feature is None:
                first = at + 1
        if first < len(features):
            yield slice(first, len(features))

    def _clock(self, clips: slice, times: Sequence[NDArray[np.float64]]) -> Clock:
        whole = joined(times)
        name = (clips.start, clips.stop, whole.tobytes())
        if name not in self._clocks:
            self._clocks[name] = Clock(whole, list(map(len, times)), self._targets[clips])
        return self._clocks[name]


def _pooled(
    values: NDArray[Any], clock: Clock, how: How
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Values [W, D] and valid [W] of all targets."""
    count, width = len(clock.targets), values.shape[1]
    most = max(1, HELD // max(1, width))
    pooled = np.zeros((count, width), dtype=np.float32)
    valid = np.zeros(count, dtype=np.bool_)
    for touched in clock.touched(most):
        pooled[touched.targets] = _one_each(values, touched, how, most)
        valid[touched.targets] = True
    if how == "mean" and np.issubdtype(values.dtype, np.floating):
        _join(values, clock.lines, pooled, valid, most)
    return pooled, valid


def _one_each(values: NDArray[Any], touched: Touched, how: How, most: int) -> NDArray[Any]:
    """The value of each target, [N, D]."""
    each: NDArray[Any]
    match how:
        case "first":
            each = values[touched.steps[touched.first]]
        case "last":
            each = values[touched.steps[np.append(touched.first[1:], len(touched.steps)) - 1]]
        case "max":
            each = _reduced(np.maximum, values, touched, np.ones(len(touched.steps)), most)
        case _ if len(touched.first) == len(touched.steps):  # a step each, whatever its weight
            each = values[touched.run] + 0.0
        case _:
            # A sum begins with 0, so that no zero is negative.
            each = _reduced(np.add, values, touched, touched.shares, most) + 0.0
    return each


def _reduced(
    ufunc: np.ufunc,
    values: NDArray[Any],
    touched: Touched,
    factors: NDArray[np.float64],
    most: int,
) -> NDArray[np.float64]:
    """Steps times their factors [P], reduced for each target: [N, D].

    Steps of a target are taken in their order, by a rule that knows no other target. More than
    `most` steps are of one target alone, and taken in pieces.
    """
    if len(touched.steps) > most:
        return _in_pieces(ufunc, values, touched, factors, most)
    reduced = np.empty((len(touched.first), values.shape[1]))
    if touched.alike:
        # Each follows the one before it: views of the values, where rows picked out are copies.
        count = len(touched.steps) // len(touched.first)
        each = values[touched.run].reshape(len(touched.first), count, -1)
        shares = factors.reshape(len(touched.first), count, 1)
        np.multiply(each[:, 0], shares[:, 0], out=reduced)
        for along in range(1, count):
            ufunc(reduced, each[:, along] * shares[:, along], out=reduced)
        return reduced
    many = np.repeat(touched.counts > FEW, touched.counts)
    if many.any():
        counts = touched.counts[touched.counts > FEW]
        weighted = values[touched.steps[many]] * factors[many, np.newaxis]
        first = np.cumsum(counts) - counts
        reduced[touched.counts > FEW] = ufunc.reduceat(weighted, first, axis=0)
    rows = np.flatnonzero(touched.counts <= FEW)
    at, along = touched.first[rows], 0
    while len(rows):
        # The first steps of all targets, then the second ones: far fewer calls than by target.
        term = values[touched.steps[at + along]] * factors[at + along, np.newaxis]
        reduced[rows] = ufunc(reduced[rows], term) if along else term
        along += 1
        more = touched.counts[rows] > along
        rows, at = (rows, at) if more.all() else (rows[more], at[more])
    return reduced


def _in_pieces(
    ufunc: np.ufunc,
    values: NDArray[Any],
    touched: Touched,
    factors: NDArray[np.float64],
    most: int,
) -> NDArray[np.float64]:
    """As `_reduced`, of one target."""
    pieces = [
        ufunc.reduceat(
            values[touched.steps[at : at + most]] * factors[at : at + most, np.newaxis],
            touched.first,
            axis=0,
        )
        for at in range(0, len(touched.steps), most)
    ]
    reduced: NDArray[np.float64] = ufunc.reduce(pieces)
    return reduced


def _join(
    values: NDArray[Any],
    lines: Lines,
    pooled: NDArray[np.float32],
    valid: NDArray[np.bool_],
    most: int,
) -> None:
    """Give targets that are shorter than a hop their value on the line between two steps."""
    for at in range(0, len(lines.rows), most):
        part = slice(at, at + most)
        lower, upper, share = values[lines.left[part]], values[lines.right[part]], lines.share[part]
        pooled[lines.rows[part]] = lower * (1.0 - share) + upper * share
        valid[lines.rows[part]] = True
