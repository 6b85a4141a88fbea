"""Sound without weights: log-mel energies with pitch, voicing and loudness."""

import functools

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.spec import AudioChunk, AudioWant, Chunk, Dim, Feature, FeatureSpec, names

RATE_HZ = 16_000
WINDOW = 400  # 25 ms
PITCH_WINDOW = 640  # 40 ms: two periods of the lowest pitch
PITCH_FFT = 960  # at least a window and the longest lag (267): nothing wraps around
LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
VOICED_FROM = 0.5
QUIET_DB = -50.0
BLOCK = 2048  # steps computed at once
DECIMALS = 4
MAX_SECONDS = 4 * 3600

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
    """One clip's steps in the making.

    Blocks of steps are computed as their sound comes and that sound is let go, so that a long clip
    takes little more memory than its feature.
    """

    def __init__(self, hop: int, mels: int) -> None:
        self._hop, self._mels = hop, mels
        self._first: int | None = None  # sample of the clip, from which all others are counted
        self._stop = 0  # of the sound that came
        self._held: list[NDArray[np.int16]] = []
        self._held_from = self._held_to = 0
        self._steps = 0
        self._energies: list[NDArray[np.float32]] = []
        self._prosody: list[NDArray[np.float64]] = []

    def add(self, chunk: Chunk) -> None:
        if not isinstance(chunk, AudioChunk):
            return
        at = round(chunk.start * RATE_HZ)
        self._first = at if self._first is None else self._first
        at -= self._first
        self._stop = max(self._stop, at + len(chunk.samples))
        if self._stop > MAX_SECONDS * RATE_HZ:
            return
        while self._held_to < at:  # silence where there is a gap
            self._hold(np.zeros(min(at - self._held_to, RATE_HZ), dtype=np.int16))
        self._hold(chunk.samples[self._held_to - at :])

    def finish(self) -> Feature:
        if self._first is None:
            raise BadClipError("empty", "there is no sound in the clip's span")
        if self._stop > MAX_SECONDS * RATE_HZ:
            raise BadClipError("too_long", f"the sound spans {self._stop / RATE_HZ:.0f} s")
        while left := max(1, self._stop // self._hop) - self._steps:
            self._compute(min(BLOCK, left))
        values = np.empty((self._steps, self._mels + len(PROSODY)), dtype=np.float32)
        np.concatenate(self._energies, out=values[:, : self._mels])
        prosody = _prosody(np.concatenate(self._prosody), self._hop / RATE_HZ)
        values[:, self._mels :] = _rounded(prosody)
        edges = np.arange(self._steps, dtype=np.float64)[:, np.newaxis] + np.array([0.0, 1.0])
        return Feature(values, self._first / RATE_HZ + edges * (self._hop / RATE_HZ))

    def _hold(self, samples: NDArray[np.int16]) -> None:
        self._held.append(samples)
        self._held_to += len(samples)
        # A block is whole when both its last step and that step's window are there.
        while self._held_to >= self._window(self._steps + BLOCK - 1) + max(PITCH_WINDOW, self._hop):
            self._compute(BLOCK)

    def _window(self, step: int) -> int:
        """The sample at which a step's window begins; below 0 for the first steps."""
        return step * self._hop + self._hop // 2 - PITCH_WINDOW // 2

    def _compute(self, steps: int) -> None:
        """The next steps; silence lies before and after the sound that is there."""
        sound = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        begin = self._window(self._steps) - self._held_from
        block = _block(_frames(sound, begin, steps, self._hop), self._mels)
        self._energies.append(_rounded(block[:, : self._mels]))
        self._prosody.append(block[:, self._mels :].copy())
        self._steps += steps
        drop = max(0, min(self._window(self._steps) - self._held_from, len(sound)))
        self._held, self._held_from = [sound[drop:]], self._held_from + drop


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.round(values, DECIMALS) + 0.0).astype(np.float32)


def _block(frames: NDArray[np.float64], mels: int) -> NDArray[np.float64]:
    """Mel energies, pitch (Hz), 0, 0, voicing and loudness of some steps: [steps, mels + 5]."""
    margin = (PITCH_WINDOW - WINDOW) // 2
    short = frames[:, margin : margin + WINDOW]
    power = np.abs(np.fft.rfft(short * _hann(WINDOW), n=WINDOW, axis=1)) ** 2
    energies = power @ mel_filters(mels, WINDOW)
    out = np.zeros((len(frames), mels + len(PROSODY)))
    out[:, :mels] = 10 * np.log10(np.maximum(energies, 1e-10))
    out[:, mels], out[:, mels + 3] = _pitch(frames)
    out[:, mels + 4] = 10 * np.log10(np.maximum((short**2).mean(axis=1), 1e-10))
    return out


