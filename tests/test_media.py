"""Media on one clock: every picture and sample at its own time, whatever the file is like."""

import os
import re
import struct
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurizers import media, placing
from featurizers.clip import BadClipError
from featurizers.damage import Damage
from featurizers.limits import Limits
from featurizers.media import NoStream, Probe, decode, encode, probe
from featurizers.shrink import box_mean, letterboxed
from featurizers.spec import AudioChunk, AudioWant, VideoChunk, VideoWant
from pipelines.demo import plan_corpus
from pipelines.puppet import FPS, frames
from tests.media_maker import flat, number_of, stairs, tone, turn, voice, write

pytestmark = pytest.mark.media
RATE = 16_000
FRAME_S = 1024 / RATE  # one AAC frame: what its encoder may put before and after
SOUND, PICTURES = AudioWant(rate_hz=RATE), VideoWant(fps=5, size=16)


class Found:
    """What was decoded, put together."""

    def __init__(self, path, start=0.0, end=None, wants=(PICTURES, SOUND), limits=None):
        events = [event for _, event in decode(path, start, end, wants, limits or Limits())]
        self.sounds = [event for event in events if isinstance(event, AudioChunk)]
        self.messages = [event.message for event in events if isinstance(event, Damage)]
        self.absent = {event.kind for event in events if isinstance(event, NoStream)}
        videos = [event for event in events if isinstance(event, VideoChunk)]
        self.times = np.concatenate([each.times for each in videos] or [np.zeros((0, 2))])
        self.frames = np.concatenate([each.frames for each in videos] or [np.zeros((0, 16, 16))])

    @property
    def samples(self):
        return np.concatenate([each.samples for each in self.sounds])

    @property
    def numbers(self):
        return [number_of(frame) for frame in self.frames]


def fault_of(action, *arguments):
    with pytest.raises(BadClipError) as caught:
        action(*arguments)
    return caught.value.fault


def small(tmp_path, name="small.mp4", seconds=1.0, **changes):
    """A second of stairs and tone."""
    path = tmp_path / name
    pictures = [(i / 25, picture) for i, picture in enumerate(stairs(round(25 * seconds)))]
    settings = {"pictures": pictures, "sound": [(0.0, tone(440, seconds))]} | changes
    write(path, **settings)
    return path


# What is generated comes back.


def test_pictures_and_sound_come_back_at_their_times(tmp_path):
    path, sound = tmp_path / "a.mp4", voice(np.linspace(100, 300, 2 * RATE), 2.0)
    encode(path, frames=stairs(50), fps=25, samples=sound, rate_hz=RATE)
    found = Found(path)
    assert found.numbers == [(2 + 5 * i) % 25 for i in range(10)]  # shown at 0.1 s, 0.3 s ...
    np.testing.assert_allclose(found.times, [[i / 5, (i + 1) / 5] for i in range(10)])
    assert found.sounds[0].start == 0.0
    assert 0 <= len(found.samples) - len(sound) <= 1024
    error = found.samples[: len(sound)].astype(float) - sound
    # A shift by a single sample would be an error of a tenth; AAC's own is a hundredth.
    assert np.sqrt((error**2).mean()) < 0.03 * np.sqrt((sound.astype(float) ** 2).mean())


def test_the_same_input_is_encoded_to_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        encode(tmp_path / name, frames=stairs(10), fps=25, samples=tone(200, 0.4), rate_hz=RATE)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_moving_pictures_are_encoded_to_the_same_bytes_every_time(tmp_path):
    # Without x264's "cpu-independent" about one of fifty encodings of this film differs, with what
    # lies in memory that was given back before.
    script = next(each for each in plan_corpus() if each.media.startswith("media/s16-28"))
    pictures, path = list(frames(script)), tmp_path / "film.mp4"
    random, found, junk = np.random.default_rng(0), set(), [b""] * 50
    for _ in range(400):
        junk[random.integers(50)] = random.bytes(random.integers(200_000))
        encode(path, frames=pictures, fps=FPS, samples=None, rate_hz=RATE)
        found.add(path.read_bytes())
    assert len(found) == 1


