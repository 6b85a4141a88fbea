"""Praat's TextGrid files, long and short, to tiers."""

import re
from collections.abc import Iterator
from typing import Literal, TypeAlias

from featurizers.clip import BadClipError
from featurizers.texts import Text
from featurizers.tiers import Span, Tier

_Kind: TypeAlias = Literal["text", "number", "flag"]

_WORD = re.compile(r'"(?:[^"]|"")*+"|![^\n]*|\S+')
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def read_textgrid(text: Text) -> list[Tier]:
    """The interval tiers of a TextGrid in its long or its short form.

    As Praat does, it reads texts, numbers and flags that stand free, in their order, and passes
    over all that is between them, so that both forms are one ("TextGrid file formats", in Praat's
    manual). Tiers of points have no spans, and are left out.

    Raises:
        BadClipError: "bad_transcript": it is none, or it ends too early.
    """
    tokens = _Tokens(text)
    for wanted in ("ooTextFile", "TextGrid"):
        if tokens.take("text", wanted).split()[:1] != [wanted]:
            raise tokens.bad(f"wanted {wanted!r}; save it from Praat as a text file")
    tokens.number("its start")
    tokens.number("its end")
    if tokens.take("flag", "<exists>") == "<absent>":
        return []
    count = tokens.count("how many tiers it has")
    tiers = [_tier(tokens, f"of tier {number} of {count}") for number in range(1, count + 1)]
    return [tier for tier in tiers if tier is not None]


def _tier(tokens: "_Tokens", which: str) -> Tier | None:
    kind = tokens.take("text", f"the class {which}")
    name = tokens.take("text", f"the name {which}")
    tokens.number(f"the start {which}")
    tokens.number(f"the end {which}")
    count = tokens.count(f"the size {which}")
    spans: list[Span] = []
    for number in range(1, count + 1):
        what = f"of entry {number} of {count} {which}"
        start = tokens.number(f"the time {what}")
        end = start if kind == "TextTier" else tokens.number(f"the end {what}")
        spans.append(Span(start, end, tokens.take("text", f"the text {what}")))
    return None if kind == "TextTier" else Tier(name, tuple(spans))


class _Tokens:
    """What stands free in a TextGrid, one after the other."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._words: Iterator[re.Match[str]] = _WORD.finditer(text.body)
        self._at = 0

    def bad(self, message: str) -> BadClipError:
        """The error that names the line of what was read last."""
        return self._text.bad(message, self._text.line_at(self._at))

    def number(self, what: str) -> float:
        """The next token, which must be a number."""
        return float(self.take("number", what))

    def count(self, what: str) -> int:
        """The next token, which must be a whole number."""
        number = self.take("number", what)
        if not number.isdigit() or len(number) > 12:
            raise self.bad(f"found {number[:40]}, wanted {what}")
        return int(number)

    def take(self, wanted: _Kind, what: str) -> str:
        """The next token, which must be of this kind."""
        for match in self._words:
            self._at, word = match.start(), match[0]
            kind = _kind(word)
            if kind is not None and kind != wanted:
                raise self.bad(f"found {word[:40]!r}, wanted {what}")
            if kind is not None:
                return word[1:-1].replace('""', '"') if kind == "text" else word
        raise self.bad(f"the file ends here, before {what}; it was cut, or its sizes are wrong")


def _kind(word: str) -> _Kind | None:
    if word[0] == '"':
        # A quote that is never closed is no text.
        return "text" if len(word) > 1 and word[-1] == '"' else None
    if word in ("<exists>", "<absent>"):
        return "flag"
    return "number" if _NUMBER.fullmatch(word) else None
