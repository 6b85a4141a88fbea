"""Frames in their place in time, made up one by one as no encoder would give them."""

import itertools
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from featurizers.clip import BadClipError
from featurizers.damage import verdict
from featurizers.limits import Limits
from featurizers.placing import Pictures, Sound, Span
from featurizers.spec import AudioWant, VideoWant

RATE = 1000
TICK = Fraction(1, RATE)
ALL, USUAL = Span(0.0, 0.0, None), Limits()


@dataclass
class Packet:
    """Of a stream, at a time in ticks."""

    pts: int | None
    stream: int = 0
    size: int = 9
    duration: int = 0
    time_base: Fraction = TICK

    def __post_init__(self):
        self.stream_index, self.stream = 0, SimpleNamespace(index=self.stream)


@dataclass
class Noise:
    """Sound of so many samples at a time."""

    pts: int
    samples: int
    is_corrupt: bool = False
    value: float = 1.0
    time_base: Fraction = TICK
    sample_rate: int = RATE
    time = property(lambda self: float(self.pts * self.time_base))
    layout = SimpleNamespace(name="mono")
    format = SimpleNamespace(name="flt")

    def to_ndarray(self):
        return np.full(self.samples, self.value)


@dataclass
class Picture:
    """A picture at a time, for so long."""

    pts: int
    duration: int
    width: int = 8
    height: int = 8
    is_corrupt: bool = False
    time_base: Fraction = TICK
    time = property(lambda self: None if self.pts is None else float(self.pts * self.time_base))


def stream(name="pcm_f32le", form="wav", index=0):
    return SimpleNamespace(
        index=index,
        codec_context=SimpleNamespace(name=name),
        container=SimpleNamespace(format=SimpleNamespace(name=form)),
    )


def sound(span=ALL, limits=USUAL, **settings):
    def resampling(rate_hz):
        return lambda frame: [frame.to_ndarray()] if frame else []

    return Sound(AudioWant(rate_hz=RATE), stream(**settings), span, limits, resampling)


def pictures(span=ALL, limits=USUAL, **settings):
    def small(frame, want):
        return np.zeros((want.size, want.size), np.uint8)

    return Pictures(VideoWant(fps=10, size=8), stream(**settings), span, limits, small)


def taken(taker, frames):
    """Where each chunk of sound begins and ends, in seconds."""
    chunks = [chunk for frame in frames for chunk in taker.take(frame)] + list(taker.finish())
    return [(chunk.start, chunk.start + len(chunk.samples) / RATE) for chunk in chunks]


# Which packets are wanted.


def test_packets_are_told_by_their_stream_also_those_that_flush_a_decoder():
    taker = sound(index=1)
    assert taker.needs(Packet(0, stream=1))
    assert taker.needs(Packet(None, stream=1, size=0))
    assert not taker.needs(Packet(0, stream=0))


def test_whoever_is_done_needs_no_more():
    taker = sound(Span(0.0, 0.0, 0.5))
    taken(taker, [Noise(0, 600), Noise(600, 600)])
    assert taker.done
    assert not taker.needs(Packet(700))


def test_sound_long_before_the_span_is_not_decoded():
    taker = sound(Span(0.0, 20.0, 1.0, sound_from=19.0))
    assert not taker.needs(Packet(18_000, duration=900))
    assert taker.needs(Packet(18_000, duration=1000))
    assert taker.needs(Packet(None))


# Limits.


def test_one_packet_far_behind_the_limit_has_a_wrong_time_and_two_are_too_long():
    taker = sound(limits=Limits(seconds=2.0))
    for pts in (0, 9_000_000, 500):
        taker.hear(Packet(pts))
    with pytest.raises(BadClipError) as caught:
        taker.hear(Packet(9_000_001))
    assert caught.value.fault == "too_long"


def test_frames_are_held_against_the_limit_too_where_packets_have_no_times():
    taker = sound(limits=Limits(seconds=2.0))
    with pytest.raises(BadClipError) as caught:
        taken(taker, [Noise(0, 1500), Noise(1500, 1500), Noise(3000, 100)])
    assert caught.value.fault == "too_long"


def test_a_last_picture_that_is_shown_for_hours_is_too_long():
    taker = pictures(limits=Limits(seconds=2.0))
    assert list(taker.take(Picture(0, 100))) == []
    assert list(taker.take(Picture(100, 9_000_000))) == []
    with pytest.raises(BadClipError) as caught:
        list(taker.finish())
    assert caught.value.fault == "too_long"


# Damage.


def test_what_is_damaged_before_the_span_does_not_count():
    taker = sound(Span(0.0, 1.0, None))
    frames = [Noise(pts, 500, is_corrupt=True) for pts in (0, 500, 1000)]
    assert taken(taker, frames) == [(0.0, 0.5)]
    assert taker.remarks() == ["1 frame is damaged and taken all the same"]


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_sound_after_a_packet_that_failed_does_not_move_up(first):
    """Nor after many: each is shorter than what counts as a gap."""
    taker, found = sound(), []
    for number in range(20):
        if number % 4 == first:
            taker.fail(Packet(60 * number))
        else:
            found += taker.take(Noise(60 * number, 60, value=number))
    found += taker.finish()
    for chunk in found:
        for at, value in enumerate(chunk.samples):
            assert round(chunk.start * RATE) + at in range(60 * value, 60 * value + 60)


