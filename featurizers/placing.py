"""Put what is decoded in its place in time: which sound lies where, which picture is shown when.

- Every sample and picture is placed by its presentation time, never by its number, so that streams
  which start apart, gaps and variable frame rates keep their place.
- Pictures are sampled at the middle of each cell of 1/fps seconds: the picture that a viewer
  would see then.

Streams, packets and frames are PyAV's, which is not imported here: they are looked at, and what
only FFmpeg can do with them is given as a function.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError
from featurizers.limits import Limits, check_pixels, check_seconds
from featurizers.spec import AudioChunk, AudioWant, Chunk, VideoChunk, VideoWant

GAP_S = 0.1
LEAD_S = 0.1  # of sound before a span: where resampling begins decides its numbers, not a seek
DRIFT_S, DRIFTING_S = 0.04, 1.0  # a picture of 25 a second, and for how long
COUNTED_S = 1.0  # before a span: what is wrong earlier is not its affair, however it was reached
JITTER_S = 0.002  # times are rounded to a thousandth in some forms
MAX_RATE_HZ = 1000  # of pictures
SHUFFLED = ("h264", "hevc")
FLOAT_CODECS = ("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be")
CHUNK_PICTURES = 32
MAX_DAMAGED = 0.2  # share of a stream's packets

Kind: TypeAlias = Literal["audio", "video"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# PyAV types nearly every attribute as optional, also those that are always there.
AvStream: TypeAlias = Any
AvPacket: TypeAlias = Any
AvFrame: TypeAlias = Any
Resample: TypeAlias = Callable[[AvFrame | None], Sequence[NDArray[np.int16]]]
"""Takes frames of one form, None after the last; gives their sound at one rate, one channel."""


def seconds_of(ticks: int, time_base: Any) -> float:  # noqa: ANN401 - a Fraction, None in no stream
    """Exactly float(ticks * time_base), without the cost of a Fraction."""
    return float(ticks * time_base.numerator / time_base.denominator)


@dataclass(frozen=True, slots=True)
class Span:
    """A span on the file's clock.

    Attributes:
        origin: The time stamp of the file's time 0, in seconds.
        start: Seconds from time 0.
        seconds: Its length; None for the rest of the file.
        sound_from: Sound that ends before this time stamp needs no decoding.
    """

    origin: float
    start: float
    seconds: float | None
    sound_from: float = -math.inf

    @property
    def offset(self) -> float:
        """The time stamp of the span's start."""
        return self.origin + self.start


