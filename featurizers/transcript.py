"""Transcripts to one form: words with start and end."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from featurizers.captions import read_captions
from featurizers.clip import BadClipError, Word
from featurizers.elan import read_elan
from featurizers.labels import read_align, read_ctm, read_lab
from featurizers.recognised import read_recognised
from featurizers.textgrid import read_textgrid
from featurizers.texts import Text, read_text
from featurizers.tiers import Tier, words_of_tiers

_Reader: TypeAlias = Callable[[Text], Iterable[Word] | str]

_TIERED: Mapping[str, Callable[[Text], Sequence[Tier]]] = {
    ".textgrid": read_textgrid,
    ".eaf": read_elan,
}
_PLAIN: Mapping[str, _Reader] = {
    ".ctm": read_ctm,
    ".align": read_align,
    ".json": read_recognised,
    ".lab": read_lab,
    ".vtt": read_captions,
    ".srt": read_captions,
    ".txt": lambda text: text.body,
}
FORMATS = (*_TIERED, *_PLAIN)
"""Suffixes in lower case, those that mostly tell more of times first."""

MARKS = frozenset("-–—…♪♫.,:;!?¡¿\"'()[]«»„“”‘’_/|*~<>")  # noqa: RUF001 - as they are written


def read_transcript(path: Path) -> tuple[Word, ...] | str:
    """Words with times on the media's clock, in order of their start; a bare text as it is.

    What the suffix says: .textgrid (Praat, long and short), .eaf (ELAN), .ctm (NIST), .align
    (GRID), .json (Whisper, WhisperX, transformers, whisper.cpp), .lab (HTK), .vtt and .srt
    (captions), .txt (no times). Words that share measured times are marked as estimated, and so
    are all whose times nobody measured. Labels of silence and marks that stand alone are no words.

    Args:
        path: The file. In a file with tiers the tier of words is found by the rules of
            `tiers.words_of_tiers`, or named after the file and a "#": "a.TextGrid#ORT".

    Raises:
        BadClipError: "bad_transcript", naming the file and, where it can, the line.
        StorageError: It cannot be read now.
    """
    file, tier = file_and_tier(path)
    suffix = file.suffix.lower()
    if suffix not in FORMATS:
        raise BadClipError(
            "bad_transcript", f"{file.name}: wanted one of {', '.join(FORMATS)}, found {suffix!r}"
        )
    text = read_text(file)
    if suffix in _TIERED:
        return _in_order(text, words_of_tiers(text, _TIERED[suffix](text), tier))
    found = _PLAIN[suffix](text)
    return found if isinstance(found, str) else _in_order(text, found)


def file_and_tier(path: Path) -> tuple[Path, str | None]:
    """The file of a transcript and, where "#NAME" follows one with tiers, the tier's name."""
    whole = str(path)
    for suffix in _TIERED:
        at = whole.lower().rfind(f"{suffix}#")
        if at >= 0 and not path.is_file():
            end = at + len(suffix)
            return Path(whole[:end]), whole[end + 1 :]
    return path, None


def within(words: Sequence[Word], start: float, end: float | None) -> tuple[Word, ...]:
    """The words whose middle lies in a span of the media, moved to the span's own clock."""
    last = float("inf") if end is None else end
    inside = [word for word in words if start <= (word.start + word.end) / 2 < last]
    return tuple(
        replace(word, start=max(0.0, word.start - start), end=min(word.end, last) - start)
        for word in inside
    )


def _in_order(text: Text, words: Iterable[Word]) -> tuple[Word, ...]:
    """What is said, in order of time, none of it before the media or shorter than nothing."""
    said = [word for word in words if not MARKS.issuperset(word.text)]
    for word in said:
        if not math.isfinite(word.start + word.end):
            raise text.bad(f"word {word.text[:40]!r} lies at {word.start} s to {word.end} s")
    starts = [max(0.0, word.start) for word in said]
    inside = [
        replace(word, start=start, end=max(start, word.end))
        for word, start in zip(said, starts, strict=True)
    ]
    return tuple(sorted(inside, key=lambda word: word.start))
