"""Decode and encode media on one clock; the only user of PyAV.

- Time 0 of a file is its container's start time; `placing` puts what is decoded in its place on
  that clock.
- Pictures are made small by whole-pixel box means in integers (`shrink`), and 8-bit luma is read as
  it was decoded, so that the same file gives the same bytes on every machine.
- FFmpeg is given an open file without its name and may open nothing else: no playlists, no other
  protocols; and the same bytes are read alike, whatever the file is called.
- A header is believed only as far as the packets bear it out: what it promises and the file does
  not hold is told.
- A file that cannot be read just now says nothing of a clip: see `opening`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers import headers
from featurizers.choosing import AvContainer, best_stream, chosen_stream, kind_of
from featurizers.clip import BadClipError
from featurizers.clocks import Clocks
from featurizers.damage import Damage, verdict
from featurizers.limits import Limits, check_pixels, check_seconds, check_span, check_streams
from featurizers.opening import open_media
from featurizers.placing import (
    KINDS,
    AvFrame,
    AvPacket,
    AvStream,
    Kind,
    Pictures,
    Resample,
    Sound,
    Span,
    Taker,
    seconds_of,
)
from featurizers.reach import Reach, told_seconds
from featurizers.shrink import box_mean, centred, full_range, letterboxed
from featurizers.spec import AudioWant, Chunk, VideoWant, Want

# Nearer to the start, decoding from 0 is as fast and needs no trust in the file's index.
SEEK_FROM_S = 10.0
# Other forms have no index: they guess where a time lies, or land between two whole pictures.
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "wav")
WHOLE_PICTURE = 1  # FFmpeg's AV_PICTURE_TYPE_I
SEEK_MARGIN_S = 1.0  # decoders need some packets before their first right sample
NO_MEDIA = "no media, or cut in the header"


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


Event: TypeAlias = tuple[int, Chunk | NoStream | Damage]
"""The number of the want that it answers, and what was found."""


def probe(path: Path) -> Probe:
    """Read a file's header.

    Raises:
        BadClipError: "missing", "unreadable".
        StorageError: It cannot be read now.
    """
    with Opened(path) as opened:
        container = opened.container
        audio, video = best_stream(container, "audio"), best_stream(container, "video")
        seconds = told_seconds(opened) or _packet_seconds(opened)
        return Probe(seconds=seconds, audio=audio is not None, video=video is not None)


def decode(
    path: Path,
    start: float,
    end: float | None,
    wants: Sequence[Want],
    limits: Limits,
    *,
    clocks: list[Clocks] | None = None,
) -> Iterator[Event]:
    """Decode a span once for all wants, in order of time.

    Args:
        path: A local file.
        start: Seconds from the file's start.
        end: Seconds; None for the rest of the file.
        wants: What is wanted; each gets chunks, or one `NoStream`.
        limits: What it may cost.
        clocks: Takes how the clocks of sound and pictures lie to each other, where a file has both;
            of a kind that is not wanted, the stream that FFmpeg finds best.

    Raises:
        BadClipError: "missing", "unreadable", "corrupt", "empty", "too_long", "too_large",
            "bad_span", "bad_stream".
        StorageError: It cannot be read now; what was given before is to be thrown away.
    """
    check_span(start, end)
    with Opened(path) as opened:
        check_streams(len(opened.container.streams), limits)
        absent = absent_in(opened, wants)
        yield from ((index, NoStream(kind)) for index, kind in absent.items())
        if len(absent) == len(wants):
            return
        check_times(opened, start, end, limits)
        opened.approach(start, wants)
        takers = takers_of(opened, wants, start, end, limits)
        reach = Reach(opened)
        for packet in opened.packets():
            reach.see(packet)
            yield from _feed(packet, takers)
            if all(taker.done for taker in takers.values()):
                break
        is_read = not all(taker.done for taker in takers.values())
        for index, taker in takers.items():
            yield from ((index, chunk) for chunk in taker.finish())
            if taker.done:  # whatever comes after its span is not its affair
                message = verdict(taker, "", None)
            else:
                message = verdict(taker, opened.stopped, reach.told(taker))
            if message:
                yield index, Damage(message)
        if clocks is not None:
            clocks += reach.clocks(list(takers.values()), is_read=is_read)


def absent_in(opened: "Opened", wants: Sequence[Want]) -> dict[int, Kind]:
    """The wants, by number, for which a file has no stream."""
    kinds = {number: kind_of(want) for number, want in enumerate(wants)}
    return {i: kind for i, kind in kinds.items() if not best_stream(opened.container, kind)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Codecs:
    """What PyAV and its FFmpeg are, and which of some codecs they have."""

    pyav: str
    ffmpeg: str
    decoders: frozenset[str]
    encoders: frozenset[str]


def codecs(names: Iterable[str]) -> Codecs:
    """Which of some codecs, by FFmpeg's names, can be decoded and encoded here."""
    import av
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    def known(mode: Literal["r", "w"]) -> Iterator[str]:
        for name in asked:
            try:
                if Codec(name, mode).name == name:  # a family's name gives any of it
                    yield name
            except UnknownCodecError:
                continue

    asked = list(names)
    return Codecs(
        pyav=av.__version__,
        ffmpeg=av.ffmpeg_version_info,
        decoders=frozenset(known("r")),
        encoders=frozenset(known("w")),
    )


