"""Decode and encode media on one clock; the only user of PyAV.

- Time 0 of a file is its container's start time; every sample and picture is placed by its
  presentation time, never by its number, so that streams which start apart, gaps and variable frame
  rates keep their place.
- Pictures are sampled at the middle of each cell of 1/fps seconds: the picture that a viewer
  would see then.
- Pictures are made small by whole-pixel box means in integers, and 8-bit luma is read as it was
  decoded, so that the same file gives the same bytes on every machine.
- FFmpeg is given an open file and may open nothing else: no playlists, no other protocols.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError
from featurizers.spec import AudioChunk, AudioWant, Chunk, VideoChunk, VideoWant, Want

# Nearer to the start, decoding from 0 is as fast and needs no trust in the file's index.
SEEK_FROM_S = 10.0
# Other forms have no index: they guess where a time lies, or land between two whole pictures.
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
SEEK_MARGIN_S = 1.0  # decoders need some packets before their first right sample
GAP_S = 0.1
CHUNK_PICTURES = 32
MAX_BAD_PACKETS = 0.2
LFS_POINTER = b"version https://git-lfs"

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
    """Some packets could not be decoded and were passed over; too few to give the clip up."""

    message: str


Event: TypeAlias = tuple[int, Chunk | NoStream | Damage]
"""The number of the want that it answers, and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one clip may cost.

    Attributes:
        seconds: Longest span; longer is "too_long".
        pixels: Largest picture; larger is "too_large".
        cpu_seconds: Processor time for a clip of no length ...
        cpu_share: ... and for each second of it.
        memory_bytes: Address space of the decoder.
    """

    seconds: float = 4 * 3600.0
    pixels: int = 8192 * 8192
    cpu_seconds: float = 30.0
    cpu_share: float = 8.0
    memory_bytes: int = 4 << 30


def probe(path: Path) -> Probe:
    """Read a file's header.

    Raises:
        BadClipError: "missing", "unreadable".
    """
    with _Opened(path) as opened:
        container = opened.container
        audio, video = _stream(container, "audio"), _stream(container, "video")
        seconds = (container.duration or 0) / 1e6 or _packet_seconds(opened, path)
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
    from av.error import FFmpegError

    with _Opened(path) as opened:
        # Before the takers are made: a file that cannot do it is opened anew.
        if start > SEEK_FROM_S and opened.container.format.name in INDEXED:
            opened.seek(start - SEEK_MARGIN_S)
        takers = _takers(opened, wants, start, end, limits)
        yield from ((i, NoStream(_kind(want))) for i, want in enumerate(wants) if i not in takers)
        if not takers:
            return
        stopped = ""
        try:
            for packet in opened.container.demux([taker.stream for taker in takers.values()]):
                yield from _feed(packet, takers)
                if all(taker.done for taker in takers.values()):
                    break
        except FFmpegError as error:
            stopped = _reason(error)
        for index, taker in takers.items():
            yield from ((index, chunk) for chunk in taker.finish())
            message = _verdict(path, taker, "" if taker.done else stopped)
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
    """An open container with its clock's zero; closes both on leaving."""

    container: AvContainer

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_Opened":
        self.file = _open_file(self.path)
        try:
            _check_start(self.path, self.file)
            self._open()
        except BaseException:
            self.file.close()
            raise
        return self

    def _open(self) -> None:
        import av
        from av.error import FFmpegError

        try:
            # Some playlists do not ask `_refuse`: without any protocol they can open nothing.
            self.container = av.open(
                self.file,
                io_open=_refuse,
                options={"protocol_whitelist": "none"},
                metadata_errors="replace",
            )
        except (FFmpegError, ValueError, OSError) as error:
            raise BadClipError("unreadable", _reason(error)) from None
        if not any(_stream(self.container, kind) for kind in KINDS):
            self.container.close()
            raise BadClipError("unreadable", "neither sound nor pictures")
        self.origin = (self.container.start_time or 0) / 1e6

    def __exit__(self, *exc: object) -> None:
        self.container.close()
        self.file.close()

    def seek(self, seconds: float) -> None:
        """Go to a point at or before this one; to the beginning when the file cannot do that."""
        from av.error import FFmpegError

        try:
            self.container.seek(int((seconds + self.origin) * 1e6), backward=True)
        except FFmpegError:
            self.container.close()
            self.file.seek(0)
            self._open()


def _check_start(path: Path, file: BinaryIO) -> None:
    """Name what is often found in the place of media; FFmpeg would only call it invalid."""
    start = file.read(len(LFS_POINTER))
    file.seek(0)
    if not start:
        raise BadClipError("empty", "the file has 0 bytes")
    if start == LFS_POINTER:
        raise BadClipError("missing", "a Git LFS pointer; fetch the media with git lfs pull")


def _open_file(path: Path) -> BinaryIO:
    try:
        # Not opened before that is known: opening a named pipe waits for its other end.
        if not path.is_file():
            found = "a special file" if path.exists() else "no such file"
            raise BadClipError("missing", found)
        return path.open("rb")
    except OSError as error:
        raise BadClipError("unreadable", str(error.strerror)) from None


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
    if best is not None and kind == "video" and best.disposition & best.disposition.attached_pic:
        return None
    return best


