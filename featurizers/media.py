"""Decode and encode media on one clock; the only user of PyAV.

- Time 0 of a file is its container's start time; every sample and picture is placed by its
  presentation time, never by its number, so that streams which start apart, gaps and variable frame
  rates keep their place.
- Pictures are sampled at the middle of each cell of 1/fps seconds: the picture that a viewer
  would see then.
- Pictures are made small by whole-pixel box means in integers, and 8-bit luma is read as it was
  decoded, so that the same file gives the same bytes on every machine.
- FFmpeg is given an open file without its name and may open nothing else: no playlists, no other
  protocols; and the same bytes are read alike, whatever the file is called.
- A header is believed only as far as the packets bear it out: what it promises and the file does
  not hold is told.
"""

import heapq
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from featurizers import headers
from featurizers.clip import BadClipError
from featurizers.spec import AudioChunk, AudioWant, Chunk, VideoChunk, VideoWant, Want

# Nearer to the start, decoding from 0 is as fast and needs no trust in the file's index.
SEEK_FROM_S = 10.0
# Other forms have no index: they guess where a time lies, or land between two whole pictures.
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "wav")
SEEK_MARGIN_S = 1.0  # decoders need some packets before their first right sample
GAP_S = 0.1
MAX_RATE_HZ = 1000  # of pictures
SHUFFLED = ("h264", "hevc")
FLOAT_CODECS = ("pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be")
CHUNK_PICTURES = 32
MAX_DAMAGED = 0.2  # share of a stream's packets
MIN_THERE = 0.5  # share of what the header promises
# Headers round, and encoders put some sound before and after: this much is not missing.
SLACK_S = 0.25
SLACK_SHARE = 0.01
# Forms whose header says how long each stream is, or the file as a whole; others estimate it.
STREAM_IS_TOLD = ("mov,mp4,m4a,3gp,3g2,mj2", "flac", "aiff", "au")
FILE_IS_TOLD = ("matroska,webm", "flv", "asf")
LFS_POINTER = b"version https://git-lfs"
NO_MEDIA = "no media, or cut in the header"
LISTS = (b"#EXTM3U", b"ffconcat version", b"v=0\no=", b"v=0\r\no=")