# x264's decisions, and so the bytes, depend on the number of threads, and on the processor: some of
# its vector code even reads memory that nobody wrote, and differs in one film of fifty.
_X264 = {"preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}


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
            video = out.add_stream("libx264", rate=fps, options=dict(_X264))
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


class Opened:
    """An open container with its clock's zero; closes both on leaving.

    Leaving raises StorageError, in place of BadClipError too, when not all could be read.

    Attributes:
        origin: The time stamp of the file's time 0, in seconds.
        stopped: Why reading ended before the file did; empty when it did not.
        told: How long each stream is by the bytes of the header, see `headers.told_seconds`.
        is_counted: Whether it is an MP3 file that says how long it is.
    """

    container: AvContainer

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "Opened":
        self.file = open_media(self.path)
        try:
            with self.file.trusted():
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
        if not any(best_stream(self.container, kind) for kind in KINDS):
            self.container.close()
            raise BadClipError("unreadable", "neither sound nor pictures")
        for stream in self.container.streams:
            if stream.codec_context is not None:  # before anything is decoded
                stream.codec_context.thread_count = 1
        self.origin = (self.container.start_time or 0) / 1e6
        self.stopped = ""
        self._demuxed: Iterator[AvPacket] = self._demux()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.container.close()
        self.file.close()
        if error is None or isinstance(error, BadClipError):
            self.file.check()

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

    def approach(self, start: float, wants: Sequence[Want]) -> None:
        """Go to a point from which a span that begins there can be decoded.

        To be called before the takers are made: a file that cannot do it is opened anew. What
        decoding from the beginning would give must be given from there too, so the point is only
        believed when each wanted stream begins there as it should.
        """
        if start <= SEEK_FROM_S or self.container.format.name not in INDEXED:
            return
        point = start - 2 * SEEK_MARGIN_S
        if self.seek(point) and not (self._begins_well(start, wants) and self.seek(point)):
            self._reopen()

    def _begins_well(self, start: float, wants: Sequence[Want]) -> bool:
        """Whether the sound from here on is whole, and the first picture needs none before it.

        Some files call every picture a whole one, and a seek heeds the whole pictures of one stream
        alone.
        """
        found = {chosen_stream(self.container, kind_of(want), want.stream) for want in wants}
        left = {stream.index for stream in found if stream is not None}
        for packet in self._demuxed:
            if packet.pts is not None and self.time(packet) > start + SEEK_FROM_S:
                break
            begins = self._begins(packet, start) if packet.stream.index in left else None
            if begins is False:
                return False
            if begins:
                left.discard(packet.stream.index)
            if not left:
                return True
        return all(self.container.streams[index].type == "audio" for index in left)  # none is there

    def _begins(self, packet: AvPacket, start: float) -> bool | None:
        """Whether a stream can be taken from this packet on; None when the next one will tell."""
        if packet.stream.type == "audio":
            return packet.pts is not None and self.time(packet) <= start - SEEK_MARGIN_S
        frames = decoded(packet)
        if not frames:
            return False if frames is None else None
        whole = int(frames[0].pict_type) == WHOLE_PICTURE
        return whole and (frames[0].time or 0.0) - self.origin <= start

    def seek(self, seconds: float) -> bool:
        """Go to a point at or before this one; to the beginning when the file cannot do that.

        An index that leads behind the point is not believed.
        """
        from av.error import FFmpegError

        try:
            self.container.seek(int((seconds + self.origin) * 1e6), backward=True)
        except FFmpegError:
            self._reopen()
            return False
        first = next((packet for packet in self._demuxed if packet.pts is not None), None)
        if first is None or self.time(first) > seconds:
            self._reopen()
            return False
        self._demuxed = chain([first], self._demuxed)
        return True

    def time(self, packet: AvPacket) -> float:
        """When a packet that has a time stamp begins, in seconds from the file's time 0."""
        return seconds_of(packet.pts, packet.time_base) - self.origin

    def _reopen(self) -> None:
        self.container.close()
        self.file.seek(0)
        self._open()


def _reason(error: Exception) -> str:
    """What FFmpeg says of a file; that memory ran out says nothing of it and is raised on."""
    if isinstance(error, MemoryError):
        raise error
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _refuse(url: str, flags: int, options: object) -> object:
    raise PermissionError(f"the file refers to another, which is not opened: {url}")


def _packet_seconds(opened: Opened) -> float:
    last, seen = 0.0, False
    for packet in opened.packets():
        if packet.pts is not None:
            stop = packet.pts + (packet.duration or 0)
            last, seen = max(last, seconds_of(stop, packet.time_base) - opened.origin), True
    if opened.stopped and not seen:
        raise BadClipError("unreadable", "no packet can be read")
    return last


def check_times(opened: Opened, start: float, end: float | None, limits: Limits) -> None:
    """Refuse what the header says and the file bears out, before anything is decoded."""
    known = told_seconds(opened)
    if known and start >= known:
        raise BadClipError("bad_span", f"starts at {start} s, but the media have {known:.3f} s")
    last = known if end is None else min(end, known or end)
    if last - start > limits.seconds and _goes_on(opened.path, start + limits.seconds):
        check_seconds(last - start, limits)


def _goes_on(path: Path, seconds: float) -> bool:
    """Whether there is a packet after this time, whatever the header says."""
    with Opened(path) as opened:
        opened.seek(seconds)
        return any(
            packet.pts is not None and opened.time(packet) >= seconds for packet in opened.packets()
        )


def takers_of(
    opened: Opened, wants: Sequence[Want], start: float, end: float | None, limits: Limits
) -> dict[int, Taker]:
    """What takes a span of the streams that are wanted and there, by the number of the want.

    Raises:
        BadClipError: "unreadable", "too_large", "bad_stream".
    """
    takers: dict[int, Taker] = {}
    # Pictures hang on those before them, sound hardly. Some decoders (AAC) draw random numbers: it
    # is to begin at a packet that only the span decides, whatever a seek passed over.
    sound_from = opened.origin + start - SEEK_MARGIN_S if start > SEEK_MARGIN_S else -math.inf
    span = Span(opened.origin, start, None if end is None else end - start, sound_from)
    for index, want in enumerate(wants):
        kind = kind_of(want)
        stream = chosen_stream(opened.container, kind, want.stream)
        if stream is None:
            continue
        if stream.codec_context is None:
            raise BadClipError("unreadable", f"{kind}: nobody knows how to decode it")
        if isinstance(want, AudioWant):
            takers[index] = Sound(want, stream, span, limits, _resampling)
        else:
            check_pixels(stream.codec_context, limits)
            takers[index] = Pictures(want, stream, span, limits, _small)
    return takers


def _feed(packet: AvPacket, takers: dict[int, Taker]) -> Iterator[Event]:
    """Decode a packet for those that want more of its stream.

    One that is done hears of nothing further, so that it never depends on what is wanted beside it.
    """
    mine = [(index, taker) for index, taker in takers.items() if taker.needs(packet)]
    if not mine:
        return
    for _, taker in mine:
        taker.hear(packet)
    frames = decoded(packet)
    if frames is None:
        for _, taker in mine:
            taker.fail(packet)
        return
    for frame in frames:
        for index, taker in mine:
            for chunk in taker.take(frame):
                yield index, chunk


def decoded(packet: AvPacket) -> Sequence[AvFrame] | None:
    """The frames that a packet gives; None when it cannot be decoded."""
    from av.error import FFmpegError

    try:
        frames: Sequence[AvFrame] = packet.decode()
    except FFmpegError as error:
        _reason(error)
        return None
    return frames


def _resampling(rate_hz: int) -> Resample:
    import av
    from av.error import FFmpegError

    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate_hz)

    def resample(frame: AvFrame | None) -> Sequence[NDArray[np.int16]]:
        try:
            pieces: Sequence[AvFrame] = resampler.resample(frame)
        except (FFmpegError, ValueError) as error:
            raise BadClipError("corrupt", f"audio: cannot be resampled: {_reason(error)}") from None
        return [np.frombuffer(piece.planes[0], np.int16, piece.samples) for piece in pieces]

    return resample


