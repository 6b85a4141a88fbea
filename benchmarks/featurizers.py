"""How fast features are computed, beside the obvious way, on one core.

Both sides compute features of the same clips, in turns, in one process with one thread. Seconds are
CPU seconds, so that other work on the machine does not count; what is printed are seconds of media
for each of them, at the median of the rounds. What both sides computed is compared where it can be,
before any figure is printed.

Sound is given as 16 kHz samples in memory: clips of 2 to 8 seconds with a voice, pauses and noise.
The other side is librosa, clip by clip, by its functions' defaults but for our hop, our window of
spectra and our range of pitch:

- `logmel`: `melspectrogram`, `power_to_db`, `yin` and `rms`, since pitch and loudness are in it;
- `mel energies`: the first two alone, and ours without the rest. It is no featurizer; it tells how
  much of the ratio above is due to pitch;
- `mfcc`: `melspectrogram`, `power_to_db`, `mfcc` and two times `delta`;
- `prosody`: `yin`, `rms`, `spectral_centroid`, `spectral_bandwidth`, `spectral_rolloff` and
  `spectral_flatness`. librosa has no jitter, shimmer, harmonics-to-noise ratio and the like; ours
  are counted all the same.

`video` is `face-motion` from the file on: ours decodes with `featurizers.media`, the other with
PyAV, makes each picture RGB and resizes it with Pillow, and both compute the features of those
pictures that are wanted. Both decode with one thread.

`text_encoder`, `audio_encoder` and `image_encoder` are those of `encoders.py`, which is run for it.

    python benchmarks/featurizers.py [--quick]
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

HOME = Path(__file__).resolve().parent.parent
# Python looks for imports beside a script first, and would take this file for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HOME / "benchmarks"]
if __name__ == "featurizers":  # a script beside this one imported the package
    del sys.modules[__name__]
    importlib.import_module(__name__)
if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray

from featurizers.catalog import build
from featurizers.clip import Clip
from featurizers.limits import Limits
from featurizers.media import decode, encode
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
from featurizers.spec import AudioChunk, Feature, Featurizer, VideoChunk
from tracking.provenance import git_commit, versions

HOP = RATE_HZ // 100
MELS = 40
LOWEST_HZ, HIGHEST_HZ = 60, 500
CLIP = Clip(key="a", id="a", media="a", media_digest="")

Samples: TypeAlias = NDArray[np.int16]
Floats: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Race:
    """The same features by both sides.

    Attributes:
        seconds: Of media in all clips.
        compare: Raises when what both made of a clip differs.
    """

    clips: Sequence[Any]
    seconds: float
    ours: Callable[[Any], Floats]
    theirs: Callable[[Any], Floats]
    compare: Callable[[Floats, Floats], None]


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer clips and rounds")
    quick = arguments.parse_args().quick
    found = measured(quick)
    print(f"{'':14}{'ours':>10}{'obvious':>10}{'times':>8}")
    for name, (ours, theirs) in found.items():
        print(f"  {name:<12}{ours:10.0f}{theirs:10.0f}{ours / theirs:8.2f}")
    print("  seconds of media by CPU second")
    figures: dict[str, float] = {}
    for name, (ours, theirs) in found.items():
        key = name.replace(" ", "_")
        figures |= {key: round(ours / theirs, 3), f"{key}_media_s_per_s": round(ours, 1)}
    figures |= of_encoders(quick)
    used = {**versions(["av", "librosa", "numpy", "pillow"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used}
    print(json.dumps({"benchmark": "featurizers", "figures": figures, **about}))


def of_encoders(quick: bool) -> dict[str, float]:
    """How many times faster encoders are than by hand, by `encoders.py`, whose table is printed."""
    command = [sys.executable, str(HOME / "benchmarks/encoders.py"), *["--quick"] * quick]
    said = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout  # noqa: S603 - ours
    *table, last = said.splitlines()
    print("\n".join(table))
    found = json.loads(last)["figures"]
    names = ("text_encoder", "audio_encoder", "image_encoder")
    return {name: found[f"{name}_to_hand"] for name in names}


def measured(quick: bool) -> dict[str, tuple[float, float]]:
    """Seconds of media by CPU second, of both sides."""
    clips, rounds = (6, 3) if quick else (24, 7)
    sounds = [sound(number) for number in range(clips)]
    seconds = sum(len(samples) for samples in sounds) / RATE_HZ
    races = {
        "logmel": Race(sounds, seconds, features("logmel"), librosa_logmel, same_logmel),
        "mel energies": Race(sounds, seconds, energies, librosa_energies, same_energies),
        "mfcc": Race(sounds, seconds, features("mfcc"), librosa_mfcc, same_mfcc),
        "prosody": Race(sounds, seconds, features("prosody"), librosa_prosody, same_prosody),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = [video(Path(folder, f"{number}.mp4"), number) for number in range(clips // 6)]
        races["video"] = Race(files, len(files) * VIDEO_S, our_video, their_video, same_video)
        return {name: raced(race, rounds) for name, race in races.items()}


def raced(race: Race, rounds: int) -> tuple[float, float]:
    """Seconds of media by CPU second, of both sides."""
    for clip in race.clips:  # the first time for both, and the comparison
        race.compare(race.ours(clip), race.theirs(clip))
    spent: tuple[list[float], list[float]] = ([], [])
    sides = (race.ours, race.theirs)
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            for clip in race.clips:
                sides[which](clip)
            spent[which].append(time.process_time() - began)
    ours, theirs = (race.seconds / statistics.median(each) for each in spent)
    return ours, theirs


def close(name: str, difference: Floats, within: float, share: float = 1.0) -> None:
    """Raise unless this share of the differences is small enough."""
    good = float((np.abs(difference) <= within).mean())
    if good < share:
        raise SystemExit(f"{name}: {1 - good:.1%} of the values differ by more than {within}")


# Sound


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

    def compute(samples: Samples) -> Floats:
        return extracted(featurizer, samples).values

    return compute


def extracted(featurizer: Featurizer, samples: Samples) -> Feature:
    """The feature of a clip."""
    extraction = featurizer.begin(CLIP)
    for at in range(0, len(samples), RATE_HZ):
        extraction.add(AudioChunk(at / RATE_HZ, samples[at : at + RATE_HZ]))
    feature = extraction.finish()
    if not isinstance(feature, Feature):
        raise TypeError(f"{featurizer.spec.name} wants an encoder")
    return feature


def energies(samples: Samples) -> Floats:
    """Our mel energies, without pitch and loudness."""
    blocks: list[NDArray[np.float32]] = []

    def compute(part: Samples, steps: int) -> None:
        power = power_spectrum(windows(part / 32768, WINDOW, HOP))
        blocks.append(rounded(decibels(power @ mel_filters(MELS, WINDOW))))

    cut = Steps(HOP, WINDOW // 2, WINDOW // 2, compute)
    for at in range(0, len(samples), RATE_HZ):
        cut.add(AudioChunk(at / RATE_HZ, samples[at : at + RATE_HZ]))
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


# Video


VIDEO_S = 8
FPS = 25
WIDTH, HEIGHT = 1280, 720


def video(path: Path, number: int) -> Path:
    """A disc that wanders over a slope, under the noise of a camera."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grain = random.integers(0, 7, (HEIGHT, WIDTH))

    def picture(at: int) -> NDArray[np.uint8]:
        centre = 640 + 200 * np.cos(at / 9), 360 + 150 * np.sin(at / 7)
        disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 150**2
        grey = np.where(disc, 200, 60 + x // 16) + np.roll(grain, 3 * at, axis=1)
        return np.repeat(grey.astype(np.uint8)[:, :, np.newaxis], 3, axis=2)

    frames = [picture(at) for at in range(VIDEO_S * FPS)]
    encode(path, frames=frames, fps=FPS, samples=None, rate_hz=RATE_HZ)
    return path


def of_pictures(chunks: Sequence[VideoChunk]) -> Floats:
    """The features of small grey pictures."""
    extraction = build("face-motion").begin(CLIP)
    for chunk in chunks:
        extraction.add(chunk)
    feature = extraction.finish()
    if not isinstance(feature, Feature):
        raise TypeError("face-motion wants an encoder")
    return feature.values


def our_video(path: Path) -> Floats:
    """Decoded, shrunk and computed by the project."""
    want = build("face-motion").wants
    if want is None:
        raise TypeError("face-motion reads no pictures")
    events = decode(path, 0.0, None, [want], Limits())
    return of_pictures([event for _, event in events if isinstance(event, VideoChunk)])


def their_video(path: Path) -> Floats:
    """Each picture to RGB, cut and resized; then those that are wanted."""
    import av
    from PIL import Image

    from featurizers.visual import SIZE

    small: list[tuple[float, NDArray[np.uint8]]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            rgb = Image.fromarray(frame.to_ndarray(format="rgb24"))
            left, top = (WIDTH - HEIGHT) // 2, 0
            square = rgb.crop((left, top, left + HEIGHT, HEIGHT))
            picture = square.resize((SIZE, SIZE), Image.Resampling.BOX)
            small.append((float(frame.time), np.asarray(picture.convert("L"))))
    wanted = small[2 :: FPS // 5]  # in the middle of each fifth of a second
    times = np.array([[at, at + 0.2] for at, _ in wanted])
    return of_pictures([VideoChunk(times, np.stack([picture for _, picture in wanted]))])


def same_video(ours: Floats, theirs: Floats) -> None:
    """Brightness and the look of the cells."""
    close("brightness", ours[:, -2] - theirs[:, -2], 1.5)
    close("looks", ours[:, :64] - theirs[:, :64], 0.1, 0.99)


if __name__ == "__main__":
    main()