class Taker(ABC):
    """What one want takes of its stream, in order of time, and what was wrong with it.

    A frame whose time fits neither the one before nor the one after it is passed over: a single
    wrong time stamp costs a single frame.

    Attributes:
        done: The span's end is reached; it needs no more.
        given: Something came of it.
        packets: How many it was fed with.
        bad: How many of them could not be decoded.
        untimed: Frames without a time.
    """

    kind: Kind
    noun: str

    def __init__(self, stream: AvStream, span: Span, limits: Limits) -> None:
        self.stream, self.span, self.limits = stream, span, limits
        self.done = self.given = False
        self.packets = self.bad = self.untimed = 0
        self._damaged = self._passed = self._late = 0
        self._waiting: tuple[float, AvFrame] | None = None
        self._last = self._due = -math.inf
        self._far: float | None = None  # ticks; nothing before it can be too late

    def needs(self, packet: AvPacket) -> bool:
        """Whether a packet has to be decoded for it."""
        # Not `stream_index`: it is 0 in every packet that flushes a decoder.
        return not self.done and packet.stream.index == self.stream.index

    def hear(self, packet: AvPacket) -> None:
        """Take note of a packet before it is decoded.

        Raises:
            BadClipError: "too_long": a second one lies behind the limit; one may have a wrong time.
        """
        self.packets += bool(packet.size) and self._counts(packet)
        pts = packet.pts
        if self.span.seconds is not None or pts is None:
            return
        if self._far is None:  # once: a time base is made anew each time it is asked for
            self._far = (self.span.offset + self.limits.seconds) / packet.time_base - 1
        if pts > self._far:
            time = seconds_of(pts, packet.time_base) - self.span.offset
            self._late += time > self.limits.seconds
            if self._late > 1:
                check_seconds(time, self.limits)

    def _counts(self, packet: AvPacket) -> bool:
        """Whether a packet lies in the span, or so near before it that it is its affair."""
        if self.span.start <= COUNTED_S or packet.pts is None:
            return True
        time = seconds_of(packet.pts, packet.time_base) - self.span.offset
        return time >= -COUNTED_S

    def fail(self, packet: AvPacket) -> None:
        """Take note that it could not be decoded."""
        self.bad += self._counts(packet)

    def stamp(self, frame: AvFrame) -> float | None:
        """The time stamp of a frame, in seconds."""
        time: float | None = frame.time
        return time

    def take(self, frame: AvFrame) -> Iterator[Chunk]:
        """Take the next frame as it is decoded; it is used when the one after it is known."""
        stamp = self.stamp(frame)
        if stamp is None:
            self.untimed += self._last >= -COUNTED_S or self.span.start == 0
            return
        time = stamp - self.span.offset
        self._damaged += time >= 0 and frame.is_corrupt
        before = self._waiting
        if before is not None and time < before[0]:
            self._passed += before[0] >= -COUNTED_S
            if time >= self._last and before[0] > self._due + GAP_S:
                self._waiting = (time, frame)  # the one that waited had run ahead
            return
        self._waiting = (time, frame)
        if before is not None:
            yield from self._use(*before)

    def finish(self) -> Iterator[Chunk]:
        """What is left when no frame follows."""
        if self._waiting is not None:
            yield from self._use(*self._waiting)
        yield from self._rest()

    def remarks(self) -> list[str]:
        """What is to be said of packets and frames."""
        found = []
        if self.bad:
            are = "is" if self.bad == 1 else "are"
            found.append(f"{self.bad} of {self.packets} packets {are} damaged and passed over")
        if self._damaged:
            found.append(f"{_counted(self._damaged, self.noun)} damaged and taken all the same")
        if self._passed:
            found.append(f"{_counted(self._passed, self.noun)} out of order and passed over")
        if self.untimed:
            found.append(f"{_counted(self.untimed, self.noun)} without a time and passed over")
        return found

    def reached(self) -> float:
        """How far its frames came where they tell it better than packets, from the span's start."""
        return math.inf

    def is_spoilt(self) -> bool:
        """Whether too much of it is damaged."""
        return self._wrong() > MAX_DAMAGED * self.packets

    def _wrong(self) -> int:
        return self.bad + self._damaged + self._passed + self.untimed

    def _use(self, time: float, frame: AvFrame) -> Iterator[Chunk]:
        if self.done:
            return
        self._last = self._due = time  # `_place` may know better when the next is due
        if self.span.seconds is None or time < self.span.seconds:
            check_seconds(time, self.limits)
        yield from self._place(time, frame)

    @abstractmethod
    def _place(self, time: float, frame: AvFrame) -> Iterator[Chunk]:
        """Take a frame that stands in its right place."""

    @abstractmethod
    def _rest(self) -> Iterator[Chunk]:
        """What is left when no frame follows."""


def _counted(count: int, noun: str) -> str:
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"


