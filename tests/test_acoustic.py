"""Log-mel energies against librosa's, pitch against the sounds that were made."""

import tracemalloc

import numpy as np
import pytest

from featurizers.acoustic import LogMel
from featurizers.clip import BadClipError, Clip
from featurizers.sound import WINDOW, mel_filters, to_hz, to_mel
from featurizers.spec import AudioChunk, VideoChunk
from tests.media_maker import tone, voice

RATE = 16_000
CLIP = Clip(key="a", id="a", media="a", media_digest="")
PITCH, FROM_MEDIAN, CHANGE, VOICING, LOUDNESS = range(-5, 0)


def feature(*chunks, **settings):
    """Of samples that begin at 0, or of (start, samples)."""
    extraction = LogMel(**settings).begin(CLIP)
    for chunk in chunks:
        start, samples = chunk if isinstance(chunk, tuple) else (0.0, chunk)
        extraction.add(AudioChunk(start, samples))
    return extraction.finish()


def noise(seconds, level=0.2, seed=0):
    values = np.random.default_rng(seed).normal(size=round(seconds * RATE))
    return np.round(np.clip(level * values, -1, 1) * 32767).astype(np.int16)


def hz(feature):
    return 55.0 * 2 ** (feature.values[:, PITCH] / 12)


def middle(feature, margin=5):
    return slice(margin, len(feature.values) - margin)


# Mel energies.


