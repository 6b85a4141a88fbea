"""Which steps in time each target overlaps, and how much: found once for what is pooled. Pure."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

FEW = 32
"""Targets that overlap no more steps are summed step by step, all of them at once."""

ROUNDING = 1e-6
"""A target and a step that share no more than this part of the shorter of them are neighbours."""

ALIKE = 2.0
"""Steps are neighbours of one stream where neither lasts longer than so many times the other."""


def joined(arrays: Sequence[NDArray[T]]) -> NDArray[T]:
    """Arrays one after the other; one alone as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


class Clock:
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
        self.times, self.targets = times, joined(targets)
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
        self._one_block: Touched | None = None

    def touched(self, most: int) -> Iterable["Touched"]:
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

    def _found(self, most: int) -> Iterator["Touched"]:
        begin, end = self.times.T
        if self._is_own:
            own = np.arange(len(begin))
            for at in range(0, len(own), most):
                part = own[at : at + most]
                yield Touched(part, part - at, part, (end - begin)[part])
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
                yield Touched(rows[first], first, steps, weights)

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
    def lines(self) -> "Lines":
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
        return Lines(rows, left, right, ((wanted[rows] - middles[left]) / hop)[:, np.newaxis])


@dataclass(frozen=True)
class Touched:
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


@dataclass(frozen=True, slots=True)
class Lines:
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