def _packet_seconds(opened: _Opened, path: Path) -> float:
    from av.error import FFmpegError

    last = 0.0
    try:
        for packet in opened.container.demux():
            if packet.pts is not None:
                stop = (packet.pts + (packet.duration or 0)) * packet.time_base
                last = max(last, float(stop) - opened.origin)
    except FFmpegError:
        if last == 0.0:
            raise BadClipError("unreadable", "no packet can be read") from None
    return last


def _kind(want: Want) -> Kind:
    return "audio" if isinstance(want, AudioWant) else "video"


def _takers(
    opened: _Opened,
    wants: Sequence[Want],
    start: float,
    end: float | None,
    limits: Limits,
) -> dict[int, "_Sound | _Pictures"]:
    known = (opened.container.duration or 0) / 1e6
    length = (known if end is None else end) - start
    if length > limits.seconds:
        raise BadClipError("too_long", f"{length:.0f} s, at most {limits.seconds:.0f} s are taken")
    if known and start >= known:
        raise BadClipError("bad_span", f"starts at {start} s, but the media have {known:.3f} s")
    takers: dict[int, _Sound | _Pictures] = {}
    span = None if end is None else end - start
    for index, want in enumerate(wants):
        stream = _stream(opened.container, _kind(want))
        if stream is None:
            continue
        stream.codec_context.thread_count = 1
        offset = opened.origin + start
        if isinstance(want, AudioWant):
            takers[index] = _Sound(stream, want, offset, span)
            continue
        pixels = stream.codec_context.width * stream.codec_context.height
        if pixels > limits.pixels:
            raise BadClipError("too_large", f"{pixels} pixels, at most {limits.pixels} are taken")
        takers[index] = _Pictures(stream, want, offset, span)
    return takers


def _verdict(path: Path, taker: "_Sound | _Pictures", stopped: str) -> str:
    """What is to be said of a stream; raises when too much is damaged or nothing came."""
    kind, packets, bad = taker.kind, taker.packets, taker.bad
    if bad and (not taker.given or bad > MAX_BAD_PACKETS * packets):
        raise BadClipError("corrupt", f"{bad} of {packets} {kind} packets are damaged")
    if not taker.given:
        reason = stopped or "nothing lies in the span"
        raise BadClipError("corrupt" if stopped else "empty", f"{kind}: {reason}")
    if stopped:
        return f"{kind}: reading stopped early: {stopped}"
    return f"{kind}: {bad} of {packets} packets are damaged and passed over" if bad else ""


def _feed(packet: AvPacket, takers: dict[int, "_Sound | _Pictures"]) -> Iterator[Event]:
    """Decode a packet for those that want more of its stream.

    One that is done hears of nothing further, so that it never depends on what is wanted beside it.
    """
    from av.error import FFmpegError

    mine = {
        i: taker
        for i, taker in takers.items()
        if taker.stream.index == packet.stream.index and not taker.done
    }
    if not mine:
        return
    for taker in mine.values():
        taker.packets += bool(packet.size)
    try:
        frames = packet.decode()
    except FFmpegError as error:
        _reason(error)
        for taker in mine.values():
            taker.bad += 1
        return
    for frame in frames:
        if frame.pts is not None:
            for index, taker in mine.items():
                yield from ((index, chunk) for chunk in taker.take(frame))


class _Sound:
    """Sound at the wanted rate, one channel, cut to the span.

    A gap begins a new chunk in its right place.
    """

    kind = "audio"

    def __init__(
        self, stream: AvStream, want: AudioWant, offset: float, span: float | None
    ) -> None:
        self.stream, self.rate_hz, self.offset, self.span = stream, want.rate_hz, offset, span
        self.done = self.given = False
        self.packets = self.bad = 0
        self._resampler: AvResampler = None  # until a frame comes, and after a flush
        self._form: tuple[int, str, str] | None = None
        self._expected = 0.0
        self._position = 0  # of the next sample, counted from the clip's start
        self._held: list[NDArray[np.int16]] = []
        self._held_samples = 0

    def take(self, frame: AvFrame) -> Iterator[AudioChunk]:
        time = float(frame.pts * frame.time_base) - self.offset
        form = (frame.sample_rate, frame.layout.name, frame.format.name)
        if form != self._form or abs(time - self._expected) > GAP_S:
            yield from self._flush()
            # The position never goes back: overlapping timestamps must not write over what was
            # given.
            self._position = max(
                round(time * self.rate_hz), self._position if self.given else -(1 << 60)
            )
            # A resampler takes what it was first given: one of its own for each form.
            self._resampler, self._form = _resampler(self.rate_hz), form
        self._expected = time + frame.samples / frame.sample_rate
        self._hold(self._resampler.resample(frame))
        if self._held_samples >= self.rate_hz:
            yield from self._emit()
        self.done = self.span is not None and self._position >= self.span * self.rate_hz

    def finish(self) -> Iterator[AudioChunk]:
        yield from self._flush()

    def _flush(self) -> Iterator[AudioChunk]:
        if self._resampler is not None:
            self._hold(self._resampler.resample(None))
            self._resampler = None
        yield from self._emit()

    def _hold(self, pieces: Sequence[AvFrame]) -> None:
        for piece in pieces:
            self._held.append(piece.to_ndarray().reshape(-1))
            self._held_samples += len(self._held[-1])

    def _emit(self) -> Iterator[AudioChunk]:
        if not self._held:
            return
        samples, begin = np.concatenate(self._held), self._position
        self._held, self._held_samples = [], 0
        self._position += len(samples)
        first = max(0, -begin)
        last = len(samples)
        if self.span is not None:
            last = min(last, round(self.span * self.rate_hz) - begin)
        if last > first:
            self.given = True
            yield AudioChunk((begin + first) / self.rate_hz, samples[first:last].astype(np.int16))


