"""Mel-frequency cepstral coefficients with their first and second derivatives in time."""

import functools

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip
from featurizers.sound import (
    DECIMALS,
    RATE_HZ,
    WINDOW,
    Steps,
    decibels,
    mel_filters,
    power_spectrum,
    rounded,
    windows,
)
from featurizers.spec import AudioWant, Chunk, Feature, FeatureSpec, names

REACH = 4  # steps to each side that a derivative sees
SLICE = 4096  # steps derived at once


class Mfcc:
    """Mel-frequency cepstral coefficients (Davis and Mermelstein 1980) in steps of `hop_ms`.

    The orthonormal cosine transform (type 2) of log-mel energies in dB, of windows of 25 ms about
    the middle of each step. In librosa's words: `mfcc(S=power_to_db(melspectrogram(n_fft=400,
    hop_length=hop, window="hann", center=False, n_mels=mels), amin=1e-10, top_db=None),
    n_mfcc=coefficients)` of sound that begins where the first whole window does, and
    `delta(width=9, order=1 or 2, mode="nearest")` of what that gives: the derivative of the line
    or parabola that fits nine steps best (Savitzky and Golay 1964), a clip's first and last step
    repeated beyond its ends. Derivatives are of the coefficients as they are given, in whole
    multiples of the grid, so that they add nothing to what may differ between machines: the promise
    is exact.

    Args:
        hop_ms: Step, a whole number of milliseconds.
        coefficients: How many, the first (the loudness) included.
        mels: Mel bands from 0 Hz to 8 kHz.
        deltas: 0 gives the coefficients alone, 1 their change as well, 2 also the change of that;
            all by step.
    """

    def __init__(
        self, *, hop_ms: int = 10, coefficients: int = 13, mels: int = 40, deltas: int = 2
    ) -> None:
        if not 1 <= hop_ms <= 1000 or not 8 <= mels <= 128:
            raise ValueError(
                f"mfcc: hop_ms is {hop_ms} and mels is {mels}; wanted 1 to 1000 and 8 to 128"
            )
        if not 2 <= coefficients <= mels or not 0 <= deltas <= 2:
            raise ValueError(
                f"mfcc: coefficients is {coefficients} and deltas is {deltas}; "
                f"wanted 2 to {mels} (as many as mels) and 0 to 2"
            )
        self.spec = FeatureSpec(
            name="mfcc",
            version=1,
            modality="audio",
            reads=("audio",),
            parameters={
                "hop_ms": hop_ms,
                "coefficients": coefficients,
                "mels": mels,
                "deltas": deltas,
            },
            dims=(
                *names("mfcc", coefficients, "dB"),
                *(names("delta", coefficients, "dB/step") if deltas > 0 else ()),
                *(names("delta_delta", coefficients, "dB/step^2") if deltas > 1 else ()),
            ),
            rate_hz=1000 / hop_ms,
        )
        self.wants = AudioWant(rate_hz=RATE_HZ)
        self._hop, self._mels = RATE_HZ * hop_ms // 1000, mels
        self._coefficients, self._deltas = coefficients, deltas

    def begin(self, clip: Clip) -> "_Mfcc":
        """Start on a clip."""
        return _Mfcc(self._hop, self._mels, self._coefficients, self._deltas)


class _Mfcc:
    def __init__(self, hop: int, mels: int, coefficients: int, deltas: int) -> None:
        self._hop, self._deltas = hop, deltas
        # Filters and cosines must not be merged: the logarithm lies between them.
        self._filters, self._cosines = mel_filters(mels, WINDOW), _cosines(mels)[:, :coefficients]
        self._steps = Steps(hop, WINDOW // 2, WINDOW // 2, self._compute)
        self._blocks: list[NDArray[np.float32]] = []

    def add(self, chunk: Chunk) -> None:
        self._steps.add(chunk)

    def finish(self) -> Feature:
        times = self._steps.finish()
        plain = np.concatenate(self._blocks)
        self._blocks.clear()
        derivatives = [derivative(plain, order) for order in range(1, self._deltas + 1)]
        return Feature(np.concatenate([plain, *derivatives], axis=1), times)

    def _compute(self, sound: NDArray[np.int16], steps: int) -> None:
        frames = windows(sound / 32768, WINDOW, self._hop)
        energies = decibels(power_spectrum(frames) @ self._filters)
        self._blocks.append(rounded(energies @ self._cosines))


@functools.cache
def _cosines(count: int) -> NDArray[np.float64]:
    """The orthonormal cosine transform of type 2 as a matrix: [count, count]."""
    at, order = np.arange(count)[:, np.newaxis] + 0.5, np.arange(count)
    cosines: NDArray[np.float64] = np.sqrt(2 / count) * np.cos(np.pi / count * at * order)
    cosines[:, 0] /= np.sqrt(2)
    return cosines


# What each of nine steps adds to 60 times the slope of the line that fits best, and to 462 times
# the second derivative of the parabola that does.
_WEIGHTS = {
    1: (np.arange(-REACH, REACH + 1), 60),
    2: (np.array([28, 7, -8, -17, -20, -17, -8, 7, 28]), 462),
}


def derivative(values: NDArray[np.float32], order: int) -> NDArray[np.float32]:
    """The first or second derivative by step of values [T, D] on the grid."""
    weights, divisor = _WEIGHTS[order]
    edged = np.pad(values, ((REACH, REACH), (0, 0)), mode="edge")
    out = np.empty_like(values)
    for first in range(0, len(values), SLICE):
        part = out[first : first + SLICE]
        # In whole multiples of the grid every sum is exact, whatever is added first.
        near = edged[first : first + len(part) + 2 * REACH].astype(np.float64)
        grid = np.rint(near * 10**DECIMALS)
        total = np.zeros(part.shape)
        for place, weight in enumerate(weights):
            total += weight * grid[place : place + len(part)]
        part[...] = rounded(np.rint(total / divisor) / 10**DECIMALS)
    return out
