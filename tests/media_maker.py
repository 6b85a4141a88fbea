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
            stream = out.add_stream(video, rate=25, options={"threads": "1", **dict(options)})
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
