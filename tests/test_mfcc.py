"""Cepstral coefficients and their derivatives against librosa's."""

import numpy as np
import pytest

from featurizers.clip import Clip
from featurizers.mfcc import Mfcc, derivative
from featurizers.sound import WINDOW
from featurizers.spec import AudioChunk
from tests.media_maker import tone, voice

RATE = 16_000
CLIP = Clip(key="a", id="a", media="a", media_digest="")
NOISE = np.round(np.random.default_rng(0).normal(size=RATE) * 4000).astype(np.int16)


def values(sound, **settings):
    extraction = Mfcc(**settings).begin(CLIP)
    extraction.add(AudioChunk(0.0, sound))
    return extraction.finish().values


def librosas(sound, hop, coefficients, mels):
    import librosa

    energies = librosa.feature.melspectrogram(
        y=sound.astype(np.float64) / 32768,
        sr=RATE,
        n_fft=WINDOW,
        hop_length=hop,
        window="hann",
        center=False,
        n_mels=mels,
        dtype=np.float64,
    )
    decibels = librosa.power_to_db(energies, amin=1e-10, top_db=None)
    return librosa.feature.mfcc(S=decibels, n_mfcc=coefficients).T


@pytest.mark.slow  # importing librosa for the first time
@pytest.mark.parametrize(("hop_ms", "coefficients", "mels"), [(10, 13, 40), (20, 20, 64)])
@pytest.mark.parametrize("sound", [NOISE, voice(140, 1.0), tone(3000, 1.0)])
def test_coefficients_are_librosas(hop_ms, coefficients, mels, sound):
    hop = RATE * hop_ms // 1000
    ours = values(sound, hop_ms=hop_ms, coefficients=coefficients, mels=mels, deltas=0)
    # Ours are centred on the step's middle; librosa's frame 0 begins with the samples it is given.
    first = next(step for step in range(9) if step * hop + hop // 2 >= WINDOW // 2)
    theirs = librosas(sound[first * hop + hop // 2 - WINDOW // 2 :], hop, coefficients, mels)
    count = min(len(theirs), len(ours) - first)
    assert count > 40
    # Half a step of the grid, and half a step of float32 near 600.
    np.testing.assert_allclose(ours[first : first + count], theirs[:count], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [9, 30, 5000])
def test_derivatives_are_librosas(steps):
    import librosa

    track = np.round(np.random.default_rng(1).normal(0, 20, (steps, 3)), 4).astype(np.float32)
    for order in (1, 2):
        theirs = librosa.feature.delta(
            track.astype(np.float64), width=9, order=order, axis=0, mode="nearest"
        )
        np.testing.assert_allclose(derivative(track, order), theirs, rtol=0, atol=6e-5)


def test_a_line_has_its_slope_and_a_parabola_its_bend_as_derivatives():
    step = np.arange(40.0)[:, np.newaxis]
    slopes = derivative((3 * step).astype(np.float32), 1)
    bends = derivative((0.5 * step**2).astype(np.float32), 2)
    np.testing.assert_array_equal(slopes[4:-4], 3.0)
    np.testing.assert_array_equal(bends[4:-4], 1.0)


def test_derivatives_stand_behind_the_coefficients():
    sound = voice(np.linspace(100, 250, RATE), 1.0)
    spec = Mfcc().spec
    plain, whole = values(sound, deltas=0), values(sound)
    np.testing.assert_array_equal(whole[:, :13], plain)
    np.testing.assert_array_equal(whole[:, 13:26], derivative(plain, 1))
    np.testing.assert_array_equal(whole[:, 26:], derivative(plain, 2))
    assert [spec.dims[place].name for place in (0, 13, 38)] == [
        "mfcc_00",
        "delta_00",
        "delta_delta_12",
    ]
    np.testing.assert_array_equal(values(sound, deltas=1), whole[:, :26])


@pytest.mark.parametrize("count", [1, 161, 700])
def test_a_clip_of_few_steps_has_derivatives_too(count):
    found = values(voice(150, 1.0)[:count])
    assert found.shape == (max(1, count // 160), 39)
    assert np.isfinite(found).all()
    if count == 1:
        assert (found[:, 13:] == 0).all()


def test_the_size_of_the_blocks_does_not_show(monkeypatch):
    sound = np.concatenate([voice(np.linspace(90, 300, RATE), 1.0), NOISE])
    whole = values(sound)
    monkeypatch.setattr("featurizers.sound.BLOCK", 7)
    monkeypatch.setattr("featurizers.mfcc.SLICE", 11)
    np.testing.assert_array_equal(values(sound), whole)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hop_ms": 0}, "hop_ms is 0 and mels is 40; wanted 1 to 1000"),
        ({"mels": 7}, "wanted 1 to 1000 and 8 to 128"),
        ({"coefficients": 41}, r"coefficients is 41 .* wanted 2 to 40 \(as many as mels\)"),
        ({"deltas": 3}, "deltas is 3; wanted .* 0 to 2"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(settings, said):
    with pytest.raises(ValueError, match=said):
        Mfcc(**settings)