class Sound(Taker):
    """Sound at the wanted rate, one channel, cut to the span.

    A gap begins a new chunk in its right place; what would lie over sound that was given is passed
    over. Resampling begins at LEAD_S before the span, wherever decoding began. Where times and the
    number of samples are apart by more than DRIFT_S for DRIFTING_S, times are followed.

    Args:
        resampling: Makes what brings frames of one form to a rate.
    """

    kind: Kind = "audio"
    noun = "frame"

    def __init__(
        self,
        want: AudioWant,
        stream: AvStream,
        span: Span,
        limits: Limits,
        resampling: Callable[[int], Resample],
    ) -> None:
        super().__init__(stream, span, limits)
        self.rate_hz, self._resampling = want.rate_hz, resampling
        self._resample: Resample | None = None  # until a frame comes, and after a flush
        self._form: tuple[int, str, str] | None = None  # what follows is placed by its own time
        self._hole = False  # somewhere ahead, of a packet that may be shorter than a gap
        self._expected = -math.inf
        self._counted = -math.inf  # where the next frame would lie if only samples counted
        self._drifting: tuple[float, bool] | None = None  # since when, and to which side
        self._drift_s = 0.0
        self._ran_s = self._apart = 0.0  # up to the last new beginning, and since then
        self._position = 0  # of the next sample, counted from the clip's start
        self._given_to = 0
        self._held: list[NDArray[np.int16]] = []
        self._held_samples = 0
        self._gaps, self._gap_s = 0, 0.0
        # Numbers of other codecs are always finite.
        self._holds_floats = stream is not None and stream.codec_context.name in FLOAT_CODECS
        self._not_finite = 0

    def needs(self, packet: AvPacket) -> bool:
        """Whether a packet has to be decoded for it; not what lies long before the span."""
        if not super().needs(packet):
            return False
        if self.span.sound_from == -math.inf or packet.pts is None or not packet.size:
            return True
        stop = packet.pts + (packet.duration or 0)
        return seconds_of(stop, packet.time_base) >= self.span.sound_from

    def fail(self, packet: AvPacket) -> None:
        """Take note that it could not be decoded: what follows must not move up."""
        super().fail(packet)
        self._hole = True

    @property
    def drift_s(self) -> float | None:
        """How far times ran ahead of the number of samples, gaps left out; None without sound."""
        return self._ran_s + self._apart if self.given else None

    def remarks(self) -> list[str]:
        """What is to be said of the sound."""
        found = super().remarks()
        if self._not_finite:
            counted = _counted(self._not_finite, self.noun)
            found.append(f"{counted} not finite (NaN or infinity) and passed over")
        if self._gaps:
            gaps = "1 gap" if self._gaps == 1 else f"{self._gaps} gaps"
            found.append(f"{self._gap_s:.2f} s are missing in {gaps}")
        if self._drift_s:
            side = "ahead of" if self._drift_s > 0 else "behind"
            found.append(f"its clock ran {abs(self._drift_s):.2f} s {side} its samples")
        return found

    def _place(self, time: float, frame: AvFrame) -> Iterator[Chunk]:
        if self._holds_floats and not np.isfinite(frame.to_ndarray()).all():
            self._not_finite += 1
            self._form = None
            return
        stop = time + frame.samples / frame.sample_rate
        if stop <= -LEAD_S:
            return
        ahead = time - self._expected
        if ahead < -GAP_S and stop <= self._expected:
            self._passed += 1
            self._form = None
            return
        form = (frame.sample_rate, frame.layout.name, frame.format.name)
        drift = self._drift(time)
        follows = form == self._form and abs(ahead) <= (JITTER_S if self._hole else GAP_S)
        self._apart = time - self._counted if follows else self._apart
        if drift or not follows:
            self._drift_s += drift
            self._ran_s, self._apart = self._ran_s + self._apart, 0.0
            self._drifting = None
            # Not yet at the first frame, nor at one that was still waiting when the packet failed.
            self._hole = self._hole and not JITTER_S < abs(ahead) < math.inf
            yield from self._flush()
            self._note_gap(time)
            # A resampler takes what it was first given: one of its own for each form.
            self._resample, self._form = self._resampling(self.rate_hz), form
            self._position = round(time * self.rate_hz)
            self._counted = time
        self._counted += frame.samples / frame.sample_rate
        self._expected = self._due = stop
        self._hold(frame)
        if self._held_samples >= self.rate_hz:
            yield from self._emit()
        self.done = self.span.seconds is not None and (
            self._position >= self.span.seconds * self.rate_hz
        )

    def _drift(self, time: float) -> float:
        """How far times have drifted from the number of samples, once it is no jitter."""
        apart = time - self._counted
        if not DRIFT_S < abs(apart) < math.inf:
            self._drifting = None
        elif self._drifting is None or self._drifting[1] != (apart > 0):
            self._drifting = (time, apart > 0)
        elif time - self._drifting[0] >= DRIFTING_S:
            return apart
        return 0.0

    def _wrong(self) -> int:
        return super()._wrong() + self._not_finite

    def reached(self) -> float:
        """Where the last frame ends, in seconds from the span's start."""
        return self._expected

    def _note_gap(self, time: float) -> None:
        end = math.inf if self.span.seconds is None else self.span.seconds
        missing = min(time, end) - max(self._expected, 0.0)
        if math.isfinite(self._expected) and missing > GAP_S:
            self._gaps += 1
            self._gap_s += missing

    def _rest(self) -> Iterator[Chunk]:
        yield from self._flush()

    def _flush(self) -> Iterator[Chunk]:
        self._hold(None)
        self._resample = None
        yield from self._emit()

    def _hold(self, frame: AvFrame | None) -> None:
        for piece in self._resample(frame) if self._resample else ():
            self._held.append(piece)
            self._held_samples += len(piece)

    def _emit(self) -> Iterator[Chunk]:
        if not self._held:
            return
        samples, begin = np.concatenate(self._held), self._position
        self._held, self._held_samples = [], 0
        self._position += len(samples)
        first = max(0, self._given_to - begin)
        last = len(samples)
        if self.span.seconds is not None:
            last = min(last, round(self.span.seconds * self.rate_hz) - begin)
        if last > first:
            self.given, self._given_to = True, begin + last
            yield AudioChunk((begin + first) / self.rate_hz, samples[first:last])


