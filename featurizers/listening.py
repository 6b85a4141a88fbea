"""The sound of media files, heard through the decoding child: where somebody speaks, and what."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError
from featurizers.decoder import Decoder
from featurizers.decoder_process import DecoderDiedError
from featurizers.sound import RATE_HZ
from featurizers.spec import AudioChunk, AudioWant
from featurizers.voice import Voice

T = TypeVar("T")


def voice_in(
    path: Path, start: float, end: float | None, decoder: Decoder, stream: str = ""
) -> NDArray[np.float64]:
    """Spans of voice in a span of media, as `Voice` finds them, from the span's start.

    Without voice, or without any sound, there are none. Damage that the decoder passes over is
    silence.

    Args:
        path: The media.
        start: In seconds.
        end: In seconds; None for the rest of the file.
        decoder: Decodes them.
        stream: Which sound, as `Clip.audio_stream`.

    Raises:
        BadClipError: The media cannot be decoded.
        StorageError: They cannot be read now.
    """

    def once() -> NDArray[np.float64]:
        voice, heard = Voice(), False
        for chunk in _chunks(path, start, end, decoder, stream):
            heard = True
            voice.add(chunk)
        return voice.finish() if heard else np.zeros((0, 2))

    return twice(once)


def twice(once: Callable[[], T]) -> T:
    """Do something with a decoder; once more in a fresh child when that dies.

    Raises:
        BadClipError: It died twice, or what it was given is bad.
    """
    try:
        return once()
    except DecoderDiedError:
        try:
            return once()
        except DecoderDiedError as died:
            raise BadClipError(died.fault, f"{died}, twice") from None


def pieces(
    path: Path, spans: Sequence[tuple[float, float]], decoder: Decoder, stream: str = ""
) -> Generator[NDArray[np.int16], None, None]:
    """The sound of spans of one file at 16 kHz, in one go: int16 [N] each, silence in gaps.

    Args:
        path: The media.
        spans: Start and end in seconds, in order, not overlapping; at least one.
        decoder: Decodes them. It is in use until the last piece is taken.
        stream: Which sound, as `Clip.audio_stream`.

    Raises:
        BadClipError: The media cannot be decoded.
        DecoderDiedError: Worth one more try, see `twice`.
        StorageError: They cannot be read now.
    """
    begin = spans[0][0]
    borders = [(round((a - begin) * RATE_HZ), round((b - begin) * RATE_HZ)) for a, b in spans]
    waiting = [np.zeros(b - a, dtype=np.int16) for a, b in borders[:1]]
    number = 0
    with contextlib.closing(_chunks(path, begin, spans[-1][1], decoder, stream)) as chunks:
        for chunk in chunks:
            at = round(chunk.start * RATE_HZ)
            stop = at + len(chunk.samples)
            while number < len(borders):
                first, last = borders[number]
                low, high = max(at, first), min(stop, last)
                if low < high:
                    waiting[0][low - first : high - first] = chunk.samples[low - at : high - at]
                if stop < last:
                    break
                yield waiting.pop()
                number += 1
                waiting = [np.zeros(b - a, dtype=np.int16) for a, b in borders[number:][:1]]
    for first, last in borders[number:]:
        yield waiting.pop() if waiting else np.zeros(last - first, dtype=np.int16)


def _chunks(
    path: Path, start: float, end: float | None, decoder: Decoder, stream: str
) -> Generator[AudioChunk, None, None]:
    with contextlib.closing(
        decoder.decode(path, start, end, [AudioWant(rate_hz=RATE_HZ, stream=stream)])
    ) as events:
        for _, event in events:
            if isinstance(event, AudioChunk):
                yield event
