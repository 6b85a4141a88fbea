"""What speech recognisers write as JSON to words: Whisper, WhisperX and those like them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from featurizers.clip import Word
from featurizers.estimate import PACE_S, spread
from featurizers.texts import Text

KEYS = ("segments", "chunks", "transcription")
"""Of Whisper, WhisperX and faster-whisper; of transformers; of whisper.cpp."""


def read_recognised(text: Text) -> list[Word]:
    """Words of Whisper's and WhisperX's JSON, and of the same by transformers or whisper.cpp.

    A word's confidence is its "probability" or "score". Words without times (WhisperX leaves out
    those that it could not align) lie between their neighbours, and those of a segment without
    words share it; both are marked as estimated.

    Raises:
        BadClipError: "bad_transcript", naming the line or the place in the JSON.
    """
    where, segments = _segments(text, _parsed(text))
    words: list[Word] = []
    for number, segment in enumerate(segments):
        place = f"{where}[{number}]"
        words += _words(text, place, _item(text, place, segment))
    return words


@dataclass(frozen=True, slots=True)
class _Item:
    """A segment or a word."""

    said: str
    start: float | None
    end: float | None
    sure: float | None
    words: Sequence[Any]


def _parsed(text: Text) -> object:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number in JSON")

    try:
        return json.loads(text.body, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise text.bad(f"no JSON: {error.msg}", error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise text.bad(f"no JSON: {error}") from None


def _segments(text: Text, document: object) -> tuple[str, list[Any]]:
    if isinstance(document, list):
        return "", document
    if isinstance(document, Mapping):
        for key in KEYS:
            if isinstance(document.get(key), list):
                return key, document[key]
    one = type(document).__name__
    found = ", ".join(list(document)[:8])[:80] if isinstance(document, Mapping) else one
    raise text.bad(
        f"no transcript: wanted a list called {', '.join(KEYS[:-1])} or {KEYS[-1]}, found {found}"
    )


def _item(text: Text, where: str, plain: object) -> _Item:
    if not isinstance(plain, Mapping):
        raise text.bad(f"{where} is no object")
    said, words = plain.get("word", plain.get("text", "")), plain.get("words", [])
    if not isinstance(said, str) or not isinstance(words, list):
        raise text.bad(f"{where}: wanted a text, and its words in a list")
    start, end = (_seconds(text, where, time) for time in _times(plain))
    if start is not None and end is not None:
        end = max(start, end)
    return _Item(said, start, end, _share(plain.get("probability", plain.get("score"))), words)


def _times(plain: Mapping[str, Any]) -> tuple[Any, Any]:
    """Start and end, as they are written."""
    match plain:
        case {"timestamp": [start, end]}:
            return start, end
        case {"offsets": {"from": int(start), "to": int(end)}}:
            return start / 1000, end / 1000
        case _:
            return plain.get("start"), plain.get("end")


def _seconds(text: Text, where: str, time: object) -> float | None:
    if time is None:
        return None
    number = _number(time)
    if number is None:
        raise text.bad(f"{where}: {str(time)[:40]!r} is no time; wanted seconds")
    return number


def _share(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and number <= 1 else None


def _number(value: object) -> float | None:
    """A number of at least 0; None for anything else."""
    # What is too large for a float was written to do harm.
    usual = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e9
    return float(value) if usual else None  # type: ignore[arg-type] # mypy forgets what was asked


def _words(text: Text, where: str, segment: _Item) -> list[Word]:
    """The words of a segment; a segment without words is taken for one."""
    items = [
        _item(text, f"{where}.words[{number}]", word) for number, word in enumerate(segment.words)
    ]
    items = [item for item in items or [segment] if item.said.strip()]
    # For each word the first start that is known from there on, or else the segment's end.
    known = [segment.end]
    for item in reversed(items):
        known.append(known[-1] if item.start is None else item.start)
    known.reverse()
    first = known[0] if segment.start is None else segment.start
    if not items:
        return []
    if first is None:
        raise text.bad(f"{where}: neither it nor its words have times")
    words: list[Word] = []
    waiting: list[str] = []  # words without times, for which the next time is awaited
    for number, item in enumerate(items):
        if item.start is None:
            waiting += item.said.split()
            continue
        words += _between(waiting, words[-1].end if words else first, item.start)
        words += _timed(item, item.start, known[number + 1])
        waiting = []
    return [*words, *_between(waiting, words[-1].end if words else first, segment.end)]


def _timed(item: _Item, start: float, later: float | None) -> list[Word]:
    """The words of an item with a start; without an end they last until a later time."""
    spoken = item.said.split()
    found = _between(spoken, start, later if item.end is None else item.end)
    alone = len(spoken) == 1 and item.end is not None
    return [replace(word, estimated=not alone, confidence=item.sure) for word in found]


def _between(spoken: Sequence[str], start: float, end: float | None) -> tuple[Word, ...]:
    """Words spread from one time to another, or at a usual pace where that is not known."""
    seconds = PACE_S * len(spoken) if end is None else max(0.0, end - start)
    return spread(spoken, start, seconds)