class Pictures(Taker):
    """The picture that is shown at the middle of each cell of 1/fps seconds.

    Args:
        small: Makes a picture as small as it is wanted.
    """

    kind: Kind = "video"
    noun = "picture"

    def __init__(
        self,
        want: VideoWant,
        stream: AvStream,
        span: Span,
        limits: Limits,
        small: Callable[[AvFrame, VideoWant], NDArray[np.uint8]],
    ) -> None:
        super().__init__(stream, span, limits)
        self.want, self._made_small = want, small
        # AVI has no times but the order of packets: FFmpeg gives those of H.264 in that order too,
        # though pictures that hang on later ones are shown before them.
        name = None if stream is None else stream.container.format.name
        self._sorts = name == "avi" and stream.codec_context.name in SHUFFLED
        self._stamps: list[int] = []
        self._count, self._begin = 0, math.inf
        self._shown: AvFrame | None = None
        self._shown_from = self._gap = 0.0
        self._small: NDArray[np.uint8] | None = None
        self._cell = 0
        self._held: list[tuple[int, NDArray[np.uint8]]] = []

    def hear(self, packet: AvPacket) -> None:
        """Take note of a packet before it is decoded, and of its time stamp."""
        super().hear(packet)
        if self._sorts and packet.pts is not None:
            heapq.heappush(self._stamps, packet.pts)

    def fail(self, packet: AvPacket) -> None:
        """Take note that it could not be decoded: no picture has its time stamp."""
        super().fail(packet)
        if packet.pts in self._stamps:
            self._stamps.remove(packet.pts)
            heapq.heapify(self._stamps)

    def stamp(self, frame: AvFrame) -> float | None:
        """The time stamp of a picture: where they are out of order, the earliest of those left."""
        if self._stamps:
            return seconds_of(heapq.heappop(self._stamps), frame.time_base)
        return super().stamp(frame)

    def _place(self, time: float, frame: AvFrame) -> Iterator[Chunk]:
        # Once more after the header: the size may change on the way.
        check_pixels(frame, self.limits)
        yield from self._show_until(time)
        if self.span.seconds is not None and time >= self.span.seconds:
            self.done = True
            return
        if self._shown is not None:
            self._gap = time - self._shown_from
        self._count, self._begin = self._count + 1, min(self._begin, time)
        self._shown, self._shown_from, self._small = frame, time, None

    def _rest(self) -> Iterator[Chunk]:
        if self._shown is not None:
            self._check_rate()
            told = seconds_of(self._shown.duration or 0, self._shown.time_base)
            length = told or self._gap or 1 / self.want.fps
            stop = self._shown_from + length
            if not self.done:
                check_seconds(stop, self.limits)
            yield from self._show_until(stop)
            if stop > 0 and not self.given and not self._held:  # shorter than half a cell
                self._cell = int(max(0.0, self._shown_from) * self.want.fps)
                self._hold()
        yield from self._emit()

    def _check_rate(self) -> None:
        seconds = self._shown_from - self._begin
        if self._count > 10 and self._count > MAX_RATE_HZ * seconds:
            text = f"video: {self._count} pictures within {seconds:.4f} s, its clock is wrong"
            raise BadClipError("corrupt", text)

    def _middle(self) -> float:
        return (self._cell + 0.5) / self.want.fps

    def _show_until(self, time: float) -> Iterator[Chunk]:
        limit = time if self.span.seconds is None else min(time, self.span.seconds)
        while self._middle() < limit:
            if self._shown is not None:
                self._hold()
            self._cell += 1
            if len(self._held) >= CHUNK_PICTURES:
                yield from self._emit()

    def _hold(self) -> None:
        if self._small is None:
            self._small = self._made_small(self._shown, self.want)
        self._held.append((self._cell, self._small))

    def _emit(self) -> Iterator[Chunk]:
        if not self._held:
            return
        cells = np.array([cell for cell, _ in self._held], dtype=np.float64)
        frames = np.stack([picture for _, picture in self._held])
        self._held, self.given = [], True
        yield VideoChunk(np.stack([cells, cells + 1], axis=1) / self.want.fps, frames)
