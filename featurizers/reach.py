"""How far the streams of a file go: by its header, and by its packets, which may not reach it."""

import math
import re
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from featurizers.choosing import best_stream
from featurizers.clocks import Clocks, drift_of_pictures
from featurizers.damage import Told
from featurizers.placing import KINDS, AvPacket, AvStream, Sound, Taker, seconds_of

if TYPE_CHECKING:
    from featurizers.media import Opened

# Forms whose header says how long each stream is, or the file as a whole; others estimate it.
STREAM_IS_TOLD = ("mov,mp4,m4a,3gp,3g2,mj2", "flac", "aiff", "au")
FILE_IS_TOLD = ("matroska,webm", "flv", "asf")
RATE_BY_TIMES = ("mov,mp4,m4a,3gp,3g2,mj2",)  # whose rate is its times over its pictures


class Reach:
    """How far each stream goes by its packets, held against what the header promises."""

    def __init__(self, opened: "Opened") -> None:
        self._opened = opened
        self._ends: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._shown = {
            stream.index: array("q")
            for stream in opened.container.streams
            if stream.type == "video"
        }

    def see(self, packet: AvPacket) -> None:
        """Take note of a packet."""
        pts = packet.pts
        if pts is None or not packet.size:
            return
        index = packet.stream_index
        if index in self._shown:
            self._shown[index].append(pts)
        # Some forms do not tell how long the last one lasts: as long as the one before.
        length = packet.duration or max(0, pts - self._before.get(index, pts))
        self._before[index] = pts
        self._ends[index] = max(self._ends.get(index, pts), pts + length)

    def told(self, taker: Taker) -> Told | None:
        """What the header promises of a taker's span; None where it promises nothing.

        Where only the file's end is told, that is held against all its streams: one may well end
        before the others.
        """
        opened, span = self._opened, taker.span
        end, streams = told_end(opened, taker.stream), [taker.stream]
        if end is None and opened.container.format.name in FILE_IS_TOLD:
            end, streams = told_seconds(opened) - max(0.0, opened.origin), opened.container.streams
        last = math.inf if span.seconds is None else span.start + span.seconds
        if end is None or min(end, last) <= span.start:
            return None
        there = min(last, max(self._end(stream) for stream in streams)) - span.start
        if len(streams) == 1:
            there = min(there, taker.reached())
        return Told(min(end, last) - span.start, max(0.0, there))

    def clocks(
        self, takers: Sequence[Taker], *, is_read: bool, since: float = -math.inf
    ) -> list[Clocks]:
        """How the clocks of sound and pictures lie to each other; nothing where one is not there.

        Args:
            takers: What took the streams that were wanted.
            is_read: Whether all packets were seen up to the file's end.
            since: Seconds of the file; pictures before them do not count.
        """
        container = self._opened.container
        taken = {taker.kind: taker.stream for taker in takers}
        sound, shown = (taken.get(kind) or best_stream(container, kind) for kind in KINDS)
        if sound is None or shown is None:
            return []
        drifts = (taker.drift_s for taker in takers if isinstance(taker, Sound))
        is_read = is_read and not self._opened.stopped
        ends = [self._last_end(stream, is_read=is_read) for stream in (sound, shown)]
        starts = [_first(stream) for stream in (sound, shown)]
        return [
            Clocks(
                start_s=_apart(*starts),
                end_s=_apart(*ends),
                sound_s=next(drifts, None),
                pictures_s=self._drift_of(shown, since),
            )
        ]

    def _last_end(self, stream: AvStream, *, is_read: bool) -> float | None:
        """Where a stream ends: by its packets, by the header where they were not all seen."""
        if is_read and stream.index in self._ends:
            return self._end(stream)
        return told_end(self._opened, stream)

    def _drift_of(self, stream: AvStream, since: float) -> float | None:
        rates = [getattr(stream.codec_context, "framerate", None)]  # by the pictures' own header
        if self._opened.container.format.name not in RATE_BY_TIMES:
            rates.append(stream.average_rate)
        base = stream.time_base
        shown = self._shown.get(stream.index, ())  # one that began on the way was not counted
        times = np.array(shown, dtype=np.int64) * (base.numerator / base.denominator)
        times = times[times - self._opened.origin >= since]
        found = (drift_of_pictures(times, float(rate)) for rate in rates if rate)
        return next((drift for drift in found if drift is not None), None)

    def _end(self, stream: AvStream) -> float:
        if stream.index not in self._ends:
            return 0.0
        return seconds_of(self._ends[stream.index], stream.time_base) - self._opened.origin


def _first(stream: AvStream) -> float | None:
    """The time stamp of a stream's beginning, in seconds."""
    if stream.start_time is None:
        return None
    return seconds_of(stream.start_time, stream.time_base)


def _apart(sound: float | None, pictures: float | None) -> float | None:
    return None if sound is None or pictures is None else sound - pictures


def told_seconds(opened: "Opened") -> float:
    """How long the file is by its header, or by FFmpeg's estimate; 0 when neither is known."""
    return max(0.0, (opened.container.duration or 0) / 1e6)


def told_end(opened: "Opened", stream: AvStream) -> float | None:
    """When a stream ends by the header, in seconds from time 0; None where none tells that."""
    if stream.index < len(opened.told):
        seconds: float | None = opened.told[stream.index]
        return seconds
    name = opened.container.format.name
    if name in STREAM_IS_TOLD or (name == "mp3" and opened.is_counted):
        end = (stream.start_time or 0) + (stream.duration or 0)
        return seconds_of(end, stream.time_base) - opened.origin if stream.duration else None
    tagged = _tagged_seconds(stream.metadata.get("DURATION", ""))
    if name == "matroska,webm" and opened.container.duration and tagged is not None:
        return min(tagged, told_seconds(opened)) - max(0.0, opened.origin)
    return None


def _tagged_seconds(text: str) -> float | None:
    """Seconds of a tag such as 00:00:04.064000000; None of anything else."""
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", text)
    if found is None:
        return None
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
