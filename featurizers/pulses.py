"""Jitter and shimmer: how much a voice's periods and their peaks differ from one to the next."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurizers.sound import RATE_HZ

SMOOTH = 4  # samples to each side
APART = 0.6  # of a period: no higher sample lies that near to a pulse
UNEVEN = 1.3  # neighbouring periods that differ by a greater factor are none (as in Praat)


@dataclass(frozen=True, slots=True)
class _Differences:
    """Between two neighbouring periods, in order of time.

    Attributes:
        at: Sample of the pulse between them.
        period: Their mean, in samples.
        change: By which they differ, in samples.
        step_db: By which the peaks at both ends of the second one differ.
        level_db: Of the peak between them.
    """

    at: NDArray[np.intp]
    period: NDArray[np.float64]
    change: NDArray[np.float64]
    step_db: NDArray[np.float64]
    level_db: NDArray[np.float64]


def unsteadiness(
    sound: NDArray[np.int16], hz: NDArray[np.float64], hop: int, reach: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Local jitter (%) and local shimmer (dB) of steps.

    A pulse is a sample of smoothed voiced sound than which none is higher within 0.6 periods,
    placed between the samples by a parabola. Jitter is the mean difference of neighbouring periods
    over the mean period, shimmer the mean difference in dB of neighbouring peaks. The lowest
    samples are taken in place of the highest where they lie further from 0: a voice's sharper side
    depends on the microphone's polarity.

    Args:
        sound: [T * hop].
        hz: [T] pitch of each step, 0 where unvoiced.
        hop: Samples in a step.
        reach: Samples to each side of its middle that a step sees.

    Returns:
        Two of [T]; 0 where a step sees no two neighbouring periods.
    """
    upright = _smoothed(sound)
    voiced = np.repeat(hz > 0, hop)
    both = [
        _of_steps(_differences(side, _pulses(side, voiced, hz, hop), hz, hop), len(hz), hop, reach)
        for side in (upright, -upright)
    ]
    up, down = both
    found: NDArray[np.float64] = np.where(up[2] >= down[2], up, down)
    return found[0], found[1]


def _smoothed(sound: NDArray[np.int16]) -> NDArray[np.int16]:
    """Under a binomial window of nine samples: noise then moves the peaks a third as far."""
    sums = sound.astype(np.int32)
    for _ in range(2 * SMOOTH):
        sums = sums[1:] + sums[:-1]
    smooth = np.zeros_like(sound)
    # Not -32768, so that its negative is a 16-bit number too.
    smooth[SMOOTH:-SMOOTH] = np.maximum((sums + (1 << 2 * SMOOTH - 1)) >> 2 * SMOOTH, -32767)
    return smooth


def _pulses(
    sound: NDArray[np.int16], voiced: NDArray[np.bool_], hz: NDArray[np.float64], hop: int
) -> NDArray[np.intp]:
    inner = sound[1:-1]
    is_top = (inner > sound[:-2]) & (inner >= sound[2:]) & voiced[1:-1] & (inner > 0)
    tops = 1 + np.flatnonzero(is_top)
    near = (APART * RATE_HZ / hz[tops // hop]).astype(np.intp)
    low, high = np.maximum(tops - near, 0), np.minimum(tops + near, len(sound) - 1)
    pulses: NDArray[np.intp] = tops[sound[tops] == _highest(sound, low, high)]
    return pulses


def _differences(
    sound: NDArray[np.int16], pulses: NDArray[np.intp], hz: NDArray[np.float64], hop: int
) -> _Differences:
    before, at, after = (sound[pulses + shift].astype(np.float64) for shift in (-1, 0, 1))
    bend = before - 2 * at + after  # below 0: the sample before is lower, the one after no higher
    shift = 0.5 * (before - after) / bend
    levels = 20 * np.log10(at - 0.25 * (before - after) * shift)
    periods = np.diff(pulses + shift)
    expected = RATE_HZ / hz[pulses[:-1] // hop]
    known = (periods < UNEVEN * expected) & (periods * UNEVEN > expected)
    first, second = periods[:-1], periods[1:]
    good = known[:-1] & known[1:] & (np.maximum(first, second) < UNEVEN * np.minimum(first, second))
    return _Differences(
        pulses[1:-1][good],
        ((first + second) / 2)[good],
        np.abs(second - first)[good],
        np.abs(np.diff(levels))[1:][good],
        levels[1:-1][good],
    )


def _highest(
    sound: NDArray[np.int16], low: NDArray[np.intp], high: NDArray[np.intp]
) -> NDArray[np.int16]:
    """The highest sample of each range, both ends included, from a table of ranges of 2**k."""
    power = np.frexp((high - low + 1).astype(np.float64))[1] - 1
    found = np.empty(len(low), dtype=np.int16)
    table = sound
    for level in range(int(power.max(initial=0)) + 1):
        ranges = np.flatnonzero(power == level)
        last = high[ranges] - (1 << level) + 1
        found[ranges] = np.maximum(table[low[ranges]], table[last])
        half = 1 << level
        table = np.maximum(table[:-half], table[half:]) if len(table) > half else table
    return found


def _of_steps(found: _Differences, steps: int, hop: int, reach: int) -> NDArray[np.float64]:
    """Jitter, shimmer and mean level of each step: [3, steps]; 0, 0, -inf where it sees nothing."""
    middles = np.arange(steps) * hop + hop // 2
    low = np.searchsorted(found.at, middles - reach)
    high = np.searchsorted(found.at, middles + reach)
    count = np.maximum(high - low, 1)
    change, period, step_db, level_db = (
        _between(each, low, high)
        for each in (found.change, found.period, found.step_db, found.level_db)
    )
    level = np.where(high > low, level_db / count, -np.inf)
    return np.stack([100 * change / np.where(high > low, period, 1.0), step_db / count, level])


def _between(
    values: NDArray[np.float64], low: NDArray[np.intp], high: NDArray[np.intp]
) -> NDArray[np.float64]:
    """The sum of each run of values; in parts of 2**-20, so that it is exact in any order."""
    sums = np.concatenate([[0.0], np.cumsum(np.rint(values * 2**20))])
    total: NDArray[np.float64] = (sums[high] - sums[low]) / 2**20
    return total
