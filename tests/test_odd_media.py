"""Odd media: what becomes of each kind of file that breaks pipelines, and what is said of it.

Each kind is made here and goes the way of every clip: taken in, decoded in the child, featurized.
`python -m tests.test_odd_media`, in the root of the project, writes the table in docs/odd-media.md
anew.
"""

import functools
import os
import re
import socket
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from featurizers import media, opening
from featurizers.catalog import build
from featurizers.clip import BadClipError
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.intake import RawClip, take_in
from featurizers.limits import Limits
from tests import media_maker as maker
from tests.media_maker import flat, png, tone, turn, voice, wav, write

pytestmark = pytest.mark.media
DOC = Path(__file__).parent.parent / "docs" / "odd-media.md"
RATE = 16_000
SECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of odd file, and what has to become of it.

    Attributes:
        name: Of the file, also in the documentation.
        make: Writes it to a path.
        audio, video: "sample", "absent" or a fault.
        says: A pattern for what is said of each column; "" stands for silence.
        lasts: Where the last step of each column ends, in seconds; None where that says little.
        heading: The part of the table.
    """

    name: str
    make: Callable[[Path], object]
    audio: str
    video: str
    says: tuple[str, str]
    lasts: tuple[float, float] | None
    heading: str


@dataclass(frozen=True)
class Row:
    """What became of a file."""

    audio: str
    video: str
    messages: tuple[str, str]
    ends: tuple[float | None, float | None]


KINDS: dict[str, Kind] = {}
HEADINGS: list[str] = []


def kind(name, audio, video, says=("", ""), lasts=None):
    """Register a maker of a file; one that is wholly good lasts four seconds unless told."""
    both = (says, says) if isinstance(says, str) else says
    if lasts is None and not any(both):
        lasts = (SECONDS, SECONDS)
    settings = {"audio": audio, "video": video, "says": both, "lasts": lasts}

    def register(make):
        KINDS[name] = Kind(name=name, make=make, heading=HEADINGS[-1], **settings)
        return make

    return register


def faces(seconds=SECONDS, size=64, fps=25, begin=0.0):
    """Moving pictures at their times."""
    y, x = np.mgrid[:size, :size]
    waves = [
        (np.sin(x / 5 + i / 3) + np.cos(y / 4 - i / 5) + 2) * 60
        for i in range(round(seconds * fps))
    ]
    return [
        (begin + i / fps, np.repeat(wave.astype(np.uint8)[..., None], 3, axis=2))
        for i, wave in enumerate(waves)
    ]


def speech(seconds=SECONDS, begin=0.0):
    """A voice at its time."""
    return [(begin, voice(150, seconds))]


@functools.cache
def whole(suffix, **settings):
    """The bytes of a good file of four seconds of pictures and sound."""
    options = {"pictures": faces(), "sound": speech()}
    options |= {
        key: dict(value) if isinstance(value, tuple) else value for key, value in settings.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"whole{suffix}"
        write(path, **options)
        return path.read_bytes()


FAST = (("movflags", "faststart"),)
BLIND = {"pictures": ()}
MP4 = functools.partial(whole, ".mp4")
FASTSTART = functools.partial(whole, ".mp4", muxer=FAST)
MKV = functools.partial(whole, ".mkv")
WEBM = functools.partial(whole, ".webm", video="libvpx", audio="libopus", ticks=1000)
AVI = functools.partial(whole, ".avi", video="mjpeg", audio="pcm_s16le", ticks=25)
FLAC = functools.partial(whole, ".flac", audio="flac", pictures=())
MP3 = functools.partial(whole, ".mp3", audio="libmp3lame", pictures=())
OGG = functools.partial(whole, ".ogg", audio="libopus", pictures=())
TS = functools.partial(whole, ".ts")
NOTHING = "no media, or cut in the header"


def cut(path, content, share):
    path.write_bytes(content[: int(len(content) * share)])


def flip(content, places, value=0xFF):
    """Every bit of some bytes is turned."""
    spoilt = bytearray(content)
    for at in places:
        spoilt[at] ^= value
    return bytes(spoilt)


def replaced(content, old, new):
    if len(old) != len(new) or old not in content:
        raise ValueError(f"{old!r} cannot be replaced by {new!r}")
    return content.replace(old, new)


HEADINGS.append("Good, though not as most files are")


@kind("video-called.wav", "sample", "sample")
def _(path):
    path.write_bytes(MP4())


@kind("no-extension", "sample", "sample")
def _(path):
    path.write_bytes(MP4())


@kind("a-%03d-name with spaces, é and 'quotes'.mp4", "sample", "sample")
def _(path):
    path.write_bytes(MP4())


@kind("link-to-media.mp4", "sample", "sample")
def _(path):
    there = path.with_name("there.mp4")
    there.write_bytes(MP4())
    path.symlink_to(there)


@kind("one-pixel.mkv", "absent", "sample", lasts=(0.0, 1.0))
def _(path):
    write(path, pictures=[(i / 25, flat(90, 1)) for i in range(25)], video="ffv1", pixels="yuv444p")


@kind("odd-sizes-33x47.mkv", "absent", "sample")
def _(path):
    pictures = [(time, picture[:47, :33]) for time, picture in faces()]
    write(path, pictures=pictures, video="ffv1", pixels="yuv444p")


@kind("ten-bits.mp4", "absent", "sample")
def _(path):
    write(path, pictures=faces(), pixels="yuv420p10le")


@kind("gray.mp4", "absent", "sample")
def _(path):
    write(path, pictures=faces(), pixels="gray")


@kind("transparent.mov", "absent", "sample")
def _(path):
    glass = [(time, np.dstack([picture, picture[..., :1]])) for time, picture in faces()]
    write(path, pictures=glass, video="png", pixels="rgba")


@kind("turned-by-a-display-matrix.mp4", "sample", "sample")
def _(path):
    path.write_bytes(MP4())
    turn(path, 90)


@kind("variable-frame-rate.mkv", "sample", "sample", lasts=(4.0, 4.0))
def _(path):
    moments = np.cumsum([0.0] + [0.02, 0.04, 0.3, 0.08] * 9)
    pictures = [(time, picture) for time, (_, picture) in zip(moments, faces(), strict=False)]
    write(path, pictures=pictures, sound=speech())


@kind("three-pictures-a-second.mkv", "absent", "sample")
def _(path):
    write(path, pictures=faces(fps=3))


@kind("sound-starts-0.5-s-later.mkv", "sample", "sample")
def _(path):
    write(path, pictures=faces(), sound=speech(3.5, begin=0.5))


@kind("sound-starts-0.5-s-earlier.mkv", "sample", "sample")
def _(path):
    write(path, pictures=faces(3.5, begin=0.5), sound=speech())


@kind("sound-ends-before-the-pictures.mp4", "sample", "sample", lasts=(1.5, 4.0))
def _(path):
    write(path, pictures=faces(), sound=speech(1.5))


@kind("sound-ends-before-the-pictures.mkv", "sample", "sample", lasts=(1.5, 4.0))
def _(path):
    write(path, pictures=faces(), sound=speech(1.5))


@kind("sound-ends-before-the-pictures.avi", "sample", "sample", lasts=(1.5, 4.0))
def _(path):
    write(path, pictures=faces(), sound=speech(1.5), video="mjpeg", audio="pcm_s16le", ticks=25)


@kind("pictures-end-before-the-sound.mp4", "sample", "sample", lasts=(4.0, 1.6))
def _(path):
    write(path, pictures=faces(1.5), sound=speech())


@kind("clock-starts-below-zero.mp4", "sample", "sample", lasts=(3.5, 3.5))
def _(path):
    muxer = {"avoid_negative_ts": "disabled"}
    write(path, pictures=faces(begin=-0.5), sound=speech(begin=-0.5), muxer=muxer)


@kind("clock-starts-below-zero.ts", "sample", "sample")
def _(path):
    muxer = {"avoid_negative_ts": "disabled"}
    write(path, pictures=faces(begin=-0.5), sound=speech(begin=-0.5), muxer=muxer)


@kind("clock-starts-at-7-s.mkv", "sample", "sample")
def _(path):
    write(path, pictures=faces(begin=7.0), sound=speech(begin=7.0))


@kind("in-fragments.mp4", "sample", "sample")
def _(path):
    path.write_bytes(MP4(muxer=(("movflags", "frag_keyframe+empty_moov"),), options=(("g", "25"),)))


@kind("header-without-duration.mkv", "sample", "sample")
def _(path):
    path.write_bytes(maker.untag(maker.told_duration(MKV(), None)))


@kind("h264-in-avi.avi", "sample", "sample")
def _(path):
    path.write_bytes(whole(".avi", audio="libmp3lame", ticks=25))


@kind("cover-picture-and-sound.m4a", "sample", "absent", lasts=(2.0, 0.0))
def _(path):
    maker.covered(path, jpeg(), tone(440, 2))


@kind("still-picture.jpg", "absent", "sample", lasts=(0.0, 0.2))
def _(path):
    path.write_bytes(jpeg())


@functools.cache
def jpeg():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "still.mjpeg"
        write(path, pictures=[(0.0, flat(100))], video="mjpeg")
        return path.read_bytes()


@kind("eight-channels.wav", "sample", "absent", lasts=(2.0, 0.0))
def _(path):
    path.write_bytes(wav(np.repeat(tone(440, 2), 8), channels=8))


@kind("192-kHz.wav", "sample", "absent", lasts=(2.0, 0.0))
def _(path):
    path.write_bytes(wav(tone(440, 2, 192_000), rate_hz=192_000))


@kind("eight-bits.wav", "sample", "absent", lasts=(2.0, 0.0))
def _(path):
    path.write_bytes(wav((tone(440, 2) // 256 + 128).astype(np.uint8)))


@kind("written-into-a-pipe.wav", "sample", "absent", lasts=(2.0, 0.0))
def _(path):
    path.write_bytes(wav(tone(440, 2), data_bytes=0xFFFFFFFF))


@kind("written-into-a-pipe-by-sox.wav", "sample", "absent", lasts=(2.0, 0.0))
def _(path):
    path.write_bytes(wav(tone(440, 2), data_bytes=0x7FFFF000))


@kind("recorder-that-never-closed.wav", "sample", "absent", lasts=(2.0, 0.0))
def _(path):
    path.write_bytes(wav(tone(440, 2), data_bytes=0))


@kind("ends-in-garbage.mp4", "sample", "sample")
def _(path):
    path.write_bytes(MP4() + noise(5000))


@kind("ends-in-garbage.wav", "sample", "absent", lasts=(2.0, 0.0))
def _(path):
    path.write_bytes(wav(tone(440, 2), junk=noise(5000)))


@kind("sixty-four-tracks.mkv", "sample", "absent", lasts=(0.2, 0.0))
def _(path):
    maker.tracks(path, 64, tone(440, 0.2))


HEADINGS.append("Cut")


@kind(
    "cut-before-the-index.mp4", "unreadable", "unreadable", r"its index \(the box moov\) is missing"
)
def _(path):
    cut(path, MP4(), 0.6)


@kind("cut-in-the-index.mp4", "unreadable", "unreadable", NOTHING)
def _(path):
    path.write_bytes(FASTSTART()[:700])


@kind(
    "cut-at-75-percent.mp4",
    "sample",
    "sample",
    (r"audio: .*of 4\.00 s are there", r"video: [23]\.\d+ of 4\.00 s are there, the file is cut"),
)
def _(path):
    cut(path, FASTSTART(), 0.75)


@kind(
    "cut-at-40-percent.mp4",
    "corrupt",
    "corrupt",
    (r"audio: .*of 4\.00 s are there", r"video: 1\.\d+ of 4\.00 s are there, the file is cut"),
)
def _(path):
    cut(path, FASTSTART(), 0.4)


@kind("cut-in-a-fragment.mp4", "sample", "sample", (r"audio: .* s are there, the file is cut", ""))
def _(path):
    cut(path, MP4(muxer=(("movflags", "frag_keyframe+empty_moov"),), options=(("g", "25"),)), 0.9)


@kind("cut-in-the-header.mkv", "unreadable", "unreadable", ".")
def _(path):
    path.write_bytes(MKV()[:200])


@kind("cut-at-75-percent.mkv", "sample", "sample", r"of 4\.\d+ s are there, the file is cut")
def _(path):
    cut(path, MKV(), 0.75)


@kind("cut-at-30-percent.mkv", "corrupt", "corrupt", r"of 4\.\d+ s are there, the file is cut")
def _(path):
    cut(path, MKV(), 0.3)


@kind("cut-without-tags.mkv", "sample", "sample", r"of 4\.\d+ s are there, the file is cut")
def _(path):
    cut(path, maker.untag(MKV()), 0.75)


@kind("cut-at-75-percent.webm", "sample", "sample", r"of 4\.\d+ s are there, the file is cut")
def _(path):
    cut(path, WEBM(), 0.75)


@kind("cut-in-the-header.webm", "unreadable", "unreadable", ".")
def _(path):
    path.write_bytes(WEBM()[:60])


@kind("cut-in-the-header.avi", "unreadable", "unreadable", ".")
def _(path):
    path.write_bytes(AVI()[:300])


@kind("cut-at-75-percent.avi", "sample", "sample", r"of 4\.\d+ s are there, the file is cut")
def _(path):
    cut(path, AVI(), 0.75)


@kind("cut-at-30-percent.avi", "corrupt", "corrupt", r"of 4\.\d+ s are there, the file is cut")
def _(path):
    cut(path, AVI(), 0.3)


@kind("cut-in-the-header.wav", "unreadable", "unreadable", NOTHING)
def _(path):
    path.write_bytes(wav(tone(440, 2))[:30])


@kind("only-a-header.wav", "corrupt", "absent", (r"0\.00 of 2\.00 s are there", ""))
def _(path):
    path.write_bytes(wav(tone(440, 2))[:44])


@kind(
    "cut-at-75-percent.wav",
    "sample",
    "absent",
    (r"1\.50 of 2\.00 s are there, the file is cut", ""),
)
def _(path):
    cut(path, wav(tone(440, 2)), 0.75)


@kind("cut-at-30-percent.wav", "corrupt", "absent", (r"0\.\d+ of 2\.00 s are there", ""))
def _(path):
    cut(path, wav(tone(440, 2)), 0.3)


@kind("cut-at-75-percent.flac", "sample", "absent", (r"of 4\.00 s are there, the file is cut", ""))
def _(path):
    cut(path, FLAC(), 0.75)


@kind("cut-at-30-percent.flac", "corrupt", "absent", (r"of 4\.00 s are there, the file is cut", ""))
def _(path):
    cut(path, FLAC(), 0.3)


@kind("cut-at-75-percent.mp3", "sample", "absent", (r"of 4\.\d+ s are there, the file is cut", ""))
def _(path):
    cut(path, MP3(), 0.75)


@kind("cut-where-nothing-tells.ogg", "sample", "absent", lasts=(3.0, 0.0))
def _(path):
    cut(path, OGG(), 0.75)


@kind("only-an-index.mp4", "corrupt", "corrupt", r"0\.00 of 4\.00 s are there")
def _(path):
    content = FASTSTART()
    path.write_bytes(content[: content.index(b"mdat") + 4])


HEADINGS.append("Damaged")


@kind("flipped-header.mp4", "unreadable", "unreadable", "its index .* is missing")
def _(path):
    content = FASTSTART()
    path.write_bytes(flip(content, [content.index(b"moov")]))


@kind("flipped-index.mp4", "corrupt", "corrupt", "packets are damaged")
def _(path):
    content = FASTSTART()
    places = [
        found.end() + 8 + 4 * chunk + 2
        for found in re.finditer(b"stco", content)
        for chunk in range(*struct.unpack(">I", content[found.end() + 4 : found.end() + 8]))
    ]
    path.write_bytes(flip(content, places, 0x01))


@kind(
    "flipped-sound.flac",
    "sample",
    "absent",
    ("audio: . frames are without a time and passed over", ""),
)
def _(path):
    content = FLAC()
    path.write_bytes(flip(content, [len(content) // 2]))


@kind(
    "much-flipped-sound.flac",
    "corrupt",
    "absent",
    ("audio: . of .. packets are damaged and passed over", ""),
)
def _(path):
    content = FLAC()
    path.write_bytes(flip(content, range(2000, len(content), 1000)))


@kind("flipped-pictures.mp4", "absent", "sample", ("", r"video: .* damaged"))
def _(path):
    content = MP4(sound=())
    path.write_bytes(flip(content, range(3000, 3010)))


@kind("much-flipped.mp4", "corrupt", "corrupt", "damaged")
def _(path):
    content = MP4()
    middle = range(2000, content.index(b"moov") - 100, 97)
    path.write_bytes(flip(content, middle))


@kind(
    "zeros-in-the-middle.mkv",
    "sample",
    "sample",
    r"of 4\.\d+ s are there, the file is cut or damaged",
)
def _(path):
    content = MKV()
    hole = int(len(content) * 0.7)
    path.write_bytes(content[:hole] + bytes(1500) + content[hole + 1500 :])


@kind("a-gap-of-2-s.mkv", "sample", "sample", (r"audio: 2\.\d+ s are missing in 1 gap", ""))
def _(path):
    pictures = faces(1.0) + faces(1.0, begin=3.0)
    write(path, pictures=pictures, sound=speech(1.0) + speech(1.0, begin=3.0), audio="pcm_s16le")


@kind(
    "clock-jumps-back.mkv",
    "sample",
    "sample",
    r"(frame|picture)s? (is|are) out of order and passed over",
)
def _(path):
    path.write_bytes(moved_cluster(-500))


@kind("clock-runs-ahead.mkv", "corrupt", "corrupt", "out of order and passed over")
def _(path):
    path.write_bytes(moved_cluster(2000))


@kind(
    "one-wrong-time.mkv",
    "sample",
    "sample",
    ("", "video: 1 picture is out of order and passed over"),
)
def _(path):
    content = bytearray(MKV(audio="pcm_s16le"))
    pictures = [at for track, at in maker.blocks(content, 0) if track == 1]
    content[pictures[10] : pictures[10] + 2] = struct.pack(">h", 20_000)
    path.write_bytes(content)


def moved_cluster(by_ms, number=3):
    """A Matroska file of which a cluster of half a second has another time."""
    content = MKV(audio="pcm_s16le", muxer=(("cluster_time_limit", "500"),), options=(("g", "5"),))
    at, size = maker.clusters(content)[number]
    time = int.from_bytes(content[at : at + size], "big") + by_ms
    return content[:at] + time.to_bytes(size, "big") + content[at + size :]


@kind("two-files-in-one.ts", "corrupt", "corrupt", "out of order and passed over")
def _(path):
    path.write_bytes(TS() + TS())


@kind("every-time-twice.mov", "absent", "sample", lasts=(0.0, 1.0))
def _(path):
    maker.mux(path, [(i // 2 / 25, png(64, 64)) for i in range(50)])


@kind("not-a-number.wav", "corrupt", "absent", ("audio: 32 frames are not finite", ""))
def _(path):
    path.write_bytes(wav(np.full(2 * RATE, np.nan, np.float32), form=3))


@kind("one-infinity.wav", "sample", "absent", ("audio: 1 frame is not finite", ""))
def _(path):
    samples = (tone(440, 2) / 32768).astype(np.float32)
    samples[5000] = np.inf
    path.write_bytes(wav(samples, form=3))


@kind(
    "bare-stream-without-times.h264",
    "absent",
    "unreadable",
    ("", "without a time.*need a container"),
)
def _(path):
    write(path, pictures=faces())


@kind("codec-that-nobody-knows.mp4", "sample", "unreadable", ("", "nobody knows how to decode"))
def _(path):
    path.write_bytes(replaced(MP4(), b"avc1\0\0", b"zzzz\0\0"))


@kind("encrypted.mp4", "absent", "corrupt", ("", "packets are damaged"))
def _(path):
    content = MP4(sound=())
    begin, size = maker.boxes(content, "mdat")
    path.write_bytes(content[:begin] + noise(size) + content[begin + size :])


HEADINGS.append("Headers that lie")


@kind("says-10-hours.mkv", "corrupt", "corrupt", r"4\.\d+ of 36000\.00 s are there")
def _(path):
    path.write_bytes(maker.untag(maker.told_duration(MKV(), 36_000_000.0)))


@kind("says-6-s.mkv", "sample", "sample", r"4\.\d+ of 6\.00 s are there, the file is cut")
def _(path):
    path.write_bytes(maker.untag(maker.told_duration(MKV(), 6000.0)))


@kind("says-1-s.mkv", "sample", "sample", r"the header says 1\.00 s, but 4\.\d+ s are there")
def _(path):
    path.write_bytes(maker.untag(maker.told_duration(MKV(), 1000.0)))


@kind("says-1-s-and-lasts-5-hours.mkv", "sample", "too_long", ("", "1800. s, at most 14400 s"))
def _(path):
    write(
        path, pictures=[(0.0, flat(30)), (9000.0, flat(60)), (18_000.0, flat(90))], sound=speech(1)
    )
    path.write_bytes(maker.told_duration(path.read_bytes(), 1000.0))


@kind("lasts-5-hours.mkv", "too_long", "too_long", "1800. s, at most 14400 s")
def _(path):
    write(
        path, pictures=[(0.0, flat(30)), (9000.0, flat(60)), (18_000.0, flat(90))], sound=speech(1)
    )


@kind("says-8-s.wav", "corrupt", "absent", (r"2\.00 of 8\.00 s are there", ""))
def _(path):
    path.write_bytes(wav(tone(440, 2), data_bytes=8 * 2 * RATE))


@kind("65535-channels.wav", "unreadable", "unreadable", ".")
def _(path):
    path.write_bytes(wav(tone(440, 2), channels=65_535))


@kind("200-channels.wav", "corrupt", "absent", ("cannot be resampled", ""))
def _(path):
    path.write_bytes(wav(tone(440, 2), channels=200))


@kind("0-Hz.wav", "unreadable", "unreadable", ".")
def _(path):
    path.write_bytes(wav(tone(440, 2), rate_hz=0))


@kind("4-GHz.wav", "unreadable", "unreadable", ".")
def _(path):
    path.write_bytes(wav(tone(440, 2), rate_hz=4_000_000_000))


@kind("1-Hz.wav", "too_long", "absent", ("32000 s, at most 14400 s", ""))
def _(path):
    path.write_bytes(wav(tone(440, 2), rate_hz=1))


@kind(
    "0-ticks-a-second.mp4",
    "corrupt",
    "too_long",
    (r"0\.\d+ of 4\.00 s are there", "s, at most 14400 s are taken"),
)
def _(path):
    content = bytearray(MP4())
    for found in re.finditer(b"mdhd", content):
        content[found.end() + 12 : found.end() + 16] = bytes(4)
    path.write_bytes(content)


@kind(
    "a-million-pictures-a-second.avi",
    "sample",
    "corrupt",
    ("", "pictures within 0.0001 s, its clock is wrong"),
)
def _(path):
    content = bytearray(AVI())
    at = content.index(b"strh") + 8 + 20
    content[at : at + 8] = struct.pack("<II", 1, 1_000_000)
    path.write_bytes(content)


@kind("60000-x-60000.mov", "absent", "corrupt", ("", "packets are damaged"))
def _(path):
    maker.mux(path, [(i / 25, png(64, 64, told=(60_000, 60_000))) for i in range(25)])


@kind("says-60000-x-60000.mp4", "sample", "sample")
def _(path):
    content = bytearray(MP4())
    at = content.index(b"avc1") + 4 + 24
    content[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    path.write_bytes(content)


@kind("8200-x-8200.mov", "absent", "too_large", ("", "8200 x 8200, at most 67108864 pixels"))
def _(path):
    maker.mux(path, [(i / 25, png(8200, 8200)) for i in range(3)], size=8200)


@kind(
    "grows-in-the-middle.mov", "absent", "too_large", ("", "8200 x 8200, at most 67108864 pixels")
)
def _(path):
    packets = [(i / 25, png(*((8200, 8200) if i > 19 else (64, 64)))) for i in range(22)]
    maker.mux(path, packets)


@kind("seventy-tracks.mkv", "too_large", "too_large", "70 streams, at most 64 are taken")
def _(path):
    maker.tracks(path, 70, tone(440, 0.2))


HEADINGS.append("No media")


@kind("zero-bytes.mp4", "empty", "empty", "the file has 0 bytes")
def _(path):
    path.touch()


@kind("text.mp4", "unreadable", "unreadable", NOTHING)
def _(path):
    path.write_text("Hello, I am a text and no video.\n" * 50)


@kind("text-that-ffmpeg-would-film.nfo", "unreadable", "unreadable", NOTHING)
def _(path):
    path.write_text("Hello, I am a text and no video.\n" * 50)


@kind("error-page.mp4", "unreadable", "unreadable", NOTHING)
def _(path):
    path.write_text("<!DOCTYPE html><html><body><h1>403 Forbidden</h1></body></html>\n")


@kind("git-lfs-pointer.wav", "missing", "missing", "git lfs pull")
def _(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


@kind("random-bytes.mp4", "unreadable", "unreadable", NOTHING)
def _(path):
    path.write_bytes(noise(200_000))


@kind("random-bytes.g722", "unreadable", "unreadable", NOTHING)
def _(path):
    path.write_bytes(noise(200_000))


def noise(size):
    return np.random.default_rng(1).bytes(size)


@kind("100-megabytes-of-nothing.mp4", "unreadable", "unreadable", NOTHING)
def _(path):
    with path.open("wb") as file:
        file.truncate(100 << 20)


@kind("subtitles-alone.mp4", "unreadable", "unreadable", "neither sound nor pictures")
def _(path):
    cues = [f"{i}\n00:00:0{i},000 --> 00:00:0{i},900\nhello\n" for i in range(1, 5)]
    path.write_text("\n".join(cues))


@kind("cover-picture-alone.m4a", "unreadable", "unreadable", "neither sound nor pictures")
def _(path):
    maker.covered(path, jpeg())


@kind("link-to-nothing.mp4", "missing", "missing", "a symbolic link that leads to no file")
def _(path):
    path.symlink_to(path.with_name("gone.mp4"))


@kind("link-to-itself.mp4", "missing", "missing", "a symbolic link that leads to no file")
def _(path):
    path.symlink_to(path)


@kind("named-pipe.mp4", "missing", "missing", "a special file")
def _(path):
    os.mkfifo(path)


@kind("folder.mp4", "missing", "missing", "a folder, not a file")
def _(path):
    path.mkdir()


@kind("device.mp4", "missing", "missing", "a special file")
def _(path):
    path.symlink_to("/dev/zero")


@kind("no-permission.mp4", "unreadable", "unreadable", "Permission denied")
def _(path):
    path.write_bytes(MP4())
    path.chmod(0)


HEADINGS.append("Files that refer to another")
OTHERS = "a list of other files, which are not opened"


def secret(path):
    """Good media beside the file: whoever opens it has sound and pictures to show."""
    there = path.with_name("good.mp4")
    there.write_bytes(MP4())
    return there


@kind("playlist.m3u8", "unreadable", "unreadable", OTHERS)
def _(path):
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXTINF:4.0,", secret(path).name]
    path.write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))


@kind("playlist-of-a-place.m3u8", "unreadable", "unreadable", OTHERS)
def _(path):
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXTINF:4.0,", f"file://{secret(path)}"]
    path.write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))


@kind("list-of-parts.ffconcat", "unreadable", "unreadable", OTHERS)
def _(path):
    path.write_text(f"ffconcat version 1.0\nfile '{secret(path).name}'\n")


@kind("list-of-parts.mp4", "unreadable", "unreadable", OTHERS)
def _(path):
    path.write_text(f"ffconcat version 1.0\nfile '{secret(path)}'\n")


MPD = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT4S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="1" bandwidth="1000" codecs="avc1.64000a" width="64" height="64">
<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>
"""


