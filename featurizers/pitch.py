"""Pitch by the autocorrelation of 40 ms (Boersma 1993, without its path search)."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurizers.sound import RATE_HZ, decibels, hann, mean_square

PITCH_WINDOW = 640  # 40 ms: two periods of the lowest pitch
PITCH_FFT = 960  # at least a window and the longest lag (267): nothing wraps around
LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
VOICED_FROM = 0.5
QUIET_DB = -50.0
_SHORTEST, _LONGEST = int(RATE_HZ / HIGHEST_HZ), int(RATE_HZ / LOWEST_HZ) + 1


@dataclass(frozen=True, slots=True)
class Periods:
    """The pitch of steps.

    Attributes:
        hz: [T]; 0 where unvoiced.
        strength: [T] of the autocorrelation at that period, 0..1; 0 where it is quiet.
        height: [T], the same between the samples.
        loud: Those steps that are not quiet.
        power: [loud steps, PITCH_FFT // 2 + 1], their spectra.
    """

    hz: NDArray[np.float64]
    strength: NDArray[np.float64]
    height: NDArray[np.float64]
    loud: NDArray[np.intp]
    power: NDArray[np.float64]


def find(frames: NDArray[np.float64]) -> Periods:
    """The pitch of frames [T, PITCH_WINDOW] in -1..1."""
    loud = np.flatnonzero(decibels(mean_square(frames)) > QUIET_DB)
    power = _power(frames if len(loud) == len(frames) else frames[loud])
    lag, strength, height = _strongest(_autocorrelation(power))
    pitch = np.where(strength > VOICED_FROM, RATE_HZ / lag, 0.0)
    hz, strengths, heights = np.zeros((3, len(frames)))
    hz[loud], strengths[loud], heights[loud] = pitch, strength, height
    return Periods(hz, strengths, heights, loud, power)


def _power(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = frames - frames.mean(axis=1, keepdims=True)
    centred *= hann(PITCH_WINDOW)
    power: NDArray[np.float64] = np.abs(np.fft.rfft(centred, n=PITCH_FFT, axis=1))
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
    auto: NDArray[np.float64] = np.fft.irfft(power.astype(np.complex128), axis=1)
    auto = auto[:, : _LONGEST + 1]
    return auto / np.maximum(auto[:, :1], 1e-9) / _own()


def _strongest(
    auto: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each step the period in samples, its strength, and its height between the samples."""
    inner = auto[:, _SHORTEST:_LONGEST]
    peaks = (inner >= auto[:, _SHORTEST - 1 : _LONGEST - 1]) & (
        inner > auto[:, _SHORTEST + 1 : _LONGEST + 1]
    )
    # A longer lag must be clearly better than a shorter one, or pitch drops by octaves.
    cost = 0.02 * np.log2(np.arange(_SHORTEST, _LONGEST) / _SHORTEST)
    scores = np.where(peaks, inner - cost, -1.0)
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


def semitones(hz: NDArray[np.float64], above_hz: float) -> NDArray[np.float64]:
    """Pitch of all steps, carried over where it is 0 (unvoiced); all 0 when nothing is voiced."""
    voiced = np.flatnonzero(hz > 0)
    if not len(voiced):
        return np.zeros(len(hz))
    heard: NDArray[np.float64] = 12 * np.log2(hz[voiced] / above_hz)
    return np.interp(np.arange(len(hz)), voiced, heard)
