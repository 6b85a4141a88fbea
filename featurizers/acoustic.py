"""Sound without weights: log-mel energies with pitch, voicing and loudness."""

import numpy as np
from numpy.typing import NDArray

from featurizers import pitch
from featurizers.clip import Clip
from featurizers.pitch import PITCH_WINDOW
from featurizers.sound import (
    RATE_HZ,
    WINDOW,
    Steps,
    decibels,
    mean_square,
    mel_filters,
    power_spectrum,
    rounded,
    windows,
)
from featurizers.spec import AudioWant, Chunk, Dim, Feature, FeatureSpec, names

OCTAVE_COST = 0.02
PROSODY = (
    Dim("pitch", "semitones above 55 Hz"),
    Dim("pitch_from_median", "semitones"),
    Dim("pitch_change", "semitones/s"),
    Dim("voicing", "1"),
    Dim("loudness", "dB re full scale"),
)


class LogMel:
    """Log-mel energies and prosody in steps of `hop_ms`.

    The mel scale and its area-normalised triangles are Slaney's (Auditory Toolbox, 1998); pitch is
    the autocorrelation method of Boersma (1993) without its path search. Arithmetic is in float64
    and rounded to 1e-4 before it becomes float32, so that the last bits of another machine's FFT do
    not show: the promise is exact.

    Args:
        hop_ms: Step, a whole number of milliseconds.
        mels: Mel bands from 0 Hz to 8 kHz.
    """

    def __init__(self, *, hop_ms: int = 10, mels: int = 40) -> None:
        if not 1 <= hop_ms <= 1000 or not 8 <= mels <= 128:
            raise ValueError(
                f"logmel: hop_ms is {hop_ms} and mels is {mels}; wanted 1 to 1000 and 8 to 128"
            )
        self.spec = FeatureSpec(
            name="logmel",
            version=1,
            modality="audio",
            reads=("audio",),
            parameters={"hop_ms": hop_ms, "mels": mels},
            dims=(*names("mel", mels, "dB"), *PROSODY),
            rate_hz=1000 / hop_ms,
        )
        self.wants = AudioWant(rate_hz=RATE_HZ)
        self._hop, self._mels = RATE_HZ * hop_ms // 1000, mels

    def begin(self, clip: Clip) -> "_LogMel":
        """Start on a clip."""
        return _LogMel(self._hop, self._mels)


class _LogMel:
    def __init__(self, hop: int, mels: int) -> None:
        self._hop, self._mels = hop, mels
        self._steps = Steps(hop, PITCH_WINDOW // 2, PITCH_WINDOW // 2, self._compute)
        self._energies: list[NDArray[np.float32]] = []
        self._prosody: list[NDArray[np.float64]] = []  # pitch in Hz, voicing, loudness

    def add(self, chunk: Chunk) -> None:
        self._steps.add(chunk)

    def finish(self) -> Feature:
        times = self._steps.finish()
        values = np.empty((len(times), self._mels + len(PROSODY)), dtype=np.float32)
        np.concatenate(self._energies, out=values[:, : self._mels])
        prosody = _prosody(np.concatenate(self._prosody), self._hop / RATE_HZ)
        values[:, self._mels :] = rounded(prosody)
        return Feature(values, times)

    def _compute(self, sound: NDArray[np.int16], steps: int) -> None:
        frames = windows(sound / 32768, PITCH_WINDOW, self._hop)
        margin = (PITCH_WINDOW - WINDOW) // 2
        short = frames[:, margin : margin + WINDOW]
        energies = power_spectrum(short) @ mel_filters(self._mels, WINDOW)
        self._energies.append(rounded(decibels(energies)))
        found = pitch.find(frames, OCTAVE_COST)
        loudness = decibels(mean_square(short))
        self._prosody.append(np.stack([found.hz, found.strength, loudness], axis=1))


def _prosody(raw: NDArray[np.float64], hop_s: float) -> NDArray[np.float64]:
    """Pitch in semitones, interpolated where unvoiced; all 0 when nothing is voiced."""
    out = np.zeros((len(raw), len(PROSODY)))
    hz, out[:, 3:] = raw[:, 0], raw[:, 1:]
    if hz.any():
        voiced = hz > 0
        track = pitch.semitones(hz, 55.0)
        out[:, 0] = track
        out[:, 1] = track - np.median(track[voiced])
        reach = min(len(raw) - 1, max(1, round(0.03 / hop_s)))
        if reach:
            change = np.abs(track[reach:] - track[:-reach]) / (reach * hop_s)
            out[reach:, 2] = np.minimum(change, 200.0)  # an octave error is no melody
    return out