def test_a_header_tells_duration_and_streams(tmp_path):
    both, mute, blind = (tmp_path / name for name in ("both.mp4", "mute.mp4", "blind.mp4"))
    encode(both, frames=stairs(50), fps=25, samples=tone(200, 2.0), rate_hz=RATE)
    encode(mute, frames=stairs(50), fps=25, samples=None, rate_hz=RATE)
    encode(blind, frames=None, fps=25, samples=tone(200, 2.0), rate_hz=RATE)
    assert probe(both) == Probe(seconds=2.0, audio=True, video=True)
    assert replace(probe(mute), seconds=2.0) == Probe(seconds=2.0, audio=False, video=True)
    assert replace(probe(blind), seconds=2.0) == Probe(seconds=2.0, audio=True, video=False)
    assert probe(mute).seconds == pytest.approx(2.0)
    assert probe(blind).seconds == pytest.approx(2.0, abs=FRAME_S)


def test_a_header_without_a_duration_is_measured_from_the_packets(tmp_path):
    path = small(tmp_path, "a.mkv", sound=())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x44\x89\x88", b"\xec\x86\x88"[:3], 1))  # Duration -> Void
    assert probe(path).seconds == pytest.approx(1.0, abs=0.05)


def test_colour_pictures_are_rgb(tmp_path):
    path = tmp_path / "a.mp4"
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    encode(path, frames=[red] * 5, fps=5, samples=None, rate_hz=RATE)
    found = Found(path, wants=[VideoWant(fps=5, size=16, colour="rgb")])
    assert found.frames.shape == (5, 16, 16, 3)
    np.testing.assert_allclose(found.frames[2].mean(axis=(0, 1)), [200, 0, 0], atol=4)


def test_black_and_white_are_0_and_255(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, frames=[flat(0), flat(255)], fps=5, samples=None, rate_hz=RATE)
    found = Found(path, wants=[PICTURES])
    assert [int(frame.mean().round()) for frame in found.frames] == [0, 255]


def test_luma_that_is_full_range_is_taken_as_it_is(tmp_path):
    path = tmp_path / "a.mov"
    write(path, pictures=[(i / 25, flat(60)) for i in range(10)], video="mjpeg")
    assert Found(path, wants=[PICTURES]).frames.mean() == pytest.approx(60, abs=1.5)


def test_the_largest_centred_square_is_looked_at(tmp_path):
    path = tmp_path / "a.mp4"
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:64] = 255
    encode(path, frames=[wide] * 2, fps=5, samples=None, rate_hz=RATE)
    picture = Found(path, wants=[PICTURES]).frames[0]
    assert picture[:, :7].min() > 240
    assert picture[:, 9:].max() < 15


# Odd clocks.


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_streams_that_start_apart_keep_their_place(tmp_path, name):
    late = [(0.6 + i / 25, flat(180)) for i in range(20)]
    path = small(tmp_path, name, pictures=late, sound=[(0.0, tone(440, 1.4))])
    found = Found(path)
    first = found.times[0, 0]
    assert first == pytest.approx(0.6, abs=0.11)
    assert found.sounds[0].start == pytest.approx(0.0, abs=0.07)


def test_a_sound_that_starts_later_than_the_pictures_keeps_its_place(tmp_path):
    path = small(tmp_path, "a.mkv", sound=[(0.5, tone(440, 0.5))])
    assert Found(path).sounds[0].start == pytest.approx(0.5, abs=FRAME_S + 0.002)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_a_file_whose_clock_starts_late_begins_at_0(tmp_path, name):
    late = [(7 + i / 25, picture) for i, picture in enumerate(stairs(25))]
    found = Found(small(tmp_path, name, pictures=late, sound=()), wants=[PICTURES])
    assert found.numbers == [2, 7, 12, 17, 22]
    assert found.times[0].tolist() == [0.0, 0.2]


