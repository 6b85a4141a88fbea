"""The samples themselves, for networks that learn from the waveform."""

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip
from featurizers.sound import Steps
from featurizers.spec import AudioWant, Chunk, Feature, FeatureSpec, names

LONGEST_HOP = 4096
RATES_HZ = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


class Waveform:
    """Sound, mixed to one channel, cut into steps of `hop` samples.

    A step's dimensions are its samples in order, float32 in -1..1: `values.reshape(-1)` is the
    sound as a network wants it, `values.reshape(T, hop)` a strided first layer's view of it, and
    the padding of a batch is silence at the end. Samples behind the last whole step are left out; a
    clip that is shorter than a step is filled up with silence. Samples are 16-bit numbers divided
    by 32768, which float32 holds without rounding: the promise is exact. A minute at 16 kHz takes
    3.8 MB.

    Args:
        hop: Samples in a step; 320 at 16 kHz is the step of wav2vec 2.0 and its kin (20 ms).
        rate_hz: Samples in a second.
    """

    def __init__(self, *, hop: int = 320, rate_hz: int = 16_000) -> None:
        if rate_hz not in RATES_HZ or not 1 <= hop <= LONGEST_HOP:
            raise ValueError(
                f"waveform: hop is {hop} and rate_hz is {rate_hz}; wanted 1 to {LONGEST_HOP}, "
                f"and one of {', '.join(map(str, RATES_HZ))}"
            )
        self.spec = FeatureSpec(
            name="waveform",
            version=1,
            modality="audio",
            reads=("audio",),
            parameters={"hop": hop, "rate_hz": rate_hz},
            dims=tuple(names("sample", hop, "full scale")),
            rate_hz=rate_hz / hop,
        )
        self.wants = AudioWant(rate_hz=rate_hz)
        self._hop, self._rate_hz = hop, rate_hz

    def begin(self, clip: Clip) -> "_Waveform":
        """Start on a clip."""
        return _Waveform(self._hop, self._rate_hz)


class _Waveform:
    def __init__(self, hop: int, rate_hz: int) -> None:
        self._hop = hop
        self._steps = Steps(hop, hop // 2, hop - hop // 2, self._compute, rate_hz=rate_hz)
        self._blocks: list[NDArray[np.int16]] = []

    def add(self, chunk: Chunk) -> None:
        self._steps.add(chunk)

    def finish(self) -> Feature:
        times = self._steps.finish()
        values = np.empty((len(times), self._hop), dtype=np.float32)
        np.concatenate(self._blocks, out=values, casting="unsafe")
        self._blocks.clear()
        values /= 32768
        return Feature(values, times)

    def _compute(self, sound: NDArray[np.int16], steps: int) -> None:
        self._blocks.append(sound.reshape(steps, self._hop).copy())
