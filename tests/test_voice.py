"""When somebody speaks, and what clips are cut from it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.clip import BadClipError
from featurizers.sound import RATE_HZ
from featurizers.spec import AudioChunk
from featurizers.voice import STEP_S, Voice, bridged, cut, excess_db, spans_above
from tests.media_maker import voice

SPOKEN = [(1.0, 3.0), (3.8, 5.3), (7.0, 11.0), (11.5, 12.5)]


def speech(spoken=SPOKEN, seconds=14.0):
    """Voices whose level goes up and down four times a second, float [N]."""
    sound = np.zeros(round(seconds * RATE_HZ))
    for begin, end in spoken:
        time = np.arange(round((end - begin) * RATE_HZ)) / RATE_HZ
        syllables = np.clip(0.55 - 0.45 * np.cos(8 * np.pi * time), 0.02, 1)
        pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time)
        at = round(begin * RATE_HZ)
        sound[at : at + len(time)] = syllables * voice(pitch, end - begin)
    return sound


def noisy(sound, snr_db, colour="white", seed=0):
    """The sound with noise that is so many dB below its loud part, int16."""
    noise = np.random.default_rng(seed).normal(size=len(sound))
    if colour == "pink":
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))))
    power = np.mean(np.square(sound[sound != 0])) if sound.any() else 800.0**2
    noise *= np.sqrt(power / 10 ** (snr_db / 10) / np.mean(np.square(noise)))
    return np.round(sound + noise).astype(np.int16)


def found(samples, piece=4096, start=0.0):
    heard = Voice()
    for at in range(0, len(samples), piece):
        heard.add(AudioChunk(start + at / RATE_HZ, samples[at : at + piece]))
    return heard.finish()


@pytest.mark.parametrize("colour", ["white", "pink"])
@pytest.mark.parametrize("snr_db", [60, 30, 20, 10])
def test_voice_is_found_within_a_twentieth_of_a_second_down_to_10_db(snr_db, colour):
    spans = found(noisy(speech(), snr_db, colour))
    assert np.abs(spans - np.array(SPOKEN)).max() <= 0.05


def test_voice_over_nothing_at_all_is_found():
    spans = found(np.round(speech()).astype(np.int16))
    assert np.abs(spans - np.array(SPOKEN)).max() <= 0.05


@pytest.mark.parametrize("level", [0, 1, 800])
def test_steady_noise_and_silence_are_no_voice(level):
    noise = np.random.default_rng(1).normal(0, max(level, 1), 30 * RATE_HZ)
    assert not len(found(np.round(noise * bool(level)).astype(np.int16)))


def test_a_click_is_no_voice_and_a_stop_within_a_word_is_no_pause():
    sound = speech([(1.0, 2.0), (2.15, 3.0)], 6.0)
    sound[5 * RATE_HZ : 5 * RATE_HZ + 160] = 20_000.0
    (span,) = found(noisy(sound, 40))
    assert span == pytest.approx([1.0, 3.0], abs=0.05)


def test_spans_do_not_depend_on_the_pieces_and_lie_on_the_clock_of_the_sound():
    samples = noisy(speech(), 20)
    whole = found(samples, piece=len(samples))
    assert np.array_equal(whole, found(samples, piece=777))
    late = found(samples, start=5.0)
    assert np.allclose(late, whole + 5.0, atol=1e-9)


def test_no_sound_is_told():
    with pytest.raises(BadClipError, match="empty"):
        Voice().finish()


def test_a_noise_that_begins_is_taken_for_voice_for_8_seconds_and_no_longer():
    # The limit that the docstring states.
    noise = np.random.default_rng(2).normal(0, 800, 40 * RATE_HZ)
    noise[: 10 * RATE_HZ] /= 100
    (span,) = found(np.round(noise).astype(np.int16))
    assert span == pytest.approx([10.0, 18.0], abs=0.3)


def test_the_noise_floor_is_the_least_power_around():
    # Against the slow and obvious way, of power that is not smoothed.
    random = np.random.default_rng(3)
    power = random.uniform(1e-6, 1e-2, (2000, 5)).astype(np.float32)
    power[:, 1:] = power[:, :1]
    padded = np.pad(power[:, 0].astype(float), 2, constant_values=np.nan)
    smooth = np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    level = 10 * np.log10(smooth + 1e-8)
    for at in (0, 123, 999, 1999):
        tenths = range(max(0, at // 10 - 80), min(200, at // 10 + 81))
        floor = min(level[10 * tenth : 10 * tenth + 10].min() for tenth in tenths)
        assert excess_db(power)[at] == pytest.approx(level[at] - floor, abs=2e-3)


def test_hysteresis_keeps_what_stays_and_drops_what_never_rises():
    excess = np.zeros(300)
    excess[50:90] = 4.0  # never reaches 6 dB
    excess[150:200] = 4.0
    excess[170] = 7.0
    assert spans_above(excess).tolist() == [[150, 200]]
    assert spans_above(np.zeros(1)).shape == (0, 2)


def test_breath_beside_a_loud_voice_is_no_voice_and_without_one_it_is():
    excess = np.zeros(400)
    excess[50:90] = 14.0
    assert spans_above(excess).tolist() == [[50, 90]]
    excess[150:200] = 45.0
    excess[200:220] = 10.0  # it dies away
    assert spans_above(excess).tolist() == [[150, 220]]
    excess[150:200] = 0.0
    excess[200:205] = 45.0  # a click
    assert spans_above(excess)[0].tolist() == [50, 90]


def test_gaps_are_bridged():
    spans = np.array([[0.0, 1.0], [1.1, 2.0], [3.0, 4.0]])
    assert bridged(spans, 0.5).tolist() == [[0.0, 2.0], [3.0, 4.0]]
    assert bridged(np.zeros((0, 2)), 0.5).shape == (0, 2)


# Clips


def clips(voiced, **changed):
    told = {"least_s": 0.5, "most_s": 10.0, "pause_s": 0.6, "margin_s": 0.1, "end_s": 100.0}
    return cut(np.array(voiced, dtype=np.float64).reshape(-1, 2), **{**told, **changed})


def test_a_pause_ends_a_clip_and_a_short_one_does_not():
    assert clips([[1, 2], [2.5, 4], [5, 6]]) == [(0.9, 4.1), (4.9, 6.1)]


def test_margins_share_a_pause_that_is_shorter_than_both():
    assert clips([[1, 2], [2.5, 4]], pause_s=0.4, margin_s=0.4) == [(0.6, 2.25), (2.25, 4.4)]


def test_a_clip_that_is_too_long_is_parted_at_its_longest_pause():
    assert clips([[0, 4], [4.3, 8], [8.4, 12]]) == [(0.0, 8.1), (8.3, 12.1)]
    assert clips([[0, 5], [5.4, 6], [6.4, 12]]) == [(0.0, 6.1), (6.3, 12.1)]


def test_voice_without_pauses_is_parted_evenly():
    assert clips([[10, 40]], margin_s=0.0) == [(10.0, 20.0), (20.0, 30.0), (30.0, 40.0)]


def test_what_is_too_short_is_left_out():
    assert clips([[1, 1.2], [3, 3.4]]) == [(2.9, 3.5)]
    assert clips([]) == []


@st.composite
def spoken(draw):
    edges = sorted(draw(st.sets(st.integers(0, 2000), max_size=40)))
    return np.array(edges[: len(edges) // 2 * 2], dtype=np.float64).reshape(-1, 2) / 8


@settings(deadline=None)
@given(spoken(), st.integers(1, 8), st.integers(2, 200), st.integers(1, 8), st.integers(0, 3))
def test_clips_are_apart_inside_not_too_long_and_lose_no_voice(voiced, least, most, pause, margin):
    told = {"least_s": least / 10, "most_s": least / 5 + 0.61 + most / 8, "pause_s": pause / 8}
    made = clips(voiced, **told, margin_s=margin / 10, end_s=250.0)
    for begin, end in made:
        assert told["least_s"] - 1e-9 <= end - begin <= told["most_s"] + 2e-3
        assert 0 <= begin < end <= 250
    assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(made))
    for begin, end in voiced:
        inside = sum(max(0.0, min(end, b) - max(begin, a)) for a, b in made)
        # Whatever is lost was in a stretch that is too short by itself.
        assert inside >= end - begin - 2e-3 or end - begin < told["least_s"]


@pytest.mark.parametrize("wrong", [{"least_s": 0}, {"most_s": 0.6}, {"pause_s": 0}])
def test_lengths_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="wanted 0 < least_s"):
        clips([[1, 2]], **wrong)


def test_a_step_is_10_ms():
    assert STEP_S == 0.01
