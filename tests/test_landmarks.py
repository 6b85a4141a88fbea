"""What MediaPipe gives of a picture becomes a row, by made-up results of its form."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers import landmarks
from featurizers.clip import Clip
from featurizers.landmarks import POINTS, SHAPES, Landmarks, pose_of, row_of
from featurizers.pretrained import MissingWeightsError

CLIP = Clip(key="a", id="a", media="a", media_digest="")


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "face_landmarker.task"
    path.write_bytes(b"stands for a model")
    return path


@pytest.fixture
def names(task):
    return [dim.name for dim in Landmarks(model=str(task)).spec.dims]


def turned(pitch, yaw, roll, move=(0.0, 0.0, 0.0), scale=1.0):
    """A matrix as MediaPipe gives it: turned about x, then y, then z, then moved."""
    (a, b), (c, d), (e, f) = (
        (np.cos(angle), np.sin(angle)) for angle in np.radians([pitch, yaw, roll])
    )
    about_x = np.array([[1, 0, 0], [0, a, -b], [0, b, a]])
    about_y = np.array([[c, 0, d], [0, 1, 0], [-d, 0, c]])
    about_z = np.array([[e, -f, 0], [f, e, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = scale * about_z @ about_y @ about_x
    matrix[:3, 3] = move
    return matrix.astype(np.float32)


def result(faces=1, shapes=SHAPES, points=POINTS):
    """What MediaPipe gives of so many faces, the first of them known."""
    point = [
        SimpleNamespace(x=number / 1000, y=number / 2000, z=-number / 3000)
        for number in range(points)
    ]
    shape = [
        SimpleNamespace(category_name=name, score=number / 100)
        for number, name in enumerate(shapes)
    ]
    other = [SimpleNamespace(x=9.0, y=9.0, z=9.0)] * points
    return SimpleNamespace(
        face_landmarks=[point, other][:faces],
        face_blendshapes=[shape, shape][:faces],
        facial_transformation_matrixes=[turned(10, 20, -5, (1, -2, -40)), np.eye(4)][:faces],
    )


@pytest.mark.parametrize("faces", [1, 2])
def test_a_face_becomes_a_row_by_the_names_of_the_dimensions(names, faces):
    row = dict(zip(names, row_of(result(faces)).tolist(), strict=True))
    assert row["found"] == 1
    pose = [row[name] for name in ("pitch", "yaw", "roll", "right", "up", "towards")]
    np.testing.assert_allclose(pose, [10, 20, -5, 1, -2, -40], atol=1e-4)
    for number, name in enumerate(SHAPES):
        assert row[f"shape_{name}"] == pytest.approx(number / 100, abs=1e-6)
    for axis, part in (("x", 1000), ("y", 2000), ("z", -3000)):
        assert row[f"point_470_{axis}"] == pytest.approx(470 / part, abs=1e-6)


def test_the_order_of_blendshapes_in_a_file_does_not_matter():
    assert row_of(result()).tobytes() != row_of(result(shapes=SHAPES[::-1])).tobytes()
    turned_round = result()
    turned_round.face_blendshapes[0].reverse()
    assert row_of(turned_round).tobytes() == row_of(result()).tobytes()


def test_a_picture_without_a_face_is_all_zero(names):
    row = row_of(result(0))
    assert row.shape == (len(names),)
    assert row.dtype == np.float32
    assert not row.any()


def test_a_model_of_another_make_is_refused():
    for other in (result(shapes=SHAPES[1:]), result(points=468)):
        with pytest.raises(ValueError, match=r"gives \d+ points and \d+ blendshapes; wanted 478"):
            row_of(other)
    for missing in ("face_blendshapes", "facial_transformation_matrixes"):
        made = result()
        setattr(made, missing, [])
        with pytest.raises(ValueError, match="no blendshapes or no pose"):
            row_of(made)


angles = st.floats(-80, 80)


@settings(max_examples=60, deadline=None)
@given(st.floats(-170, 170), angles, st.floats(-170, 170), st.floats(0.5, 2))
def test_the_angles_of_a_pose_are_those_that_it_was_turned_by(pitch, yaw, roll, scale):
    found = pose_of(turned(pitch, yaw, roll, (3, 4, 5), scale))
    np.testing.assert_allclose(found, [pitch, yaw, roll, 3, 4, 5], atol=1e-3)


def test_dimensions_have_names_of_their_own_and_units(task, names):
    assert len(names) == len(set(names)) == 1 + 6 + 52 + 3 * 478
    few = Landmarks(model=str(task), points="none").spec
    assert few.width == 59
    assert {dim.unit for dim in few.dims} == {"1", "degrees", "cm", "0..1"}
    assert few.atol is not None


def test_the_place_of_a_file_is_no_part_of_the_identity(task, tmp_path):
    copy = tmp_path / "b.task"
    copy.write_bytes(task.read_bytes())
    one, other = Landmarks(model=str(task)).spec, Landmarks(model=str(copy)).spec
    assert one.fingerprint == other.fingerprint
    copy.write_bytes(b"another model")
    assert Landmarks(model=str(copy)).spec.fingerprint != one.fingerprint


def test_without_a_file_it_is_told_what_gets_one():
    with pytest.raises(MissingWeightsError, match=r"landmarks: it wants `model`.*face-landmarker"):
        Landmarks()
    with pytest.raises(
        MissingWeightsError, match=r"a\.task.: there is no such file; give the path"
    ):
        Landmarks(model="a.task")


def test_without_mediapipe_it_is_told_how_it_is_installed(task, monkeypatch):
    monkeypatch.setattr(landmarks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'fuseline\[landmarks\]'"):
        Landmarks(model=str(task)).begin(CLIP)


@pytest.mark.skipif(
    importlib.util.find_spec("mediapipe") is None, reason="mediapipe is not installed"
)
def test_a_file_that_is_no_model_is_told(task):
    from featurizers.spec import VideoChunk

    extraction = Landmarks(model=str(task)).begin(CLIP)
    black = np.zeros((1, 320, 320, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="no face landmarker of MediaPipe"):
        extraction.add(VideoChunk(np.array([[0.0, 0.2]]), black))


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ({"fps": 0}, r"fps is 0, .*wanted 0\.1 to 120"),
        ({"picture": 63}, "picture is 63 .*64 to 1024"),
        ({"points": "some"}, "points is 'some'; .*all, none"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(task, given_, wanted):
    with pytest.raises(ValueError, match=f"landmarks: .*{wanted}"):
        Landmarks(model=str(task), **given_)
