"""Transcripts to one form: words with start and end."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from featurizers.clip import BadClipError, Word

FORMATS = (".vtt", ".srt", ".txt")
_INLINE = re.compile(r"<(?:(\d+):)?(\d{1,2}):(\d{2}[.,]\d{3})>")
_TAGS = re.compile(r"<[^>]*>|\{[^}]*\}")


def read_transcript(path: Path) -> tuple[Word, ...] | str:
    """Words with times on the media's clock; the bare text of a .txt file, which has no times.

    WebVTT's inline times are used; words of a cue without them share it by their length, marked as
    estimated.

    Raises:
        BadClipError: "bad_transcript", naming the file.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise BadClipError(
            "bad_transcript", f"{path.name}: wanted one of {', '.join(FORMATS)}, found {suffix!r}"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadClipError("bad_transcript", f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadClipError(
            "bad_transcript", f"{path.name}: not UTF-8 at byte {error.start}"
        ) from None
    if suffix == ".txt":
        return text
    return tuple(_cues(path, text, suffix.removeprefix(".")))


def words_from_text(text: str, seconds: float, start: float = 0.0) -> tuple[Word, ...]:
    """Words of a bare text, spread over a duration by their length; marked as estimated."""
    spoken = text.split()
    ends = list(itertools.accumulate(len(word) + 1 for word in spoken))
    scale = seconds / ends[-1] if ends else 0.0
    begins = [0, *ends[:-1]]
    return tuple(
        Word(text=word, start=start + begin * scale, end=start + end * scale, estimated=True)
        for word, begin, end in zip(spoken, begins, ends, strict=True)
    )


def within(words: Sequence[Word], start: float, end: float | None) -> tuple[Word, ...]:
    """The words whose middle lies in a span of the media, moved to the span's own clock."""
    last = float("inf") if end is None else end
    inside = [word for word in words if start <= (word.start + word.end) / 2 < last]
    return tuple(
        replace(word, start=max(0.0, word.start - start), end=min(word.end, last) - start)
        for word in inside
    )


def _cues(path: Path, text: str, form: str) -> Iterator[Word]:
    from pysubs2 import SSAFile
    from pysubs2.exceptions import Pysubs2Error

    try:
        subtitles = SSAFile.from_string(text, format_=form, keep_html_tags=True)
    except (Pysubs2Error, ValueError) as error:
        raise BadClipError("bad_transcript", f"{path.name}: {error}") from None
    if text.strip() not in {"", "WEBVTT"} and not subtitles.events:
        raise BadClipError("bad_transcript", f"{path.name}: no cue with times was found")
    for cue in sorted(subtitles.events, key=lambda event: (event.start, event.end)):
        yield from _cue_words(cue.text.replace("\\N", " "), cue.start / 1000, cue.end / 1000)


def _cue_words(text: str, start: float, end: float) -> Iterator[Word]:
    pieces = _INLINE.split(text)
    times = [start]
    for hours, minutes, seconds in zip(pieces[1::4], pieces[2::4], pieces[3::4], strict=True):
        times.append(int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", ".")))
    times.append(end)
    measured = len(times) > 2
    for piece, begin, stop in zip(pieces[0::4], times, times[1:], strict=False):
        words = words_from_text(_TAGS.sub("", piece), max(0.0, stop - begin), begin)
        alone = measured or len(text.split()) == 1
        yield from (replace(word, estimated=not (alone and len(words) == 1)) for word in words)