def test_pictures_at_odd_times_are_taken_by_time_and_not_by_number(tmp_path):
    moments = [0.0, 0.04, 0.08, 0.48, 0.52, 1.28, 1.88]
    pictures = [(moment, picture) for moment, picture in zip(moments, stairs(7), strict=True)]
    found = Found(small(tmp_path, "a.mkv", pictures=pictures, sound=()), wants=[PICTURES])
    middles = found.times.mean(axis=1)
    assert found.numbers == [sum(moment <= middle for moment in moments) - 1 for middle in middles]
    assert len(middles) >= 9


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_a_display_matrix_turns_the_pictures_as_a_player_does(tmp_path, clockwise):
    marked = flat(30)
    marked[:32, :32] = 220  # above on the left, to be seen there by nobody
    path = small(tmp_path, pictures=[(i / 25, marked) for i in range(5)], sound=())
    turn(path, clockwise)
    picture = Found(path, wants=[PICTURES]).frames[0]
    corner = {90: (3, 12), 180: (12, 12), 270: (12, 3)}[clockwise]
    assert [(y, x) for y in (3, 12) for x in (3, 12) if picture[y, x] > 200] == [corner]


def test_a_gap_in_the_sound_keeps_the_rest_in_its_place(tmp_path):
    sound = [(0.0, tone(440, 1.0)), (3.0, tone(440, 1.0))]
    found = Found(small(tmp_path, "a.mkv", sound=sound, audio="pcm_s16le"), wants=[SOUND])
    begins = {round(each.start, 2) for each in found.sounds}
    assert {0.0, 3.0} <= begins
    ends = [each.start + len(each.samples) / RATE for each in found.sounds]
    assert max(ends) == pytest.approx(4.0, abs=0.01)
    assert not any(1.1 < each.start < 2.9 for each in found.sounds)


def frame_at(seconds, samples, rate_hz=RATE):
    import av

    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
    frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
    frame.pts = round(seconds * rate_hz)
    return frame


def taken(frames, span=None):
    span = placing.Span(0.0, 0.0, span)
    taker = placing.Sound(SOUND, None, span, Limits(), media._resampling)
    return [chunk for frame in frames for chunk in taker.take(frame)] + list(taker.finish())


def test_sound_whose_clock_jumps_back_is_never_written_over(tmp_path):
    frames = [frame_at(seconds, tone(440, 0.5)) for seconds in (0.0, 0.5, 0.2, 0.7)]
    chunks = taken(frames)
    ends = [each.start + len(each.samples) / RATE for each in chunks]
    assert [each.start for each in chunks[1:]] == pytest.approx(ends[:-1])
    assert ends[-1] == pytest.approx(1.2)  # and what follows is in its place


def test_sound_that_changes_its_rate_in_the_middle_goes_on(tmp_path):
    frames = [frame_at(0.0, tone(440, 0.5)), frame_at(0.5, tone(440, 0.5, 8000), 8000)]
    chunks = taken(frames)
    assert chunks[0].start == 0.0
    assert sum(len(each.samples) for each in chunks) == pytest.approx(RATE, abs=40)


def test_sound_before_the_span_is_cut_off(tmp_path):
    frames = [frame_at(seconds, tone(440, 0.25)) for seconds in (-0.6, -0.35, -0.1, 0.15)]
    chunks = taken(frames, span=0.2)
    assert chunks[0].start == 0.0
    assert sum(len(each.samples) for each in chunks) == round(0.2 * RATE)


