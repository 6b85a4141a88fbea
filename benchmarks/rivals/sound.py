"""Features of sound beside librosa, clip by clip, and beside openSMILE used by hand.

Sound is given as 16 kHz samples in memory: clips of 2 to 8 seconds with a voice, pauses and noise.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.catalog import build
from featurizers.sound import (
    RATE_HZ,
    WINDOW,
    Steps,
    decibels,
    mel_filters,
    power_spectrum,
    rounded,
    windows,
)
from featurizers.spec import AudioChunk
from rivals import Floats, Race, Size, Skipped, clip_of, close, extracted

HOP = RATE_HZ // 100
MELS = 40
LOWEST_HZ, HIGHEST_HZ = 60, 500

Samples: TypeAlias = NDArray[np.int16]


def races(size: Size) -> Iterator[Race | Skipped]:
    """Every featurizer that hears, but encoders."""
    clips = [sound(number) for number in range(6 if size.quick else 24)]
    race = partial(_race, clips)
    yield race("logmel", features("logmel"), librosa_logmel, same_logmel)
    yield race("mel energies", energies, librosa_energies, same_energies)
    yield race("mfcc", features("mfcc"), librosa_mfcc, same_mfcc)
    yield race("prosody", features("prosody"), librosa_prosody, same_prosody)
    yield race("waveform", features("waveform"))
    if find_spec("opensmile") is None:
        yield Skipped("egemaps", "openSMILE is not installed: pip install 'fuseline[opensmile]'")
    else:
        yield race("egemaps", features("egemaps"), opensmile_egemaps(), same_egemaps)


def _race(
    clips: Sequence[Samples],
    name: str,
    ours: Callable[[Samples], Floats],
    theirs: Callable[[Samples], Floats] | None = None,
    compare: Callable[[Floats, Floats], None] | None = None,
) -> Race:
    return Race(
        name=name,
        featurizer="" if name == "mel energies" else name,
        seconds=sum(len(samples) for samples in clips) / RATE_HZ,
        ours=lambda: [ours(samples) for samples in clips],
        theirs=None if theirs is None else lambda: [theirs(samples) for samples in clips],
        compare=compare,
    )


def sound(number: int) -> Samples:
    """2 to 8 seconds: a voice whose pitch wanders, with pauses, and noise behind it all."""
    random = np.random.default_rng(number)
    count = round(random.uniform(2, 8) * RATE_HZ)
    time_s = np.arange(count) / RATE_HZ
    pitch_hz = random.uniform(90, 240) * 2 ** (0.3 * np.sin(2 * np.pi * 0.7 * time_s))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    voice = sum(np.sin(n * phase) / n for n in range(1, 12))
    spoken = np.sin(2 * np.pi * 0.4 * time_s + random.uniform(0, 6)) > -0.6
    wave = 0.15 * voice * spoken + 0.002 * random.normal(size=count)
    return np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16)


def features(name: str) -> Callable[[Samples], Floats]:
    """Ours, fed a second at a time."""
    featurizer = build(name)

    return lambda samples: extracted(featurizer, clip_of(), list(seconds_of(samples)))


def seconds_of(samples: Samples) -> Iterator[AudioChunk]:
    """A second at a time, as the decoder gives them."""
    for at in range(0, len(samples), RATE_HZ):
        yield AudioChunk(at / RATE_HZ, samples[at : at + RATE_HZ])


def energies(samples: Samples) -> Floats:
    """Our mel energies, without pitch and loudness."""
    blocks: list[NDArray[np.float32]] = []

    def compute(part: Samples, steps: int) -> None:
        power = power_spectrum(windows(part / 32768, WINDOW, HOP))
        blocks.append(rounded(decibels(power @ mel_filters(MELS, WINDOW))))

    cut = Steps(HOP, WINDOW // 2, WINDOW // 2, compute)
    for chunk in seconds_of(samples):
        cut.add(chunk)
    cut.finish()
    return np.concatenate(blocks)


def floats(samples: Samples) -> NDArray[np.float32]:
    """As librosa takes them, from where its frames lie on the middle of our steps."""
    return samples[HOP // 2 :].astype(np.float32) / 32768


def mel_of(y: NDArray[np.float32]) -> Floats:
    """Log-mel energies by librosa: [mels, T]."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=y, sr=RATE_HZ, n_fft=WINDOW, hop_length=HOP, n_mels=MELS
    )
    return np.asarray(librosa.power_to_db(power, top_db=None))


