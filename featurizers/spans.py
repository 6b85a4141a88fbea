"""Pictures of several spans of one file, one after the other, decoded in one go.

Clips that were cut from one film follow each other closely. Decoded one by one, each is reached
from the whole picture before it, or from the beginning of a file without an index; in one go no
picture is decoded twice. Sound is cheap, and what its decoders give depends on where they began, so
it stays with `media.decode`.

What a span gives is exactly what `media.decode` gives: takers know nothing of each other, and which
picture is shown is decided by the span alone. That holds for media without damage; where something
is wrong, `ApartError` says to decode the span by itself.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from featurizers.clip import BadClipError
from featurizers.clocks import Clocks
from featurizers.damage import Damage, verdict
from featurizers.limits import Limits, check_span, check_streams
from featurizers.media import (
    SEEK_FROM_S,
    SEEK_MARGIN_S,
    Event,
    NoStream,
    Opened,
    absent_in,
    check_times,
    decoded,
    takers_of,
)
from featurizers.placing import AvFrame, AvPacket, Taker
from featurizers.reach import Reach
from featurizers.spec import Chunk, VideoWant

REORDERED = ("avi",)  # its times are the order of packets, which a taker must hear from the first
Span: TypeAlias = tuple[float, float | None]
"""Start and end in seconds from the file's start; None for the rest of the file."""


@dataclass(frozen=True, slots=True)
class Again:
    """What was given of this span is to be thrown away: it begins anew."""


Heard: TypeAlias = tuple[int, Chunk | NoStream | Damage | Again]
"""An event of a span that may be decoded in one go with others."""


class ApartError(Exception):
    """The spans that are not finished are to be decoded one by one."""


def follow(spans: Sequence[Span]) -> int:
    """How many spans, from the first on, lie so that one decoding serves them all: at least 1.

    One must end before the next begins, and no more than what a seek is worth lies between them.
    """
    for number, ((_, end), (start, _)) in enumerate(pairwise(spans), start=1):
        if end is None or not end <= start <= end + SEEK_FROM_S:
            return number
    return len(spans)


def decode_all(
    path: Path,
    spans: Sequence[Span],
    wants: Sequence[VideoWant],
    limits: Limits,
    *,
    clocks: list[Clocks] | None = None,
) -> Iterator[tuple[int, Event | None]]:
    """Decode the pictures of spans that `follow` each other, in one go.

    Args:
        path: A local file.
        spans: In order of time.
        wants: What is wanted of each.
        limits: What each may cost.
        clocks: Takes, before the None of each span, how the clocks of sound and pictures lie to
            each other, where a file has both.

    Returns:
        The number of a span with an event of it, span after span, and None when a span is finished.

    Raises:
        ApartError: Something is wrong. What was given of the span that is not finished is to be
            thrown away.
        StorageError: The file cannot be read now.
    """
    try:
        for start, end in spans:
            check_span(start, end)
        with Opened(path) as opened:
            yield from _decoded(opened, spans, wants, limits, [] if clocks is None else clocks)
    except BadClipError as bad:
        raise ApartError(str(bad)) from None


def _decoded(
    opened: Opened,
    spans: Sequence[Span],
    wants: Sequence[VideoWant],
    limits: Limits,
    clocks: list[Clocks],
) -> Iterator[tuple[int, Event | None]]:
    check_streams(len(opened.container.streams), limits)
    if opened.container.format.name in REORDERED:
        raise ApartError("its pictures have no times")
    if absent := absent_in(opened, wants):
        for number in range(len(spans)):
            yield from ((number, (index, NoStream(kind))) for index, kind in absent.items())
            yield number, None
        return
    spans = _in_time(opened, spans, limits)
    opened.approach(spans[0][0], wants)
    row = _Row(
        opened,
        deque(
            _Part(number, start, takers_of(opened, wants, start, end, limits))
            for number, (start, end) in enumerate(spans)
        ),
        clocks,
    )
    for packet in opened.packets():
        row.feed(packet)
        yield from row.ready()
        if row.is_done:
            return
    yield from row.rest()


