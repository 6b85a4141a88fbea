"""Pitch, voice quality and spectral shape against the sounds that were made, and librosa's."""

import tracemalloc

import numpy as np
import pytest

from featurizers.clip import Clip
from featurizers.prosody import Prosody
from featurizers.pulses import unsteadiness
from featurizers.sound import WINDOW, decibels
from featurizers.spec import AudioChunk
from tests.media_maker import tone, voice

RATE, HOP = 16_000, 160
CLIP = Clip(key="a", id="a", media="a", media_digest="")
NAMES = [dim.name for dim in Prosody().spec.dims]
NOISE = np.round(np.random.default_rng(0).normal(size=RATE) * 4000).astype(np.int16)


def feature(*chunks, **settings):
    """Of samples that begin at 0, or of (start, samples)."""
    extraction = Prosody(**settings).begin(CLIP)
    for chunk in chunks:
        start, samples = chunk if isinstance(chunk, tuple) else (0.0, chunk)
        extraction.add(AudioChunk(start, samples))
    return extraction.finish()


def track(found, name, margin=0):
    return found.values[margin : len(found.values) - margin, NAMES.index(name)]


def hz(found, margin=0):
    return 27.5 * 2 ** (track(found, "pitch", margin) / 12)


# Pitch.


def tones_and_glides():
    """Sounds and the pitch at each sample."""
    for frequency in (80, 110, 150, 220, 310, 400):
        yield tone(frequency, 0.5), np.full(RATE // 2, float(frequency))
        yield voice(frequency, 0.5), np.full(RATE // 2, float(frequency))
    for low, high in ((80, 160), (100, 300), (200, 400), (400, 80)):
        glide = np.geomspace(low, high, RATE)
        phase = 2 * np.pi * np.cumsum(glide) / RATE
        yield voice(glide, 1.0), glide
        yield np.round(16_000 * np.sin(phase)).astype(np.int16), glide


def cents(found, truth):
    return np.abs(1200 * np.log2(found / truth))


def test_the_pitch_of_tones_and_glides_is_right_within_a_cent():
    errors = []
    for sound, truth in tones_and_glides():
        found = feature(sound)
        assert (track(found, "voiced", 8) == 1).all()
        at = HOP // 2 + HOP * np.arange(len(found.values))
        errors.append(cents(hz(found), truth[at])[8:-8])
    error = np.concatenate(errors)
    assert np.median(error) < 0.2
    assert np.percentile(error, 95) < 0.6
    assert (error > 50).mean() == 0


@pytest.mark.slow  # librosa compiles its pyin
def test_the_pitch_of_tones_and_glides_is_that_of_librosas_pyin():
    import librosa

    between, ours, theirs = [], [], []
    for sound, truth in tones_and_glides():
        # pyin compares half a window with what lies a period later: its middle is about 320.
        padded = np.pad(sound, (320 - HOP // 2, 1024)).astype(np.float32) / 32768
        given, _, _ = librosa.pyin(
            padded,
            fmin=60,
            fmax=500,
            sr=RATE,
            frame_length=1024,
            hop_length=HOP,
            center=False,
        )
        found = hz(feature(sound))
        at = HOP // 2 + HOP * np.arange(len(found))
        inner = slice(8, len(found) - 8)
        between.append(cents(found, given[: len(found)])[inner])
        ours.append(cents(found, truth[at])[inner])
        theirs.append(cents(given[: len(found)], truth[at])[inner])
    difference = np.concatenate(between)
    assert np.isfinite(difference).all()  # pyin hears a pitch wherever we do
    # pyin's pitches lie 10 cents apart, and a glide moves on between its middle and ours.
    assert np.median(difference) < 20
    assert np.percentile(difference, 95) < 40
    assert (difference > 50).mean() == 0
    assert np.median(np.concatenate(ours)) < np.median(np.concatenate(theirs))


def test_pitch_is_carried_over_what_is_unvoiced_and_voiced_tells():
    quiet = np.zeros(RATE // 2, np.int16)
    found = feature(np.concatenate([voice(100, 0.5), quiet, voice(200, 0.5)]))
    assert (np.diff(hz(found)[52:98]) > 0).all()
    assert hz(found)[75] == pytest.approx(141, rel=0.05)
    assert not track(found, "voiced")[54:96].any()
    for name in ("jitter", "shimmer", "hnr", "h1_h2", "voicing"):
        assert not track(found, name)[54:96].any(), name
    assert set(track(found, "voiced")) == {0.0, 1.0}


def test_an_uneven_voice_does_not_drop_by_an_octave():
    found = feature(pulse_train(150, 2.0, jitter=0.01)[0])
    assert (np.abs(hz(found, 10) / 150 - 1) < 0.1).mean() > 0.99


# Jitter, shimmer and the harmonics.


def pulse_train(pitch_hz, seconds, *, jitter=0.0, shimmer_db=0.0, snr_db=None, seed=0):
    """Sound, its local jitter in % and its local shimmer in dB.

    Pulses at times between the samples; `jitter` and `shimmer_db` are standard deviations of the
    periods, over the mean one, and of the pulses' heights.
    """
    rng = np.random.default_rng(seed)
    periods = (1 + jitter * rng.normal(size=int(pitch_hz * seconds * 1.3))) / pitch_hz
    levels = shimmer_db * rng.normal(size=len(periods))
    at = np.cumsum(periods)
    there = at < seconds - 0.01
    periods, levels, at = periods[there], levels[there], at[there]
    time = np.arange(round(seconds * RATE)) / RATE
    sound = np.zeros(len(time))
    for moment, level in zip(at, levels, strict=True):
        near = slice(max(0, int((moment - 0.008) * RATE)), int((moment + 0.008) * RATE))
        since = time[near] - moment
        shape = np.exp(-((since / 4e-4) ** 2)) - 0.3 * np.exp(-((since / 12e-4) ** 2))
        sound[near] += 10 ** (level / 20) * shape
    sound *= 0.3 / np.abs(sound).max()
    if snr_db is not None:
        level = np.sqrt((sound**2).mean() * 10 ** (-snr_db / 10))
        sound += level * rng.normal(size=len(sound))
    return (
        np.round(sound * 32767).astype(np.int16),
        100 * np.abs(np.diff(periods)).mean() / periods.mean(),
        np.abs(np.diff(levels)).mean(),
    )


@pytest.mark.parametrize("pitch_hz", [90, 150, 220, 350])
@pytest.mark.parametrize("jitter", [0.0, 0.005, 0.01])
@pytest.mark.parametrize("upside_down", [False, True])
def test_jitter_and_shimmer_are_those_of_the_pulses(pitch_hz, jitter, upside_down):
    sound, percent, decibel = pulse_train(pitch_hz, 3.0, jitter=jitter, shimmer_db=25 * jitter)
    found = feature(-sound if upside_down else sound)
    # A parabola through three samples misses a pulse's place by a little; steps see some twice.
    assert track(found, "jitter", 10).mean() == pytest.approx(percent, rel=0.08, abs=0.03)
    assert track(found, "shimmer", 10).mean() == pytest.approx(decibel, rel=0.08, abs=0.02)


def test_a_little_noise_makes_little_jitter():
    found = feature(pulse_train(150, 2.0, snr_db=20)[0])
    assert np.median(track(found, "jitter", 10)) < 0.25
    assert np.median(track(found, "shimmer", 10)) < 0.2


def test_jitter_alone_is_no_shimmer_and_shimmer_alone_no_jitter():
    found = feature(pulse_train(150, 2.0, shimmer_db=0.5)[0])
    assert track(found, "jitter", 10).max() < 0.3
    assert track(found, "shimmer", 10).mean() > 0.4
    found = feature(pulse_train(150, 2.0, jitter=0.01)[0])
    assert track(found, "shimmer", 10).max() < 0.05


def test_periods_are_compared_with_their_neighbours_alone():
    """The slow and obvious way, of pulses whose places are whole samples."""
    rng = np.random.default_rng(3)
    at = np.cumsum(rng.integers(96, 105, 60))
    heights = rng.integers(8000, 12_000, 60)
    sound = np.zeros(7 * 1000, np.int16)
    sound[at], sound[at - 1], sound[at + 1] = heights, heights // 2, heights // 2
    jitter, shimmer = unsteadiness(sound[: 43 * HOP], np.full(43, 160.0), HOP, 480)
    periods, levels = np.diff(at), 20 * np.log10(heights)
    for step in range(10, 30):
        middle = step * HOP + HOP // 2
        seen = [i for i in range(1, 59) if middle - 480 <= at[i] < middle + 480]
        changes = [abs(int(periods[i]) - int(periods[i - 1])) for i in seen]
        means = [(periods[i] + periods[i - 1]) / 2 for i in seen]
        steps_db = [abs(levels[i + 1] - levels[i]) for i in seen]
        assert jitter[step] == pytest.approx(100 * sum(changes) / sum(means), rel=1e-6)
        # Smoothing gives whole numbers.
        assert shimmer[step] == pytest.approx(np.mean(steps_db), abs=5e-3)


@pytest.mark.parametrize("pitch_hz", [150, 200, 300])
@pytest.mark.parametrize("snr_db", [5, 10, 15, 20])
def test_the_harmonics_to_noise_ratio_is_that_of_the_noise(pitch_hz, snr_db):
    found = feature(pulse_train(pitch_hz, 2.0, snr_db=snr_db)[0])
    assert np.median(track(found, "hnr", 10)) == pytest.approx(snr_db, abs=0.7)


def test_the_harmonics_to_noise_ratio_of_a_low_voice_ends_at_20_db():
    """The window of 40 ms holds four of its periods."""
    ratios = [
        np.median(track(feature(pulse_train(100, 2.0, snr_db=snr_db)[0]), "hnr", 10))
        for snr_db in (10, 60)
    ]
    assert ratios == pytest.approx([10, 20], abs=1)


def test_noise_is_unvoiced_and_a_voice_is_not():
    assert track(feature(NOISE), "voiced").mean() < 0.1
    assert np.median(track(feature(NOISE), "voicing")) < 0.5
    assert track(feature(voice(150, 1.0)), "voiced", 3).all()


@pytest.mark.parametrize("expected_db", [-10.0, 0.0, 10.0])
def test_h1_h2_is_the_first_harmonic_over_the_second(expected_db):
    phase = 2 * np.pi * 200 * np.arange(RATE) / RATE
    sound = 6000 * (np.sin(phase) + 10 ** (-expected_db / 20) * np.sin(2 * phase))
    found = feature(np.round(sound).astype(np.int16))
    np.testing.assert_allclose(track(found, "h1_h2", 5), expected_db, atol=0.1)


# Energy and spectral shape.


@pytest.mark.slow
@pytest.mark.parametrize("sound", [NOISE, voice(140, 1.0), voice(140, 1.0) + NOISE // 8])
def test_energy_and_shape_are_librosas(sound):
    import librosa

    found, y = feature(sound), sound.astype(np.float64) / 32768
    begin = 2 * HOP + HOP // 2 - WINDOW // 2  # where the window of step 2 begins
    spectra = np.abs(
        librosa.stft(y[begin:], n_fft=WINDOW, hop_length=HOP, center=False, dtype=np.complex128)
    )
    of = librosa.feature
    theirs = {
        "centroid": of.spectral_centroid(S=spectra, sr=RATE),
        "spread": of.spectral_bandwidth(S=spectra, sr=RATE),
        # librosa takes our floor of power, and sound that is scaled as ours is.
        "flatness": of.spectral_flatness(S=spectra * 4 / WINDOW, amin=1e-10),
        "energy": decibels(
            of.rms(y=y[begin:], frame_length=WINDOW, hop_length=HOP, center=False) ** 2
        ),
    }
    for name, values in theirs.items():
        ours = track(found, name)[2 : 2 + values.shape[1]]
        np.testing.assert_allclose(ours, values[0, : len(ours)], rtol=1e-6, atol=1e-4)
    rolloff = of.spectral_rolloff(S=spectra, sr=RATE, roll_percent=0.85)[0]
    ours = track(found, "rolloff")[2 : 2 + len(rolloff)]
    # librosa names the line that the sum passes; ours lies between it and the one before.
    assert (ours <= rolloff[: len(ours)] + 1e-3).all()
    assert (ours > rolloff[: len(ours)] - RATE / WINDOW - 1e-3).all()


def two_tones(low_hz, high_hz, over_db):
    """A low tone that is so much stronger than a high one; both on lines of the spectrum."""
    turns = 2 * np.pi * np.arange(RATE) / RATE
    low, high = np.sin(low_hz * turns), np.sin(high_hz * turns)
    return np.round(9000 * (low + 10 ** (-over_db / 20) * high)).astype(np.int16)


def test_alpha_ratio_and_hammarberg_index_are_those_of_two_tones():
    found = feature(two_tones(600, 3000, 12.0))
    np.testing.assert_allclose(track(found, "alpha_ratio", 3), 12, atol=0.01)
    np.testing.assert_allclose(track(found, "hammarberg", 3), 12, atol=0.01)
    # 1.4 kHz is high for the one and low for the other.
    found = feature(two_tones(1400, 3000, 12.0))
    assert (track(found, "alpha_ratio", 3) < -60).all()
    np.testing.assert_allclose(track(found, "hammarberg", 3), 12, atol=0.01)


def test_slopes_are_those_of_coloured_noise():
    """Noise whose power falls by 30 dB a kHz up to 1.5 kHz."""
    rng = np.random.default_rng(5)
    khz = np.fft.rfftfreq(4 * RATE, 1 / RATE) / 1000
    spectrum = np.exp(2j * np.pi * rng.random(len(khz))) * 10 ** (-1.5 * np.minimum(khz, 1.5))
    sound = np.fft.irfft(spectrum)
    found = feature(np.round(sound / np.abs(sound).max() * 20_000).astype(np.int16))
    assert track(found, "slope_0_500", 3).mean() == pytest.approx(-30, abs=3)
    assert track(found, "slope_500_1500", 3).mean() == pytest.approx(-30, abs=1)


def test_flux_is_high_where_the_spectrum_changes_and_nowhere_else():
    found = feature(np.concatenate([tone(400, 0.5), tone(3000, 0.5)]))
    flux = track(found, "flux")
    assert flux[48:52].max() > 0.8
    assert flux[5:45].max() < 0.01
    assert flux[55:95].max() < 0.01
    louder = np.concatenate([tone(400, 0.5, level=0.1), tone(400, 0.5, level=0.9)])
    assert track(feature(louder), "flux")[53:95].max() < 0.01


def test_loudness_grows_by_the_cubic_root_and_hears_the_middle_best():
    def loudness(sound):
        return np.median(track(feature(sound), "loudness", 5))

    quiet, loud = (loudness(tone(1000, 0.5, level=level)) for level in (0.05, 0.4))
    assert loud / quiet == pytest.approx(64 ** (1 / 3), rel=0.02)
    assert loudness(tone(60, 0.5)) < 0.3 * loudness(tone(3000, 0.5))


def test_silence_is_finite_and_nothing_but_quiet():
    values = feature(np.zeros(RATE, np.int16)).values
    assert (values[:, NAMES.index("energy")] == -100).all()
    assert not np.delete(values, NAMES.index("energy"), axis=1).any()


# Steps.


@pytest.mark.parametrize("block", [1, 5, 64])
@pytest.mark.parametrize("hop_ms", [5, 10, 20])
def test_blocks_that_are_computed_as_the_sound_comes_are_those_of_the_whole(
    monkeypatch, hop_ms, block
):
    sound = np.concatenate([pulse_train(110, 0.6, jitter=0.01, snr_db=20)[0], NOISE[:5000]])
    silence = np.zeros(4_345, np.int16)
    whole = feature(np.concatenate([sound, silence, sound]), hop_ms=hop_ms)
    pieces = [(at, sound[at : at + 1037]) for at in range(0, len(sound), 1037)]
    pieces += [(len(sound) + len(silence) + at, piece) for at, piece in pieces]
    monkeypatch.setattr("featurizers.sound.BLOCK", block)
    parts = feature(*[(at / RATE, piece) for at, piece in pieces], hop_ms=hop_ms)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.times, whole.times)


def test_a_long_sound_takes_little_more_memory_than_its_feature(monkeypatch):
    monkeypatch.setattr("featurizers.sound.BLOCK", 64)
    extraction = Prosody().begin(CLIP)
    tracemalloc.start()
    try:
        for number in range(200):
            extraction.add(AudioChunk(float(number), NOISE.copy()))
        found = extraction.finish()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.values.shape == (20_000, 18)
    # The feature in blocks and whole, its times, and its pitch in float64.
    assert peak_bytes < 4 * found.values.nbytes


@pytest.mark.parametrize("hop_ms", [4, 21])
def test_settings_out_of_range_are_refused_with_the_range(hop_ms):
    with pytest.raises(ValueError, match=f"hop_ms is {hop_ms}; wanted 5 to 20"):
        Prosody(hop_ms=hop_ms)
