"""Near-duplicates: a small hash of how a clip sounds and looks, near to that of its copies.

A copy is the same recording in other bytes: another bitrate, size, rate or container. Its sha256
is another, and a split may well have put it on the other side. Pure, but for `likeness`.

Sound: signs of differences of band energies along both time and frequency, after Haitsma and
Kalker, "A Highly Robust Audio Fingerprinting System" (ISMIR 2002); here over equal parts of the
clip, so that one hash is a whole clip. Energies are logarithms above a floor, and near nothing is
no difference: in silence, the noise of a codec decides nothing.

Pictures: signs of the low coefficients of the cosine transform against their median (pHash; Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010), of pictures in the
middle of equal parts of the clip.

A clip is like another when their sounds are. Their pictures are asked where one of them has no
sound that tells anything: what a person says next in the same chair looks the same.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.decoder import Decoder
from featurizers.listening import twice
from featurizers.spec import AudioChunk, AudioWant, Chunk, VideoChunk, VideoWant, Want

VERSION = 1
"""Raised when equal media give another hash than before."""

SECONDS = 20.0  # of a clip are looked at: a longer one is known by its beginning
LEAST_S = 0.5  # less tells too little

RATE_HZ = 8000
PARTS, BANDS = 33, 17  # of which 32 x 16 differences are taken
LOW_HZ, HIGH_HZ = 200.0, 3400.0  # what the narrowest codecs of speech keep
WINDOW, HOP = 512, 128
FLOOR = 1e-4  # of the mean energy of a cell
LEAST_DIFFERENCE = 0.05  # of logarithms to base e
LEAST_SET = 0.2  # of the bits; fewer are hardly any sound

PICTURES, SIDE, LOW = 8, 32, 8  # pictures, their side, and of that the low coefficients
LEAST_CONTRAST = 2.0  # standard deviation of brightness, of 255: less shows nothing

# Unlike sounds are apart by 0.3 to 0.5 of their bits, copies by less than 0.1; see the tests.
SOUND_APART = 0.15
PICTURES_APART = 0.12

BLOCK = 256  # clips that are held against all others at once

Bits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How a clip sounds and looks.

    Attributes:
        sound: Bits as hex, or empty: no sound, too short, or hardly any.
        pictures: Likewise.
    """

    sound: str = ""
    pictures: str = ""


def likeness(clip: Clip, path: Path, decoder: Decoder) -> Likeness:
    """The likeness of a clip.

    Args:
        clip: Says which span and streams.
        path: Its media on this machine.
        decoder: Decodes them.

    A stream that is damaged is as if it were not there.

    Raises:
        StorageError: They cannot be read now.
    """
    seconds = min(clip.seconds, SECONDS)
    if seconds < LEAST_S:
        return Likeness()
    return Likeness(
        sound=hash_of_sound(_heard(clip, path, decoder, seconds)),
        pictures=hash_of_pictures(_shown(clip, path, decoder, seconds)),
    )


def hash_of_sound(samples: NDArray[np.float64]) -> str:
    """The hash of a clip's sound, hex; empty where it is too short, or hardly any.

    Args:
        samples: [N] at `RATE_HZ`, of any scale.
    """
    if len(samples) < LEAST_S * RATE_HZ or not samples.any():
        return ""
    count = (len(samples) - WINDOW) // HOP + 1
    framed = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    power = np.square(np.abs(np.fft.rfft(framed * np.hanning(WINDOW), axis=1)))
    edges_hz = np.geomspace(LOW_HZ, HIGH_HZ, BANDS + 1)
    edges = np.round(edges_hz * WINDOW / RATE_HZ).astype(np.int64)
    bands = np.add.reduceat(power, edges, axis=1)[:, :BANDS]
    borders = np.round(np.linspace(0, count, PARTS + 1)).astype(np.int64)
    sums = np.add.reduceat(bands, borders[:-1], axis=0)
    energy = sums / np.diff(borders)[:, np.newaxis]
    level = np.log(energy + FLOOR * energy.mean())
    differences = np.diff(np.diff(level, axis=1), axis=0)
    bits = differences > LEAST_DIFFERENCE
    return _hex(bits) if bits.mean() >= LEAST_SET else ""