def _resampler(rate_hz: int) -> AvResampler:
    import av

    return av.AudioResampler(format="s16", layout="mono", rate=rate_hz)


class _Pictures:
    """The picture that is shown at the middle of each cell of 1/fps seconds."""

    kind = "video"

    def __init__(
        self, stream: AvStream, want: VideoWant, offset: float, span: float | None
    ) -> None:
        self.stream, self.want, self.offset, self.span = stream, want, offset, span
        self.done = self.given = False
        self.packets = self.bad = 0
        self._shown: AvFrame | None = None
        self._shown_from = self._gap = 0.0
        self._small: NDArray[np.uint8] | None = None
        self._cell = 0
        self._held: list[tuple[int, NDArray[np.uint8]]] = []

    def take(self, frame: AvFrame) -> Iterator[VideoChunk]:
        time = float(frame.pts * frame.time_base) - self.offset
        if self._shown is not None and time < self._shown_from:
            return  # out of order: a damaged file
        yield from self._show_until(time)
        if self.span is not None and time >= self.span:
            self.done = True
            return
        if self._shown is not None:
            self._gap = time - self._shown_from
        self._shown, self._shown_from, self._small = frame, time, None

    def finish(self) -> Iterator[VideoChunk]:
        if self._shown is not None:
            told = float((self._shown.duration or 0) * self._shown.time_base)
            length = told or self._gap or 1 / self.want.fps
            stop = self._shown_from + length
            yield from self._show_until(stop)
            if stop > 0 and not self.given and not self._held:  # shorter than half a cell
                self._cell = int(max(0.0, self._shown_from) * self.want.fps)
                self._hold()
        yield from self._emit()

    def _middle(self) -> float:
        return (self._cell + 0.5) / self.want.fps

    def _show_until(self, time: float) -> Iterator[VideoChunk]:
        limit = time if self.span is None else min(time, self.span)
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

    def _emit(self) -> Iterator[VideoChunk]:
        if not self._held:
            return
        cells = np.array([cell for cell, _ in self._held], dtype=np.float64)
        frames = np.stack([picture for _, picture in self._held])
        self._held, self.given = [], True
        yield VideoChunk(np.stack([cells, cells + 1], axis=1) / self.want.fps, frames)


def _small(frame: AvFrame, want: VideoWant) -> NDArray[np.uint8]:
    whole = _luma(frame) if want.colour == "gray" else frame.to_ndarray(format="rgb24")
    side = min(whole.shape[:2])
    top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
    square = whole[top : top + side, left : left + side]
    # The display matrix turns counter-clockwise in degrees, as numpy does in quarters.
    return np.ascontiguousarray(np.rot90(box_mean(square, want.size), round(frame.rotation / 90)))


def _luma(frame: AvFrame) -> NDArray[np.uint8]:
    """Brightness 0..255 [H, W]; read from the decoded plane where it has 8 bits."""
    layout = frame.format
    if layout.is_rgb or layout.has_palette or layout.components[0].bits != 8:
        converted: NDArray[np.uint8] = frame.to_ndarray(format="gray")
        return converted
    plane = frame.planes[0]
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
    luma = rows[: frame.height, : frame.width]
    full = frame.color_range == 2 or layout.name.startswith(("yuvj", "gray"))
    return luma if full else _LIMITED[luma]


# Limited range puts black at 16 and white at 235.
_LIMITED = np.clip((np.arange(256) - 16) * 255 / 219 + 0.5, 0, 255).astype(np.uint8)


def box_mean(square: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale [S, S] or [S, S, 3] to `size` by means over whole pixels, in integers.

    Pixels of smaller pictures are repeated.
    """
    side = len(square)
    edges = np.arange(size) * side // size
    if side < size:
        return square[edges][:, edges]
    counts = np.diff(edges, append=side)
    sums = np.add.reduceat(square, edges, axis=0, dtype=np.uint32)
    sums = np.add.reduceat(sums, edges, axis=1, dtype=np.uint32)
    area = np.multiply.outer(counts, counts).astype(np.uint32)
    if square.ndim == 3:
        area = area[:, :, np.newaxis]
    return ((sums + area // 2) // area).astype(np.uint8)
