"""Builders of small media, also of odd ones that `featurizers.media.encode` never writes."""

import struct
from fractions import Fraction

import numpy as np

TICKS = 90_000


def tone(hz, seconds, rate_hz=16_000, level=0.5):
    """A sine, int16."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.round(level * 32767 * np.sin(2 * np.pi * hz * time)).astype(np.int16)


def voice(hz, seconds, rate_hz=16_000, level=0.3):
    """A voiced sound: many harmonics of a fundamental in Hz, a number or one for each sample."""
    steps = np.broadcast_to(np.asarray(hz, dtype=np.float64), round(seconds * rate_hz))
    phase = 2 * np.pi * np.cumsum(steps) / rate_hz
    wave = sum(np.sin(n * phase) / n for n in range(1, 12))
    return np.round(level * 32767 * wave / np.abs(wave).max()).astype(np.int16)


def flat(level, size=64):
    """A picture of one brightness, RGB."""
    return np.full((size, size, 3), level, dtype=np.uint8)


def stairs(count, size=64, step=8):
    """Pictures whose brightness tells their number."""
    return [flat(20 + step * (i % 25), size) for i in range(count)]


def number_of(picture, step=8):
    """The number that `stairs` wrote, modulo 25."""
    return round((float(np.mean(picture)) - 20) / step)


def write(
    path,
    *,
    pictures=(),
    sound=(),
    video="libx264",
    audio="aac",
    rate_hz=16_000,
    options=(),
    muxer=(),
    form=None,
    pixels=None,
    ticks=TICKS,
):
    """Write pieces wherever they are wanted in time.

    Args:
        path: Its suffix chooses the form, unless that is given.
        pictures: (seconds, RGB or RGBA picture) in order of time.
        sound: (seconds, int16 samples) in order of time.
        video, audio: Names of encoders.
        rate_hz: Of the samples.
        options: Of the video encoder.
        muxer: Options of the container.
        form: The container.
        pixels: Their format, 4:2:0 unless given.
        ticks: In a second of the video encoder's clock; some encoders take only slow ones.
    """
    import av

    with av.open(str(path), "w", format=form, container_options=dict(muxer)) as out:
        streams = []
        if pictures:
            # With its macroblock tree x264 gives other bytes each time, one thread or not.
            told = {"x264-params": "mbtree=0"} if video == "libx264" else {}
            told |= {"threads": "1", **dict(options)}
            stream = out.add_stream(video, rate=25, options=told)
            stream.height, stream.width = pictures[0][1].shape[:2]
            stream.pix_fmt = pixels or ("yuvj420p" if video == "mjpeg" else "yuv420p")
            stream.codec_context.time_base = Fraction(1, ticks)
            streams.append((stream, iter(_pictures(pictures, ticks))))
        if sound:
            stream = out.add_stream(audio, rate=rate_hz, layout="mono")
            streams.append((stream, iter(_sound(stream, sound, rate_hz))))
        _interleave(out, streams)


def _pictures(pictures, ticks):
    import av

    for seconds, picture in pictures:
        form = "rgba" if picture.shape[2] == 4 else "rgb24"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=form)
        frame.pts, frame.time_base = round(seconds * ticks), Fraction(1, ticks)
        yield seconds, frame


def _sound(stream, sound, rate_hz):
    import av

    stream.codec_context.open()  # only then is the size of its frames known
    size = stream.codec_context.frame_size or 1024
    shape = stream.codec_context.format.name
    for start, samples in sound:
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(format=shape, layout="mono", rate=rate_hz, frame_size=size)
        at = round(start * rate_hz)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            piece.pts, piece.time_base = at, Fraction(1, rate_hz)
            yield at / rate_hz, piece
            at += piece.samples


def _interleave(out, streams):
    waiting = [[next(frames, None), stream, frames] for stream, frames in streams]
    while any(entry[0] for entry in waiting):
        entry = min((entry for entry in waiting if entry[0]), key=lambda entry: entry[0][0])
        (_, frame), stream, frames = entry
        out.mux(stream.encode(frame))
        entry[0] = next(frames, None)
    for _, stream, _ in waiting:
        out.mux(stream.encode(None))


# Display matrices in MP4: clockwise quarters that a player must turn the picture by.
_MATRICES = {
    90: (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    180: (-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30),
    270: (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
}


def turn(path, clockwise):
    """Write a display matrix into the first track of an MP4 file, as a telephone does."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9i", *_MATRICES[clockwise])
    path.write_bytes(content)


# Files made byte by byte: what no encoder writes.


def wav(
    samples,
    *,
    rate_hz=16_000,
    channels=1,
    form=1,
    data_bytes=None,
    junk=b"",
):
    """A WAV file of a [N] array, as bytes.

    Args:
        samples: Of the type that is to be stored; channels follow each other.
        rate_hz, channels: What the header says.
        form: 1 is whole numbers, 3 floats.
        data_bytes: What the header says of the size of the samples.
        junk: Follows the samples.
    """
    content, bits = samples.tobytes(), samples.dtype.itemsize * 8
    block = channels * bits // 8
    sizes = (rate_hz * block % (1 << 32), block % (1 << 16), bits)
    head = struct.pack("<HHIIHH", form, channels, rate_hz, *sizes)
    told = len(content) if data_bytes is None else data_bytes
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", told)
    whole = min(len(body) + told, 0xFFFFFFFF)
    return b"RIFF" + struct.pack("<I", whole) + body + content + junk