@kind("manifest.mpd", "unreadable", "unreadable", OTHERS)
def _(path):
    path.write_text(MPD.format(secret(path)))


@kind("session.sdp", "unreadable", "unreadable", OTHERS)
def _(path):
    path.write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n")


@kind("track-elsewhere-by-url.mp4", "corrupt", "corrupt", r"of 4\.00 s are there")
def _(path):
    content = without_media(MP4())
    path.write_bytes(maker.point_elsewhere(content, maker.url_reference(f"file://{secret(path)}")))


@kind("track-elsewhere-by-alias.mov", "corrupt", "corrupt", r"0\.00 of 4\.00 s are there")
def _(path):
    path.write_bytes(maker.point_elsewhere(MP4(), maker.alias_reference(str(secret(path)))))


def without_media(content):
    """The index alone, its offsets behind the end of the file."""
    begin, size = maker.boxes(content, "mdat")
    return content[: begin - 8] + content[begin + size :]


def become(path, decoder):
    """What becomes of a file, the way of every clip."""
    raw = RawClip(key="odd", id="odd", media=str(path), path=path, columns={})
    clip = take_in(raw, decoder)
    outcomes = extract(clip, path, [build("logmel"), build("face-motion")], decoder)
    audio, video = (found.fault or found.state for found in outcomes)
    ends = tuple(found.feature and float(found.feature.times[-1, 1]) for found in outcomes)
    return Row(audio, video, tuple(found.message for found in outcomes), ends)