@pytest.mark.slow  # importing librosa for the first time
@pytest.mark.parametrize(("hop_ms", "mels"), [(10, 40), (5, 64), (20, 23)])
@pytest.mark.parametrize("sound", [noise(1.0), voice(140, 1.0), tone(3000, 1.0)])
def test_mel_energies_are_librosas(hop_ms, mels, sound):
    import librosa

    hop, window = RATE * hop_ms // 1000, WINDOW
    ours = feature(sound, hop_ms=hop_ms, mels=mels).values[:, :mels]
    # Ours are centred on the step's middle; librosa's frame 0 begins with the samples it is given.
    first = next(step for step in range(9) if step * hop + hop // 2 >= window // 2)
    begin = first * hop + hop // 2 - window // 2
    energies = librosa.feature.melspectrogram(
        y=sound[begin:].astype(np.float64) / 32768,
        sr=RATE,
        n_fft=window,
        hop_length=hop,
        window="hann",
        center=False,
        n_mels=mels,
        dtype=np.float64,
    )
    theirs = 10 * np.log10(np.maximum(energies.T, 1e-10))
    count = min(len(theirs), len(ours) - first)
    assert count > 40
    np.testing.assert_allclose(ours[first : first + count], theirs[:count], atol=1e-3)


@pytest.mark.slow
def test_mel_filters_are_librosas():
    import librosa

    theirs = librosa.filters.mel(sr=RATE, n_fft=400, n_mels=40, dtype=np.float64)
    np.testing.assert_allclose(mel_filters(40, 400), theirs.T, atol=1e-12)


def test_a_tone_is_loudest_in_its_own_band():
    corners = to_hz(np.linspace(0, to_mel(RATE / 2), 42))
    for frequency in (500, 1500, 4000):
        values = feature(tone(frequency, 0.5)).values[middle(feature(tone(frequency, 0.5)))]
        band = int(np.bincount(values[:, :40].argmax(axis=1)).argmax())
        assert corners[band] < frequency < corners[band + 2]


# Pitch.


@pytest.mark.parametrize("frequency", [80, 95, 110, 150, 200, 260, 310, 400])
@pytest.mark.parametrize("sound", [tone, voice])
def test_the_pitch_of_a_steady_sound_is_right(frequency, sound):
    found = feature(sound(frequency, 0.6))
    np.testing.assert_allclose(hz(found)[middle(found)], frequency, rtol=0.02)
    assert (found.values[middle(found), VOICING] > 0.9).all()


@pytest.mark.parametrize(("low", "high"), [(80, 160), (100, 300), (200, 400), (400, 80)])
def test_the_pitch_of_a_glide_is_right(low, high):
    track = np.geomspace(low, high, 2 * RATE)
    found = feature(voice(track, 2.0))
    steps = middle(found, 10)
    expected = track[80 + 160 * np.arange(len(found.values))]
    np.testing.assert_allclose(hz(found)[steps], expected[steps], rtol=0.02)


def test_the_change_of_pitch_is_in_semitones_a_second():
    found = feature(voice(np.geomspace(100, 200, 2 * RATE), 2.0))
    assert np.median(found.values[middle(found), CHANGE]) == pytest.approx(6.0, abs=0.5)
    assert feature(voice(120, 1.0)).values[5:-5, CHANGE].max() < 1.0


def test_pitch_from_the_median_is_centred_on_voiced_steps():
    sound = np.concatenate([voice(100, 1.0), np.zeros(RATE, np.int16), voice(200, 0.5)])
    values = feature(sound).values
    voiced = values[:, VOICING] > 0.5
    assert np.median(values[voiced, FROM_MEDIAN]) == pytest.approx(0.0, abs=0.1)
    assert values[:, FROM_MEDIAN].max() == pytest.approx(12.0, abs=0.4)


def test_pitch_is_carried_over_what_is_unvoiced():
    sound = np.concatenate([voice(100, 0.5), np.zeros(RATE // 2, np.int16), voice(200, 0.5)])
    track = hz(feature(sound))
    assert track[52:98].min() >= 95
    assert track[52:98].max() <= 210


def test_noise_is_less_voiced_than_a_voice():
    hiss, spoken = feature(noise(1.0)), feature(voice(150, 1.0))
    assert np.median(hiss.values[:, VOICING]) < 0.5 < np.median(spoken.values[:, VOICING])


# Loudness.


def test_loudness_is_in_decibels_of_full_scale():
    for level in (1.0, 0.1, 0.01):
        found = feature(tone(400, 0.5, level=level))
        expected = 20 * np.log10(level / np.sqrt(2))
        np.testing.assert_allclose(found.values[middle(found), LOUDNESS], expected, atol=0.1)


def test_silence_is_finite_and_unvoiced():
    found = feature(np.zeros(RATE, np.int16))
    assert np.isfinite(found.values).all()
    np.testing.assert_array_equal(found.values[:, [PITCH, FROM_MEDIAN, CHANGE, VOICING]], 0)
    np.testing.assert_array_equal(found.values[:, :40], -100)
    np.testing.assert_array_equal(found.values[:, LOUDNESS], -100)


@pytest.mark.parametrize("value", [1, -32768, 32767])
def test_a_constant_sound_is_finite_and_unvoiced(value):
    found = feature(np.full(RATE, value, np.int16))
    assert np.isfinite(found.values).all()
    assert (found.values[5:-5, VOICING] == 0).all()


# Steps.


@pytest.mark.parametrize("count", [1, 2, 159, 160, 161, 319, 320])
def test_a_very_short_sound_has_at_least_one_step(count):
    found = feature(voice(150, 1.0)[:count])
    assert found.values.shape == (max(1, count // 160), 45)
    assert np.isfinite(found.values).all()


def test_no_sound_is_empty():
    extraction = LogMel().begin(CLIP)
    extraction.add(VideoChunk(np.zeros((1, 2)), np.zeros((1, 48, 48), np.uint8)))
    with pytest.raises(BadClipError) as caught:
        extraction.finish()
    assert caught.value.fault == "empty"


def test_steps_follow_each_other_from_where_the_sound_begins():
    found = feature((0.25, noise(0.5)), hop_ms=20)
    assert found.times.dtype == np.float64
    np.testing.assert_allclose(found.times[0], [0.25, 0.27])
    np.testing.assert_allclose(np.diff(found.times, axis=1), 0.02)
    np.testing.assert_allclose(found.times[1:, 0], found.times[:-1, 1])
    assert found.times[-1, 1] == pytest.approx(0.75)


def test_chunks_of_any_size_give_equal_values():
    sound = voice(np.linspace(100, 250, RATE), 1.0)
    whole = feature(sound)
    parts = feature(*[(at / RATE, sound[at : at + 1037]) for at in range(0, RATE, 1037)])
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.times, whole.times)


def test_a_gap_is_silence_and_the_rest_keeps_its_time():
    found = feature((0.0, voice(150, 0.5)), (2.0, voice(150, 0.5)))
    assert found.times[-1, 1] == pytest.approx(2.5)
    loud = found.values[:, LOUDNESS]
    assert (loud[55:195] == -100).all()
    assert loud[5:45].min() > -20
    assert loud[205:245].min() > -20
    np.testing.assert_allclose(loud[205:245], loud[5:45], atol=0.5)


def test_a_gap_that_no_clip_can_have_is_too_long():
    with pytest.raises(BadClipError) as caught:
        feature((0.0, noise(0.1)), (5 * 3600.0, noise(0.1)))
    assert caught.value.fault == "too_long"


@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_size_of_the_blocks_does_not_show(monkeypatch, block):
    sound = np.concatenate([voice(np.linspace(90, 300, RATE), 1.0), noise(0.53)])
    whole = feature(sound)
    monkeypatch.setattr("featurizers.sound.BLOCK", block)
    parts = feature(sound)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.times, whole.times)


@pytest.mark.parametrize("block", [1, 5, 64])
@pytest.mark.parametrize("hop_ms", [1, 10, 100])
def test_blocks_that_are_computed_as_the_sound_comes_are_those_of_the_whole(
    monkeypatch, hop_ms, block
):
    sound = np.concatenate([voice(np.linspace(90, 300, RATE // 2), 0.5), noise(0.53)])
    silence = np.zeros(12_345, np.int16)
    whole = feature(np.concatenate([sound, silence, sound]), hop_ms=hop_ms)
    pieces = [(at, sound[at : at + 1037]) for at in range(0, len(sound), 1037)]
    pieces += [(len(sound) + len(silence) + at, piece) for at, piece in pieces]
    monkeypatch.setattr("featurizers.sound.BLOCK", block)
    parts = feature(*[(at / RATE, piece) for at, piece in pieces], hop_ms=hop_ms)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.times, whole.times)


@pytest.mark.parametrize("settings", [{"hop_ms": 0}, {"hop_ms": 1001}, {"mels": 7}, {"mels": 129}])
def test_settings_out_of_range_are_refused_with_the_range(settings):
    with pytest.raises(ValueError, match="wanted 1 to 1000 and 8 to 128"):
        LogMel(**settings)


def test_a_long_sound_takes_little_more_memory_than_its_feature(monkeypatch):
    monkeypatch.setattr("featurizers.sound.BLOCK", 64)
    extraction, second = LogMel().begin(CLIP), noise(1.0)
    tracemalloc.start()
    try:
        for number in range(300):
            extraction.add(AudioChunk(float(number), second.copy()))
        found = extraction.finish()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.values.shape == (30_000, 45)
    # The feature in blocks and whole, its times, and some columns of it in float64.
    assert peak_bytes < 4 * found.values.nbytes
