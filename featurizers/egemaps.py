"""eGeMAPS itself, computed by openSMILE, which is an optional extra with a licence of its own."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.sound import RATE_HZ, Steps
from featurizers.spec import AudioWant, Chunk, Dim, Feature, FeatureSpec

if TYPE_CHECKING:
    import opensmile

HOP = RATE_HZ // 100
SHORTEST = 7  # steps: openSMILE gives nothing for 60 ms
LONGEST_S = 3600
ATOL = 1e-3
LICENCE = "audEERING Research License (openSMILE): research and personal use, not commercial"
LEVELS = ("lld", "functionals")

_VOICE = (
    ("F0semitoneFrom27.5Hz", "semitones above 27.5 Hz"),
    ("jitterLocal", "1"),
    ("shimmerLocaldB", "dB"),
    ("HNRdBACF", "dB"),
    ("logRelF0-H1-H2", "dB"),
    ("logRelF0-H1-A3", "dB"),
    *(
        (f"F{number}{name}", unit)
        for number in (1, 2, 3)
        for name, unit in (("frequency", "Hz"), ("bandwidth", "Hz"), ("amplitudeLogRelF0", "dB"))
    ),
)
_SLOPES = ("slope{}0-500", "dB/Hz"), ("slope{}500-1500", "dB/Hz")
_BALANCE = ("alphaRatio{}", "dB"), ("hammarbergIndex{}", "dB"), *_SLOPES
_MFCC = tuple((f"mfcc{number}", "1") for number in range(1, 5))
_SPREAD = ("percentile20.0", "percentile50.0", "percentile80.0", "pctlrange0-2")
_MOVES = ("meanRisingSlope", "stddevRisingSlope", "meanFallingSlope", "stddevFallingSlope")


def descriptors() -> tuple[Dim, ...]:
    """The 25 low-level descriptors, in openSMILE's order and by its names."""
    spectral = (*_BALANCE, ("spectralFlux{}", "1"), *_MFCC)
    plain = [Dim(f"{name.format('')}_sma3", unit) for name, unit in (("Loudness", "1"), *spectral)]
    return (*plain, *(Dim(f"{name}_sma3nz", unit) for name, unit in _VOICE))


def functionals() -> tuple[Dim, ...]:
    """The 88 functionals, in openSMILE's order and by its names."""
    dims = [*_contour("F0semitoneFrom27.5Hz_sma3nz", "semitones above 27.5 Hz", "semitones")]
    dims += _contour("loudness_sma3", "1", "1")
    for name, unit in (("spectralFlux", "1"), *_MFCC):
        dims += _mean(f"{name}_sma3", unit)
    for name, unit in _VOICE[1:]:
        dims += _mean(f"{name}_sma3nz", unit)
    voiced = (*_BALANCE, ("spectralFlux{}", "1"), *((f"{name}V", unit) for name, unit in _MFCC))
    for name, unit in voiced:
        dims += _mean(f"{name.format('V')}_sma3nz", unit)
    for name, unit in (*_BALANCE, ("spectralFlux{}", "1")):
        dims += _mean(f"{name.format('UV')}_sma3nz", unit)[:1]
    dims += [Dim("loudnessPeaksPerSec", "1/s"), Dim("VoicedSegmentsPerSec", "1/s")]
    dims += [Dim("MeanVoicedSegmentLengthSec", "s"), Dim("StddevVoicedSegmentLengthSec", "s")]
    dims += [Dim("MeanUnvoicedSegmentLength", "s"), Dim("StddevUnvoicedSegmentLength", "s")]
    return (*dims, Dim("equivalentSoundLevel_dBp", "dB"))


def _mean(name: str, unit: str) -> list[Dim]:
    return [Dim(f"{name}_amean", unit), Dim(f"{name}_stddevNorm", "1")]


