"""When somebody speaks: spans of voice in sound, without weights. Pure."""

import functools
import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from featurizers.sound import RATE_HZ, WINDOW, Steps, hann, power_spectrum, windows
from featurizers.spec import Chunk

HOP = 160
STEP_S = HOP / RATE_HZ
BANDS_HZ = (150.0, 500.0, 1000.0, 2000.0, 4000.0, 7500.0)
TENTH = 10  # steps in a tenth of a second
SMOOTH = 5  # steps over which power is averaged
QUIET = 1e-8  # -80 dB of full scale: what is below is silence, however much it varies
AROUND_S = 8.0  # how far to both sides the least power and the loudest voice are looked for
OPEN_DB, CLOSE_DB = 6.0, 3.5
OPEN_SHARE, CLOSE_SHARE = 0.4, 0.2  # of the loudest voice around: breath is no voice beside it
BRIDGE_S = 0.2  # a shorter gap is part of a word: a stop before it bursts
LEAST_S = 0.08  # a shorter sound is a click


class Voice:
    """Finds the voice of a sound that comes in pieces; holds five numbers for each 10 ms of it.

    In each of five bands (150 Hz to 7.5 kHz) power is held against a noise floor, the least power
    within 8 s to both sides, as in Martin's minimum statistics (2001), but looking ahead too. What
    lies above it in dB is averaged over the bands. Voice begins where that reaches 6 dB, and 0.4 of
    what the loudest voice within 8 s reaches for a tenth of a second. It goes back and on as far as
    it stays above 3.5 dB, and 0.2 of that; it bridges gaps of less than 0.2 s, and lasts 0.08 s at
    least. Equal sounds give equal spans.

    It tells sound that stands out from sound that stays, and no more than that. So:

    - Music, laughter, a door and other changing sounds are taken for voice.
    - A steady noise that begins is taken for voice for 8 s, until the floor has risen to it.
    - A voice that never pauses, nor goes down, for 16 s is taken for noise; natural speech dips
      several times a second.
    - Of generated speech with noise 10 dB below it spans are right within 0.05 s; near 0 dB words
      are lost.
    - It does not know who speaks, nor whether it is one who is seen.
    """

    def __init__(self) -> None:
        self._powers: list[NDArray[np.float32]] = []
        self._steps = Steps(HOP, WINDOW // 2, WINDOW // 2, self._take)

    def add(self, chunk: Chunk) -> None:
        """Take the next piece, at 16 kHz; pictures are passed over."""
        self._steps.add(chunk)

    def finish(self) -> NDArray[np.float64]:
        """Spans of voice, float64 [V, 2] in seconds of the sound's clock, in order and apart.

        Raises BadClipError "empty" when there is no sound, "too_long" for more than 4 hours.
        """
        times = self._steps.finish()
        spans = spans_above(excess_db(np.concatenate(self._powers)))
        found: NDArray[np.float64] = np.round(times[0, 0] + spans * STEP_S, 6)
        return found

    def _take(self, part: NDArray[np.int16], steps: int) -> None:
        frames = windows(part.astype(np.float64) / 32768, WINDOW, HOP)
        self._powers.append((power_spectrum(frames) @ _bands()).astype(np.float32))


@functools.cache
def _bands() -> NDArray[np.float64]:
    """What sums the power spectrum to the mean square of each band: [WINDOW // 2 + 1, 5]."""
    hz = np.fft.rfftfreq(WINDOW, 1 / RATE_HZ)[:, np.newaxis]
    inside = (hz >= BANDS_HZ[:-1]) & (hz < BANDS_HZ[1:])
    scaled: NDArray[np.float64] = inside * 2 / (WINDOW * np.square(hann(WINDOW)).sum())
    return scaled


def excess_db(powers: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far power [T, bands] lies above its noise floor, averaged over the bands: [T] in dB."""
    total = np.zeros(len(powers))
    for band in range(powers.shape[1]):
        level = 10 * np.log10(_smooth(powers[:, band].astype(np.float64)) + QUIET)
        total += level - _floor(level)
    # On a grid: the last bits of another machine's FFT must not move a border.
    excess: NDArray[np.float64] = np.round(total / powers.shape[1], 3)
    return excess


def _smooth(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over SMOOTH steps around each; over fewer at both ends."""
    ones = np.ones(SMOOTH)
    summed = np.convolve(power, ones, mode="full")[SMOOTH // 2 :][: len(power)]
    counts = np.convolve(np.ones(len(power)), ones, mode="full")[SMOOTH // 2 :][: len(power)]
    smooth: NDArray[np.float64] = summed / counts
    return smooth


def _floor(level: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least level within AROUND_S of each step, in tenths of a second."""
    return _around(_tenths(level), np.inf, np.min)[: len(level)]


def _tenths(level: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least level of each tenth of a second: a click is louder, but not for so long."""
    padded = np.full(-(-len(level) // TENTH) * TENTH, np.inf)
    padded[: len(level)] = level
    least: NDArray[np.float64] = padded.reshape(-1, TENTH).min(axis=1)
    return least


def _around(
    tenths: NDArray[np.float64], filling: float, what: Callable[..., NDArray[np.float64]]
) -> NDArray[np.float64]:
    """The least or most within AROUND_S of each tenth, for each of its steps."""
    reach = round(AROUND_S / STEP_S / TENTH)
    padded = np.pad(tenths, reach, constant_values=filling)
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return np.repeat(what(around, axis=1), TENTH)


def spans_above(excess: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where voice is, by hysteresis over what stands out: [V, 2] in steps."""
    loudest = _around(_tenths(excess), -np.inf, np.max)[: len(excess)]
    runs = _runs(excess >= np.maximum(CLOSE_DB, np.round(CLOSE_SHARE * loudest, 3)))
    loud = excess >= np.maximum(OPEN_DB, np.round(OPEN_SHARE * loudest, 3))
    opened = np.concatenate([[0], np.cumsum(loud)])
    runs = runs[opened[runs[:, 1]] > opened[runs[:, 0]]]
    spans = bridged(runs.astype(np.float64), BRIDGE_S / STEP_S)
    return spans[spans[:, 1] - spans[:, 0] >= LEAST_S / STEP_S]


def _runs(on: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The begin and end of each run of True: [R, 2]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)


def bridged(spans: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Spans [V, 2] in order, those nearer to each other than a gap made one."""
    if not len(spans):
        return spans
    apart = spans[1:, 0] - spans[:-1, 1] >= gap
    begins = spans[np.concatenate([[True], apart]), 0]
    ends = spans[np.concatenate([apart, [True]]), 1]
    return np.stack([begins, ends], axis=1)


def cut(
    voiced: NDArray[np.float64],
    *,
    least_s: float,
    most_s: float,
    pause_s: float,
    margin_s: float,
    end_s: float,
) -> list[tuple[float, float]]:
    """Clips of a recording: voice between pauses, neither too short nor too long.

    Voice is one clip as long as it pauses for less than `pause_s`. One that is longer than `most_s`
    is parted at its longest pause (of several, at the one nearest to its middle), again and again;
    where it has none, into equal parts. Each clip is then widened by `margin_s`, but by no more
    than half of the pause beside it; and those that are still shorter than `least_s` are left out.

    Args:
        voiced: Spans of voice [V, 2] in seconds, in order and apart.
        least_s: The least length, with its margins.
        most_s: The greatest length, with its margins.
        pause_s: A pause that ends a clip.
        margin_s: What is left of the pauses at both ends.
        end_s: Of the recording.

    Returns:
        Start and end of each clip in seconds, rounded to milliseconds, in order; they do not
        overlap.

    Raises:
        ValueError: Lengths that cannot be.
    """
    if not 0 < least_s <= most_s / 2 - margin_s or pause_s <= 0 or margin_s < 0:
        raise ValueError(
            f"least_s is {least_s:g}, most_s {most_s:g}, pause_s {pause_s:g}, margin_s "
            f"{margin_s:g}; wanted 0 < least_s <= most_s / 2 - margin_s, pause_s > 0, margin_s >= 0"
        )
    pieces: list[NDArray[np.float64]] = []
    apart = np.flatnonzero(voiced[1:, 0] - voiced[:-1, 1] >= pause_s) + 1
    for together in np.split(voiced, apart):
        if len(together):
            pieces += _parted(together, most_s - 2 * margin_s)
    begins = np.array([piece[0, 0] for piece in pieces])
    ends = np.array([piece[-1, 1] for piece in pieces])
    return _widened(begins, ends, margin_s, end_s, least_s)


def _parted(voiced: NDArray[np.float64], most_s: float) -> list[NDArray[np.float64]]:
    """One stretch of voice as stretches of at most this length."""
    waiting, done = [voiced], list[NDArray[np.float64]]()
    while waiting:
        stretch = waiting.pop()
        begin, end = stretch[0, 0], stretch[-1, 1]
        if end - begin <= most_s:
            done.append(stretch)
        elif len(stretch) == 1:
            edges = np.linspace(begin, end, int(np.ceil((end - begin) / most_s - 1e-9)) + 1)
            done += [np.array([[a, b]]) for a, b in itertools.pairwise(edges)]
        else:
            gaps = np.round(stretch[1:, 0] - stretch[:-1, 1], 6)
            off = np.abs((stretch[1:, 0] + stretch[:-1, 1]) - (begin + end))
            at = int(np.lexsort((off, -gaps))[0]) + 1
            waiting += [stretch[at:], stretch[:at]]
    return done


def _widened(
    begins: NDArray[np.float64],
    ends: NDArray[np.float64],
    margin_s: float,
    end_s: float,
    least_s: float,
) -> list[tuple[float, float]]:
    """Clips with their margins, without those that are too short."""
    halves = (begins[1:] - ends[:-1]) / 2
    left = np.minimum(margin_s, np.concatenate([begins[:1], halves]))
    right = np.minimum(margin_s, np.concatenate([halves, np.maximum(0.0, end_s - ends[-1:])]))
    spans = zip(np.round(begins - left, 3), np.round(ends + right, 3), strict=True)
    return [(float(a), float(b)) for a, b in spans if b - a >= least_s]
