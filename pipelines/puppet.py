"""A puppet that talks: a drawn face and a synthesised voice, from a script.

All of it is arithmetic on grids, so that a film of some seconds costs a few hundredths of one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.spec import canonical_json

Reals: TypeAlias = NDArray[np.float64]
Floats: TypeAlias = NDArray[np.float32]
Oddity: TypeAlias = Literal[
    "truncated",  # the first third of a film: it opens nowhere
    "nothing",  # a file of no bytes
    "text",  # words where a film should be
    "silent",  # no audio stream
    "unseen",  # no video stream
    "untold",  # no transcript
]

FPS, SIDE, RATE_HZ = 12, 96, 16_000
BLOCK = 80  # samples between two settings of pitch, loudness and vowel
VERSION = 1  # raised whenever the same script looks or sounds otherwise
VOWELS_HZ = ((730, 1090), (530, 1840), (390, 1990), (570, 840), (440, 1020), (640, 1190))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """What stays the same about an invented person.

    Attributes:
        width: Half the face's width; half the picture is 1.
        skin, hair: Brightness, 0..255.
        eyes: Half the distance between the eyes.
        mouth: How low the mouth sits.
        pitch_hz: Of the voice at rest.
        tract: Formants are this many times the average.
        noise: Of the room, full scale 1.
    """

    name: str
    width: float
    skin: float
    hair: float
    eyes: float
    mouth: float
    pitch_hz: float
    tract: float
    noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cues:
    """What a clip says in each modality, +1 or -1, and how strongly.

    Attributes:
        words: Kind or unkind.
        face: Smile or frown.
        voice: Lively or flat.
        strength: Number of kind or unkind words, 2 or 3.
        face_force: 0..1.
        voice_force: 0..1.
    """

    words: int
    face: int
    voice: int
    strength: int = 2
    face_force: float = 1.0
    voice_force: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenWord:
    """A word with its times in seconds from the clip's start."""

    text: str
    start: float
    end: float
    syllables: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScript:
    """One utterance; `start` is its place in the media."""

    id: str
    start: float
    seconds: float
    cues: Cues
    words: tuple[SpokenWord, ...]
    sentiment: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceScript:
    """One media file: all that decides its bytes, and its rows of the table."""

    speaker: Speaker
    split: str
    clips: tuple[ClipScript, ...]
    seconds: float
    seed: int
    oddity: Oddity | None = None

    @property
    def name(self) -> str:
        """The file's name without suffix; tells scripts apart."""
        identity = canonical_json([VERSION, asdict(self)])
        digest = hashlib.sha256(identity).hexdigest()[:10]
        return f"{self.clips[0].id}-{digest}"

    @property
    def media(self) -> str:
        """The media file, relative to the corpus."""
        return f"media/{self.name}.mp4"

    @property
    def transcript(self) -> str | None:
        """The transcript, relative to the corpus."""
        return None if self.oddity == "untold" else f"transcripts/{self.name}.vtt"


def frames(script: SourceScript) -> Iterator[NDArray[np.uint8]]:
    """The pictures of a source, RGB [SIDE, SIDE, 3], FPS of them a second."""
    rng = np.random.default_rng([script.seed, 1])
    background = _background(rng)
    track = _face_track(script, rng)
    for begin in range(0, track.shape[1], FPS):  # a second at once stays in the processor's cache
        yield from _draw(script.speaker, background, track[:, begin : begin + FPS])


def sound(script: SourceScript) -> NDArray[np.int16]:
    """The voice of a source, RATE_HZ samples a second."""
    rng = np.random.default_rng([script.seed, 2])
    total = round(script.seconds * RATE_HZ)
    voiced = np.zeros(total, dtype=np.float64)
    for clip in script.clips:
        begin = round(clip.start * RATE_HZ)
        piece = _speak(script.speaker, clip, rng)
        voiced[begin : begin + len(piece)] = piece
    room = script.speaker.noise * rng.standard_normal(total)
    scaled = np.clip(voiced + room, -1, 1) * 32767
    return scaled.astype(np.int16)


# --- the face
# Places are in units of half the picture, x to the right and y downwards from its middle.