@pytest.mark.parametrize("rate_hz", [8000, 22_050, 44_100, 48_000])
def test_sound_of_any_rate_comes_at_the_wanted_one_and_in_its_place(tmp_path, rate_hz):
    path = tmp_path / "a.wav"
    click = np.zeros(rate_hz, np.int16)
    click[rate_hz // 2 : rate_hz // 2 + rate_hz // 100] = 20_000
    write(path, sound=[(0.0, click)], audio="pcm_s16le", rate_hz=rate_hz)
    found = Found(path, wants=[SOUND]).samples
    assert abs(len(found) - RATE) <= 2
    loud = np.flatnonzero(np.abs(found.astype(int)) > 10_000)
    assert loud[0] == pytest.approx(RATE // 2, abs=4)
    assert loud[-1] == pytest.approx(RATE // 2 + RATE // 100, abs=4)


# Spans.


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """24 s with few whole pictures, in forms with and without an index."""
    folder = tmp_path_factory.mktemp("longer")
    pictures = [(i / 25, picture) for i, picture in enumerate(stairs(24 * 25, 32))]
    sound = [(0.0, voice(np.linspace(100, 300, 24 * RATE), 24))]
    for name in ("a.mp4", "a.mkv", "a.ts"):
        options = {"preset": "ultrafast"}
        write(folder / name, pictures=pictures, sound=sound, options=options)
    return folder


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("span", [(0.0, 2.0), (3.2, 5.2), (11.0, 12.2), (17.4, 19.8), (20.6, None)])
def test_a_span_is_the_same_as_that_part_of_the_whole(longer, name, span):
    start, end = span
    part, whole = Found(longer / name, start, end), Found(longer / name)
    first = round(start * 5)
    last = len(whole.frames) if end is None else round(end * 5)
    np.testing.assert_array_equal(part.frames, whole.frames[first:last])
    np.testing.assert_allclose(part.times + start, whole.times[first:last], atol=1e-9)
    begin = part.sounds[0].start + start
    at = round((begin - whole.sounds[0].start) * RATE)
    settled = slice(1024, None)  # the decoder's overlap and the resampler's filter
    same = whole.samples[at : at + len(part.samples)].astype(int)
    assert np.abs(part.samples.astype(int) - same)[settled].max() <= 2
    if end is not None:
        assert len(part.samples) == pytest.approx((end - start) * RATE, abs=2)


def test_a_span_does_not_depend_on_whether_it_was_reached_by_a_seek(longer, monkeypatch):
    sought = Found(longer / "a.mp4", 17.3, 19.5)
    monkeypatch.setattr(media, "SEEK_FROM_S", 1e9)
    read = Found(longer / "a.mp4", 17.3, 19.5)
    np.testing.assert_array_equal(sought.frames, read.frames)
    np.testing.assert_array_equal(sought.times, read.times)
    np.testing.assert_array_equal(sought.samples, read.samples)


def test_a_file_that_cannot_seek_is_read_from_its_beginning(longer, monkeypatch):
    from av.container import InputContainer
    from av.error import FFmpegError

    expected = Found(longer / "a.mkv", 17.3, 19.5)

    class Stubborn:
        """A container that refuses to seek, and is otherwise the one it holds."""

        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def seek(self, *arguments, **settings):
            raise FFmpegError(1, "Operation not permitted")

    opened, made = media.Opened._open, []

    def reluctant(self):
        opened(self)
        assert isinstance(self.container, InputContainer)
        self.container = Stubborn(self.container)
        made.append(self)

    monkeypatch.setattr(media.Opened, "_open", reluctant)
    found = Found(longer / "a.mkv", 17.3, 19.5)
    assert len(made) == 2
    np.testing.assert_array_equal(found.frames, expected.frames)
    np.testing.assert_array_equal(found.times, expected.times)


def test_wants_do_not_depend_on_each_other(longer):
    span = (17.3, 18.2)
    finer = VideoWant(fps=25, size=16)
    together = list(decode(longer / "a.mp4", *span, [PICTURES, SOUND, finer], Limits()))
    for index, want in enumerate((PICTURES, SOUND, finer)):
        alone = [event for _, event in decode(longer / "a.mp4", *span, [want], Limits())]
        beside = [event for i, event in together if i == index]
        assert len(alone) == len(beside)
        for one, other in zip(alone, beside, strict=True):
            for name in type(one).__slots__:
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_damage_after_a_wants_end_is_not_its_affair(tmp_path):
    path = small(tmp_path, "a.mkv", seconds=4.0)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.8)])
    span = (0.0, 1.0)
    alone = Found(path, *span, wants=[SOUND])
    beside = Found(path, *span, wants=[VideoWant(fps=0.3, size=16), SOUND])
    assert beside.messages == alone.messages == []
    np.testing.assert_array_equal(alone.samples, beside.samples)


