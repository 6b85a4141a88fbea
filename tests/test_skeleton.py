"""Joints of bodies, from NTU RGB+D's files and from arrays; those that are not seen are marked."""

from functools import partial

import numpy as np
import pytest

from featurizers.catalog import build
from featurizers.clip import BadClipError
from featurizers.rows import bridged
from tests.computed import of_file

computed = partial(of_file, "skeleton", "pose")


def skeleton_file(frames):
    """A .skeleton file of frames: lists of bodies' identities, joints [J, 3] and their states."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for identity, joints, tracked in bodies:
            lines.append(f"{identity} 0 1 1 0 0 0 0.1 -0.2 2")
            lines.append(str(len(joints)))
            for (x, y, z), state in zip(joints, tracked, strict=True):
                lines.append(f"{x} {y} {z} 250.1 200.2 950.3 540.4 0.2 0.1 0.9 0.3 {state}")
    return "\n".join(lines) + "\n"


ONE, OTHER = 72057594037931101, 72057594037931368


def joints_at(number, count=25):
    return np.round(0.01 * number + np.arange(count * 3).reshape(count, 3) / 100, 4)


def test_an_ntu_file_gives_joints_at_30_hz(tmp_path):
    path = tmp_path / "S001C001P001R001A001.skeleton"
    frames = [[(ONE, joints_at(number), [2] * 25)] for number in range(6)]
    path.write_text(skeleton_file(frames))
    found = computed(path)
    assert found.values.shape == (6, 100)
    joints = found.values.reshape(6, 25, 4)
    for number in range(6):
        np.testing.assert_array_equal(joints[number, :, :3], joints_at(number).astype(np.float32))
    assert (joints[..., 3] == 1).all()
    np.testing.assert_allclose(found.times[:, 0], np.arange(6) / 30)
    assert computed(path, rate=15.0).times[-1, 1] == pytest.approx(0.4)


def test_the_body_that_is_there_longest_comes_first_and_others_are_left_out(tmp_path):
    path = tmp_path / "a.skeleton"
    frames = [
        [(OTHER, joints_at(50), [2] * 25)],
        [(OTHER, joints_at(51), [2] * 25), (ONE, joints_at(1), [2] * 25)],
        [(ONE, joints_at(2), [2] * 25)],
        [(ONE, joints_at(3), [2] * 25)],
    ]
    path.write_text(skeleton_file(frames))
    two = computed(path, persons=2).values.reshape(4, 2, 25, 4)
    np.testing.assert_array_equal(two[:, 0, 0, 3], [0, 1, 1, 1])
    np.testing.assert_array_equal(two[:, 1, 0, 3], [1, 1, 0, 0])
    np.testing.assert_allclose(two[:, 0, 0, 0], [0.01, 0.01, 0.02, 0.03], rtol=1e-6)
    np.testing.assert_allclose(two[:, 1, 0, 0], [0.5, 0.51, 0.51, 0.51], rtol=1e-6)
    np.testing.assert_array_equal(computed(path).values, two[:, 0].reshape(4, -1))
    three = computed(path, persons=3).values.reshape(4, 3, -1)
    assert not three[:, 2].any()


def test_joints_that_are_not_tracked_are_bridged_and_inferred_ones_half_seen(tmp_path):
    path = tmp_path / "a.skeleton"
    frames = [
        [(ONE, joints_at(0, 2), [2, 1])],
        [(ONE, joints_at(99, 2), [0, 2])],
        [],
        [(ONE, joints_at(3, 2), [2, 2])],
    ]
    path.write_text(skeleton_file(frames))
    joints = computed(path, joints=2).values.reshape(4, 2, 4)
    np.testing.assert_allclose(joints[:, 0, 0], [0.0, 0.01, 0.02, 0.03], atol=1e-7)
    np.testing.assert_array_equal(joints[:, 0, 3], [1, 0, 0, 1])
    np.testing.assert_allclose(joints[:, 1, 0], [0.03, 1.02, (1.02 + 0.06) / 2, 0.06], atol=1e-6)
    np.testing.assert_array_equal(joints[:, 1, 3], [0.5, 1, 0, 1])


def test_an_array_of_joints_gives_the_same_with_nan_for_what_is_not_seen(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    np.save(tmp_path / "whole.npy", array)
    found = computed(tmp_path / "whole.npy", rate=10.0, joints=4)
    np.testing.assert_array_equal(found.values.reshape(5, 4, 4)[..., :3], array)
    assert (found.values.reshape(5, 4, 4)[..., 3] == 1).all()
    array[2, 1, 0] = np.nan
    np.save(tmp_path / "holes.npy", array)
    holes = computed(tmp_path / "holes.npy", rate=10.0, joints=4).values.reshape(5, 4, 4)
    np.testing.assert_allclose(holes[2, 1, :3], (array[1, 1] + array[3, 1]) / 2, rtol=1e-5)
    assert holes[2, 1, 3] == 0
    assert holes[..., 3].sum() == 19


def test_an_array_may_have_a_confidence_and_several_bodies(tmp_path):
    array = np.ones((3, 2, 4, 3))
    array[..., 2] = 0.75
    array[1, 1, 0] = [7, 7, 0]
    np.save(tmp_path / "a.npy", array)
    found = computed(tmp_path / "a.npy", rate=10.0, joints=4, persons=2, coordinates=2)
    bodies = found.values.reshape(3, 2, 4, 3)
    assert bodies[0, 0, 0].tolist() == [1, 1, 0.75]
    assert bodies[1, 1, 0].tolist() == [1, 1, 0]


def test_a_span_of_longer_media_takes_its_frames(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(60.0).reshape(20, 1, 3))
    found = computed(tmp_path / "a.npy", rate=10.0, joints=1, span=(0.5, 0.8))
    assert found.values[:, 0].tolist() == [15, 18, 21]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "ends within a frame"),
        ("0\n", "it has no frame"),
        ("2\n0\n", "ends within a frame, after 2 numbers"),
        ("1\n1\n7 0 1 1 0 0 0 0.1 -0.2 2\n3\n", "a body has 3 joints, 25 wanted"),
        ("1\n0\n5\n", "1 numbers follow the last frame"),
        ("frames\n", "invalid literal"),
        ("1\n1\n7 0 1 1 0 0 0 0.1 -0.2 2\n25\n" + "x " * 300, "could not convert"),
        ("\u00e9", "ascii"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_bad_stream(tmp_path, content, said):
    (tmp_path / "a.skeleton").write_text(content)
    with pytest.raises(BadClipError) as caught:
        computed(tmp_path / "a.skeleton")
    assert caught.value.fault == "bad_stream"
    assert said in caught.value.message


def test_arrays_of_another_shape_or_without_a_rate_are_bad_streams(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 4, 3)))
    for settings, said in (
        ({"joints": 5, "rate": 10.0}, r"shape \[5, 4, 3\]; wanted \[T, 5, 3\]"),
        ({"joints": 4, "coordinates": 2}, "wants rows per second"),
        ({"joints": 4}, "wants rows per second"),
    ):
        with pytest.raises(BadClipError, match=said):
            computed(tmp_path / "a.npy", **settings)
    np.save(tmp_path / "b.npy", np.array([[["a"]]]))
    with pytest.raises(BadClipError, match="holds <U1, wanted numbers"):
        computed(tmp_path / "b.npy", rate=10.0)
    with pytest.raises(BadClipError, match="no such file"):
        computed(tmp_path / "none.skeleton")


@pytest.mark.parametrize(
    "settings",
    [{"stream": ""}, {"joints": 0}, {"persons": 9}, {"coordinates": 4}],
)
def test_settings_out_of_range_are_refused_with_the_range(settings):
    with pytest.raises(ValueError, match="wanted "):
        build("skeleton", **{"stream": "pose", **settings})


def test_bridges_are_straight_lines_between_good_rows():
    rng = np.random.default_rng(0)
    values, good = rng.normal(size=(50, 2)), rng.random(50) < 0.4
    expected = [np.interp(np.arange(50), np.flatnonzero(good), column[good]) for column in values.T]
    np.testing.assert_allclose(bridged(values, good), np.stack(expected, axis=1), atol=1e-12)
    np.testing.assert_array_equal(bridged(values, good)[good], values[good])
    assert not bridged(values, np.zeros(50, bool)).any()
