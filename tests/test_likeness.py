"""A clip is found again in other bytes, and other clips are not taken for it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.clip import Clip
from featurizers.decoder import Decoder
from featurizers.likeness import (
    PICTURES_APART,
    RATE_HZ,
    SOUND_APART,
    Likeness,
    alike,
    apart,
    hash_of_pictures,
    hash_of_sound,
    likeness,
)
from featurizers.media import encode
from tests.media_maker import write

SECONDS = 3


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as made:
        yield made


def speech(seed, rate_hz=16_000, seconds=SECONDS):
    """Syllables of a voice: each a pitch with formants of its own, and pauses."""
    random = np.random.default_rng(seed)
    time = np.arange(round(0.2 * rate_hz)) / rate_hz
    pieces = []
    for _ in range(round(seconds / 0.2)):
        hz = random.uniform(90, 250)
        strengths = random.uniform(0, 1, 14) ** 3 * (random.uniform() > 0.2)
        wave = sum(s * np.sin(2 * np.pi * hz * (n + 1) * time) for n, s in enumerate(strengths))
        pieces.append(wave * np.hanning(len(time)))
    wave = np.concatenate(pieces) + random.normal(0, 0.001, len(time) * len(pieces))
    return np.round(wave / np.abs(wave).max() * 20_000).astype(np.int16)


def pictures(seed, size=(96, 128), fps=10, seconds=SECONDS):
    """Blobs that wander over a gradient, drawn at any size."""
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    centres, ways = random.uniform(0, 1, (6, 2)), random.uniform(-0.1, 0.1, (6, 2))
    levels = random.uniform(-120, 120, 6)
    for number in range(fps * seconds):
        picture = 128.0 + 40 * (x - 0.5)
        for centre, way, level in zip(centres, ways, levels, strict=True):
            cy, cx = centre + way * number / fps
            picture = picture + level * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.02)
        yield np.repeat(np.clip(picture, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def of(path, decoder, start=0.0, seconds=float(SECONDS)):
    clip = Clip(
        key="k",
        id="k",
        media=str(path),
        media_digest="",
        start=start,
        end=start + seconds,
        seconds=seconds,
    )
    return likeness(clip, path, decoder)


def film(path, seed, *, seen=True, heard=True, size=(96, 128), rate_hz=16_000):
    encode(
        path,
        frames=pictures(seed, size) if seen else None,
        fps=10,
        samples=speech(seed, rate_hz) if heard else None,
        rate_hz=rate_hz,
    )
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory, decoder):
    folder = tmp_path_factory.mktemp("films")
    return [of(film(folder / f"{seed}.mp4", seed), decoder) for seed in range(4)]


def test_a_clip_of_another_size_bitrate_rate_and_container_is_found(films, tmp_path, decoder):
    smaller = of(film(tmp_path / "small.mp4", 0, size=(48, 64), rate_hz=24_000), decoder)
    timed = [(number / 10, picture) for number, picture in enumerate(pictures(1))]
    options = {"crf": "40"}.items()
    write(tmp_path / "poor.mkv", pictures=timed, sound=[(0, speech(1))], options=options)
    poorer = of(tmp_path / "poor.mkv", decoder)
    assert alike([smaller, poorer], films) == [(0, 0), (1, 1)]
    for one, other in ((smaller, films[0]), (poorer, films[1])):
        assert apart([one.sound], [other.sound])[0, 0] < 0.1
        assert apart([one.pictures], [other.pictures])[0, 0] < 0.1


def test_generated_clips_are_not_taken_for_each_other(films):
    assert alike(films, films) == [(number, number) for number in range(4)]
    sound = apart([each.sound for each in films], [each.sound for each in films])
    shown = apart([each.pictures for each in films], [each.pictures for each in films])
    for found in (sound, shown):
        assert found[~np.eye(4, dtype=bool)].min() > 2 * max(SOUND_APART, PICTURES_APART)


def test_pictures_decide_where_nobody_is_heard(films, tmp_path, decoder):
    mute = of(film(tmp_path / "mute.mp4", 2, heard=False), decoder)
    assert mute.sound == ""
    assert alike([mute], films) == [(0, 2)]
    heard = of(film(tmp_path / "heard.mp4", 3, seen=False), decoder)
    assert heard.pictures == ""
    assert alike([heard], films) == [(0, 3)]


def test_the_same_chair_is_no_copy_where_something_else_is_said(films):
    other = Likeness(sound=films[1].sound, pictures=films[0].pictures)
    assert alike([other], films[:1]) == []


def test_a_span_of_a_film_is_known_in_a_file_of_its_own(films, tmp_path, decoder):
    whole = np.concatenate([speech(1), speech(0)])
    encode(tmp_path / "long.mp4", frames=None, fps=10, samples=whole, rate_hz=16_000)
    found = of(tmp_path / "long.mp4", decoder, start=float(SECONDS))
    assert alike([found], films) == [(0, 0)]


def test_what_tells_nothing_is_like_nothing(tmp_path, decoder):
    silent = np.zeros(SECONDS * 16_000, dtype=np.int16)
    grey = (np.full((64, 64, 3), 90, dtype=np.uint8) for _ in range(30))
    encode(tmp_path / "grey.mp4", frames=grey, fps=10, samples=silent, rate_hz=16_000)
    found = of(tmp_path / "grey.mp4", decoder)
    assert found == Likeness()
    assert alike([found], [found]) == []
    assert of(tmp_path / "grey.mp4", decoder, seconds=0.4) == Likeness()
    assert hash_of_sound(np.ones(RATE_HZ // 4)) == ""
    assert hash_of_pictures([]) == ""
    assert alike([], [found]) == []


def test_a_stream_that_cannot_be_decoded_is_as_if_it_were_not_there(tmp_path, decoder):
    path = film(tmp_path / "cut.mp4", 0)
    path.write_bytes(path.read_bytes()[:2000])
    assert of(path, decoder) == Likeness()


@pytest.mark.parametrize(("seed", "factor"), [(5, 0.01), (6, 0.37), (7, 30.0)])
def test_loudness_changes_no_hash(seed, factor):
    samples = speech(seed, RATE_HZ).astype(np.float64)
    assert hash_of_sound(samples * factor) == hash_of_sound(samples)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["00ff", "ffff", "", "0f0f"]), max_size=4))
def test_distances_are_shares_of_bits_and_symmetric(texts):
    found = apart(texts, texts)
    np.testing.assert_array_equal(found, found.T)
    for (row, column), value in np.ndenumerate(found):
        if not texts[row] or not texts[column]:
            assert np.isnan(value)
        else:
            bits = bin(int(texts[row], 16) ^ int(texts[column], 16)).count("1")
            assert value == bits / 16