_AXIS = (np.arange(SIDE, dtype=np.float32) + 0.5) * 2 / SIDE - 1
_X, _Y = _AXIS[np.newaxis, np.newaxis, :], _AXIS[np.newaxis, :, np.newaxis]
_LIPS_RGB = (150.0, 40.0, 50.0)


def _face_track(script: SourceScript, rng: np.random.Generator) -> Floats:
    """float32 [5, T]: expression -1..1, open mouth and eyes 0..1, shift to the right and down."""
    count = round(script.seconds * FPS)
    time = (np.arange(count) + 0.5) / FPS
    expression, mouth = np.zeros(count), np.zeros(count)
    for clip in script.clips:
        inside = (time >= clip.start) & (time < clip.start + clip.seconds)
        local = time[inside] - clip.start
        onset = np.clip(local / 0.4, 0, 1)  # from a neutral face
        sway = 0.85 + 0.15 * np.sin(2 * np.pi * (0.7 * local + rng.random()))
        expression[inside] = clip.cues.face * clip.cues.face_force * onset * sway
        mouth[inside] = _syllable_gate(clip, local)
    eyes = np.ones(count)
    for blink in rng.uniform(0, script.seconds, max(1, round(script.seconds / 2))):
        eyes[np.abs(time - blink) < 0.1] = 0.1
    phase = rng.random(2)
    shift = 0.03 * np.sin(2 * np.pi * (np.array([[0.31], [0.43]]) * time + phase[:, np.newaxis]))
    return np.stack([expression, mouth, eyes, *shift]).astype(np.float32)


def _syllable_gate(clip: ClipScript, time: Reals) -> Reals:
    """0..1 [T]: how far a syllable sounds at each time; the same for a flat and a lively voice."""
    gate = np.zeros(len(time))
    for begin, end, _ in _syllables(clip):
        inside = (time >= begin) & (time < end)
        gate[inside] = np.sin(np.pi * (time[inside] - begin) / (end - begin)) ** 0.5
    return gate


def _syllables(clip: ClipScript) -> Iterator[tuple[float, float, int]]:
    """Start, end and vowel of each syllable; a word is always spoken with the same vowels."""
    for word in clip.words:
        edges = np.linspace(word.start, word.end, word.syllables + 1)
        vowels = hashlib.sha256(word.text.encode()).digest()
        for number in range(word.syllables):
            vowel = vowels[number] % len(VOWELS_HZ)
            yield float(edges[number]), float(edges[number + 1]), vowel


def _background(rng: np.random.Generator) -> Floats:
    """float32 [SIDE, SIDE]: a faint pattern of its own for every source."""
    pattern = np.full((SIDE, SIDE), rng.uniform(90, 130), dtype=np.float32)
    for _ in range(3):
        x_waves, y_waves = rng.uniform(-6, 6, 2)
        pattern += rng.uniform(3, 8) * np.sin(
            np.pi * (x_waves * _X[0] + y_waves * _Y[0]) + rng.uniform(0, 6)
        )
    return pattern + rng.normal(0, 2, pattern.shape).astype(np.float32)


def _draw(speaker: Speaker, background: Floats, track: Floats) -> NDArray[np.uint8]:
    """uint8 [T, SIDE, SIDE, 3]."""
    expression, mouth, eyes, right, down = track[:, :, np.newaxis, np.newaxis]
    x, y = _X - right, _Y - down
    side = np.abs(x) - speaker.eyes  # 0 in the middle of either eye
    skull = (x / speaker.width) ** 2 + (y / 0.86) ** 2
    gray = np.broadcast_to(background, skull.shape).copy()
    _paint(gray, (1 - skull) * 6, speaker.skin)
    _paint(gray, np.minimum((1.1 - skull) * 6, (-0.52 - y) * 20), speaker.hair)
    _paint(gray, (1 - (side / 0.12) ** 2 - ((y + 0.12) / (0.08 * eyes)) ** 2) * 3, 25.0)
    # A frown lowers the brows' inner ends and draws them together, a smile lifts them.
    brow = -0.36 - 0.06 * expression + 0.45 * np.minimum(expression, 0) * side
    _paint(gray, np.minimum((0.045 - np.abs(y - brow)) * 24, (0.17 - np.abs(side)) * 24), 35.0)
    width = 0.32 + 0.05 * expression
    across = 1 - (x / width) ** 2
    line = speaker.mouth + 0.2 * expression * (across - 0.5)
    lips = np.minimum((0.045 + 0.09 * mouth * across - np.abs(y - line)) * 24, across * 6)
    colours = [_shaded(gray, lips, lip, tint) for lip, tint in zip(_LIPS_RGB, _TINT, strict=True)]
    return np.stack(colours, axis=-1)