def hash_of_pictures(pictures: Sequence[NDArray[np.uint8]]) -> str:
    """The hash of a clip's pictures, hex; empty where there are none, or they show nothing.

    Args:
        pictures: In order of time, each [SIDE, SIDE] of brightness; those in the middle of
            `PICTURES` equal parts of them are taken.
    """
    if not len(pictures):
        return ""
    places = ((np.arange(PICTURES) + 0.5) * len(pictures) / PICTURES).astype(np.int64)
    chosen = np.stack([pictures[place] for place in places]).astype(np.float64)
    if np.median(chosen.std(axis=(1, 2))) < LEAST_CONTRAST:
        return ""
    basis = _cosines()
    low = (basis @ chosen @ basis.T).reshape(PICTURES, -1)[:, 1:]  # but for the mean brightness
    return _hex(low > np.median(low, axis=1, keepdims=True))


def alike(ours: Sequence[Likeness], theirs: Sequence[Likeness]) -> list[tuple[int, int]]:
    """Which of ours are near-duplicates of which of theirs: pairs of places, in order."""
    found: list[tuple[int, int]] = []
    for first in range(0, len(ours), BLOCK):
        block = ours[first : first + BLOCK]
        sound = apart([one.sound for one in block], [one.sound for one in theirs])
        pictures = apart([one.pictures for one in block], [one.pictures for one in theirs])
        near = np.where(np.isnan(sound), pictures <= PICTURES_APART, sound <= SOUND_APART)
        found += [(first + one, other) for one, other in np.argwhere(near).tolist()]
    return found


def apart(ours: Sequence[str], theirs: Sequence[str]) -> NDArray[np.float64]:
    """The share of bits in which hashes differ: [N, M]; NaN where one of the two is empty."""
    width = max((len(text) for text in (*ours, *theirs)), default=0) * 4
    found = np.full((len(ours), len(theirs)), np.nan)
    rows, columns = ([i for i, text in enumerate(texts) if text] for texts in (ours, theirs))
    if rows and columns:
        one = np.stack([_signs(ours[row]) for row in rows])
        other = np.stack([_signs(theirs[column]) for column in columns])
        found[np.ix_(rows, columns)] = (1 - one @ other.T / width) / 2
    return found


def _heard(clip: Clip, path: Path, decoder: Decoder, seconds: float) -> NDArray[np.float64]:
    want = AudioWant(rate_hz=RATE_HZ, stream=clip.audio_stream)
    samples = np.zeros(round(seconds * RATE_HZ), dtype=np.float64)
    for chunk in _decoded(clip, path, decoder, want, seconds):
        if isinstance(chunk, AudioChunk):
            at = round(chunk.start * RATE_HZ)
            some = chunk.samples[max(0, -at) : max(0, len(samples) - at)]
            samples[max(0, at) : max(0, at) + len(some)] = some
    return samples


def _shown(clip: Clip, path: Path, decoder: Decoder, seconds: float) -> list[NDArray[np.uint8]]:
    want = VideoWant(fps=PICTURES / seconds, size=SIDE, stream=clip.video_stream)
    chunks = _decoded(clip, path, decoder, want, seconds)
    return [
        picture for chunk in chunks if isinstance(chunk, VideoChunk) for picture in chunk.frames
    ]


def _decoded(clip: Clip, path: Path, decoder: Decoder, want: Want, seconds: float) -> list[Chunk]:
    """What the clip has of one stream; nothing where it has none, or that cannot be decoded."""

    def once() -> list[Chunk]:
        events = decoder.decode(path, clip.start, clip.start + seconds, [want])
        with contextlib.closing(events):
            return [event for _, event in events if isinstance(event, AudioChunk | VideoChunk)]

    try:
        return twice(once)
    except BadClipError:
        return []


def _hex(bits: Bits) -> str:
    return np.packbits(bits.ravel()).tobytes().hex()


def _signs(text: str) -> NDArray[np.float32]:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))
    return np.where(bits, 1.0, -1.0).astype(np.float32)


def _cosines() -> NDArray[np.float64]:
    """The first rows of the cosine transform of `SIDE` numbers (DCT-II): [LOW, SIDE]."""
    places = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    return np.cos(np.arange(LOW)[:, np.newaxis] * places)
