"""Spans of one file that are decoded in one go give what each gives alone."""

import os
import random

import numpy as np
import pytest

from featurizers import catalog
from featurizers import spans as spans_module
from featurizers.clip import BadClipError, Clip
from featurizers.decoder import Decoder
from featurizers.decoder_child import _Clips
from featurizers.extract import extract_all, in_order_of_media
from featurizers.limits import Limits
from featurizers.media import NoStream, decode
from featurizers.spans import Again, ApartError, decode_all, follow
from featurizers.spec import AudioWant, VideoWant
from featurizers.stages import Stages
from tests.media_maker import flat, stairs, voice, write

pytestmark = pytest.mark.media

RATE = 16_000
SOUND, PICTURES, FINER = AudioWant(), VideoWant(fps=5, size=16), VideoWant(fps=25, size=16)
WANTS = [SOUND, PICTURES]
LONG = 24.0


def film(path, *, pictures=None, rate_hz=44_100, seconds=LONG):
    """Few whole pictures, and sound whose every part differs from every other."""
    shown = pictures or [(i / 25, each) for i, each in enumerate(stairs(int(seconds * 25), 32))]
    count = int(seconds * rate_hz)
    sound = voice(np.linspace(100, 300, count), seconds, rate_hz)
    options = {"preset": "ultrafast"} if path.suffix != ".webm" else {}
    write(path, pictures=shown, sound=[(0.0, sound)], rate_hz=rate_hz, options=options)
    return path


@pytest.fixture(scope="module", params=["a.mp4", "a.mkv", "a.ts"])
def path(request, tmp_path_factory):
    return film(tmp_path_factory.mktemp("spans") / request.param)


def some_spans(seed, seconds=LONG):
    """Spans in order of time, close to each other or not; the last may be open."""
    chance = random.Random(seed)  # noqa: S311 - spans, no secrets
    found, at = [], chance.uniform(0, seconds / 3)
    while at < seconds - 0.5:
        end = min(seconds, at + chance.uniform(0.1, 4.0))
        found.append((at, end))
        at = end + chance.choice([0.0, 0.0, 0.02, 0.7, 3.0])
    if chance.random() < 0.5:
        found[-1] = (found[-1][0], None)
    return found


def alone(path, span, wants=WANTS):
    return list(decode(path, *span, wants, Limits()))


def together(path, spans, wants=(PICTURES, FINER)):
    """The events of each span, and how many were finished."""
    found, finished = [[] for _ in spans], 0
    for number, event in decode_all(path, spans, wants, Limits()):
        if event is None:
            assert number == finished, "spans are finished in their order"
            finished += 1
        else:
            assert number == finished, "events come span after span"
            found[number].append(event)
    return found, finished


def assert_equal(one, other):
    """Events of the same media: of each want in the same order, to the last bit."""
    for want in range(len(WANTS)):
        mine, theirs = ([e for i, e in events if i == want] for events in (one, other))
        assert [type(each) for each in mine] == [type(each) for each in theirs]
        for a, b in zip(mine, theirs, strict=True):
            for name in type(a).__slots__:
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("seed", range(6))
def test_in_one_go_each_span_gives_what_it_gives_alone(path, seed):
    spans = some_spans(seed)
    found, finished = together(path, spans)
    assert finished == len(spans) > 1
    for span, events in zip(spans, found, strict=True):
        assert_equal(events, alone(path, span, [PICTURES, FINER]))


def test_a_picture_that_is_shown_for_long_is_seen_by_all_spans_in_it(tmp_path):
    slides = [(0.0, flat(40)), (9.0, flat(120)), (20.0, flat(200))]
    path = film(tmp_path / "a.mkv", pictures=slides, rate_hz=RATE)
    spans = [(1.0, 2.0), (4.0, 5.0), (8.5, 9.5), (15.0, 16.0), (19.9, 20.3)]
    found, _ = together(path, spans)
    for span, events in zip(spans, found, strict=True):
        assert_equal(events, alone(path, span, [PICTURES, FINER]))
        assert any(index == 1 for index, _ in events)


def test_a_stream_that_is_not_there_is_said_of_each_span(tmp_path):
    path = tmp_path / "a.mkv"
    write(path, sound=[(0.0, voice(np.full(8 * RATE, 200.0), 8))])
    found, _ = together(path, [(0.0, 2.0), (2.0, 4.0)])
    assert found == [[(0, NoStream("video")), (1, NoStream("video"))]] * 2


