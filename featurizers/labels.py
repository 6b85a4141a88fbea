"""Transcripts of one word a line: CTM, HTK's labels, and GRID's alignments."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from featurizers.clip import Word
from featurizers.texts import Text
from featurizers.tiers import Span, is_said, words_of_spans

HTK_S = 1e-7
GRID_S = 1 / 25_000
"""GRID counts in thousandths of a video frame, at 25 frames a second."""

_CTM = "'RECORDING CHANNEL START DURATION WORD [CONFIDENCE]'"
_ALIGN = "'START END WORD'"
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_TIMED = re.compile(rf"\s*({_NUMBER.pattern})\s+({_NUMBER.pattern})\s+(\S.*)")


def read_ctm(text: Text) -> list[Word]:
    """NIST's CTM: recording, channel, start, duration, word and, where given, confidence.

    Of alternatives the first is taken. Where a file tells of several recordings, the one that is
    called like the file is meant.

    Raises:
        BadClipError: "bad_transcript", naming the line.
    """
    found: dict[str, list[Word]] = {}
    other = False  # whether this is an alternative, and not the first
    for number, line in text.lines():
        fields = line.split()
        if not fields or fields[0].startswith(";;"):
            continue
        if len(fields) < 5:
            raise text.bad(f"found {line.strip()[:60]!r}; wanted {_CTM}", number)
        if fields[4].upper() in ("<ALT_BEGIN>", "<ALT>", "<ALT_END>"):
            other = fields[4].upper() == "<ALT>"
        elif not other and is_said(fields[4]):
            start, seconds = (_number(text, field, number, _CTM) for field in fields[2:4])
            sure = _share(fields[5]) if len(fields) > 5 else None
            word = Word(text=fields[4], start=start, end=start + seconds, confidence=sure)
            found.setdefault(fields[0], []).append(word)
    return _of_one(text, found)


def read_align(text: Text) -> list[Word]:
    """GRID's alignments: start, end and word, in thousandths of a frame.

    Raises:
        BadClipError: "bad_transcript", naming the line.
    """
    spans: list[Span] = []
    for number, line in text.lines():
        fields = line.split()
        if fields and len(fields) != 3:
            raise text.bad(f"found {line.strip()[:60]!r}; wanted {_ALIGN}", number)
        if fields:
            start, end = (_number(text, field, number, _ALIGN) * GRID_S for field in fields[:2])
            spans.append(Span(start, end, fields[2]))
    return words_of_spans(spans)


def read_lab(text: Text) -> list[Word] | str:
    """HTK's labels: start and end in units of 100 ns, label, and perhaps its score and a word.

    Where some lines name a word as well, the labels are its sounds, and it lasts until the next.
    Times with a decimal point are seconds, and all that follows is one label, as Audacity writes
    them. Of alternatives the first is taken. A file without times is a bare text, as aligners want
    it.

    Raises:
        BadClipError: "bad_transcript", naming the line that has no times while others do.
    """
    filled = [(number, line) for number, line in text.lines() if line.strip()]
    rows = list(itertools.takewhile(lambda row: row[1].strip() != "///", filled))
    timed = [_TIMED.fullmatch(line) for _, line in rows]
    if not any(timed):
        return text.body
    in_seconds = any("." in row[1] + row[2] for row in timed if row)
    unit = 1.0 if in_seconds else HTK_S
    spans: list[Span] = []
    for (number, line), row in zip(rows, timed, strict=True):
        if row is None:
            raise text.bad(
                f"found {line.strip()[:60]!r}; wanted 'START END LABEL' here too", number
            )
        spans.append(Span(float(row[1]) * unit, float(row[2]) * unit, row[3]))
    return words_of_spans(spans if in_seconds else _named(spans))


def _named(spans: Sequence[Span]) -> list[Span]:
    """Spans of the words that HTK's rows name, or of their labels where no row names a word."""
    rows = [span.label.split() for span in spans]
    names = [
        next((field for field in row[1:] if not _NUMBER.fullmatch(field)), None) for row in rows
    ]
    if not any(names):
        return [replace(span, label=row[0]) for span, row in zip(spans, rows, strict=True)]
    words: list[Span] = []
    for span, row, name in zip(spans, rows, names, strict=True):
        if name is not None:
            words.append(replace(span, label=name))
        elif words and is_said(row[0]):
            words[-1] = replace(words[-1], end=span.end)
    return words


def _number(text: Text, field: str, line: int, wanted: str) -> float:
    if not _NUMBER.fullmatch(field):
        raise text.bad(f"{field[:40]!r} is no time; wanted {wanted}", line)
    return float(field)


def _share(field: str) -> float | None:
    sure = float(field) if _NUMBER.fullmatch(field) else -1.0
    return sure if 0 <= sure <= 1 else None


def _of_one(text: Text, found: dict[str, list[Word]]) -> list[Word]:
    if len(found) < 2:
        return [word for words in found.values() for word in words]
    stem = PurePath(text.name).stem
    if stem not in found:
        raise text.bad(
            f"tells of {len(found)} recordings ({', '.join(sorted(found)[:3])} ...), and none is "
            f"called {stem!r} like the file; cut it into a file for each"
        )
    return found[stem]
