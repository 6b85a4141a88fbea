"""Pitch by the autocorrelation of 40 ms (Boersma 1993, without its path search)."""

import functools
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurizers.sound import RATE_HZ, ROWS, decibels, hann, mean_square

PITCH_WINDOW = 640  # 40 ms: two periods of the lowest pitch
PITCH_FFT = 960  # at least a window and the longest lag (267): nothing wraps around
LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
VOICED_FROM = 0.5
QUIET_DB = -50.0
_SHORTEST, _LONGEST = int(RATE_HZ / HIGHEST_HZ), int(RATE_HZ / LOWEST_HZ) + 1


@dataclass(frozen=True, slots=True)
class Periods:
    """The pitch of steps; all is 0 where it is quiet.

    Attributes:
        hz: [T]; 0 where unvoiced.
        strength: [T] of the autocorrelation at that period, 0..1.
        height: [T], the same between the samples.
        h1_h2: [T] dB of the first harmonic over the second; 0 where unvoiced.
    """

    hz: NDArray[np.float64]
    strength: NDArray[np.float64]
    height: NDArray[np.float64]
    h1_h2: NDArray[np.float64]


class _Buffers(threading.local):
    """What each thread transforms in: fresh memory for every block would cost as much again."""

    def __init__(self) -> None:
        lines = PITCH_FFT // 2 + 1
        self.frames = np.zeros((ROWS, PITCH_FFT))  # zeros follow each: numpy adds them slowly
        self.spectra = np.empty((ROWS, lines), dtype=np.complex128)
        self.power = np.empty((ROWS, lines))
        self.auto = np.empty((ROWS, PITCH_FFT))


_buffers = _Buffers()


def find(frames: NDArray[np.float64], octave_cost: float) -> Periods:
    """The pitch of frames [T, PITCH_WINDOW] in -1..1.

    A period must be stronger by `octave_cost` than one half as long, or pitch drops by octaves.
    """
    loud = np.flatnonzero(decibels(mean_square(frames)) > QUIET_DB)
    found = np.zeros((4, len(frames)))
    for first in range(0, len(loud), ROWS):
        rows = loud[first : first + ROWS]
        power = _power(frames, rows)
        lag, strength, height = _strongest(_autocorrelation(power), octave_cost)
        hz = np.where(strength > VOICED_FROM, RATE_HZ / lag, 0.0)
        found[:, rows] = hz, strength, height, _h1_h2(power, hz)
    return Periods(*found)


def _power(frames: NDArray[np.float64], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Spectra of some frames; they lie in a buffer."""
    count = len(rows)
    padded, spectra = _buffers.frames[:count], _buffers.spectra[:count]
    centred = padded[:, :PITCH_WINDOW]
    begin = int(rows[0])
    whole = rows[-1] - begin == count - 1  # no quiet step lies between
    given = frames[begin : begin + count] if whole else frames[rows]
    np.subtract(given, given.mean(axis=1, keepdims=True), out=centred)
    centred *= hann(PITCH_WINDOW)
    np.fft.rfft(padded, axis=1, out=spectra)
    power = np.abs(spectra, out=_buffers.power[:count])
    power *= power
    return power


@functools.cache
def _own() -> NDArray[np.float64]:
    """The window's own autocorrelation, which undoes its taper (Boersma 1993, eq. 9)."""
    power = np.abs(np.fft.rfft(hann(PITCH_WINDOW), n=PITCH_FFT)) ** 2
    own: NDArray[np.float64] = np.fft.irfft(power.astype(np.complex128))[: _LONGEST + 1]
    own /= own[0]
    return own


def _autocorrelation(power: NDArray[np.float64]) -> NDArray[np.float64]:
    # A real spectrum is made complex here: numpy would do so row by row, and plan each anew.
    spectra, auto = _buffers.spectra[: len(power)], _buffers.auto[: len(power)]
    spectra[...] = power
    np.fft.irfft(spectra, n=PITCH_FFT, axis=1, out=auto)
    auto = auto[:, : _LONGEST + 1]
    auto /= np.maximum(auto[:, :1], 1e-9)
    auto /= _own()
    return auto


def _strongest(
    auto: NDArray[np.float64], octave_cost: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each step the period in samples, its strength, and its height between the samples."""
    inner = auto[:, _SHORTEST:_LONGEST]
    peaks = (inner >= auto[:, _SHORTEST - 1 : _LONGEST - 1]) & (
        inner > auto[:, _SHORTEST + 1 : _LONGEST + 1]
    )
    scores = np.where(peaks, inner - octave_cost * _octaves(), -1.0)
    best = scores.argmax(axis=1)
    rows, lag = np.arange(len(auto)), best + _SHORTEST
    before, at, after = auto[rows, lag - 1], auto[rows, lag], auto[rows, lag + 1]
    bend = before - 2 * at + after
    shift = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1.0), 0.0)
    shift = np.clip(shift, -0.5, 0.5)
    found = scores[rows, best] > -1.0
    strength = np.clip(np.where(found, at, 0.0), 0.0, 1.0)
    height = np.clip(np.where(found, at - 0.25 * (before - after) * shift, 0.0), 0.0, 1.0)
    return lag + shift, strength, height


@functools.cache
def _octaves() -> NDArray[np.float64]:
    """How far each period lies above the shortest."""
    octaves: NDArray[np.float64] = np.log2(np.arange(_SHORTEST, _LONGEST) / _SHORTEST)
    return octaves


def _h1_h2(power: NDArray[np.float64], hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """The strongest of three lines about the pitch, over that about its double."""
    line = np.rint(hz * PITCH_FFT / RATE_HZ).astype(np.intp)[:, np.newaxis]
    near, rows = np.array([-1, 0, 1]), np.arange(len(hz))[:, np.newaxis]
    first = power[rows, line + near].max(axis=1)
    second = power[rows, 2 * line + near].max(axis=1)
    return np.where(hz > 0, decibels(first) - decibels(second), 0.0)


def semitones(hz: NDArray[np.float64], above_hz: float) -> NDArray[np.float64]:
    """Pitch of all steps, carried over where it is 0 (unvoiced); all 0 when nothing is voiced."""
    voiced = np.flatnonzero(hz > 0)
    if not len(voiced):
        return np.zeros(len(hz))
    heard: NDArray[np.float64] = 12 * np.log2(hz[voiced] / above_hz)
    return np.interp(np.arange(len(hz)), voiced, heard)
