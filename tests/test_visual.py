"""How a picture looks and moves, against loops over its cells."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.clip import BadClipError, Clip
from featurizers.spec import AudioChunk, VideoChunk
from featurizers.visual import SIZE, FaceMotion

CLIP = Clip(key="a", id="a", media="a", media_digest="")
NAMES = [dim.name for dim in FaceMotion().spec.dims]
LOOKS = [i for i, name in enumerate(NAMES) if name.startswith("look_")]
EDGES = [i for i, name in enumerate(NAMES) if name.startswith("edge_")]
MOTION = [i for i, name in enumerate(NAMES) if name.startswith("motion_")]


def feature(frames, pieces=None, fps=5.0):
    frames = np.asarray(frames, dtype=np.uint8)
    extraction = FaceMotion(fps=fps).begin(CLIP)
    edges = np.arange(len(frames))[:, np.newaxis] / fps + np.array([0.0, 1 / fps])
    at = 0
    for size in pieces or [len(frames)]:
        extraction.add(VideoChunk(edges[at : at + size], frames[at : at + size]))
        at += size
    return extraction.finish()


def pictures(count, seed=0):
    """Smooth and noisy ones."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 256, size=(count, SIZE, SIZE))
    y, x = np.mgrid[:SIZE, :SIZE]
    made[::2] = np.clip(x * rng.integers(0, 6) + y * rng.integers(0, 6), 0, 255)
    return made.astype(np.uint8)


def direction_of(across, down):
    """0, 45, 90 or 135 degrees of the brightness's slope, whichever is nearest."""
    border = math.degrees(math.atan(0.414))  # 22.5 degrees, as exactly as the spec takes it
    angle = math.degrees(math.atan2(down, across)) % 180
    if min(angle, 180 - angle) < border:
        return 0
    if abs(angle - 90) < border:
        return 2
    return 1 if angle < 90 else 3


def slow(picture, before):
    """One picture, one pixel at a time, as the names of the dimensions say."""
    picture, before = picture.astype(int), before.astype(int)
    mean = picture.sum() / SIZE**2
    contrast = math.sqrt(sum((int(v) - mean) ** 2 for v in picture.ravel()) / SIZE**2)
    found = {"brightness": mean, "contrast": contrast}
    for r in range(8):
        for c in range(8):
            cell = picture[6 * r : 6 * r + 6, 6 * c : 6 * c + 6]
            found[f"look_{r}{c}"] = (cell.mean() - mean) / (contrast + 1)
    for r in range(4):
        for c in range(4):
            sums, moved = [0.0] * 4, 0
            for y in range(12 * r, 12 * r + 12):
                for x in range(12 * c, 12 * c + 12):
                    across = picture[y, x + 1] - picture[y, x - 1] if 0 < x < SIZE - 1 else 0
                    down = picture[y + 1, x] - picture[y - 1, x] if 0 < y < SIZE - 1 else 0
                    sums[direction_of(across, down)] += abs(across) + abs(down)
                    moved += abs(picture[y, x] - before[y, x])
            for number, degrees in enumerate(("0", "45", "90", "135")):
                found[f"edge_{r}{c}_{degrees}"] = sums[number] / 144 / (contrast + 1)
            found[f"motion_{r}{c}"] = moved / 144
    return [found[name] for name in NAMES]


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000))
def test_every_picture_is_described_as_the_slow_loop_does(seed):
    frames = pictures(3, seed)
    expected = [slow(frame, frames[max(0, i - 1)]) for i, frame in enumerate(frames)]
    values = feature(frames).values
    np.testing.assert_allclose(values, expected, atol=6e-5, rtol=1e-6)


def test_dimensions_are_named_once():
    assert len(NAMES) == len(set(NAMES)) == feature(pictures(1)).values.shape[1]


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_a_constant_picture_is_finite_and_has_neither_looks_nor_edges(level):
    values = feature(np.full((3, SIZE, SIZE), level)).values
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values[:, LOOKS + EDGES + MOTION], 0)
    np.testing.assert_array_equal(values[:, -2:], [[level, 0]] * 3)


def test_a_still_clip_has_no_motion_and_a_moving_one_has_it_where_it_moves():
    still = np.repeat(pictures(1), 4, axis=0)
    assert not feature(still).values[:, MOTION].any()
    moving = still.copy()
    moving[2, 30:33, 40:44] = 255 - moving[2, 30:33, 40:44]
    motion = feature(moving).values[:, MOTION].reshape(4, 4, 4)
    assert [(t, r, c) for t, r, c in np.argwhere(motion)] == [(2, 2, 3), (3, 2, 3)]


def test_the_first_picture_has_no_motion():
    assert not feature(pictures(2)).values[0, MOTION].any()


@pytest.mark.parametrize("degrees", [0, 45, 90, 135])
def test_edges_are_told_by_their_direction(degrees):
    y, x = np.mgrid[:SIZE, :SIZE]
    slopes = {0: x * 5, 90: y * 5, 45: (x + y) * 2, 135: (x - y + SIZE) * 2}
    values = feature(slopes[degrees][np.newaxis]).values[0, EDGES].reshape(4, 4, 4)
    inner = values[1:3, 1:3]
    assert (inner.argmax(axis=-1) == degrees // 45).all()
    assert (np.sort(inner, axis=-1)[..., :-1] == 0).all()


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 5], [8, 1]])
def test_chunks_of_any_size_give_equal_values(pieces):
    frames = pictures(9)
    whole, parts = feature(frames), feature(frames, pieces)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.times, whole.times)


def test_times_are_those_of_the_pictures():
    found = feature(pictures(3), fps=2.0)
    assert found.times.tolist() == [[0.0, 0.5], [0.5, 1.0], [1.0, 1.5]]
    assert found.values.dtype == np.float32


def test_no_picture_is_empty():
    extraction = FaceMotion().begin(CLIP)
    extraction.add(AudioChunk(0.0, np.zeros(10, np.int16)))
    with pytest.raises(BadClipError) as caught:
        extraction.finish()
    assert caught.value.fault == "empty"


@pytest.mark.parametrize("fps", [0, 0.09, 121, float("nan"), float("inf")])
def test_rates_out_of_range_are_refused_with_the_range(fps):
    with pytest.raises(ValueError, match=r"wanted 0\.1 to 120"):
        FaceMotion(fps=fps)


def test_a_whole_number_and_its_fraction_are_one_spec():
    assert FaceMotion(fps=5).spec == FaceMotion(fps=5.0).spec
    assert FaceMotion(fps=5).spec.digest == FaceMotion(fps=5.0).spec.digest