def make(name, folder):
    """A file of this kind in a folder of its own; None where the machine cannot make it."""
    if name == "no-permission.mp4" and os.geteuid() == 0:
        return None  # root may read everything
    folder.mkdir()
    KINDS[name].make(folder / name)
    return folder / name


def all_rows(folder):
    """Every kind in turn through one decoder."""
    with Decoder() as decoder:
        paths = {name: make(name, folder / f"kind{i}") for i, name in enumerate(KINDS)}
        return {name: become(path, decoder) for name, path in paths.items() if path}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return all_rows(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_odd_media_has_the_right_verdict_and_message(rows, name):
    if name not in rows:
        pytest.skip("root may read everything")
    row, expected = rows[name], KINDS[name]
    assert (row.audio, row.video) == (expected.audio, expected.video), row.messages
    for message, pattern in zip(row.messages, expected.says, strict=True):
        assert re.search(pattern, message) if pattern else message == "", message


@pytest.mark.parametrize("name", [name for name, each in KINDS.items() if each.lasts])
def test_what_is_good_is_taken_to_its_end(rows, name):
    for end, seconds in zip(rows[name].ends, KINDS[name].lasts, strict=True):
        assert end is None or end == pytest.approx(seconds, abs=0.21)


def test_one_decoder_serves_them_all_and_is_none_the_worse(tmp_path):
    """Odd files before it change nothing in a good one."""
    good = tmp_path / "good.mp4"
    good.write_bytes(MP4())
    names = ["cut-at-40-percent.mp4", "much-flipped.mp4", "grows-in-the-middle.mov", "text.mp4"]
    with Decoder() as decoder:
        first, pid = become(good, decoder), decoder.pid
        for name in names:
            become(make(name, tmp_path / name), decoder)
        assert become(good, decoder) == first
        assert decoder.pid == pid


# Files that refer to another: that one is never opened.

REFERRING = [name for name, each in KINDS.items() if each.heading == "Files that refer to another"]


@pytest.mark.parametrize("name", REFERRING)
def test_whoever_waits_for_the_other_file_would_wait_for_ever(tmp_path, name):
    path = make(name, tmp_path / "kind")
    if (other := path.with_name("good.mp4")).exists():
        other.unlink()
        os.mkfifo(other)  # opening it blocks
    with Decoder(Limits(cpu_seconds=0.5)) as impatient:
        row = become(path, impatient)
    assert (row.audio, row.video) == (KINDS[name].audio, KINDS[name].video), row.messages


@pytest.mark.parametrize("name", [name for name in REFERRING if "track" not in name])
def test_a_list_that_is_not_known_as_one_is_refused_by_ffmpeg_itself(tmp_path, name, monkeypatch):
    path = make(name, tmp_path / "kind")
    monkeypatch.setattr(opening, "_is_list", lambda start: False)
    with pytest.raises(BadClipError) as caught:
        list(media.decode(path, 0.0, None, [build("logmel").wants], Limits()))
    assert caught.value.fault == "unreadable"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", [name for name in REFERRING if "alias" not in name])
def test_nobody_is_called_over_the_network(tmp_path, name, known, monkeypatch):
    path = make(name, tmp_path / "kind")
    if not known:
        monkeypatch.setattr(opening, "_is_list", lambda start: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/good.mp4"
        content, other = path.read_bytes(), str(path.with_name("good.mp4"))
        for old in (f"file://{other}", other, "good.mp4"):
            if old.encode() in content:
                content = content.replace(old.encode(), url.encode().ljust(len(old), b"/"))
                break
        path.write_bytes(content)
        with pytest.raises(BadClipError):
            list(media.decode(path, 0.0, None, [build("logmel").wants], Limits()))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


# The documentation.


def table(rows):
    """The documentation's table, in Markdown."""
    lines = []
    for heading in HEADINGS:
        lines += ["", f"### {heading}", "", "| file | sound | pictures | what is said |"]
        lines += ["|---|---|---|---|"]
        for name, each in KINDS.items():
            if each.heading == heading:
                row = rows.get(name, Row(each.audio, each.video, each.says, (None, None)))
                said = "; ".join(dict.fromkeys(filter(None, row.messages)))
                lines.append(f"| `{name}` | {row.audio} | {row.video} | {said} |")
    return "\n".join([*lines, ""])


def without_numbers(text):
    """Encoders of another version write files of other sizes; one packet is, two packets are."""
    text = re.sub(r"\d+(\.\d+)?", "0", text)
    return re.sub(r"(packet|picture|frame|gap)s?( is| are)?\b", r"\1", text)


def test_the_documentation_shows_what_really_becomes_of_them(rows):
    text = DOC.read_text(encoding="utf-8")
    assert without_numbers(table(rows)) in without_numbers(text), "run tests/test_odd_media.py"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        made = table(all_rows(Path(scratch)))
    head, _, _ = DOC.read_text(encoding="utf-8").partition(f"\n### {HEADINGS[0]}")
    DOC.write_text(head + made, encoding="utf-8")
