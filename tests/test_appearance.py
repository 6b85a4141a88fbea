"""How a square looks and changes, against loops over its pixels."""

import math

import numpy as np
import pytest

from featurizers.appearance import SIZE, Appearance
from featurizers.clip import BadClipError, Clip
from featurizers.spec import AudioChunk, VideoChunk
from tests.drawn_faces import draw, rgb

CLIP = Clip(key="a", id="a", media="a", media_digest="")
NAMES = [dim.name for dim in Appearance().spec.dims]
ANGLES = ("0", "22.5", "45", "67.5", "90", "112.5", "135", "157.5")


def feature(frames, featurizer=None, pieces=None, fps=5.0):
    frames = np.asarray(frames, dtype=np.uint8)
    extraction = (featurizer or Appearance(fps=fps)).begin(CLIP)
    times = np.arange(len(frames))[:, np.newaxis] / fps + np.array([0.0, 1 / fps])
    at = 0
    for size in pieces or [len(frames)]:
        extraction.add(VideoChunk(times[at : at + size], frames[at : at + size]))
        at += size
    return extraction.finish()


def named(values, beginning):
    return values[:, [number for number, name in enumerate(NAMES) if name.startswith(beginning)]]


def pictures(count, seed=0):
    """Noise, slopes, and a drawn face."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 256, size=(count, SIZE, SIZE))
    y, x = np.mgrid[:SIZE, :SIZE]
    made[::3] = (3 * x + 2 * y) % 256
    made[1::3] = draw(SIZE, SIZE, [(30, 32, 25)])
    return made.astype(np.uint8)


def slow(picture, before):
    """One picture, one pixel at a time, as the names of the dimensions say."""
    p, b = picture.astype(int).tolist(), before.astype(int).tolist()
    every = [(y, x) for y in range(SIZE) for x in range(SIZE)]
    found = dict.fromkeys(NAMES, 0.0)
    mean = sum(p[y][x] for y, x in every) / SIZE**2
    found["brightness"] = mean
    found["contrast"] = math.sqrt(sum((p[y][x] - mean) ** 2 for y, x in every) / SIZE**2)
    found["moved"] = sum(abs(p[y][x] - b[y][x]) > 12 for y, x in every) / SIZE**2
    found["brighter"] = sum(p[y][x] - b[y][x] for y, x in every) / SIZE**2
    found["shown"] = 1
    for y, x in every:
        cell = f"{y // 16}{x // 16}"
        found[f"motion_{cell}"] += abs(p[y][x] - b[y][x]) / 256
        across = p[y][x + 1] - p[y][x - 1] if 0 < x < SIZE - 1 else 0
        down = p[y + 1][x] - p[y - 1][x] if 0 < y < SIZE - 1 else 0
        angle = math.degrees(math.atan2(down, across)) % 180
        name = ANGLES[round(angle / 22.5) % 8]
        found[f"edge_{cell}_{name}"] += abs(across) + abs(down)
        found[f"strength_{cell}"] += (abs(across) + abs(down)) / 256
        found[f"pattern_{y // 32}{x // 32}_{_pattern(p, y, x)}"] += 1 / 1024
        if 0 < x < SIZE - 1 and 0 < y < SIZE - 1:
            around = p[y][x - 1] + p[y][x + 1] + p[y - 1][x] + p[y + 1][x]
            found["sharpness"] += abs(around - 4 * p[y][x]) / (SIZE - 2) ** 2
    for row in range(4):
        for column in range(4):
            whole = sum(found[f"edge_{row}{column}_{angle}"] for angle in ANGLES)
            for angle in ANGLES:
                found[f"edge_{row}{column}_{angle}"] /= max(whole, 1)
    return [found[name] for name in NAMES]


def _pattern(p, y, x):
    circle = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    inside = [(min(max(y + v, 0), SIZE - 1), min(max(x + u, 0), SIZE - 1)) for v, u in circle]
    bright = [p[v][u] >= p[y][x] for v, u in inside]
    turns = sum(bright[i] != bright[i - 1] for i in range(8))
    return f"spots_{sum(bright)}" if turns <= 2 else "mixed"


def test_every_picture_is_described_as_the_slow_loop_does():
    frames = pictures(3)
    expected = [slow(frame, frames[max(0, i - 1)]) for i, frame in enumerate(frames)]
    np.testing.assert_allclose(feature(frames).values, expected, atol=6e-5, rtol=1e-6)


def test_dimensions_are_named_once_and_have_units():
    assert len(NAMES) == len(set(NAMES)) == feature(pictures(1)).values.shape[1]
    assert all(dim.unit for dim in Appearance().spec.dims)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_constant_picture_has_neither_edges_nor_motion(level):
    values = feature(np.full((3, SIZE, SIZE), level)).values
    for beginning in ("edge_", "strength_", "motion_", "moved", "brighter", "contrast", "sharp"):
        assert not named(values, beginning).any()
    assert (named(values, "brightness") == level).all()
    assert (named(values, "pattern_00_spots_8") == 1).all()


@pytest.mark.parametrize("degrees", ANGLES)
def test_edges_are_told_by_their_direction(degrees):
    y, x = np.mgrid[:SIZE, :SIZE]
    turn = math.radians(float(degrees))
    slope = 128 + 1.9 * ((x - 32) * math.cos(turn) + (y - 32) * math.sin(turn))
    values = feature(np.clip(slope, 0, 255)[np.newaxis].round()).values
    inner = named(values, "edge_11_")[0]
    assert inner.argmax() == ANGLES.index(degrees)
    assert inner.sum() == pytest.approx(1, abs=1e-3)


def test_patterns_are_those_of_a_turned_picture():
    frame = pictures(2)[1]
    turned = [np.rot90(frame, quarter) for quarter in range(4)]
    whole = [
        named(feature([each]).values, "pattern_").reshape(4, 10).sum(axis=0) for each in turned
    ]
    for each in whole[1:]:
        np.testing.assert_allclose(each, whole[0], atol=1e-3)


def test_motion_is_told_where_it_is_and_none_is_told_of_the_first_picture():
    still = np.repeat(pictures(1), 4, axis=0)
    moving = still.copy()
    moving[2, 20:24, 50:55] = 255 - moving[2, 20:24, 50:55]
    motion = named(feature(moving).values, "motion_").reshape(4, 4, 4)
    assert [(t, r, c) for t, r, c in np.argwhere(motion).tolist()] == [(2, 1, 3), (3, 1, 3)]
    assert not named(feature(pictures(2)).values[:1], "motion_").any()


@pytest.mark.parametrize("pieces", [[1] * 7, [3, 4]])
def test_chunks_of_any_size_give_equal_values(pieces):
    frames = pictures(7)
    assert feature(frames).values.tobytes() == feature(frames, pieces=pieces).values.tobytes()
    followed = Appearance(crop="face", detector="cascade")
    places = [(120 + 9 * i, 140, 45) if i not in {2, 5, 6} else None for i in range(7)]
    frames = [rgb(draw(320, 320, [place] if place else [])) for place in places]
    whole, parts = (feature(frames, followed, each).values for each in (None, pieces))
    assert whole.tobytes() == parts.tobytes()


def test_a_face_that_was_lost_for_a_moment_is_shown():
    frames = [rgb(draw(320, 320, [(150, 150, 50)] if step != 2 else [])) for step in range(5)]
    values = feature(frames, Appearance(crop="face", detector="cascade")).values
    assert named(values, "shown").ravel().tolist() == [1] * 5


@pytest.mark.parametrize("pieces", [[8], [1] * 8])
def test_without_a_face_all_is_zero_and_no_motion_is_told_after_it(pieces):
    places = [(150, 150, 50)] * 2 + [None] * 4 + [(190, 160, 50)] * 2
    frames = [rgb(draw(320, 320, [place] if place else [])) for place in places]
    values = feature(frames, Appearance(crop="face", detector="cascade"), pieces).values
    assert named(values, "shown").ravel().tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert not values[2:6].any()
    assert not named(values[6:7], "motion_").any()
    assert named(values, "brightness")[[0, 1, 6, 7]].min() > 50


def test_no_picture_is_empty():
    extraction = Appearance().begin(CLIP)
    extraction.add(AudioChunk(0.0, np.zeros(10, np.int16)))
    with pytest.raises(BadClipError) as caught:
        extraction.finish()
    assert caught.value.fault == "empty"


def test_a_face_s_square_follows_it_and_what_moves_is_the_face():
    """A face that glides over an even background does not change in its own square."""
    way = [(120 + 6 * i, 150, 50) for i in range(6)]
    frames = np.array([rgb(draw(320, 320, [place])) for place in way])
    middle = frames[:, 128:192, 128:192, 0]
    seen = [
        named(feature(each, featurizer).values[1:], "motion_").mean()
        for each, featurizer in (
            (frames, Appearance(crop="face", detector="cascade")),
            (middle, Appearance()),
        )
    ]
    assert seen[0] < seen[1] / 3
