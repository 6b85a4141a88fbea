"""Arithmetic of time: pool steps to words, to cells of equal length, or to so many parts. Pure."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip
from featurizers.spec import Feature

T = TypeVar("T", bound=np.generic)

How: TypeAlias = Literal["mean", "overlap", "max", "first", "last"]
HOWS: tuple[How, ...] = get_args(How)

HELD = 1 << 20
"""Numbers of the steps under some targets that are held at one time: 8 MiB, a few times over."""

TOGETHER = 1 << 17
"""Numbers of neighbouring clips that are pooled in one go: what a core holds in its cache."""

FEW = 32
"""Targets that overlap no more steps are summed step by step, all of them at once."""

ROUNDING = 1e-6
"""A target and a step that share no more than this part of the shorter of them are neighbours."""

ALIKE = 2.0
"""Steps are neighbours of one stream where neither lasts longer than so many times the other."""

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
        self._clocks: dict[tuple[int, int, bytes], _Clock] = {}

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
            values = _joined([feature.values for feature in found])
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

    def _clock(self, clips: slice, times: Sequence[NDArray[np.float64]]) -> "_Clock":
        joined = _joined(times)
        name = (clips.start, clips.stop, joined.tobytes())
        if name not in self._clocks:
            self._clocks[name] = _Clock(joined, list(map(len, times)), self._targets[clips])
        return self._clocks[name]


def _joined(arrays: Sequence[NDArray[T]]) -> NDArray[T]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _pooled(
    values: NDArray[Any], clock: "_Clock", how: How
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


class _Clock:
    """Steps and targets of some clips, one clip after the other; rows are numbered through.

    Attributes:
        times: Of the steps [S, 2], in any order within a clip.
        targets: [W, 2].
    """

    def __init__(
        self,
        times: NDArray[np.float64],
        steps: Sequence[int],
        targets: Sequence[NDArray[np.float64]],
    ) -> None:
        self.times, self.targets = times, _joined(targets)
        self._clips = [
            (slice(end - count, end), slice(last - len(each), last))
            for count, end, each, last in zip(
                steps,
                itertools.accumulate(steps),
                targets,
                itertools.accumulate(map(len, targets)),
                strict=True,
            )
        ]
        self._one_block: _Touched | None = None

    def touched(self, most: int) -> Iterable["_Touched"]:
        """The steps of all targets; some targets at a time with `most` steps, or one with more."""
        if self._one_block is not None and len(self._one_block.steps) <= most:
            return [self._one_block]
        blocks = self._found(most)
        first, second = next(blocks, None), next(blocks, None)
        if first is None:
            return []
        if second is not None:  # too many to be kept
            return itertools.chain([first, second], blocks)
        self._one_block = first
        return [first]

    def _found(self, most: int) -> Iterator["_Touched"]:
        begin, end = self.times.T
        if self._is_own:
            own = np.arange(len(begin))
            for at in range(0, len(own), most):
                part = own[at : at + most]
                yield _Touched(part, part - at, part, (end - begin)[part])
            return
        order = self._order(begin)
        if order is not None:
            begin, end = begin[order], end[order]
        low, high = self.targets.T
        start, counts = self._overlapping(begin, end)
        for block in _blocks(counts, most):
            rows = np.repeat(np.arange(block.start, block.stop), counts[block])
            along = np.arange(len(rows)) - np.repeat(np.cumsum(counts[block]), counts[block])
            steps = np.repeat((start + counts)[block], counts[block]) + along
            weights = _weights(low[rows], high[rows], begin[steps], end[steps], rows - block.start)
            there = np.flatnonzero(weights > 0)
            if len(there) < len(rows):
                rows, steps, weights = rows[there], steps[there], weights[there]
            if len(rows):
                first = np.append(0, np.flatnonzero(rows[1:] != rows[:-1]) + 1)
                steps = steps if order is None else order[steps]
                yield _Touched(rows[first], first, steps, weights)

    @property
    def _is_own(self) -> bool:
        """Whether every clip's targets are its steps, each apart from the others."""
        if self.times.shape != self.targets.shape:
            return False
        alike = all(steps == targets for steps, targets in self._clips)
        begin, end = self.times.T
        return (
            alike
            and np.array_equal(self.times, self.targets)
            and bool((end > begin).all())
            and self._always(begin[1:] >= end[:-1])
        )

    def _always(self, holds: NDArray[np.bool_]) -> bool:
        """Whether something holds of each step and the one before it in the same clip [S - 1]."""
        fails = np.flatnonzero(~holds) + 1
        # Where a clip begins it may; a long list of others need not be made to know that it is one.
        if len(fails) >= len(self._clips):
            return False
        return set(fails.tolist()) <= {steps.start for steps, _ in self._clips}

    def _order(self, numbers: NDArray[np.float64]) -> NDArray[np.int64] | None:
        """Rows of steps such that these rise within each clip; None where they do."""
        if self._always(numbers[1:] >= numbers[:-1]):
            return None
        return np.concatenate(
            [steps.start + np.argsort(numbers[steps], kind="stable") for steps, _ in self._clips]
        )

    def _overlapping(
        self, begin: NDArray[np.float64], end: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each target the first of the steps that may overlap it, and how many they are."""
        low, high = self.targets.T
        # Steps may lie in each other, as the words of two speakers: none before the first whose
        # latest end so far reaches the target can do so itself.
        rising = self._always(end[1:] >= end[:-1])
        start = np.empty(len(low), dtype=np.int64)
        stop = np.empty(len(low), dtype=np.int64)
        for steps, rows in self._clips:
            latest = end[steps] if rising else np.maximum.accumulate(end[steps])
            start[rows] = steps.start + latest.searchsorted(low[rows], side="left")
            stop[rows] = steps.start + begin[steps].searchsorted(high[rows], side="right")
        return start, np.maximum(0, stop - start)

    @cached_property
    def lines(self) -> "_Lines":
        """The targets that have their value on the line between two steps."""
        times, targets = self.times, self.targets
        middles, wanted = times.mean(axis=1), targets.mean(axis=1)
        order = self._order(middles)
        rising = middles if order is None else middles[order]
        after = np.empty(len(wanted), dtype=np.int64)
        inside = np.empty(len(wanted), dtype=np.bool_)
        for steps, rows in self._clips:
            found = rising[steps].searchsorted(wanted[rows], side="right")
            inside[rows] = (found > 0) & (found < steps.stop - steps.start)
            after[rows] = steps.start + found
        between = np.flatnonzero(inside)
        left, right = after[between] - 1, after[between]
        if order is not None:
            left, right = order[left], order[right]
        hop = middles[right] - middles[left]
        apart = times[right, 0] - times[left, 1]
        length = times[:, 1] - times[:, 0]
        shorter = np.minimum(length[left], length[right])
        longer = np.maximum(length[left], length[right])
        joined = (apart <= ROUNDING * hop) & (longer <= ALIKE * shorter)
        short = joined & (targets[between, 1] - targets[between, 0] < hop)
        rows, left, right, hop = between[short], left[short], right[short], hop[short]
        return _Lines(rows, left, right, ((wanted[rows] - middles[left]) / hop)[:, np.newaxis])


@dataclass(frozen=True)
class _Touched:
    """Targets and the steps that each of them overlaps.

    Attributes:
        targets: Rows of the targets [N], each with one step at least.
        first: Where the steps of each target begin [N]; they lie one after the other.
        steps: Rows of the steps [P], for each target in order of their begin.
        weights: How much each overlaps [P], more than 0.
    """

    targets: NDArray[np.int64]
    first: NDArray[np.int64]
    steps: NDArray[np.int64]
    weights: NDArray[np.float64]

    @cached_property
    def run(self) -> slice | NDArray[np.int64]:
        """The steps; as a slice where each follows the one before it, since that copies nothing."""
        follow = bool((self.steps[1:] - self.steps[:-1] == 1).all())
        return slice(self.steps[0], self.steps[-1] + 1) if follow else self.steps

    @cached_property
    def alike(self) -> bool:
        """Whether all targets have equally many steps, a few, and each step follows another."""
        counts = self.counts
        return (
            isinstance(self.run, slice) and counts[0] <= FEW and bool((counts == counts[0]).all())
        )

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many steps each target has [N]."""
        return np.diff(np.append(self.first, len(self.steps)))

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """The part that each step has in its target [P]."""
        totals = np.add.reduceat(self.weights, self.first)
        # Divided before the sum: the shortest overlaps would lose their values in it.
        shares: NDArray[np.float64] = self.weights / np.repeat(totals, self.counts)
        return shares


def _blocks(counts: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Neighbours that have no more than `most` steps together; one alone may have more."""
    sums = np.concatenate([[0], np.cumsum(counts)])
    first = 0
    while first < len(counts):
        fits = int(np.searchsorted(sums, sums[first] + most, side="right")) - 1
        stop = max(first + 1, fits)
        yield slice(first, stop)
        first = stop


def _weights(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    begin: NDArray[np.float64],
    end: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """How much each target overlaps each of its steps; all [P], `rows` tells the targets apart."""
    overlap = np.minimum(high, end) - np.maximum(low, begin)
    real = overlap > ROUNDING * np.minimum(high - low, end - begin)
    if real.all():
        return overlap
    # Where nothing overlaps: a target without length lies in the step that contains it, a step
    # without length in the target that does, and two of them in each other.
    inside = (low == high) & (begin <= low) & (low < end)
    points = (begin == end) & (low <= begin) & ((begin < high) | (begin == low))
    alone = np.bincount(rows, weights=real)[rows] == 0
    weights: NDArray[np.float64] = np.where(
        alone, (inside | points).astype(np.float64), np.where(real, overlap, 0.0)
    )
    return weights


def _one_each(values: NDArray[Any], touched: _Touched, how: How, most: int) -> NDArray[Any]:
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
    touched: _Touched,
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
    touched: _Touched,
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


@dataclass(frozen=True, slots=True)
class _Lines:
    """Targets that are shorter than a hop, and the two steps that each lies between.

    Attributes:
        rows: Of the targets [N].
        left: Rows of the steps before their middles [N].
        right: And after [N].
        share: How far each is on the way from the one to the other [N, 1].
    """

    rows: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    share: NDArray[np.float64]


def _join(
    values: NDArray[Any],
    lines: _Lines,
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
