"""Take in a raw clip: digest, duration and words. Shared by ingest and by registered models."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featurizers.clip import BadClipError, Clip, Word
from featurizers.decoder import Decoder
from featurizers.estimate import words_from_text, words_in_voice
from featurizers.listening import voice_in
from featurizers.opening import is_file
from featurizers.store import read_input, shown
from featurizers.transcript import read_transcript, within

CHOSEN = ("audio_stream", "video_stream")
"""Columns that choose among several streams of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawClip:
    """What a user says of a clip, before anything was read.

    Attributes:
        media: Absolute path or URL.
        path: The media on this machine; None when they cannot be had.
        transcript: Words without times.
        transcript_file: A file of words, with times on the media's clock where it has them.
        streams: Files of numbers by name.
        stream_rates: Rows per second of those that have no times of their own.
        columns: Speaker, split, labels and so on: fields of `Clip` that need no reading.
    """

    key: str
    id: str
    media: str
    path: Path | None
    transcript: str | None = None
    transcript_file: Path | None = None
    start: float = 0.0
    end: float | None = None
    streams: Mapping[str, Path] = field(default_factory=dict)
    stream_rates: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, Any]


def take_in(raw: RawClip, decoder: Decoder, *, digests: bool = True) -> Clip:
    """Read what a clip needs to be planned and featurized.

    Words without times are spread over the spans in which the clip has voice, for which its sound
    is decoded; all others cost no decoding. Their times are marked as estimated.

    Media that cannot be read are not an error here: the clip is kept with a duration of 0, and
    featurizing quarantines it with the reason. Where it has files of numbers and an end, it is as
    long as that says: such a clip may be of sensors alone.

    Args:
        raw: What a user says of it.
        decoder: Probes its media, and listens for voice.
        digests: Whether to digest its files, for which they are read once more; they name what is
            kept of a clip, and decide no number.

    Raises:
        BadClipError: "bad_transcript" or "bad_span".
        StorageError: Something that is read cannot be read now.
    """
    if raw.end is not None and raw.end <= raw.start:
        raise BadClipError("bad_span", f"end {raw.end} does not lie after start {raw.start}")
    if raw.start < 0:
        raise BadClipError("bad_span", f"start {raw.start} lies before the media")
    whole = _seconds(raw.path, decoder)
    if not whole and raw.streams and raw.end is not None:
        whole = raw.end
    seconds = max(0.0, (whole if raw.end is None else min(raw.end, whole)) - raw.start)
    return Clip(
        key=raw.key,
        id=raw.id,
        media=raw.media,
        media_digest=_known_digest(raw.path) if digests and raw.path is not None else "",
        start=raw.start,
        end=raw.end,
        seconds=seconds,
        words=_words(raw, seconds, decoder),
        streams={name: str(path) for name, path in raw.streams.items()},
        stream_digests={
            name: _known_digest(path) if digests else "" for name, path in raw.streams.items()
        },
        stream_rates=raw.stream_rates,
        source=shown(raw.media),
        **raw.columns,
    )


def digest(path: Path) -> str:
    """sha256 of a file in hex; empty when there is no such file.

    Raises:
        BadClipError: "unreadable": nobody may read it.
        StorageError: It cannot be read now.
    """
    try:
        return read_input(path, lambda: _digest(path))
    except OSError as error:
        raise BadClipError("unreadable", str(error.strerror)) from None


def _digest(path: Path) -> str:
    if not is_file(path):
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known_digest(path: Path) -> str:
    """The digest; empty also when nobody may read the file, which featurizing will tell."""
    try:
        return digest(path)
    except BadClipError:
        return ""


def _seconds(path: Path | None, decoder: Decoder) -> float:
    if path is None:
        return 0.0
    try:
        return decoder.probe(path).seconds
    except BadClipError:
        return 0.0


def _words(raw: RawClip, seconds: float, decoder: Decoder) -> tuple[Word, ...] | None:
    text = raw.transcript
    if raw.transcript_file is not None:
        found = read_transcript(raw.transcript_file)
        if not isinstance(found, str):
            return within(found, raw.start, raw.end) or None
        text = found
    return None if text is None else _estimated(text, raw, seconds, decoder) or None


def _estimated(text: str, raw: RawClip, seconds: float, decoder: Decoder) -> tuple[Word, ...]:
    """Words without times: where somebody speaks, or over the whole clip where nobody can tell."""
    if raw.path is not None and seconds > 0 and text.split():
        try:
            stream = raw.columns.get("audio_stream", "")
            voiced = voice_in(raw.path, raw.start, raw.end, decoder, stream)
        except BadClipError:  # featurizing tells it
            voiced = np.zeros((0, 2))
        if len(voiced):
            return words_in_voice(text, voiced)
    return words_from_text(text, seconds)