Kind: TypeAlias = Literal["audio", "video"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# PyAV types nearly every attribute as optional, also those that are always there.
AvContainer: TypeAlias = Any
AvStream: TypeAlias = Any
AvPacket: TypeAlias = Any
AvFrame: TypeAlias = Any
AvResampler: TypeAlias = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a file's header says.

    `seconds` is measured from the packets where the header is silent.
    """

    seconds: float
    audio: bool
    video: bool


@dataclass(frozen=True, slots=True)
class NoStream:
    """The file has no such stream."""

    kind: str


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with a stream, though too little to give the clip up.

    Packets that cannot be decoded, times out of order, a gap in the sound, a file that was cut.
    """

    message: str


Event: TypeAlias = tuple[int, Chunk | NoStream | Damage]
"""The number of the want that it answers, and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one clip may cost.

    Attributes:
        seconds: Longest span; longer is "too_long".
        pixels: Largest picture; larger is "too_large".
        streams: Most streams in a file; more is "too_large".
        cpu_seconds: Processor time for a clip of which nothing came yet ...
        cpu_share: ... and for each second of it that came.
        memory_bytes: What the decoder may hold, as measured; with it a worker stays below 2 GiB.
    """

    seconds: float = 4 * 3600.0
    pixels: int = 8192 * 8192
    streams: int = 64
    cpu_seconds: float = 30.0
    cpu_share: float = 8.0
    memory_bytes: int = 1792 << 20


def probe(path: Path) -> Probe:
    """Read a file's header.

    Raises:
        BadClipError: "missing", "unreadable".
    """
    with _Opened(path) as opened:
        container = opened.container
        audio, video = _stream(container, "audio"), _stream(container, "video")
        seconds = _told_seconds(opened) or _packet_seconds(opened)
        return Probe(seconds=seconds, audio=audio is not None, video=video is not None)


def decode(
    path: Path, start: float, end: float | None, wants: Sequence[Want], limits: Limits
) -> Iterator[Event]:
    """Decode a span once for all wants, in order of time.

    Args:
        path: A local file.
        start: Seconds from the file's start.
        end: Seconds; None for the rest of the file.
        wants: What is wanted; each gets chunks, or one `NoStream`.
        limits: What it may cost.

    Raises:
        BadClipError: "missing", "unreadable", "corrupt", "empty", "too_long", "too_large",
            "bad_span".
    """
    _check_span(start, end)
    with _Opened(path) as opened:
        _check_streams(opened, limits)
        there = {kind for kind in KINDS if _stream(opened.container, kind)}
        absent = {i: _kind(want) for i, want in enumerate(wants) if _kind(want) not in there}
        yield from ((index, NoStream(kind)) for index, kind in absent.items())
        if len(absent) == len(wants):
            return
        _check_times(opened, start, end, limits)
        # Before the takers are made: a file that cannot do it is opened anew.
        if start > SEEK_FROM_S and opened.container.format.name in INDEXED:
            opened.seek(start - SEEK_MARGIN_S)
        takers = _takers(opened, wants, start, end, limits)
        reach = _Reach(opened)
        for packet in opened.packets():
            reach.see(packet)
            yield from _feed(packet, takers)
            if all(taker.done for taker in takers.values()):
                break
        for index, taker in takers.items():
            yield from ((index, chunk) for chunk in taker.finish())
            if taker.done:  # whatever comes after its span is not its affair
                message = _verdict(taker, "", None)
            else:
                message = _verdict(taker, opened.stopped, reach.told(taker))
            if message:
                yield index, Damage(message)


def encode(
    path: Path,
    *,
    frames: Iterable[NDArray[np.uint8]] | None,
    fps: int,
    samples: NDArray[np.int16] | None,
    rate_hz: int,
) -> None:
    """Write generated media: H.264 and AAC in an MP4 file, the same bytes for the same input.

    Args:
        path: The file to write.
        frames: RGB pictures [H, W, 3] with even H and W; None for no video stream.
        fps: Pictures per second.
        samples: Sound [N]; None for no audio stream.
        rate_hz: Samples per second.
    """
    import av

    with av.open(str(path), "w", format="mp4", container_options={"fflags": "+bitexact"}) as out:
        video = None
        pictures = iter(frames or ())
        first = next(pictures, None)
        if first is not None:
            # One thread: x264's decisions, and so the bytes, depend on the number of threads.
            video = out.add_stream(
                "libx264", rate=fps, options={"preset": "veryfast", "threads": "1"}
            )
            video.height, video.width, video.pix_fmt = first.shape[0], first.shape[1], "yuv420p"
            video.codec_context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT
        audio = None
        if samples is not None:
            audio = out.add_stream("aac", rate=rate_hz, layout="mono")
            audio.codec_context.flags |= 1 << 23
        if video is not None and first is not None:
            _write_pictures(out, video, first, pictures, fps)
        if audio is not None and samples is not None:
            _write_sound(out, audio, samples, rate_hz)


def _write_pictures(
    out: AvContainer,
    stream: AvStream,
    first: NDArray[np.uint8],
    rest: Iterator[NDArray[np.uint8]],
    fps: int,
) -> None:
    from fractions import Fraction

    import av

    number, picture = 0, first
    while True:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, fps)
        out.mux(stream.encode(frame))
        number += 1
        following = next(rest, None)
        if following is None:
            break
        picture = following
    out.mux(stream.encode(None))


def _write_sound(
    out: AvContainer, stream: AvStream, samples: NDArray[np.int16], rate_hz: int
) -> None:
    from fractions import Fraction

    import av

    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate_hz, frame_size=1024)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        out.mux(stream.encode(piece))
    out.mux(stream.encode(None))


