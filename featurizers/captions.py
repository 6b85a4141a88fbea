"""SubRip and WebVTT captions to words; captions that roll are told once."""

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from featurizers.clip import Word
from featurizers.estimate import PACE_S, spread
from featurizers.texts import Text

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIMING = re.compile(rf"\s*{_TIME}[ \t]*-->[ \t]*{_TIME}")
_INLINE = re.compile(f"<{_TIME}>")
_TAGS = re.compile(r"<[^>]*>|\{\\[^}]*\}")

TOGETHER_S = 0.1
"""What one caption leaves on the screen for the next begins no later than this after its end."""

SCREEN = 8
"""More lines than captions ever show at one time."""


@dataclass(frozen=True, slots=True)
class _Said:
    """A word of a caption: the line that it stands in, and the span of time."""

    text: str
    line: int
    span: int


@dataclass(frozen=True, slots=True)
class _Cue:
    """A caption.

    Attributes:
        times: Its start, the inline times, and its end: one more than spans of time.
    """

    times: tuple[float, ...]
    said: tuple[_Said, ...]


def read_captions(text: Text) -> list[Word]:
    """Words of all captions, in order of the captions' start.

    Inline times are the times of words. The words between two times share them by their length,
    marked as estimated; a word that is alone there has them.

    Captions may roll: each shows again what the one before left on the screen, with some words
    more. Where at least half of a file's captions do so, and one at least adds to what it repeats,
    words are told once, when they come. A repeated line in other files is taken as said twice.
    """
    cues = sorted(_cues(text), key=lambda cue: (cue.times[0], cue.times[-1]))
    if not cues and text.body.strip() and not _is_vtt(text):
        raise text.bad("no cue with times was found")
    cues = [cue for cue in cues if cue.said]
    return [word for cue in _told_once(cues) for word in _words(cue)]


def _is_vtt(text: Text) -> bool:
    return text.body.lstrip().startswith("WEBVTT")


def _cues(text: Text) -> Iterator[_Cue]:
    """The captions as they come; blocks without times are headers, styles and notes."""
    found: list[tuple[tuple[str | None, ...], list[str]]] = []
    vtt = _is_vtt(text)
    for block in _blocks(text):
        at = [place for place, (_, line) in enumerate(block) if "-->" in line]
        if not at:
            # SubRip has no notes: what follows an empty line belongs to the caption before.
            counter = len(block) == 1 and block[0][1].strip().isdigit()
            if found and not counter and not vtt:
                found[-1][1].extend(line for _, line in block)
            continue
        timing = _TIMING.match(block[at[0]][1])
        if timing is None or len(at) > 1:
            number, line = block[at[-1]]
            raise text.bad(
                f"found {line.strip()!r}; wanted 'HH:MM:SS.mmm --> HH:MM:SS.mmm' "
                f"after an empty line",
                number,
            )
        found.append((timing.groups(), [line for _, line in block[at[0] + 1 :]]))
    for times, lines in found:
        yield _cue(_seconds(times[:4]), _seconds(times[4:]), "\n".join(lines))


def _blocks(text: Text) -> Iterator[list[tuple[int, str]]]:
    """Lines with their numbers, between empty ones."""
    # To WebVTT a line of spaces is a line like any other, and rolling captions begin with one.
    empty = str if _is_vtt(text) else str.strip
    for filled, block in itertools.groupby(text.lines(), key=lambda line: bool(empty(line[1]))):
        if filled:
            yield list(block)


def _seconds(time: Sequence[str | None]) -> float:
    hours, minutes, seconds = (int(part or 0) for part in time[:3])
    thousandths = int(str(time[3]).ljust(3, "0"))
    return (((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths) / 1000


def _cue(start: float, end: float, text: str) -> _Cue:
    pieces = _INLINE.split(text)
    inline = [_seconds(pieces[at : at + 4]) for at in range(1, len(pieces), 5)]
    said: list[_Said] = []
    line = 0
    for span, piece in enumerate(pieces[0::5]):
        rows = html.unescape(_TAGS.sub("", piece)).split("\n")
        said += [_Said(word, line + i, span) for i, row in enumerate(rows) for word in row.split()]
        line += len(rows) - 1
    if end <= start:
        end = start + PACE_S * len(said)
    # An inline time outside of its caption, or before another, is moved to where it may be.
    inside = itertools.accumulate([start, *(min(time, end) for time in inline)], max)
    return _Cue((*inside, end), tuple(said))


def _told_once(cues: Sequence[_Cue]) -> list[_Cue]:
    """The captions without what each of them repeats, if the file rolls."""
    repeated = [0, *(_repeated(before, cue) for before, cue in itertools.pairwise(cues))]
    adds = any(0 < count < len(cue.said) for count, cue in zip(repeated, cues, strict=False))
    if not adds or 2 * sum(count > 0 for count in repeated) < len(cues) - 1:
        return list(cues)
    return [replace(cue, said=cue.said[count:]) for count, cue in zip(repeated, cues, strict=True)]


def _repeated(before: _Cue, cue: _Cue) -> int:
    """With how many words of the last lines before a caption begins."""
    if cue.times[0] - before.times[-1] > TOGETHER_S:
        return 0
    now = [each.text for each in cue.said]
    last = before.said[-1].line
    for line in range(max(0, last - SCREEN + 1), last + 1):
        left = [each.text for each in before.said if each.line >= line]
        if now[: len(left)] == left:
            return len(left)
    return 0


def _words(cue: _Cue) -> Iterator[Word]:
    for span, said in itertools.groupby(cue.said, key=lambda each: each.span):
        start, end = cue.times[span : span + 2]
        words = spread([each.text for each in said], start, end - start)
        yield from (replace(word, estimated=len(words) > 1) for word in words)