def _frames(samples: NDArray[np.int16], begin: int, steps: int, hop: int) -> NDArray[np.float64]:
    """Windows [steps, PITCH_WINDOW] in -1..1, the first from `begin`; silence beyond both ends."""
    length = (steps - 1) * hop + PITCH_WINDOW
    part = np.zeros(length)
    low, high = max(0, begin), min(len(samples), begin + length)
    if high > low:
        part[low - begin : high - begin] = samples[low:high] / 32768
    return np.lib.stride_tricks.sliding_window_view(part, PITCH_WINDOW)[::hop]


@functools.cache
def _hann(window: int) -> NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)


@functools.cache
def mel_filters(mels: int, window: int) -> NDArray[np.float64]:
    """Slaney's triangles, each of area 1 over frequency in Hz: [window // 2 + 1, mels]."""
    frequencies = np.fft.rfftfreq(window, 1 / RATE_HZ)
    corners = _to_hz(np.linspace(0.0, float(_to_mel(RATE_HZ / 2)), mels + 2))
    lower, centre, upper = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, np.newaxis] - lower) / (centre - lower)
    falling = (upper - frequencies[:, np.newaxis]) / (upper - centre)
    triangles: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * 2 / (upper - lower)


# Linear below 1000 Hz (15 mel), then 27 mel for a factor of 6.4.
_LOG_STEP = np.log(6.4) / 27


def _to_mel(hz: float) -> float:
    return 3 * hz / 200 if hz < 1000 else 15 + float(np.log(hz / 1000)) / _LOG_STEP


def _to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(_LOG_STEP * (mel - 15)))


def _pitch(frames: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pitch in Hz (0 where unvoiced) and the strength of the period, 0..1."""
    window = _hann(PITCH_WINDOW)
    centred = (frames - frames.mean(axis=1, keepdims=True)) * window
    spectrum = np.abs(np.fft.rfft(centred, n=PITCH_FFT, axis=1)) ** 2
    longest = int(RATE_HZ / LOWEST_HZ) + 1
    auto = np.fft.irfft(spectrum, axis=1)[:, : longest + 1]
    own = np.fft.irfft(np.abs(np.fft.rfft(window, n=PITCH_FFT)) ** 2)[: longest + 1]
    # Dividing by the window's own autocorrelation undoes its taper (Boersma 1993, eq. 9).
    auto = auto / np.maximum(auto[:, :1], 1e-9) / (own / own[0])
    shortest = int(RATE_HZ / HIGHEST_HZ)
    inner = auto[:, shortest:longest]
    peaks = (inner >= auto[:, shortest - 1 : longest - 1]) & (
        inner > auto[:, shortest + 1 : longest + 1]
    )
    # A longer lag must be clearly better than a shorter one, or pitch drops by octaves.
    cost = 0.02 * np.log2(np.arange(shortest, longest) / shortest)
    scores = np.where(peaks, inner - cost, -1.0)
    best = scores.argmax(axis=1)
    rows = np.arange(len(frames))
    lag = best + shortest
    before, at, after = auto[rows, lag - 1], auto[rows, lag], auto[rows, lag + 1]
    bend = before - 2 * at + after
    shift = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1.0), 0.0)
    strength = np.clip(np.where(scores[rows, best] > -1.0, at, 0.0), 0.0, 1.0)
    loud = 10 * np.log10(np.maximum((frames**2).mean(axis=1), 1e-10)) > QUIET_DB
    voiced = (strength > VOICED_FROM) & loud
    return np.where(voiced, RATE_HZ / (lag + np.clip(shift, -0.5, 0.5)), 0.0), strength * loud


def _prosody(raw: NDArray[np.float64], hop_s: float) -> NDArray[np.float64]:
    """Pitch in semitones, interpolated where unvoiced; all 0 when nothing is voiced."""
    out = raw.copy()
    voiced = np.flatnonzero(raw[:, 0] > 0)
    out[:, :3] = 0.0
    if len(voiced):
        semitones = 12 * np.log2(raw[voiced, 0] / 55.0)
        pitch = np.interp(np.arange(len(raw)), voiced, semitones)
        out[:, 0] = pitch
        out[:, 1] = pitch - np.median(semitones)
        reach = min(len(raw) - 1, max(1, round(0.03 / hop_s)))
        if reach:
            change = np.abs(pitch[reach:] - pitch[:-reach]) / (reach * hop_s)
            out[reach:, 2] = np.minimum(change, 200.0)  # an octave error is no melody
    return out