class _Opened:
    """An open container with its clock's zero; closes both on leaving.

    Attributes:
        origin: The time stamp of the file's time 0, in seconds.
        stopped: Why reading ended before the file did; empty when it did not.
        sought: It does not stand at the beginning.
        told: How long each stream is by the bytes of the header, see `headers.told_seconds`.
        is_counted: Whether it is an MP3 file that says how long it is.
    """

    container: AvContainer

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_Opened":
        self.file = _open_file(self.path)
        try:
            _check_start(self.file)
            self.told = headers.told_seconds(self.file)
            self.is_counted = headers.counts_its_frames(self.file)
            self._open()
        except BaseException:
            self.file.close()
            raise
        return self

    def _open(self) -> None:
        import av
        from av.error import FFmpegError, PatchWelcomeError

        try:
            # Some playlists do not ask `_refuse`: without any protocol they can open nothing.
            self.container = av.open(
                self.file,
                io_open=_refuse,
                options={"protocol_whitelist": "none"},
                metadata_errors="replace",
            )
        except (FFmpegError, ValueError, OSError) as error:
            is_known = isinstance(error, PatchWelcomeError)
            what = "media of a kind that FFmpeg does not read" if is_known else NO_MEDIA
            raise BadClipError("unreadable", f"{what}: {_reason(error)}") from None
        if not any(_stream(self.container, kind) for kind in KINDS):
            self.container.close()
            raise BadClipError("unreadable", "neither sound nor pictures")
        self.origin = (self.container.start_time or 0) / 1e6
        self.stopped, self.sought = "", False
        self._demuxed: Iterator[AvPacket] = self._demux()

    def __exit__(self, *exc: object) -> None:
        self.container.close()
        self.file.close()

    def packets(self) -> Iterator[AvPacket]:
        """The packets of all streams from here on, until the end or until reading fails."""
        return self._demuxed

    def _demux(self) -> Iterator[AvPacket]:
        from av.error import FFmpegError

        try:
            yield from self.container.demux()
        except FFmpegError as error:
            self.stopped = _reason(error)
        except IndexError:  # PyAV's own, after all else: a stream that began on the way has no end
            pass

    def seek(self, seconds: float) -> None:
        """Go to a point at or before this one; to the beginning when the file cannot do that.

        An index that leads behind the point is not believed.
        """
        from av.error import FFmpegError

        try:
            self.container.seek(int((seconds + self.origin) * 1e6), backward=True)
        except FFmpegError:
            self._reopen()
            return
        first = next((packet for packet in self._demuxed if packet.pts is not None), None)
        if first is None or self.time(first) > seconds:
            self._reopen()
        else:
            self._demuxed, self.sought = chain([first], self._demuxed), True

    def time(self, packet: AvPacket) -> float:
        """When a packet that has a time stamp begins, in seconds from the file's time 0."""
        return _seconds(packet.pts, packet.time_base) - self.origin

    def _reopen(self) -> None:
        self.container.close()
        self.file.seek(0)
        self._open()


class _Reach:
    """How far each stream goes by its packets, held against what the header promises."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        self._ends: dict[int, int] = {}
        self._before: dict[int, int] = {}

    def see(self, packet: AvPacket) -> None:
        """Take note of a packet."""
        pts = packet.pts
        if pts is None or not packet.size:
            return
        index = packet.stream_index
        # Some forms do not tell how long the last one lasts: as long as the one before.
        length = packet.duration or max(0, pts - self._before.get(index, pts))
        self._before[index] = pts
        self._ends[index] = max(self._ends.get(index, pts), pts + length)

    def told(self, taker: "_Taker") -> "_Told | None":
        """What the header promises of a taker's span; None where it promises nothing.

        Where only the file's end is told, that is held against all its streams: one may well end
        before the others.
        """
        opened, span = self._opened, taker.span
        end, streams = _told_end(opened, taker.stream), [taker.stream]
        if end is None and opened.container.format.name in FILE_IS_TOLD:
            end, streams = _told_seconds(opened) - max(0.0, opened.origin), opened.container.streams
        last = math.inf if span.seconds is None else span.start + span.seconds
        if end is None or min(end, last) <= span.start:
            return None
        there = min(last, max(self._end(stream) for stream in streams)) - span.start
        if len(streams) == 1:
            there = min(there, taker.reached())
        return _Told(min(end, last) - span.start, max(0.0, there))

    def _end(self, stream: AvStream) -> float:
        if stream.index not in self._ends:
            return 0.0
        return _seconds(self._ends[stream.index], stream.time_base) - self._opened.origin


def _told_seconds(opened: _Opened) -> float:
    """How long the file is by its header, or by FFmpeg's estimate; 0 when neither is known."""
    return max(0.0, (opened.container.duration or 0) / 1e6)