def test_spans_follow_each_other_when_none_begins_before_the_end_of_the_one_before():
    assert follow([(0.0, 1.0)]) == 1
    assert follow([(0.0, 1.0), (1.0, 2.0), (5.0, None)]) == 3
    assert follow([(0.0, 1.0), (0.9, 2.0)]) == 1
    assert follow([(0.0, 1.0), (1.0, None), (2.0, 3.0)]) == 2
    assert follow([(0.0, 1.0), (2.0, 3.0), (60.0, 61.0)]) == 2
    assert follow([(0.0, None), (0.0, None)]) == 1


def damaged(path, share=0.5):
    """Some packets in the middle are spoilt."""
    content = bytearray(path.read_bytes())
    at = int(len(content) * share)
    for place in range(at, at + 6000, 40):
        content[place] ^= 0xFF
    path.write_bytes(content)
    return path


def test_a_damaged_packet_ends_it_and_the_spans_before_are_good(tmp_path):
    path = damaged(film(tmp_path / "a.mkv", rate_hz=RATE))
    spans = [(0.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 20.0)]
    events = decode_all(path, spans, [PICTURES], Limits())
    finished = [next(number for number, event in events if event is None) for _ in range(2)]
    assert finished == [0, 1]
    with pytest.raises(ApartError):
        list(events)


def through(decoder, path, spans, wants=WANTS):
    """What a decoder gives for span after span, each told what comes next; an error is kept."""
    found = []
    for number in range(len(spans)):
        events = []
        try:
            for event in decoder.decode_first(path, spans[number:], wants):
                events = [] if isinstance(event[1], Again) else [*events, event]
        except BadClipError as bad:
            events = str(bad)
        found.append(events)
    return found


def expected(path, span):
    try:
        return alone(path, span)
    except BadClipError as bad:
        return str(bad)


@pytest.mark.parametrize("spoil", [False, True])
def test_through_the_child_each_clip_gives_what_it_gives_alone(tmp_path, spoil):
    path = film(tmp_path / "a.mkv", rate_hz=RATE)
    if spoil:
        damaged(path)
    spans = [(0.5, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 20.0), (20.0, 22.0), (99.0, 100.0)]
    with Decoder() as decoder:
        found = through(decoder, path, spans)
    for span, events in zip(spans, found, strict=True):
        wanted = expected(path, span)
        if isinstance(wanted, str):
            assert events == wanted
        else:
            assert_equal(events, wanted)