def png(width, height, told=None):
    """A black picture of 1 bit, as bytes; its header may say another size."""
    import zlib

    def chunk(name, content):
        whole = name + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", *(told or (width, height)), 1, 0, 0, 0, 0)
    rows = (b"\0" + bytes((width + 7) // 8)) * height
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def mux(path, packets, *, codec="png", size=64, pixels="rgb24", form=None, muxer=()):
    """Put encoded pictures, (seconds, bytes), into a container as they are; times may be equal."""
    import av

    with av.open(str(path), "w", format=form, container_options=dict(muxer)) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width = stream.height = size
        stream.pix_fmt = pixels
        for number, (seconds, content) in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 10_000)
            # Muxers want rising times of decoding: those of showing may lie on each other.
            packet.pts, packet.dts = round(seconds * 10_000), number - len(packets)
            packet.duration, packet.is_keyframe = 400, True
            out.mux(packet)


def tracks(path, count, samples):
    """Many tracks of the same sound in one file."""
    import av

    with av.open(str(path), "w") as out:
        settings = {"rate": 16_000, "layout": "mono"}
        for stream in [out.add_stream("pcm_s16le", **settings) for _ in range(count)]:
            frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            out.mux(stream.encode(frame))


def covered(path, picture, samples=None):
    """A cover picture (JPEG bytes) in an .m4a file, with sound when there is some."""
    import av

    with av.open(str(path), "w", format="mp4") as out:
        sound, frames = None, ()
        if samples is not None:
            sound = out.add_stream("aac", rate=16_000, layout="mono")
            frames = list(_sound(sound, [(0.0, samples)], 16_000))
        cover = out.add_stream("mjpeg")
        cover.width = cover.height = 64
        cover.pix_fmt, cover.disposition = "yuvj420p", 1 << 10  # attached picture
        packet = av.Packet(picture)
        packet.stream, packet.time_base = cover, Fraction(1, 25)
        packet.pts = packet.dts = 0
        packet.is_keyframe = True
        out.mux(packet)
        for frame in [frame for _, frame in frames] + [None] * bool(frames):
            out.mux(sound.encode(frame))


def boxes(content, path):
    """Where the content of an MP4 box begins, by its path such as "moov/trak/mdia", and its size.

    The first one of each name is taken.
    """
    begin, end = 0, len(content)
    for name in path.split("/"):
        while True:
            size = struct.unpack(">I", content[begin : begin + 4])[0]
            if content[begin + 4 : begin + 8] == name.encode():
                break
            begin += size
            if begin >= end or size < 8:
                raise ValueError(f"there is no box {path}")
        begin, end = begin + 8, begin + size
    return begin, end - begin


def point_elsewhere(content, reference):
    """An MP4 file, its index at the end, whose tracks refer to another file.

    Args:
        content: The file's bytes.
        reference: The new data reference: a whole box.
    """
    old = bytes.fromhex("0000000c75726c2000000001")  # url: the media are in this very file
    grown = len(reference) - len(old)
    content = bytearray(content)
    while (at := content.find(old)) >= 0:
        for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
            place = content.rindex(name, 0, at) - 4
            size = struct.unpack(">I", content[place : place + 4])[0]
            content[place : place + 4] = struct.pack(">I", size + grown)
        content[at : at + len(old)] = reference
    return bytes(content)


def url_reference(url):
    """A data reference to a URL."""
    body = b"url " + bytes(4) + url.encode() + b"\0"
    return struct.pack(">I", len(body) + 4) + body


def alias_reference(path):
    """A data reference to a file, as QuickTime writes it."""
    name = path.encode()
    name += b"\0" * (len(name) % 2)
    body = b"alis" + bytes(4) + bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16)
    body += struct.pack(">hh", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(name)) + name
    body += struct.pack(">hH", -1, 0)
    return struct.pack(">I", len(body) + 4) + body


def told_duration(content, milliseconds):
    """A Matroska file whose header says this duration; None for nothing at all."""
    at = content.index(b"\x44\x89\x88")
    new = b"\xec\x89" + bytes(9) if milliseconds is None else content[at : at + 3]
    if milliseconds is not None:
        new += struct.pack(">d", milliseconds)
    return content[:at] + new + content[at + 11 :]


def untag(content):
    """A Matroska file without the durations that FFmpeg writes for each track."""
    return content.replace(b"DURATION", b"DISCARDS")


def clusters(content):
    """Where each cluster's time stamp stands in a Matroska file, and its size in bytes."""
    found, at = [], 0
    while (at := content.find(b"\x1f\x43\xb6\x75", at)) >= 0:
        stamp = content.index(b"\xe7", at + 4) + 1
        found.append((stamp + 1, content[stamp] & 0x7F))
        at += 4
    return found


def blocks(content, cluster):
    """Where the time stamps (2 bytes) of a cluster's blocks stand, beside each block's track."""
    at, size = clusters(content)[cluster]
    at += size
    found = []
    while content[at : at + 1] == b"\xa3":
        length = 9 - content[at + 1].bit_length()
        size = int.from_bytes(content[at + 1 : at + 1 + length], "big") & ((1 << 7 * length) - 1)
        begin = at + 1 + length
        found.append((content[begin] & 0x7F, begin + 1))
        at = begin + size
    return found