def pitch_of(y: NDArray[np.float32]) -> Floats:
    """Pitch by librosa: [T]."""
    import librosa

    return np.asarray(librosa.yin(y, fmin=LOWEST_HZ, fmax=HIGHEST_HZ, sr=RATE_HZ, hop_length=HOP))


def librosa_energies(samples: Samples) -> Floats:
    """[T, mels]."""
    return mel_of(floats(samples)).T


def librosa_logmel(samples: Samples) -> Floats:
    """[T, mels + 2]: energies, pitch in Hz, and root mean square."""
    import librosa

    y = floats(samples)
    rms = librosa.feature.rms(y=y, frame_length=WINDOW, hop_length=HOP)
    return np.concatenate([mel_of(y), pitch_of(y)[np.newaxis], rms]).T


def librosa_mfcc(samples: Samples) -> Floats:
    """[T, 39]."""
    import librosa

    plain = librosa.feature.mfcc(S=mel_of(floats(samples)), n_mfcc=13)
    first, second = (librosa.feature.delta(plain, order=n, mode="nearest") for n in (1, 2))
    return np.concatenate([plain, first, second]).T


def librosa_prosody(samples: Samples) -> Floats:
    """[T, 6]: pitch in Hz, root mean square, centroid, bandwidth, rolloff, flatness."""
    import librosa

    y, of = floats(samples), librosa.feature
    spectra = {"n_fft": WINDOW, "hop_length": HOP}
    rows = [
        of.rms(y=y, frame_length=WINDOW, hop_length=HOP),
        of.spectral_centroid(y=y, sr=RATE_HZ, **spectra),
        of.spectral_bandwidth(y=y, sr=RATE_HZ, **spectra),
        of.spectral_rolloff(y=y, sr=RATE_HZ, **spectra),
        of.spectral_flatness(y=y, **spectra),
    ]
    return np.concatenate([pitch_of(y)[np.newaxis], *rows]).T


def inner(ours: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """Without the ends: librosa's last frame is another one, and its yin looks further out."""
    return ours[10:-10], theirs[10 : len(ours) - 10]


def same_energies(ours: Floats, theirs: Floats) -> None:
    """Within 0.01 dB, since librosa's are in float32."""
    ours, theirs = inner(ours, theirs)
    close("mel energies", ours - theirs, 0.01, 0.999)


def same_logmel(ours: Floats, theirs: Floats) -> None:
    """Energies, loudness, and pitch where we hear a voice."""
    same_energies(ours[:, :MELS], theirs[:, :MELS])
    mine, other = inner(ours[:, MELS:], theirs[:, MELS:])
    voiced = mine[:, 3] > 0.9
    close("pitch", mine[voiced, 0] - 12 * np.log2(other[voiced, 0] / 55), 1.0, 0.9)
    close("loudness", mine[:, 4] - 20 * np.log10(np.maximum(other[:, 1], 1e-5)), 0.01)


def same_mfcc(ours: Floats, theirs: Floats) -> None:
    """Within 0.05 dB."""
    ours, theirs = inner(ours, theirs)
    close("mfcc", ours - theirs, 0.05, 0.999)


def same_prosody(ours: Floats, theirs: Floats) -> None:
    """What librosa has of it."""
    names = [dim.name for dim in build("prosody").spec.dims]
    mine, other = inner(ours, theirs)
    of = {name: mine[:, number] for number, name in enumerate(names)}
    voiced = of["voicing"] > 0.9
    close("pitch", of["pitch"][voiced] - 12 * np.log2(other[voiced, 0] / 27.5), 1.0, 0.9)
    close("energy", of["energy"] - 20 * np.log10(np.maximum(other[:, 1], 1e-5)), 0.01)
    close("centroid", of["centroid"] - other[:, 2], 1.0)
    close("spread", of["spread"] - other[:, 3], 1.0)
    close("rolloff", of["rolloff"] - other[:, 4], RATE_HZ / WINDOW + 0.1)


def opensmile_egemaps() -> Callable[[Samples], Floats]:
    """[T, 25] by openSMILE's own package, as its first example has it."""
    import opensmile

    smile = opensmile.Smile(
        feature_set=opensmile.FeatureSet.eGeMAPSv02,
        feature_level=opensmile.FeatureLevel.LowLevelDescriptors,
    )
    return lambda samples: np.asarray(smile.process_signal(samples / 32768, RATE_HZ))


def same_egemaps(ours: Floats, theirs: Floats) -> None:
    """By what ours promises."""
    close("egemaps", ours - theirs, 1e-3, 0.999)