def _small(frame: AvFrame, want: VideoWant) -> NDArray[np.uint8]:
    from av.error import FFmpegError

    try:
        cut = centred if want.fit == "centre" else _all_of
        gray = want.colour == "gray"
        picture = _luma(frame, cut) if gray else cut(_colours(frame))
    except (FFmpegError, ValueError) as error:
        raise BadClipError("corrupt", f"video: cannot be converted: {_reason(error)}") from None
    # The display matrix turns counter-clockwise in degrees, as numpy does in quarters.
    small = (box_mean if want.fit == "centre" else letterboxed)(picture, want.size)
    return np.ascontiguousarray(np.rot90(small, round(frame.rotation / 90)))


def _colours(frame: AvFrame) -> NDArray[np.uint8]:
    """Red, green and blue [H, W, 3].

    Rounded accurately: FFmpeg's quick way gives other numbers with vector instructions than without
    them, by up to 3.
    """
    from av.video.reformatter import Interpolation

    how = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    shown: NDArray[np.uint8] = frame.reformat(
        format="rgb24", interpolation=how, threads=1
    ).to_ndarray()
    return shown


def _all_of(whole: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return whole


def _luma(
    frame: AvFrame, cut: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Brightness 0..255 of what is cut out; the decoded plane where it has 8 bits."""
    layout = frame.format
    if layout.is_rgb or layout.has_palette or layout.components[0].bits != 8:
        return cut(frame.to_ndarray(format="gray"))
    plane = frame.planes[0]
    rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
    shown = cut(rows[: frame.height, : frame.width])
    if frame.color_range == 2 or layout.name.startswith(("yuvj", "gray")):
        return shown
    return full_range(shown)
