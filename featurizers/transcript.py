"""Transcripts to one form: words with start and end."""

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from featurizers.clip import BadClipError, Word
from featurizers.store import read_input

FORMATS = (".vtt", ".srt", ".txt")
PACE_S = 0.4
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{3})"
_TIMING = re.compile(rf"\s*{_TIME}[ \t]+-->[ \t]+{_TIME}")
_INLINE = re.compile(f"<{_TIME}>")
_TAGS = re.compile(r"<[^>]*>|\{[^}]*\}")


def read_transcript(path: Path) -> tuple[Word, ...] | str:
    """Words with times on the media's clock; the bare text of a .txt file, which has no times.

    WebVTT's inline times are used; words of a cue without them share it by their length, marked as
    estimated.

    Raises:
        BadClipError: "bad_transcript", naming the file.
        StorageError: It cannot be read now.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise BadClipError(
            "bad_transcript", f"{path.name}: wanted one of {', '.join(FORMATS)}, found {suffix!r}"
        )
    try:
        text = read_input(path, path.read_bytes).decode("utf-8-sig")
    except OSError as error:
        raise BadClipError("bad_transcript", f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadClipError(
            "bad_transcript", f"{path.name}: not UTF-8 at byte {error.start}"
        ) from None
    if suffix == ".txt":
        return text
    return tuple(_cues(path, text))


def words_from_text(text: str, seconds: float, start: float = 0.0) -> tuple[Word, ...]:
    """Words of a bare text, spread over a duration by their length; marked as estimated."""
    spoken = text.split()
    # Words without media still need an order in time: a usual pace of speech stands in.
    seconds = seconds or PACE_S * len(spoken)
    ends = list(itertools.accumulate(len(word) + 1 for word in spoken))
    scale = seconds / ends[-1] if ends else 0.0
    begins = [0, *ends][:-1]
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


def _cues(path: Path, text: str) -> Iterator[Word]:
    """Words of all cues in order of time; blocks without times are headers, styles and notes."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    cues: list[tuple[float, float, str]] = []
    for block in re.split(r"\n(?:[ \t]*\n)+", plain):
        lines = block.split("\n")
        at = [number for number, line in enumerate(lines) if "-->" in line]
        if not at:
            continue
        timing = _TIMING.match(lines[at[0]])
        if timing is None or len(at) > 1:
            raise BadClipError(
                "bad_transcript",
                f"{path.name}: {lines[at[-1]]!r}; wanted 'HH:MM:SS.mmm --> HH:MM:SS.mmm' "
                f"after an empty line",
            )
        found = timing.groups()
        cues.append((_seconds(found[:4]), _seconds(found[4:]), " ".join(lines[at[0] + 1 :])))
    if plain and not cues and not plain.startswith("WEBVTT"):
        raise BadClipError("bad_transcript", f"{path.name}: no cue with times was found")
    for start, end, spoken in sorted(cues):
        yield from _cue_words(spoken, start, end)


def _seconds(time: Sequence[str | None]) -> float:
    hours, minutes, seconds, thousandths = (int(part or 0) for part in time)
    return (((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths) / 1000


def _cue_words(text: str, start: float, end: float) -> Iterator[Word]:
    pieces = _INLINE.split(text)
    inline = zip(*(pieces[part::5] for part in range(1, 5)), strict=True)
    times = [start, *(_seconds(time) for time in inline)]
    times.append(end)
    for piece, begin, stop in zip(pieces[0::5], times, times[1:], strict=False):
        bare = html.unescape(_TAGS.sub("", piece))
        words = words_from_text(bare, max(0.0, stop - begin), begin)
        # A word alone between two times has the times of its piece; several must share them.
        yield from (replace(word, estimated=len(words) > 1) for word in words)
