"""Sound as it comes, cut into steps: what all featurizers of sound share."""

import functools
import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError
from featurizers.spec import AudioChunk, Chunk

RATE_HZ = 16_000
WINDOW = 400  # 25 ms
BLOCK = 512  # steps computed at once: what is computed of them fits a cache
ROWS = 128  # steps transformed at once
DECIMALS = 4
MAX_SECONDS = 4 * 3600
FLOOR = 1e-10

Compute: TypeAlias = Callable[[NDArray[np.int16], int], None]
"""Takes the sound of some steps and how many they are."""


class Steps:
    """Cuts a clip's sound into steps of `hop` samples and has them computed in blocks.

    The sound of a block is computed as soon as it is there, and let go, so that a long clip takes
    little more memory than its feature. Step k is samples k * hop to (k + 1) * hop, counted from
    the first sample; what is left at the end is no step, but a clip has at least one. A gap is
    silence, and silence lies before the first sample and behind the last.

    Args:
        hop: Samples in a step.
        before, after: How many samples before and after its middle (k * hop + hop // 2) a step
            needs.
        compute: Is given int16 [before + (steps - 1) * hop + after], and the number of steps. It
            keeps no part of what it is given.
        rate_hz: Of the sound.
    """

    def __init__(
        self, hop: int, before: int, after: int, compute: Compute, *, rate_hz: int = RATE_HZ
    ) -> None:
        self._hop, self._before, self._after, self._rate_hz = hop, before, after, rate_hz
        self._compute = compute
        self._first: int | None = None  # sample of the clip, from which all others are counted
        self._stop = 0  # of the sound that came
        self._held: list[NDArray[np.int16]] = []
        self._held_from = self._held_to = 0
        self._steps = 0

    def add(self, chunk: Chunk) -> None:
        """Take the next sound; pictures are passed over."""
        if not isinstance(chunk, AudioChunk):
            return
        at = round(chunk.start * self._rate_hz)
        self._first = at if self._first is None else self._first
        at -= self._first
        self._stop = max(self._stop, at + len(chunk.samples))
        if self._stop > MAX_SECONDS * self._rate_hz:
            return
        while self._held_to < at:  # silence where there is a gap
            self._hold(np.zeros(min(at - self._held_to, self._rate_hz), dtype=np.int16))
        self._hold(chunk.samples[self._held_to - at :])

    def finish(self) -> NDArray[np.float64]:
        """Compute what is left; gives the times [T, 2] of all steps.

        Raises BadClipError "empty" or "too_long".
        """
        if self._first is None:
            raise BadClipError("empty", "there is no sound in the clip's span")
        if self._stop > MAX_SECONDS * self._rate_hz:
            raise BadClipError("too_long", f"the sound spans {self._stop / self._rate_hz:.0f} s")
        while left := max(1, self._stop // self._hop) - self._steps:
            self._give(min(BLOCK, left))
        edges = np.arange(self._steps, dtype=np.float64)[:, np.newaxis] + np.array([0.0, 1.0])
        times: NDArray[np.float64] = self._first / self._rate_hz + edges * (
            self._hop / self._rate_hz
        )
        return times

    def _hold(self, samples: NDArray[np.int16]) -> None:
        self._held.append(samples)
        self._held_to += len(samples)
        # A block is whole when both its last step and all that this step needs are there.
        while self._held_to >= self._needed(self._steps + BLOCK - 1):
            self._give(BLOCK)

    def _needed(self, step: int) -> int:
        """How many samples there must be for a step."""
        return max((step + 1) * self._hop, self._middle(step) + self._after)

    def _middle(self, step: int) -> int:
        return step * self._hop + self._hop // 2

    def _give(self, steps: int) -> None:
        sound = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        begin = self._middle(self._steps) - self._before - self._held_from
        part = _part(sound, begin, self._before + (steps - 1) * self._hop + self._after)
        self._compute(part, steps)
        self._steps += steps
        keep_from = self._middle(self._steps) - self._before - self._held_from
        drop = max(0, min(keep_from, len(sound)))
        self._held, self._held_from = [sound[drop:]], self._held_from + drop


def _part(samples: NDArray[np.int16], begin: int, length: int) -> NDArray[np.int16]:
    """So many samples from `begin`; silence beyond both ends."""
    low, high = max(0, begin), min(len(samples), begin + length)
    if high - low == length:
        return samples[low:high]
    part = np.zeros(length, dtype=np.int16)
    if high > low:
        part[low - begin : high - begin] = samples[low:high]
    return part


def windows(part: NDArray[np.float64], window: int, hop: int) -> NDArray[np.float64]:
    """A view of all windows, each `hop` further on: [steps, window]."""
    return np.lib.stride_tricks.sliding_window_view(part, window)[::hop]


def rounded(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Onto the grid, so that the last bits of another machine's FFT do not show; never -0."""
    return (np.round(values, DECIMALS) + 0.0).astype(np.float32)


def decibels(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ten times the logarithm; -100 at least."""
    return 10 * np.log10(np.maximum(power, FLOOR))


def mean_square(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row. Exact for 16-bit sound in -1..1: its squares are multiples of 2**-30."""
    mean: NDArray[np.float64] = np.einsum("ij,ij->i", frames, frames) / frames.shape[1]
    return mean


class _Buffers(threading.local):
    """What each thread transforms in: fresh memory for every block would cost as much again."""

    def __init__(self) -> None:
        self.frames = np.empty((ROWS, WINDOW))
        self.spectra = np.empty((ROWS, WINDOW // 2 + 1), dtype=np.complex128)


_buffers = _Buffers()


def power_spectrum(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of frames [T, WINDOW] under Hann's window: [T, WINDOW // 2 + 1]."""
    out = np.empty((len(frames), WINDOW // 2 + 1))
    for first in range(0, len(frames), ROWS):
        power = out[first : first + ROWS]
        windowed, spectra = _buffers.frames[: len(power)], _buffers.spectra[: len(power)]
        np.multiply(frames[first : first + ROWS], hann(WINDOW), out=windowed)
        np.fft.rfft(windowed, axis=1, out=spectra)
        np.abs(spectra, out=power)
        power *= power
    return out


@functools.cache
def hann(window: int) -> NDArray[np.float64]:
    """Hann's window, periodic."""
    taper: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return taper


@functools.cache
def mel_filters(mels: int, window: int) -> NDArray[np.float64]:
    """Slaney's triangles, each of area 1 over frequency in Hz: [window // 2 + 1, mels].

    Auditory Toolbox, 1998.
    """
    frequencies = np.fft.rfftfreq(window, 1 / RATE_HZ)
    corners = to_hz(np.linspace(0.0, float(to_mel(RATE_HZ / 2)), mels + 2))
    lower, centre, upper = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, np.newaxis] - lower) / (centre - lower)
    falling = (upper - frequencies[:, np.newaxis]) / (upper - centre)
    triangles: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * 2 / (upper - lower)


# Linear below 1000 Hz (15 mel), then 27 mel for a factor of 6.4.
_LOG_STEP = np.log(6.4) / 27


def to_mel(hz: float) -> float:
    """Slaney's mel scale."""
    return 3 * hz / 200 if hz < 1000 else 15 + float(np.log(hz / 1000)) / _LOG_STEP


def to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """The frequencies of mels."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(_LOG_STEP * (mel - 15)))