def _told_end(opened: _Opened, stream: AvStream) -> float | None:
    """When a stream ends by the header, in seconds from time 0; None where none tells that."""
    if stream.index < len(opened.told):
        seconds: float | None = opened.told[stream.index]
        return seconds
    name = opened.container.format.name
    if name in STREAM_IS_TOLD or (name == "mp3" and opened.is_counted):
        end = (stream.start_time or 0) + (stream.duration or 0)
        return _seconds(end, stream.time_base) - opened.origin if stream.duration else None
    tagged = _tagged_seconds(stream.metadata.get("DURATION", ""))
    if name == "matroska,webm" and opened.container.duration and tagged is not None:
        return min(tagged, _told_seconds(opened)) - max(0.0, opened.origin)
    return None


def _tagged_seconds(text: str) -> float | None:
    """Seconds of a tag such as 00:00:04.064000000; None of anything else."""
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", text)
    if found is None:
        return None
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _check_start(file: BinaryIO) -> None:
    """Name what is often found in the place of media; FFmpeg would only call it invalid."""
    start = file.read(4096)
    file.seek(0)
    if not start:
        raise BadClipError("empty", "the file has 0 bytes")
    if start.startswith(LFS_POINTER):
        raise BadClipError("missing", "a Git LFS pointer; fetch the media with git lfs pull")
    if _is_list(start):
        raise BadClipError("unreadable", "a list of other files, which are not opened")
    if headers.lacks_index(file):
        text = "its index (the box moov) is missing, the file was cut"
        raise BadClipError("unreadable", text)


def _is_list(start: bytes) -> bool:
    """Whether this begins a playlist of one of the common forms.

    What is not known here is refused when FFmpeg asks to open the other file.
    """
    return start.startswith(LISTS) or b"<MPD" in start


def _open_file(path: Path) -> BinaryIO:
    """Open a file so that FFmpeg does not see its name.

    By the name it would take any bytes for sound (.g722, .sln) or for pictures of text (.nfo).
    """
    try:
        # Not opened before that is known: opening a named pipe waits for its other end.
        if not path.is_file():
            raise BadClipError("missing", _what_is_there(path))
        return os.fdopen(os.open(path, os.O_RDONLY), "rb")
    except OSError as error:
        raise BadClipError("unreadable", str(error.strerror)) from None


