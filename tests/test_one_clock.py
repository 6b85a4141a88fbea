"""Features lie where their media are shown and heard, whatever the file does with its clock."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from featurizers import catalog
from featurizers.clip import Clip
from featurizers.decoder import Decoder
from featurizers.extract import extract
from tests.media_maker import tone, voice, write

pytestmark = pytest.mark.media

RATE, FPS, SECONDS, SIDE = 16_000, 25, 6, 96
DB, LOOK = 0.05, 0.02
"""How far mel energies and picture descriptors may be from those of the clean file.

Pitch is left out: it is told beside the median of the clip, and bridged where nobody speaks.
"""
MELS = 40


@functools.cache
def sound():
    """A voice that glides, and pauses twice."""
    samples = voice(np.linspace(110, 260, SECONDS * RATE), SECONDS)
    loud = np.ones(SECONDS * RATE)
    for start in (1.5, 3.7):
        loud[int(start * RATE) : int((start + 0.4) * RATE)] = 0.01
    return (samples * loud).astype(np.int16)


@functools.cache
def picture(number):
    """A bright disc on its way over a shaded ground, at picture `number` of 25 a second."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = 2 * np.pi * number / (FPS * 2.5)
    away = np.hypot(x - SIDE / 2 - 26 * np.cos(angle), y - SIDE / 2 - 20 * np.sin(angle))
    level = 50 + x * 0.5 + 150 * (away < 14)
    return np.repeat(level.astype(np.uint8)[:, :, np.newaxis], 3, axis=2)


def film(path, *, pictures_at=0.0, sound_at=0.0, numbers=range(FPS * SECONDS), sounds=None):
    """A lossless file of these pictures and this sound, each stream beginning when it is told."""
    write(
        path,
        pictures=[(pictures_at + number / FPS, picture(number)) for number in numbers],
        sound=sounds or [(sound_at, sound())],
        audio="pcm_s16le",
        options={"qp": "0", "preset": "ultrafast"},
    )
    return path


def features(path):
    """Log-mel and face motion of a whole file."""
    clip = Clip(key="a", id="a", media=str(path), media_digest="", seconds=SECONDS)
    built = [catalog.build("logmel"), catalog.build("face-motion", fps=FPS)]
    with Decoder() as decoder:
        outcomes = extract(clip, path, built, decoder)
    assert [outcome.state for outcome in outcomes] == ["sample", "sample"]
    sound, light = (outcome.feature for outcome in outcomes)
    return [replace(sound, values=sound.values[:, :MELS]), light]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return features(film(tmp_path_factory.mktemp("clean") / "a.mkv"))


def at(feature, times):
    """The steps that lie around some times, in seconds."""
    middles = feature.times.mean(axis=1)
    return feature.values[np.abs(middles[:, np.newaxis] - times).argmin(axis=0)]


def steps(seconds, apart=0.04):
    return np.arange(apart / 2, seconds, apart)


def assert_moved(found, clean, moved, times):
    """Both features are the clean file's, `moved` seconds later (sound, pictures)."""
    for feature, other, late, tolerance in zip(found, clean, moved, (DB, LOOK), strict=True):
        away = np.abs(at(feature, times + late) - at(other, times))
        # The first and last steps see the silence, or the first picture, beside the stream.
        assert np.quantile(away[2:-2], 0.99) <= tolerance


@pytest.mark.parametrize("late", [0.5, 0.52])
@pytest.mark.parametrize("form", ["a.mkv", "a.mov"])
def test_sound_that_begins_later_has_the_same_features_later(tmp_path, clean, late, form):
    found = features(film(tmp_path / form, sound_at=late))
    assert found[0].times[0, 0] == pytest.approx(late, abs=0.02)
    assert_moved(found, clean, (late, 0.0), steps(SECONDS - 1))


@pytest.mark.parametrize("form", ["a.mkv", "a.mov"])
def test_pictures_that_begin_later_have_the_same_features_later(tmp_path, clean, form):
    found = features(film(tmp_path / form, pictures_at=0.52))
    assert_moved(found, clean, (0.0, 0.52), steps(SECONDS - 1)[3:])


def test_pictures_at_a_varying_rate_have_the_features_of_those_that_they_stand_for(tmp_path, clean):
    """Two of five pictures are left out: the one before each is shown for longer."""
    kept = [number for number in range(FPS * SECONDS) if number % 5 not in {1, 3}]
    found = features(film(tmp_path / "a.mkv", numbers=kept))
    there = np.array([number for number in kept[1:] if number - 1 in kept])
    times = (there + 0.5) / FPS
    assert len(found[1].values) == len(clean[1].values)
    # Its motion is that from the picture before it, which is there; others have moved further.
    away = np.abs(at(found[1], times) - at(clean[1], times))
    assert np.quantile(away, 0.99) <= LOOK


def test_what_was_dropped_leaves_the_rest_in_its_place(tmp_path, clean):
    """A second of sound and half a second of pictures are missing in the middle."""
    cut = [(0.0, sound()[: 2 * RATE]), (3.0, sound()[3 * RATE :])]
    numbers = [number for number in range(FPS * SECONDS) if not 60 <= number < 72]
    found = features(film(tmp_path / "a.mkv", numbers=numbers, sounds=cut))
    for times in (steps(1.9), 3.1 + steps(2.8)):
        assert_moved(found, clean, (0.0, 0.0), times)


def test_sound_that_ends_early_leaves_the_pictures_whole(tmp_path, clean):
    found = features(film(tmp_path / "a.mkv", sounds=[(0.0, sound()[: 2 * RATE])]))
    assert found[0].times[-1, 1] == pytest.approx(2.0, abs=0.03)
    np.testing.assert_array_equal(found[1].values, clean[1].values)
    times = steps(1.9)
    assert np.quantile(np.abs(at(found[0], times) - at(clean[0], times))[2:-2], 0.99) <= DB


def test_an_edit_list_that_skips_the_beginning_is_followed(tmp_path):
    """B-frames and AAC's first samples are cut by edit lists in MP4; both streams begin at 0."""
    path = tmp_path / "a.mp4"
    click = np.zeros(SECONDS * RATE, np.int16)
    flash = [np.full((SIDE, SIDE, 3), 30, np.uint8)] * (FPS * SECONDS)
    for second in range(1, SECONDS):
        click[second * RATE : second * RATE + 1600] = tone(1000, 0.1)
        for number in range(3):
            flash[second * FPS + number] = np.full((SIDE, SIDE, 3), 220, np.uint8)
    pictures = [(number / FPS, each) for number, each in enumerate(flash)]
    write(path, pictures=pictures, sound=[(0.0, click)], options={"bf": "3", "preset": "medium"})
    sound, light = features(path)
    names = [dim.name for dim in catalog.build("face-motion").spec.dims]
    loud = sound.values.max(axis=1) > sound.values.max() - 15
    bright = light.values[:, names.index("brightness")] > 128
    beeps = sound.times[1:, 0][loud[1:] & ~loud[:-1]]
    flashes = light.times[1:, 0][bright[1:] & ~bright[:-1]]
    assert len(beeps) == len(flashes) == SECONDS - 1
    np.testing.assert_allclose(beeps, np.arange(1, SECONDS), atol=0.025)
    np.testing.assert_allclose(flashes, np.arange(1, SECONDS), atol=0.001)
    assert np.abs(beeps - flashes).max() < 1 / FPS
