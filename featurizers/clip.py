"""A clip, its words, and the closed list of what can be wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

Fault: TypeAlias = Literal[
    "missing",  # the media file is not there
    "unreadable",  # no decoder opens it
    "corrupt",  # it opens, but too much of it is damaged
    "empty",  # it opens, but nothing lies in the clip's span
    "too_long",
    "too_large",
    "timed_out",
    "crashed",  # the decoder died, or took more memory than it may
    "bad_span",  # start and end do not lie in the media
    "bad_transcript",
    "bad_stream",  # a table of numbers that cannot be read, or a chosen stream that is not there
    "not_finite",  # a featurizer gave NaN or infinity
]
FAULTS: tuple[Fault, ...] = get_args(Fault)

Label: TypeAlias = float | str | tuple[str, ...]
"""A number is a regression target, a text a class, a tuple several labels at once."""


class BadClipError(Exception):
    """This clip cannot be used.

    Quarantines the clip; any other exception is a bug and stops the job.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(f"{fault}: {message}")
        self.fault: Fault = fault
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A spoken word; times are seconds from the clip's start."""

    text: str
    start: float
    end: float
    confidence: float | None = None
    estimated: bool = False  # the times were spread over the clip, nobody measured them


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One utterance, raw: where its media lie, its span, what is said, by whom, and the labels.

    Attributes:
        key: Unique, made of [A-Za-z0-9_-] only: the name of the clip inside shards.
        id: The name that the user gave, kept as it was.
        media: Absolute path or URL of the media file.
        media_digest: sha256 of the media's bytes in hex; empty when there is no such file.
        start: Seconds from the start of the media, 0 for a whole file.
        end: Seconds from the start of the media; None for a whole file.
        audio_stream, video_stream: Which of several in the file is taken: its number among those of
            its kind, from 0, or its language; empty for the one that FFmpeg finds best.
        seconds: Duration of the span; 0 when the media cannot be read.
        words: The transcript; None when there is none.
        streams: Files of numbers by name, for example a skeleton track.
        stream_digests: sha256 of each of them.
        stream_rates: Rows per second of those that have no times of their own.
        source: Clips with equal source were cut from one recording and are dealt together.
        split: "train", "valid" or "test".
    """

    key: str
    id: str
    media: str
    media_digest: str
    start: float = 0.0
    end: float | None = None
    audio_stream: str = ""
    video_stream: str = ""
    seconds: float = 0.0
    words: tuple[Word, ...] | None = None
    streams: Mapping[str, str] = field(default_factory=dict)
    stream_digests: Mapping[str, str] = field(default_factory=dict)
    stream_rates: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    speaker: str | None = None
    group: str | None = None
    split: str | None = None
    fold: int | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)


def key_of(clip_id: str) -> str:
    """A key made of [A-Za-z0-9_-]: different ids give different keys, legal ones stay as they are.

    WebDataset cuts a member's name at its first dot and passes over names that begin with two
    underscores, so "a.b" and "a.c" would merge into one sample, and "__a" would vanish. What is not
    legal becomes _xHH, once for each UTF-8 byte.
    """
    return "".join(
        char if _literal(char, clip_id[at + 1 : at + 2], first=at == 0) else _escaped(char)
        for at, char in enumerate(clip_id)
    )


_LEGAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def _literal(char: str, after: str, *, first: bool) -> bool:
    if char != "_":
        return char in _LEGAL
    # "_x" would imitate an escape; "_" before an escape or another "_" would open with two.
    return after != "x" and not (first and after and (after == "_" or after not in _LEGAL))


def _escaped(char: str) -> str:
    return "".join(f"_x{byte:02x}" for byte in char.encode())