def _in_time(opened: Opened, spans: Sequence[Span], limits: Limits) -> Sequence[Span]:
    """The spans before the first that lies not in the media. Raises BadClipError when none does."""
    for number, (start, end) in enumerate(spans):
        try:
            check_times(opened, start, end, limits)
        except BadClipError:
            if not number:
                raise
            return spans[:number]
    return spans


@dataclass(slots=True)
class _Part:
    """A span, what takes it, and what is to be said of it once those before are finished."""

    number: int
    start: float
    takers: Mapping[int, Taker]
    events: deque[Event] = field(default_factory=deque)

    @property
    def is_full(self) -> bool:
        return all(taker.done for taker in self.takers.values())

    def hear(self, packet: AvPacket) -> None:
        for taker in self.takers.values():
            if taker.needs(packet):
                taker.hear(packet)

    def take(self, frame: AvFrame) -> None:
        for index, taker in self.takers.items():
            if not taker.done:
                self.events.extend((index, chunk) for chunk in taker.take(frame))

    def finish(self, opened: Opened, reach: Reach) -> None:
        for index, taker in self.takers.items():
            self.events.extend((index, chunk) for chunk in taker.finish())
            stopped, told = ("", None) if taker.done else (opened.stopped, reach.told(taker))
            if message := verdict(taker, stopped, told):
                raise ApartError(message)


@dataclass(slots=True)
class _Row:
    """Spans in order of time: those that are being taken, and those that wait for their time.

    Attributes:
        stream: The number of the stream of pictures.
        clocks: Takes those of each span that is finished.
        last: The last picture: a span may begin in the middle of its time.
    """

    opened: Opened
    waiting: deque[_Part]
    clocks: list[Clocks]
    stream: int = field(init=False)
    running: deque[_Part] = field(default_factory=deque)
    last: AvFrame | None = None
    reach: Reach = field(init=False)

    def __post_init__(self) -> None:
        self.reach = Reach(self.opened)
        self.stream = next(iter(self.waiting[0].takers.values())).stream.index

    @property
    def is_done(self) -> bool:
        return not self.running and not self.waiting

    def feed(self, packet: AvPacket) -> None:
        """Decode a packet for all spans that have begun.

        Also where none has: pictures hang on those before them.
        """
        self.reach.see(packet)
        if packet.stream.index != self.stream:
            return
        if packet.pts is not None:
            self._begin(self.opened.time(packet) + SEEK_MARGIN_S)
        frames = decoded(packet)
        if frames is None:
            raise ApartError("a packet is damaged")
        self._check_order(frames)
        for part in self.running:
            part.hear(packet)
        for frame in frames:
            self.last = frame
            for part in self.running:
                part.take(frame)

    def _check_order(self, frames: Sequence[AvFrame]) -> None:
        """What lies before a span would be told of it alone, and not in one go."""
        last = -math.inf if self.last is None else self.last.time
        for frame in frames:
            if frame.time is None or frame.time < last:
                raise ApartError("pictures are out of order")
            last = frame.time

    def ready(self) -> Iterator[tuple[int, Event | None]]:
        """What is known of the first span, and of those after it once it is finished."""
        while self.running:
            part = self.running[0]
            if part.is_full:
                self._finish(part, is_read=False)
            while part.events:
                yield part.number, part.events.popleft()
            if not part.is_full:
                return
            yield part.number, None
            self.running.popleft()

    def rest(self) -> Iterator[tuple[int, Event | None]]:
        """What is left when the file has ended."""
        self._begin(float("inf"))
        while self.running:
            part = self.running.popleft()
            self._finish(part, is_read=True)
            while part.events:
                yield part.number, part.events.popleft()
            yield part.number, None

    def _finish(self, part: _Part, *, is_read: bool) -> None:
        part.finish(self.opened, self.reach)
        takers = list(part.takers.values())
        since = part.start - SEEK_MARGIN_S
        self.clocks += self.reach.clocks(takers, is_read=is_read, since=since)

    def _begin(self, time: float) -> None:
        while self.waiting and self.waiting[0].start <= time:
            part = self.waiting.popleft()
            self.running.append(part)
            if self.last is not None:
                part.take(self.last)
