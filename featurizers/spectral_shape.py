"""Where in the spectrum the energy of sound lies."""

import functools

import numpy as np
from numpy.typing import NDArray

from featurizers.sound import FLOOR, RATE_HZ, WINDOW, decibels, mel_filters
from featurizers.spec import Dim

LINE_HZ = RATE_HZ // WINDOW  # lines of the spectrum lie that far apart
SILENT = 1e-10  # of the whole power
ROLLOFF = 0.85
LOUDNESS_BANDS = 26

SHAPE = (
    Dim("loudness", "1"),
    Dim("flux", "1"),
    Dim("centroid", "Hz"),
    Dim("spread", "Hz"),
    Dim("rolloff", "Hz"),
    Dim("flatness", "1"),
    Dim("alpha_ratio", "dB"),
    Dim("hammarberg", "dB"),
    Dim("slope_0_500", "dB/kHz"),
    Dim("slope_500_1500", "dB/kHz"),
)


def shape(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """What SHAPE names, of spectra [1 + T, WINDOW // 2 + 1]: [T, 10].

    The first spectrum is of the step before, which flux needs. Power is that of Hann's window of
    sound in -1..1; what follows scales it so that a full sine's line is 1 (0 dB). In silence all
    is 0.

    - loudness: the sum of 26 mel bands, weighted as the ear hears equal loudness (Hermansky 1990,
      eq. 4) and compressed by the cubic root.
    - flux: distance of the magnitude spectrum from the step before, each of length 1: 0 to 1.41.
    - centroid and spread: mean frequency and its standard deviation, weighted by magnitude.
    - rolloff: 85 % of the magnitude lies below, interpolated between the bins.
    - flatness: geometric over arithmetic mean of power.
    - alpha_ratio: power in 50 to 1000 Hz over that in 1 to 5 kHz.
    - hammarberg: the strongest line below 2 kHz over the strongest in 2 to 5 kHz.
    - slope_0_500, slope_500_1500: of the line that fits the dB in that range best.
    """
    power = power * (4 / WINDOW) ** 2
    magnitude = np.sqrt(power)
    flux = _flux(magnitude)
    power, magnitude = power[1:], magnitude[1:]
    heard = power.sum(axis=1) > SILENT
    out = np.zeros((len(power), len(SHAPE)))
    if not heard.all():  # what all are needs no copy
        power, magnitude, flux = power[heard], magnitude[heard], flux[heard]
    loudness = np.cbrt(power @ _ear()).sum(axis=1)
    out[heard] = np.column_stack([loudness, flux, _moments(magnitude), _balance(power)])
    return out


def _flux(magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.sqrt(np.einsum("ij,ij->i", magnitude, magnitude))
    alike = np.einsum("ij,ij->i", magnitude[1:], magnitude[:-1])
    both = length[1:] * length[:-1]
    # |a - b|^2 = 2 - 2ab for unit vectors; silence is at right angles to all.
    flux: NDArray[np.float64] = np.sqrt(
        np.maximum(0.0, 2 - 2 * alike / np.where(both > 0, both, 1.0))
    )
    return flux


def _moments(magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centroid, spread and rolloff."""
    hz = np.arange(WINDOW // 2 + 1) * LINE_HZ
    whole, first, second = (magnitude @ np.stack([np.ones(len(hz)), hz, hz**2], axis=1)).T
    centroid = first / whole
    spread = np.sqrt(np.maximum(0.0, second / whole - centroid**2))
    sums = np.cumsum(magnitude, axis=1)
    wanted = ROLLOFF * sums[:, -1]
    line = (sums < wanted[:, np.newaxis]).sum(axis=1)
    rows = np.arange(len(sums))
    missing = (sums[rows, line] - wanted) / magnitude[rows, line]
    return np.stack([centroid, spread, np.maximum(0.0, (line - missing) * LINE_HZ)], axis=1)


def _balance(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flatness, alpha ratio, Hammarberg index and two slopes."""
    level = decibels(power)
    flatness = 10 ** (level.mean(axis=1) / 10) / np.maximum(power, FLOOR).mean(axis=1)
    low, high = (power[:, _lines(*band)].sum(axis=1) for band in ((50, 1000), (1000, 5000)))
    lower, upper = (level[:, _lines(*band)].max(axis=1) for band in ((0, 2000), (2000, 5000)))
    slopes = [level[:, _lines(*band)] @ _slope(*band) for band in ((0, 500), (500, 1500))]
    alpha = decibels(low) - decibels(high)
    return np.stack([flatness, alpha, lower - upper, *slopes], axis=1)


def _lines(low_hz: int, high_hz: int) -> slice:
    """From low_hz up to, but not including, high_hz."""
    return slice(-(-low_hz // LINE_HZ), -(-high_hz // LINE_HZ))


@functools.cache
def _slope(low_hz: int, high_hz: int) -> NDArray[np.float64]:
    """What each line adds to the slope over kHz of the straight line that fits best."""
    lines = _lines(low_hz, high_hz)
    from_mean = np.arange(lines.stop - lines.start) - (lines.stop - lines.start - 1) / 2
    weights: NDArray[np.float64] = from_mean / (from_mean**2).sum() * (1000 / LINE_HZ)
    return weights


@functools.cache
def _ear() -> NDArray[np.float64]:
    """Mel bands times the weight of equal loudness at each frequency."""
    squared = (2 * np.pi * LINE_HZ * np.arange(WINDOW // 2 + 1)) ** 2
    weight = squared**2 * (squared + 56.8e6) / ((squared + 6.3e6) ** 2 * (squared + 0.38e9))
    filters = mel_filters(LOUDNESS_BANDS, WINDOW) * (weight / weight.max())[:, np.newaxis]
    ear: NDArray[np.float64] = filters * LINE_HZ
    return ear