def _what_is_there(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a symbolic link that leads to no file"
    if path.is_dir():
        return "a folder, not a file"
    return "a special file" if path.exists() else "no such file"


def _reason(error: Exception) -> str:
    """What FFmpeg says of a file; that memory ran out says nothing of it and is raised on."""
    if isinstance(error, MemoryError):
        raise error
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _refuse(url: str, flags: int, options: object) -> object:
    raise PermissionError(f"the file refers to another, which is not opened: {url}")


def _stream(container: AvContainer, kind: Kind) -> AvStream | None:
    """The stream of this kind that FFmpeg finds best; cover pictures are no video."""
    best = container.streams.best(kind)
    if best is None or not _is_cover(best):
        return best
    others = (stream for stream in container.streams if stream.type == kind)
    return next((stream for stream in others if not _is_cover(stream)), None)


def _is_cover(stream: AvStream) -> bool:
    return bool(stream.disposition & stream.disposition.attached_pic)


def _seconds(ticks: int, time_base: Any) -> float:  # noqa: ANN401 - a Fraction, None in no stream
    """Exactly float(ticks * time_base), without the cost of a Fraction."""
    return float(ticks * time_base.numerator / time_base.denominator)


def _packet_seconds(opened: _Opened) -> float:
    last, seen = 0.0, False
    for packet in opened.packets():
        if packet.pts is not None:
            stop = packet.pts + (packet.duration or 0)
            last, seen = max(last, _seconds(stop, packet.time_base) - opened.origin), True
    if opened.stopped and not seen:
        raise BadClipError("unreadable", "no packet can be read")
    return last


def _kind(want: Want) -> Kind:
    return "audio" if isinstance(want, AudioWant) else "video"


def _check_span(start: float, end: float | None) -> None:
    told = [start] if end is None else [start, end]
    if not all(math.isfinite(time) for time in told) or start < 0 or told[-1] < start:
        raise BadClipError("bad_span", f"from {start} s to {end} s")


def _check_streams(opened: _Opened, limits: Limits) -> None:
    count = len(opened.container.streams)
    if count > limits.streams:
        raise BadClipError("too_large", f"{count} streams, at most {limits.streams} are taken")


def _check_times(opened: _Opened, start: float, end: float | None, limits: Limits) -> None:
    """Refuse what the header says and the file bears out, before anything is decoded."""
    known = _told_seconds(opened)
    if known and start >= known:
        raise BadClipError("bad_span", f"starts at {start} s, but the media have {known:.3f} s")
    last = known if end is None else min(end, known or end)
    if last - start > limits.seconds and _goes_on(opened.path, start + limits.seconds):
        _check_seconds(last - start, limits)


def _check_seconds(seconds: float, limits: Limits) -> None:
    if seconds > limits.seconds:
        raise BadClipError("too_long", f"{seconds:.0f} s, at most {limits.seconds:g} s are taken")


def _goes_on(path: Path, seconds: float) -> bool:
    """Whether there is a packet after this time, whatever the header says."""
    with _Opened(path) as opened:
        opened.seek(seconds)
        return any(
            packet.pts is not None and opened.time(packet) >= seconds for packet in opened.packets()
        )


def _takers(
    opened: _Opened, wants: Sequence[Want], start: float, end: float | None, limits: Limits
) -> "dict[int, _Taker]":
    takers: dict[int, _Taker] = {}
    # Pictures hang on those before them, sound hardly: what no seek passed over is not decoded.
    is_late = start > SEEK_FROM_S and not opened.sought
    sound_from = opened.origin + start - SEEK_MARGIN_S if is_late else -math.inf
    span = _Span(opened.origin, start, None if end is None else end - start, sound_from)
    for index, want in enumerate(wants):
        kind = _kind(want)
        stream = _stream(opened.container, kind)
        if stream is None:
            continue
        if stream.codec_context is None:
            raise BadClipError("unreadable", f"{kind}: nobody knows how to decode it")
        stream.codec_context.thread_count = 1
        if isinstance(want, AudioWant):
            takers[index] = _Sound(want, stream, span, limits)
        else:
            _check_pixels(stream.codec_context, limits)
            takers[index] = _Pictures(want, stream, span, limits)
    return takers


def _check_pixels(picture: Any, limits: Limits) -> None:  # noqa: ANN401 - a codec or a frame
    if picture.width * picture.height > limits.pixels:
        raise BadClipError(
            "too_large",
            f"pictures of {picture.width} x {picture.height}, at most {limits.pixels} pixels "
            "are taken",
        )


@dataclass(frozen=True, slots=True)
class _Span:
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


@dataclass(frozen=True, slots=True)
class _Told:
    """Of a wanted span, in seconds: how much the header promises and how much is there."""

    promised: float
    there: float

    @property
    def much_is_missing(self) -> bool:
        """Whether less is there than a sample may be made of."""
        return self.there < MIN_THERE * self.promised

    @property
    def remarks(self) -> list[str]:
        """Where both differ by more than rounding does."""
        slack = max(SLACK_S, SLACK_SHARE * self.promised)
        if self.there < self.promised - slack or self.much_is_missing:
            there = f"{self.there:.2f} of {self.promised:.2f} s are there"
            return [f"{there}, the file is cut or damaged or its header is wrong"]
        if self.there > self.promised + 4 * slack:
            return [f"the header says {self.promised:.2f} s, but {self.there:.2f} s are there"]
        return []


def _verdict(taker: "_Taker", stopped: str, told: _Told | None) -> str:
    """What is to be said of a stream; raises when too much is wrong with it or nothing came."""
    kind = taker.kind
    remarks = taker.remarks()
    if stopped:
        remarks.append(f"reading stopped early: {stopped}")
    if told is not None:
        remarks += told.remarks
    text = f"{kind}: {', '.join(remarks)}"
    if not taker.given and not remarks:
        raise BadClipError("empty", f"{kind}: nothing lies in the span")
    if not taker.given and taker.untimed:
        raise BadClipError("unreadable", f"{text}; bare streams need a container such as MP4")
    if not taker.given or taker.is_spoilt() or (told is not None and told.much_is_missing):
        raise BadClipError("corrupt", text)
    return text if remarks else ""


def _feed(packet: AvPacket, takers: "dict[int, _Taker]") -> Iterator[Event]:
    """Decode a packet for those that want more of its stream.

    One that is done hears of nothing further, so that it never depends on what is wanted beside it.
    """
    from av.error import FFmpegError

    mine = {index: taker for index, taker in takers.items() if taker.needs(packet)}
    if not mine:
        return
    for taker in mine.values():
        taker.hear(packet)
    try:
        frames = packet.decode()
    except FFmpegError as error:
        _reason(error)
        for taker in mine.values():
            taker.fail(packet)
        return
    for frame in frames:
        for index, taker in mine.items():
            yield from ((index, chunk) for chunk in taker.take(frame))


def _counted(count: int, noun: str) -> str:
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"


class _Taker:
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

    def __init__(self, stream: AvStream, span: _Span, limits: Limits) -> None:
        self.stream, self.span, self.limits = stream, span, limits
        self.done = self.given = False
        self.packets = self.bad = self.untimed = 0
        self._damaged = self._passed = self._late = 0
        self._waiting: tuple[float, AvFrame] | None = None
        self._last = self._due = -math.inf

    def needs(self, packet: AvPacket) -> bool:
        """Whether a packet has to be decoded for it."""
        # Not `stream_index`: it is 0 in every packet that flushes a decoder.
        return not self.done and packet.stream.index == self.stream.index

    def hear(self, packet: AvPacket) -> None:
        """Take note of a packet before it is decoded.

        Raises:
            BadClipError: "too_long": a second one lies behind the limit; one may have a wrong time.
        """
        self.packets += bool(packet.size)
        if self.span.seconds is None and packet.pts is not None:
            time = _seconds(packet.pts, packet.time_base) - self.span.offset
            self._late += time > self.limits.seconds
            if self._late > 1:
                _check_seconds(time, self.limits)

    def fail(self, packet: AvPacket) -> None:
        """Take note that it could not be decoded."""
        self.bad += 1

    def stamp(self, frame: AvFrame) -> int | None:
        """The time stamp of a frame."""
        pts: int | None = frame.pts
        return pts

    def take(self, frame: AvFrame) -> Iterator[Chunk]:
        """Take the next frame as it is decoded; it is used when the one after it is known."""
        pts = self.stamp(frame)
        if pts is None:
            self.untimed += 1
            return
        time = _seconds(pts, frame.time_base) - self.span.offset
        self._damaged += time >= 0 and frame.is_corrupt
        before = self._waiting
        if before is not None and time < before[0]:
            self._passed += 1
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
            _check_seconds(time, self.limits)
        yield from self._place(time, frame)

    def _place(self, time: float, frame: AvFrame) -> Iterator[Chunk]:
        raise NotImplementedError

    def _rest(self) -> Iterator[Chunk]:
        raise NotImplementedError


class _Sound(_Taker):
    """Sound at the wanted rate, one channel, cut to the span.

    A gap begins a new chunk in its right place; what would lie over sound that was given is passed
    over.
    """

    kind: Kind = "audio"
    noun = "frame"

    def __init__(self, want: AudioWant, stream: AvStream, span: _Span, limits: Limits) -> None:
        super().__init__(stream, span, limits)
        self.rate_hz = want.rate_hz
        self._resampler: AvResampler = None  # until a frame comes, and after a flush
        self._form: tuple[int, str, str] | None = None  # what follows is placed by its own time
        self._expected = -math.inf
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
        if packet.pts is None or not packet.size:
            return True
        stop = packet.pts + (packet.duration or 0)
        return _seconds(stop, packet.time_base) >= self.span.sound_from

    def fail(self, packet: AvPacket) -> None:
        """Take note that it could not be decoded: what follows must not move up."""
        super().fail(packet)
        self._form = None

    def remarks(self) -> list[str]:
        """What is to be said of the sound."""
        found = super().remarks()
        if self._not_finite:
            counted = _counted(self._not_finite, self.noun)
            found.append(f"{counted} not finite (NaN or infinity) and passed over")
        if self._gaps:
            gaps = "1 gap" if self._gaps == 1 else f"{self._gaps} gaps"
            found.append(f"{self._gap_s:.2f} s are missing in {gaps}")
        return found

    def _place(self, time: float, frame: AvFrame) -> Iterator[Chunk]:
        if self._holds_floats and not np.isfinite(frame.to_ndarray()).all():
            self._not_finite += 1
            self._form = None
            return
        stop = time + frame.samples / frame.sample_rate
        ahead = time - self._expected
        if ahead < -GAP_S and stop <= self._expected:
            self._passed += 1
            self._form = None
            return
        form = (frame.sample_rate, frame.layout.name, frame.format.name)
        if form != self._form or abs(ahead) > GAP_S:
            yield from self._flush()
            self._note_gap(time)
            # A resampler takes what it was first given: one of its own for each form.
            self._resampler, self._form = _resampler(self.rate_hz), form
            self._position = round(time * self.rate_hz)
        self._expected = self._due = stop
        self._hold(self._resampled(frame))
        if self._held_samples >= self.rate_hz:
            yield from self._emit()
        self.done = self.span.seconds is not None and (
            self._position >= self.span.seconds * self.rate_hz
        )

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
        if self._resampler is not None:
            self._hold(self._resampled(None))
            self._resampler = None
        yield from self._emit()

    def _resampled(self, frame: AvFrame | None) -> Sequence[AvFrame]:
        from av.error import FFmpegError

        try:
            pieces: Sequence[AvFrame] = self._resampler.resample(frame)
        except (FFmpegError, ValueError) as error:
            raise BadClipError("corrupt", f"audio: cannot be resampled: {_reason(error)}") from None
        return pieces

    def _hold(self, pieces: Sequence[AvFrame]) -> None:
        for piece in pieces:
            self._held.append(piece.to_ndarray().reshape(-1))
            self._held_samples += len(self._held[-1])

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
            yield AudioChunk((begin + first) / self.rate_hz, samples[first:last].astype(np.int16))


def _resampler(rate_hz: int) -> AvResampler:
    import av

    return av.AudioResampler(format="s16", layout="mono", rate=rate_hz)


class _Pictures(_Taker):
    """The picture that is shown at the middle of each cell of 1/fps seconds."""

    kind: Kind = "video"
    noun = "picture"

    def __init__(self, want: VideoWant, stream: AvStream, span: _Span, limits: Limits) -> None:
        super().__init__(stream, span, limits)
        self.want = want
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

    def stamp(self, frame: AvFrame) -> int | None:
        """The time stamp of a picture: where they are out of order, the earliest of those left."""
        return heapq.heappop(self._stamps) if self._stamps else super().stamp(frame)

    def _place(self, time: float, frame: AvFrame) -> Iterator[Chunk]:
        # Once more after the header: the size may change on the way.
        _check_pixels(frame, self.limits)
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
            told = _seconds(self._shown.duration or 0, self._shown.time_base)
            length = told or self._gap or 1 / self.want.fps
            stop = self._shown_from + length
            if not self.done:
                _check_seconds(stop, self.limits)
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
            self._small = _small(self._shown, self.want)
        self._held.append((self._cell, self._small))

    def _emit(self) -> Iterator[Chunk]:
        if not self._held:
            return
        cells = np.array([cell for cell, _ in self._held], dtype=np.float64)
        frames = np.stack([picture for _, picture in self._held])
        self._held, self.given = [], True
        yield VideoChunk(np.stack([cells, cells + 1], axis=1) / self.want.fps, frames)


def _small(frame: AvFrame, want: VideoWant) -> NDArray[np.uint8]:
    from av.error import FFmpegError

    try:
        whole = frame if want.colour == "gray" else frame.to_ndarray(format="rgb24")
        square = _luma(frame) if want.colour == "gray" else _centred(whole)
    except (FFmpegError, ValueError) as error:
        raise BadClipError("corrupt", f"video: cannot be converted: {_reason(error)}") from None
    # The display matrix turns counter-clockwise in degrees, as numpy does in quarters.
    return np.ascontiguousarray(np.rot90(box_mean(square, want.size), round(frame.rotation / 90)))


def _centred(whole: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest centred square of [H, W] or [H, W, 3]."""
    side = min(whole.shape[:2])
    top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
    return whole[top : top + side, left : left + side]


def _luma(frame: AvFrame) -> NDArray[np.uint8]:
    """Brightness 0..255 [S, S] of the centred square; the decoded plane where it has 8 bits."""
    layout = frame.format
    if layout.is_rgb or layout.has_palette or layout.components[0].bits != 8:
        return _centred(frame.to_ndarray(format="gray"))
    plane = frame.planes[0]
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
    square = _centred(rows[: frame.height, : frame.width])
    if frame.color_range == 2 or layout.name.startswith(("yuvj", "gray")):
        return square
    return np.frombuffer(square.tobytes().translate(_LIMITED), dtype=np.uint8).reshape(square.shape)


# Limited range puts black at 16 and white at 235.
_LIMITED = np.clip((np.arange(256) - 16) * 255 / 219 + 0.5, 0, 255).astype(np.uint8).tobytes()


def box_mean(square: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale [S, S] or [S, S, 3] to `size` by means over whole pixels, in integers.

    Pixels of smaller pictures are repeated.
    """
    side = len(square)
    edges = np.arange(size) * side // size
    if side < size:
        return square[edges][:, edges]
    counts = np.diff(edges, append=side)
    sums = np.add.reduceat(_row_sums(square, edges, counts), edges, axis=1, dtype=np.uint32)
    area = np.multiply.outer(counts, counts).astype(np.uint32)
    if square.ndim == 3:
        area = area[:, :, np.newaxis]
    return ((sums + area // 2) // area).astype(np.uint8)


def _row_sums(
    square: NDArray[np.uint8], edges: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """np.add.reduceat(square, edges, axis=0), several times as fast: whole rows are added."""
    least = int(counts.min())
    sums = square[edges].astype(np.uint32)
    for below in range(1, least):
        sums += square[edges + below]
    longer = np.flatnonzero(counts > least)  # by one row
    sums[longer] += square[edges[longer] + least]
    return sums