def test_a_clip_shorter_than_half_a_cell_has_one_picture(tmp_path):
    path = small(tmp_path)
    found = Found(path, 0.5, 0.54, wants=[PICTURES])
    assert (len(found.frames), found.times[0, 0]) == (1, 0.0)
    assert found.numbers[0] in {12, 13}


def test_a_picture_after_the_span_is_not_taken_for_it(tmp_path):
    late = [(2.0 + i / 25, flat(180)) for i in range(20)]
    path = small(tmp_path, "a.mkv", pictures=late, sound=[(0.0, tone(440, 2.8))])
    assert fault_of(Found, path, 0.0, 1.0, [PICTURES]) == "empty"


# Files that are not what they should be.


def test_a_stream_that_is_not_there_is_said_and_the_other_is_decoded(tmp_path):
    mute = small(tmp_path, "mute.mp4", sound=())
    blind = small(tmp_path, "blind.mp4", pictures=())
    assert Found(mute).absent == {"audio"}
    assert len(Found(mute).frames) == 5
    assert Found(blind).absent == {"video"}
    assert len(Found(blind).samples) >= RATE
    assert Found(mute, wants=[SOUND]).absent == {"audio"}


@pytest.mark.parametrize("action", [probe, Found])
@pytest.mark.parametrize("content", [b"hello, I am a text\n", b"\0" * 5000, bytes(range(256)) * 40])
def test_what_is_no_media_is_unreadable(tmp_path, action, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert fault_of(action, path) == "unreadable"


@pytest.mark.parametrize("action", [probe, Found])
def test_media_that_ffmpeg_does_not_read_are_not_called_cut(tmp_path, action):
    path = tmp_path / "extended-and-big-endian.wav"
    samples = tone(440, 0.5).astype(">i2").tobytes()
    head = struct.pack(">HHIIHHH", 1, 1, RATE, 2 * RATE, 2, 16, 0)
    body = b"WAVEfmt " + struct.pack(">I", len(head)) + head
    body += b"data" + struct.pack(">I", len(samples)) + samples
    path.write_bytes(b"RIFX" + struct.pack(">I", len(body)) + body)
    with pytest.raises(BadClipError, match="of a kind that FFmpeg does not read: Not") as caught:
        action(path)
    assert caught.value.fault == "unreadable"


@pytest.mark.parametrize("action", [probe, Found])
def test_a_pointer_of_git_lfs_is_missing_and_says_what_to_do(tmp_path, action):
    path = tmp_path / "a.mp4"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(BadClipError, match="fetch the media with git lfs") as caught:
        action(path)
    assert caught.value.fault == "missing"


@pytest.mark.parametrize("action", [probe, Found])
def test_subtitles_are_no_media_though_they_open(tmp_path, action):
    path = tmp_path / "a.mp4"
    cues = [f"{i}\n00:00:0{i},000 --> 00:00:0{i},900\nhello\n" for i in range(1, 5)]
    path.write_text("\n".join(cues))
    with pytest.raises(BadClipError, match="neither sound nor pictures") as caught:
        action(path)
    assert caught.value.fault == "unreadable"


@pytest.mark.parametrize("action", [probe, Found])
def test_a_file_of_no_bytes_is_empty(tmp_path, action):
    path = tmp_path / "a.mp4"
    path.touch()
    assert fault_of(action, path) == "empty"


@pytest.mark.parametrize("action", [probe, Found])
def test_what_is_no_file_is_missing_and_nobody_waits_for_it(tmp_path, action):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    for name in ("pipe.mp4", "folder.mp4", "nothing.mp4"):
        assert fault_of(action, tmp_path / name) == "missing"
    assert fault_of(action, tmp_path / "loop.mp4") in {"missing", "unreadable"}
    assert fault_of(action, tmp_path / ("n" * 300 + ".mp4")) == "unreadable"


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "hls with a place": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nfile://{}\n"
    "#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile 'secret.mp4'\n",
}