def test_times_that_are_rounded_are_no_hole_and_one_hole_is_one():
    taker = sound()
    list(taker.take(Noise(0, 60)))
    list(taker.take(Noise(61, 60)))  # a thousandth to and fro
    taker.fail(Packet(120))
    frames = [Noise(180, 60), Noise(239, 60), Noise(310, 60)]  # and a hundredth, as ever
    assert taken(taker, frames) == [(0.0, 0.12), (0.18, 0.36)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sound_after_numbers_that_are_not_finite_does_not_move_up(value):
    taker = sound()
    frames = [Noise(0, 500), Noise(500, 50, value=value), Noise(550, 500)]
    assert taken(taker, frames) == [(0.0, 0.5), (0.55, 1.05)]
    assert taker.remarks() == ["1 frame is not finite (NaN or infinity) and passed over"]


def test_sound_within_what_was_given_is_passed_over_and_makes_no_gap():
    taker = sound()
    frames = [Noise(0, 1000), Noise(200, 300), Noise(1000, 500)]
    found = taken(taker, frames)
    assert (found[0][0], found[-1][1]) == (0.0, 1.5)
    assert sum(end - begin for begin, end in found) == pytest.approx(1.5)
    assert taker.remarks() == ["1 frame is out of order and passed over"]
    frames[2] = Noise(1050, 500)  # and what follows is in its place
    assert taken(sound(), frames)[-1] == (1.05, 1.55)


def test_whoever_was_given_something_is_told_that_reading_stopped_early():
    taker = sound()
    for pts in (0, 500):
        taker.hear(Packet(pts))
    taken(taker, [Noise(0, 500), Noise(500, 500)])
    assert verdict(taker, "", None) == ""
    assert verdict(taker, "Input/output error", None) == (
        "audio: reading stopped early: Input/output error"
    )


# Pictures of AVI, whose times are out of order.


@pytest.mark.parametrize("failed", range(5))
def test_pictures_have_the_times_that_are_left_in_order_also_after_one_failed(failed):
    for order in itertools.permutations(range(5)):
        taker = pictures(name="h264", form="avi")
        for pts in order:
            taker.hear(Packet(pts))
        taker.fail(Packet(failed))
        stamps = [taker.stamp(Picture(99, 1)) for _ in range(4)]
        assert stamps == [pts / RATE for pts in range(5) if pts != failed]


# Sound whose times and whose number of samples drift apart.


@pytest.mark.parametrize("step", [98, 99, 100, 101, 102])
def test_sound_that_drifts_follows_its_times_and_says_so(step):
    taker = sound()
    frames = [Noise(number * step, 100, value=number) for number in range(200)]
    chunks = [chunk for frame in frames for chunk in taker.take(frame)] + list(taker.finish())
    where = {}
    for chunk in chunks:
        for number in np.unique(chunk.samples):
            at = np.flatnonzero(chunk.samples == number)[-1]
            where[int(number)] = chunk.start + (at + 1) / RATE
    late = [stop - (number * step + 100) / RATE for number, stop in where.items()]
    # It is followed after a second, in which a clock that is so wrong goes on.
    assert max(map(abs, late)) <= 0.041 + 1.1 * abs(step - 100) / 100
    drift = 200 * (step - 100) / RATE
    message = verdict(taker, "", None)
    if step == 100:
        assert message == ""
    else:
        side = "ahead of" if drift > 0 else "behind"
        told = float(message.split("ran ")[1].split(" s")[0])
        assert side in message
        assert told == pytest.approx(abs(drift), abs=0.09)


@pytest.mark.parametrize("late", [lambda n: 45 * (n % 2), lambda n: 90 * (n % 2), lambda n: n % 31])
def test_sound_whose_times_jitter_is_whole(late):
    taker = sound()
    frames = [Noise(1000 + 100 * number + late(number), 100) for number in range(100)]
    chunks = [chunk for frame in frames for chunk in taker.take(frame)] + list(taker.finish())
    assert sum(len(chunk.samples) for chunk in chunks) == 100 * 100
    assert verdict(taker, "", None) == ""


def test_what_is_wrong_long_before_the_span_does_not_count():
    taker = sound(Span(0.0, 10.0, 2.0))
    for pts in (5_000, 8_500):
        taker.hear(Packet(pts))
        taker.fail(Packet(pts))
    assert (taker.packets, taker.bad) == (0, 0)
    taker.hear(Packet(9_500))
    taker.fail(Packet(9_500))
    assert (taker.packets, taker.bad) == (1, 1)