_TINT = (1.08, 1.0, 0.9)


def _shaded(gray: Floats, lips: Floats, lip: float, tint: float) -> NDArray[np.uint8]:
    plane = gray * tint
    _paint(plane, lips, lip)
    shown: NDArray[np.uint8] = np.clip(plane, 0, 255).astype(np.uint8)
    return shown


def _paint(picture: Floats, inside: Floats, tone: float) -> None:
    """Lay a tone where `inside` is over 0, with a soft edge about one unit wide."""
    picture += np.clip(inside + 0.5, 0, 1) * (tone - picture)


# --- the voice


def _speak(speaker: Speaker, clip: ClipScript, rng: np.random.Generator) -> Reals:
    """The voice of one clip, full scale 1: harmonics of the pitch, shaped by two formants.

    A lively voice moves in pitch and loudness and is bright; a flat one stays and is dull.
    """
    blocks = round(clip.seconds * RATE_HZ) // BLOCK
    control = np.arange(blocks + 1, dtype=np.float64) * BLOCK / RATE_HZ
    life = (1 + clip.cues.voice * clip.cues.voice_force) / 2
    pitch, loudness, formants = _contours(speaker, clip, control, life, rng)
    phase = 2 * np.pi * np.cumsum(_steady(pitch)) / RATE_HZ
    turn = np.exp(1j * phase)  # one harmonic is the one before, turned on once more
    wave = turn.copy()
    voice = np.zeros(blocks * BLOCK)
    tilt = 1.9 - 0.8 * life
    for harmonic in range(1, int(3800 / speaker.pitch_hz) + 1):
        gain = _resonance(harmonic * pitch, formants) * loudness * harmonic**-tilt
        voice += _steady(gain) * wave.imag
        wave *= turn
    return 0.12 * 10 ** (rng.uniform(-2, 2) / 20) * voice


_RAMP = np.arange(BLOCK) / BLOCK


def _steady(control: Reals) -> Reals:
    """From settings [C + 1] to samples [C * BLOCK], on straight lines between them."""
    line = control[:-1, np.newaxis] + np.diff(control)[:, np.newaxis] * _RAMP
    return line.reshape(-1)


def _contours(
    speaker: Speaker, clip: ClipScript, control: Reals, life: float, rng: np.random.Generator
) -> tuple[Reals, Reals, Reals]:
    """Pitch in Hz [C], loudness [C] and formants in Hz [2, C] at the control times."""
    loudness = _syllable_gate(clip, control)
    formants = np.full((2, len(control)), [[500.0], [1500.0]])
    glide = np.zeros(len(control))
    for number, (begin, end, vowel) in enumerate(_syllables(clip)):
        inside = (control >= begin) & (control < end)
        formants[:, inside] = np.array(VOWELS_HZ[vowel])[:, np.newaxis] * speaker.tract
        accent = number % 2 if life > 0.5 else rng.random()
        loudness[inside] *= 1 - 0.55 * life * accent
        direction = rng.choice((-1.0, 1.0))
        glide[inside] = direction * ((control[inside] - begin) / (end - begin) - 0.5)
    part = control / clip.seconds
    phrase = np.sin(2 * np.pi * (part * rng.uniform(1.2, 1.8) + rng.random()))
    moved = 1 + (0.015 + 0.22 * life) * phrase + (0.01 + 0.2 * life) * glide
    return speaker.pitch_hz * (0.95 + 0.15 * life) * (1 - 0.06 * part) * moved, loudness, formants


def _resonance(hz: Reals, formants: Reals) -> Reals:
    """Gain [C] of a harmonic under two formants [2, C]."""
    bells = 1 / (1 + ((hz - formants) / 130.0) ** 2)
    gain: Reals = 0.15 + bells[0] + 0.7 * bells[1]
    return gain
