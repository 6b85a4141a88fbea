"""How something is said: pitch, its steadiness, loudness, and the colour of the voice."""

import numpy as np
from numpy.typing import NDArray

from featurizers import pitch, pulses
from featurizers.clip import Clip
from featurizers.pitch import PITCH_WINDOW
from featurizers.sound import (
    RATE_HZ,
    WINDOW,
    Steps,
    decibels,
    mean_square,
    power_spectrum,
    rounded,
    windows,
)
from featurizers.spec import AudioWant, Chunk, Dim, Feature, FeatureSpec
from featurizers.spectral_shape import SHAPE, shape

REACH = 480  # samples (30 ms) to each side in which periods are compared
CONTEXT = 1440  # samples (90 ms) to each side: that, two long periods, and what lies near a pulse
OCTAVE_COST = 0.1  # more than logmel's: periods that differ favour the sum of two
HIGHEST_HNR_DB = 40.0

VOICE = (
    Dim("pitch", "semitones above 27.5 Hz"),
    Dim("voiced", "1"),
    Dim("voicing", "1"),
    Dim("jitter", "%"),
    Dim("shimmer", "dB"),
    Dim("hnr", "dB"),
    Dim("h1_h2", "dB"),
    Dim("energy", "dB re full scale"),
)


class Prosody:
    """Pitch, voice quality, energy and spectral shape in steps of `hop_ms`.

    Close in content to the low-level descriptors of eGeMAPS (Eyben et al. 2016) without formants
    and without MFCCs (for which see `mfcc`); the numbers are our own, not openSMILE's.

    - pitch: by autocorrelation (Boersma 1993, without its path search), 60 to 500 Hz, carried in a
      straight line over what is unvoiced; all 0 when nothing is voiced.
    - voiced: 1 where there is a pitch, else 0.
    - voicing: strength of the autocorrelation at the pitch, 0 to 1.
    - jitter, shimmer: see `pulses.unsteadiness`, over 60 ms.
    - hnr: harmonics over noise, from that strength r as r / (1 - r) (Boersma 1993), -40 to 40 dB.
    - h1_h2: the first harmonic over the second.
    - energy: mean square of 25 ms.
    - loudness and the rest: see `spectral_shape.shape`, of 25 ms.

    Jitter, shimmer, hnr and h1_h2 are 0 where unvoiced, as in eGeMAPS; `voiced` tells. Arithmetic
    is in float64 and rounded to 1e-4 before it becomes float32: the promise is exact.

    Args:
        hop_ms: Step, a whole number of milliseconds.
    """

    def __init__(self, *, hop_ms: int = 10) -> None:
        if not 5 <= hop_ms <= 20:
            raise ValueError(
                f"prosody: hop_ms is {hop_ms}; wanted 5 to 20, since a voice's periods are "
                f"followed from step to step (pooling makes longer steps of them)"
            )
        self.spec = FeatureSpec(
            name="prosody",
            version=1,
            modality="audio",
            reads=("audio",),
            parameters={"hop_ms": hop_ms},
            dims=(*VOICE, *SHAPE),
            rate_hz=1000 / hop_ms,
        )
        self.wants = AudioWant(rate_hz=RATE_HZ)
        self._hop = RATE_HZ * hop_ms // 1000

    def begin(self, clip: Clip) -> "_Prosody":
        """Start on a clip."""
        return _Prosody(self._hop)


class _Prosody:
    def __init__(self, hop: int) -> None:
        self._hop, self._beside = hop, -(-CONTEXT // hop)
        around = self._beside * hop + PITCH_WINDOW // 2
        self._steps = Steps(hop, around, around, self._compute)
        self._values: list[NDArray[np.float32]] = []
        self._hz: list[NDArray[np.float64]] = []

    def add(self, chunk: Chunk) -> None:
        self._steps.add(chunk)

    def finish(self) -> Feature:
        times = self._steps.finish()
        values = np.concatenate(self._values)
        values[:, 0] = rounded(pitch.semitones(np.concatenate(self._hz), 27.5))
        return Feature(values, times)

    def _compute(self, sound: NDArray[np.int16], steps: int) -> None:
        """The steps and those beside them, whose pitch tells where there are pulses."""
        frames = windows(sound / 32768, PITCH_WINDOW, self._hop)
        found = pitch.find(frames, OCTAVE_COST)
        own = slice(self._beside, self._beside + steps)
        out = np.zeros((steps, len(VOICE) + len(SHAPE)))
        voiced = found.hz[own] > 0
        out[:, 1], out[:, 2] = voiced, found.strength[own]
        begin = PITCH_WINDOW // 2 - self._hop // 2  # of the first step beside the block
        part = sound[begin : begin + len(frames) * self._hop]
        jitter, shimmer = pulses.unsteadiness(part, found.hz, self._hop, REACH)
        out[:, 3], out[:, 4] = jitter[own], shimmer[own]
        out[:, 5], out[:, 6] = _hnr(found.height[own]), found.h1_h2[own]
        out[:, 3:7] *= voiced[:, np.newaxis]
        margin = (PITCH_WINDOW - WINDOW) // 2
        short = frames[own.start - 1 : own.stop, margin : margin + WINDOW]
        out[:, 7] = decibels(mean_square(short[1:]))
        out[:, 8:] = shape(power_spectrum(short))
        self._values.append(rounded(out))
        self._hz.append(found.hz[own])


def _hnr(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    least = 1 / (1 + 10 ** (HIGHEST_HNR_DB / 10))
    strength = np.clip(strength, least, 1 - least)
    return 10 * np.log10(strength / (1 - strength))