def _contour(name: str, unit: str, step: str) -> list[Dim]:
    spread = [Dim(f"{name}_{each}", step if "range" in each else unit) for each in _SPREAD]
    return [*_mean(name, unit), *spread, *(Dim(f"{name}_{each}", f"{step}/s") for each in _MOVES)]


class MissingPackageError(ImportError):
    """An optional package is needed and not installed: the machine's fault, and no clip's."""


class Egemaps:
    """The extended Geneva minimalistic acoustic parameter set, eGeMAPSv02 (Eyben et al. 2016).

    Computed by openSMILE (`pip install 'fuseline[opensmile]'`), whose licence permits research and
    personal use, and no commercial one: neither of the program nor of features and models that were
    made with it. `prosody` is close in content and free.

    Its arithmetic is in float32 and not ours, so that the promise is within 1e-3. At least 70 ms of
    sound are wanted, and not more than an hour, for openSMILE takes a clip whole.

    Args:
        level: "lld" gives the 25 low-level descriptors each 10 ms; a step is the middle of the
            20 ms that openSMILE names for it. "functionals" gives the 88 of the whole clip as one
            step.
    """

    def __init__(self, *, level: str = "lld") -> None:
        if level not in LEVELS:
            raise ValueError(f"egemaps: level is {level!r}; wanted {' or '.join(LEVELS)}")
        self.spec = FeatureSpec(
            name="egemaps",
            version=1,
            modality="audio",
            reads=("audio",),
            parameters={"level": level},
            dims=descriptors() if level == "lld" else functionals(),
            rate_hz=100.0 if level == "lld" else None,
            licence=LICENCE,
            atol=ATOL,
        )
        self.wants = AudioWant(rate_hz=RATE_HZ)
        self._smile: opensmile.Smile | None = None

    def begin(self, clip: Clip) -> "_Egemaps":
        """Start on a clip. Raises MissingPackageError when openSMILE is not installed."""
        if self._smile is None:
            self._smile = _load(str(self.spec.parameters["level"]))
        return _Egemaps(self._smile, by_step=self.spec.rate_hz is not None)


def _load(level: str) -> "opensmile.Smile":
    try:
        import opensmile
    except ImportError as error:
        raise MissingPackageError(
            f"the featurizer egemaps needs openSMILE, which is not here ({error}); install it with "
            f"pip install 'fuseline[opensmile]' if its licence suits you ({LICENCE}), or take the "
            f"featurizer prosody"
        ) from None
    levels = opensmile.FeatureLevel
    return opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=levels.LowLevelDescriptors if level == "lld" else levels.Functionals,
    )


class _Egemaps:
    def __init__(self, smile: "opensmile.Smile", *, by_step: bool) -> None:
        self._smile, self._by_step = smile, by_step
        self._steps = Steps(HOP, HOP // 2, HOP - HOP // 2, self._compute)
        self._blocks: list[NDArray[np.int16]] = []

    def add(self, chunk: Chunk) -> None:
        self._steps.add(chunk)

    def finish(self) -> Feature:
        times = self._steps.finish()
        first, seconds = float(times[0, 0]), float(times[-1, 1] - times[0, 0])
        if len(times) < SHORTEST:
            raise BadClipError("empty", f"{seconds:.2f} s of sound; openSMILE wants 0.07 s")
        if seconds > LONGEST_S:
            raise BadClipError("too_long", f"{seconds:.0f} s of sound; egemaps takes {LONGEST_S} s")
        sound = np.concatenate(self._blocks)
        self._blocks.clear()
        values = self._smile(sound.astype(np.float32) / 32768, RATE_HZ)[0].T
        if not self._by_step:
            return Feature(values.astype(np.float32), np.array([[first, first + seconds]]))
        begins = first + HOP / RATE_HZ * (np.arange(len(values), dtype=np.float64) + 0.5)
        places = np.stack([begins, begins + HOP / RATE_HZ], axis=1)
        return Feature(values.astype(np.float32), places)

    def _compute(self, sound: NDArray[np.int16], steps: int) -> None:
        self._blocks.append(sound.copy())