def test_pictures_of_clips_that_follow_each_other_are_decoded_in_one_go(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", rate_hz=RATE)
    opened = []
    begin = spans_module.Opened.__enter__

    def counted(self):
        opened.append(self)
        return begin(self)

    monkeypatch.setattr(spans_module.Opened, "__enter__", counted)
    spans = [(0.0, 2.0), (2.0, 5.0), (5.5, 8.0)]
    clips = _Clips()
    for number in range(3):
        list(clips.decode(path, spans[number:], WANTS, Limits()))
    assert len(opened) == 1 + len(spans), "once for the pictures, and for the sound of each"


def test_a_file_that_was_replaced_is_not_gone_on_with(tmp_path):
    path = film(tmp_path / "a.mkv", rate_hz=RATE, seconds=8.0)
    slides = [(0.0, flat(200)), (7.9, flat(100))]
    other = film(tmp_path / "b.mkv", rate_hz=RATE, seconds=8.0, pictures=slides)
    spans = [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    clips = _Clips()
    list(clips.decode(path, spans, WANTS, Limits()))
    other.replace(path)
    assert_equal(list(clips.decode(path, spans[1:], WANTS, Limits())), alone(path, spans[1]))


def test_other_wants_than_before_begin_anew(tmp_path):
    path = film(tmp_path / "a.mkv", rate_hz=RATE, seconds=8.0)
    spans = [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    clips = _Clips()
    list(clips.decode(path, spans, WANTS, Limits()))
    found = list(clips.decode(path, spans[1:], [SOUND], Limits()))
    assert_equal(found, alone(path, spans[1], [SOUND]))


def cut(path, number, span):
    start, end = span
    return Clip(
        key=f"c{number}",
        id=f"c{number}",
        media=str(path),
        media_digest="",
        start=start,
        end=end,
        seconds=(end or LONG) - start,
    )


def test_clips_of_one_file_are_put_together_in_order_of_time():
    mixed = [cut("b", 0, (5.0, 6.0)), cut("a", 1, (0.0, 1.0)), cut("b", 2, (1.0, 2.0))]
    assert [clip.key for clip in in_order_of_media(mixed)] == ["c2", "c0", "c1"]


def test_a_job_of_clips_of_one_film_has_the_outcomes_of_each_clip_alone(tmp_path):
    path = damaged(film(tmp_path / "a.mkv", rate_hz=RATE), 0.7)
    clips = [cut(path, number, span) for number, span in enumerate(some_spans(3))]
    featurizers = [catalog.build("logmel"), catalog.build("face-motion")]
    with Decoder() as decoder:
        row = list(extract_all(clips, lambda clip: path, featurizers, decoder, Stages()))
        each = [
            next(extract_all([clip], lambda clip: path, featurizers, decoder, Stages()))
            for clip in clips
        ]
    assert len(row) == len(clips) > 3
    for mine, theirs in zip(row, each, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one.state, one.fault, one.message) == (other.state, other.fault, other.message)
            if one.feature is not None:
                np.testing.assert_array_equal(one.feature.values, other.feature.values)
                np.testing.assert_array_equal(one.feature.times, other.feature.times)


# Media that mislead: what a span gives must not depend on whether it was reached by a seek.


def test_a_file_that_calls_every_picture_whole_is_not_entered_in_the_middle(tmp_path):
    path = film(tmp_path / "a.mp4", rate_hz=RATE)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    spans = [(12.0, 13.5), (13.5, 15.0), (15.0, 16.5)]
    found, finished = together(path, spans)
    assert finished == 3
    for span, events in zip(spans, found, strict=True):
        assert_equal(events, alone(path, span, [PICTURES, FINER]))
        assert len([event for index, event in events if index == 0]) > 0


def test_pictures_that_heal_bit_by_bit_are_not_entered_in_the_middle(tmp_path):
    path = tmp_path / "a.mkv"
    pictures = [(i / 25, each) for i, each in enumerate(stairs(int(LONG * 25), 64))]
    told = {"x264-params": "mbtree=0:intra-refresh=1:keyint=50", "preset": "veryfast"}
    write(path, pictures=pictures, options=told)
    for span in [(12.32, 13.32), (17.12, 18.0)]:
        part = alone(path, span, [FINER])
        whole = alone(path, (0.0, None), [FINER])
        frames, every = (np.concatenate([e.frames for _, e in es]) for es in (part, whole))
        first = round(span[0] * 25)
        at = first + np.arange(len(frames))
        np.testing.assert_array_equal(frames[1:-1], every[at][1:-1])


def test_avi_is_decoded_clip_by_clip_and_tried_no_more_than_twice(tmp_path, monkeypatch):
    path = tmp_path / "a.avi"
    pictures = [(i / 25, each) for i, each in enumerate(stairs(200, 32))]
    write(path, pictures=pictures, video="mpeg4", ticks=25)
    tries = []
    begin = spans_module.decode_all
    monkeypatch.setattr(
        "featurizers.decoder_child.decode_all",
        lambda *a, **clocks: tries.append(a) or begin(*a, **clocks),
    )
    spans = [(number, number + 1.0) for number in range(6)]
    clips = _Clips()
    for number in range(len(spans)):
        events = list(clips.decode(path, spans[number:], [PICTURES], Limits()))
        again = [at for at, (_, event) in enumerate(events) if isinstance(event, Again)]
        fresh = events[again[-1] + 1 :] if again else events
        assert_equal(fresh, alone(path, spans[number], [PICTURES]))
    assert len(tries) == 2


def test_a_span_behind_the_end_spoils_not_those_before_it(tmp_path):
    path = film(tmp_path / "a.mkv", rate_hz=RATE, seconds=8.0)
    spans = [(0.0, 2.0), (2.0, 4.0), (9.0, 9.5)]
    events = decode_all(path, spans, [PICTURES], Limits())
    assert [number for number, event in events if event is None] == [0, 1]


def test_a_clip_that_is_asked_for_alone_never_goes_on(tmp_path):
    path = damaged(film(tmp_path / "a.mkv", rate_hz=RATE))
    spans = [(0.5, 4.0), (4.0, 8.0)]
    with Decoder() as decoder:
        list(decoder.decode_first(path, spans, WANTS))
        assert_equal(list(decoder.decode(path, *spans[1], WANTS)), alone(path, spans[1]))


def test_a_file_that_was_only_touched_is_gone_on_with(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mkv", rate_hz=RATE, seconds=8.0)
    tries = []
    begin = spans_module.decode_all
    monkeypatch.setattr(
        "featurizers.decoder_child.decode_all",
        lambda *a, **clocks: tries.append(a) or begin(*a, **clocks),
    )
    spans = [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    clips = _Clips()
    for number in range(3):
        os.utime(path, (number, number))
        list(clips.decode(path, spans[number:], WANTS, Limits()))
    assert len(tries) == 1