@pytest.mark.parametrize("suffix", [".m3u8", ".ffconcat", ".mp4"])
@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("action", [probe, Found])
def test_a_file_that_points_to_another_is_refused(tmp_path, action, kind, suffix):
    secret = small(tmp_path, "secret.mp4")
    path = tmp_path / f"list{suffix}"
    path.write_text(PLAYLISTS[kind].format(secret))
    assert fault_of(action, path) == "unreadable"


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_a_file_that_was_cut_gives_its_beginning_and_says_so(tmp_path, share):
    # No picture needs a later one: each that is there whole can be shown.
    path = small(tmp_path, "a.mkv", seconds=4.0, options={"bf": "0"})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    found = Found(path, wants=[PICTURES])
    assert 10 <= len(found.frames) < 20
    (message,) = found.messages
    assert re.search(r"video: [23]\.\d+ of 4\.00 s are there, the file is cut", message)
    assert found.numbers == [(2 + 5 * i) % 25 for i in range(len(found.frames))]


def test_an_mp4_that_was_cut_before_its_table_is_unreadable(tmp_path):
    path = small(tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    assert fault_of(Found, path) == "unreadable"


def test_a_file_of_which_much_is_damaged_is_corrupt_and_of_which_little_is_told(tmp_path):
    path = small(tmp_path, "a.mkv", pictures=(), sound=[(0.0, voice(150, 4.0))], audio="flac")
    kept = path.read_bytes()
    frames = [at for at in range(len(kept) - 1) if kept[at : at + 2] == b"\xff\xf8"]
    assert len(frames) > 10

    def spoil(places):
        content = bytearray(kept)
        for at in places:
            content[at : at + 4] = b"\0\0\0\0"
        path.write_bytes(content)

    spoil(frames[4:5])
    (message,) = Found(path, wants=[SOUND]).messages
    assert "1 of" in message
    assert "damaged and passed over" in message
    spoil(frames[::2])
    assert fault_of(Found, path, 0.0, None, [SOUND]) == "corrupt"


# Limits.


def test_a_span_that_is_too_long_is_refused_before_it_is_decoded(tmp_path):
    path = small(tmp_path)
    assert fault_of(Found, path, 0.0, None, [SOUND], Limits(seconds=0.5)) == "too_long"
    assert fault_of(Found, path, 0.2, 0.9, [SOUND], Limits(seconds=0.5)) == "too_long"
    assert Found(path, 0.2, 0.6, [SOUND], Limits(seconds=0.5)).samples.size


def test_pictures_that_are_too_large_are_refused_and_the_sound_alone_is_taken(tmp_path):
    path, limits = small(tmp_path), Limits(pixels=64 * 64 - 1)
    assert fault_of(Found, path, 0.0, None, [PICTURES], limits) == "too_large"
    assert fault_of(Found, path, 0.0, None, [SOUND, PICTURES], limits) == "too_large"
    assert Found(path, wants=[SOUND], limits=limits).samples.size


def test_a_span_behind_the_end_is_bad(tmp_path):
    path = small(tmp_path)
    assert fault_of(Found, path, 1.5, 2.0, [SOUND]) == "bad_span"
    assert fault_of(Found, path, 40.0, None, [SOUND]) == "bad_span"


# Small pictures.


@given(st.integers(1, 40), st.integers(1, 20), st.booleans(), st.integers(0, 9))
def test_box_means_equal_the_slow_loop(side, size, colour, seed):
    shape = (side, side, 3) if colour else (side, side)
    square = np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)
    found = box_mean(square, size)
    edges = [at * side // size for at in range(size)] + [side]
    assert found.dtype == np.uint8
    for y in range(size):
        for x in range(size):
            part = square[
                edges[y] : max(edges[y + 1], edges[y] + 1),
                edges[x] : max(edges[x + 1], edges[x] + 1),
            ].astype(int)
            sums, area = part.sum(axis=(0, 1)), part.shape[0] * part.shape[1]
            np.testing.assert_array_equal(found[y, x], (sums + area // 2) // area)


def test_a_white_picture_of_the_largest_size_does_not_overflow():
    assert (box_mean(np.full((4100, 4100), 255, np.uint8), 1) == 255).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.booleans(), st.integers(0, 9))
def test_a_whole_picture_in_a_square_equals_the_slow_loop(height, width, size, colour, seed):
    shape = (height, width, 3) if colour else (height, width)
    picture = np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)
    found = letterboxed(picture, size)
    assert found.shape == (size, size, *shape[2:])
    assert found.dtype == np.uint8
    longer = max(height, width)
    rows, columns = (max(1, int(side * size / longer + 0.5)) for side in (height, width))
    top, left = (size - rows) // 2, (size - columns) // 2
    for y in range(rows):
        for x in range(columns):
            low, high = y * height // rows, (y + 1) * height // rows
            near, far = x * width // columns, (x + 1) * width // columns
            part = picture[low : max(high, low + 1), near : max(far, near + 1)].astype(int)
            area = part.shape[0] * part.shape[1]
            mean = (part.sum(axis=(0, 1)) + area // 2) // area
            np.testing.assert_array_equal(found[top + y, left + x], mean)
    found[top : top + rows, left : left + columns] = 0
    assert not found.any()


def aside(bright, height=96, width=192):
    """A wide grey picture with a bright corner on its left, below."""
    picture = np.full((height, width, 3), 60, dtype=np.uint8)
    picture[height // 2 :, : width // 8] = bright
    return picture


@pytest.mark.parametrize("colour", ["gray", "rgb"])
@pytest.mark.parametrize(("clockwise", "corner"), [(0, (8, 0)), (90, (0, 4)), (180, (4, 15))])
def test_what_lies_aside_is_seen_in_the_whole_picture_alone(tmp_path, colour, clockwise, corner):
    path = small(tmp_path, pictures=[(i / 25, aside(240)) for i in range(10)], sound=())
    if clockwise:
        turn(path, clockwise)
    whole, square = (
        Found(path, wants=[VideoWant(fps=5, size=16, colour=colour, fit=fit)]).frames[0]
        for fit in ("whole", "centre")
    )
    assert (whole[corner] > 200).all()
    assert (whole > 200).any(axis=tuple(range(2, whole.ndim))).sum() == 8
    assert not whole[(8, 0) if clockwise == 90 else (0, 0)].any()  # a bar, beside or above
    assert square.max() < 100


DIGEST = """
import ctypes, hashlib, sys
from pathlib import Path
import av
from featurizers.limits import Limits
from featurizers.media import decode
from featurizers.spec import VideoWant
for library in sys.argv[2:]:  # the one that is loaded already
    ctypes.CDLL(library).av_force_cpu_flags(0)
want = VideoWant(fps=5, size=24, colour="rgb", fit="whole")
events = decode(Path(sys.argv[1]), 0.0, None, [want], Limits())
print(hashlib.sha256(b"".join(event.frames.tobytes() for _, event in events)).hexdigest())
"""


def test_colours_are_the_same_with_and_without_vector_instructions(tmp_path):
    import av

    folder = Path(av.__path__[0])
    library = next(
        chain(folder.parent.glob("av.libs/libavutil*"), folder.glob(".dylibs/*util*")), 0
    )
    if not library:
        pytest.skip("PyAV's FFmpeg lies elsewhere")
    rng = np.random.default_rng(0)
    pictures = [(i / 5, rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for i in range(5)]
    path = small(tmp_path, pictures=pictures, sound=())
    digests = [
        subprocess.run(
            [sys.executable, "-c", DIGEST, str(path), *plain],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for plain in ([], [str(library)])
    ]
    assert digests[0] == digests[1]
