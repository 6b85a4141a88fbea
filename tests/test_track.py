"""Columns of another tool's CSV file, by name; bad rows bridged and marked."""

from functools import partial

import numpy as np
import pytest

from featurizers.catalog import build
from featurizers.clip import BadClipError
from featurizers.track import expand
from tests.computed import of_file

# As OpenFace 2.2 writes them: a blank behind each comma.
OPENFACE = """frame, face_id, timestamp, confidence, success, pose_Rx, AU01_r, AU02_r
1, 0, 0.000, 0.98, 1, 0.1, 1.0, 0.5
2, 0, 0.040, 0.97, 1, 0.2, 2.0, 0.4
3, 0, 0.080, 0.03, 0, 0.0, 0.0, 0.0
4, 0, 0.120, 0.20, 1, 0.0, 0.0, 0.0
5, 0, 0.160, 0.96, 1, 0.5, 5.0, 0.1
"""
# As py-feat writes them: no face gives empty cells, two faces give two rows of one frame.
PYFEAT = """,FaceRectX,FaceScore,AU01,happiness,input,frame,approx_time
0,10.0,0.99,0.25,0.9,a.mp4,0,00:00
1,11.0,0.70,0.75,0.1,a.mp4,1,00:00
2,90.0,0.95,0.50,0.2,a.mp4,1,00:00
3,,,,,a.mp4,2,00:00
4,12.0,0.98,0.10,0.8,a.mp4,3,00:00
"""

computed = partial(of_file, "track", "face")


@pytest.fixture
def openface(tmp_path):
    path = tmp_path / "openface.csv"
    path.write_text(OPENFACE)
    return path


def test_chosen_columns_come_in_the_order_that_they_were_chosen_in(openface):
    spec = build("track", stream="face", columns="AU{01,02}_r, pose_Rx").spec
    assert [dim.name for dim in spec.dims] == ["AU01_r", "AU02_r", "pose_Rx", "valid"]
    found = computed(openface, columns="AU{01,02}_r, pose_Rx")
    np.testing.assert_array_equal(found.values[0], np.float32([1.0, 0.5, 0.1, 1.0]))
    np.testing.assert_allclose(found.times[:, 0], [0, 0.04, 0.08, 0.12, 0.16])
    np.testing.assert_allclose(np.diff(found.times), 0.04)


def test_rows_that_failed_or_are_not_trusted_are_bridged_and_marked(openface):
    found = computed(openface, columns="AU01_r")
    np.testing.assert_allclose(found.values[:, 0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(found.values[:, 1], [1, 1, 0, 0, 1])
    found = computed(openface, columns="AU01_r", least=0.0)
    # Row 3 failed by `success`, whatever is asked of its confidence.
    np.testing.assert_allclose(found.values[:, 0], [1, 2, 1, 0, 5])
    np.testing.assert_array_equal(found.values[:, 1], [1, 1, 0, 1, 1])
    found = computed(openface, columns="AU01_r", least=0.99)
    assert not found.values.any()  # none is good


def test_a_span_of_longer_media_takes_its_rows(openface):
    found = computed(openface, columns="AU01_r", span=(0.05, 0.13))
    np.testing.assert_allclose(found.values[:, 0], [2, 3, 4])
    np.testing.assert_allclose(found.times[0], [-0.01, 0.03])


def test_frames_are_placed_by_the_clips_rate_and_one_face_is_taken(tmp_path):
    path = tmp_path / "feat.csv"
    path.write_text(PYFEAT)
    found = computed(path, rate=25.0, columns="AU01, happiness, FaceRectX")
    np.testing.assert_allclose(
        found.values,
        [[0.25, 0.9, 10, 1], [0.5, 0.2, 90, 1], [0.3, 0.5, 51, 0], [0.1, 0.8, 12, 1]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(found.times[:, 0], [0, 0.04, 0.08, 0.12])
    with pytest.raises(BadClipError, match="no column time or timestamp, and the clip gives no"):
        computed(path, columns="AU01")


def test_rows_without_any_time_follow_each_other_at_the_clips_rate(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n3,inf\n5,6\n")
    found = computed(path, rate=10.0, columns="a,b")
    np.testing.assert_allclose(found.times[:, 0], [0, 0.1, 0.2])
    np.testing.assert_array_equal(found.values, [[1, 2, 1], [3, 4, 0], [5, 6, 1]])


def test_another_column_of_seconds_is_taken_when_it_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("time,clock,a\n0,7.5,1\n1,8.5,2\n")
    found = computed(path, columns="a", time="clock")
    np.testing.assert_allclose(found.times, [[7.5, 8.5], [8.5, 9.5]])
    with pytest.raises(BadClipError, match="no column 'o clock'"):
        computed(path, columns="a", time="o clock")


def test_a_single_row_is_a_step(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("timestamp,a\n0,1\n")
    assert computed(path, columns="a").values.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ("time,a\n", "no row below the header"),
        ("time,a\n0,1\n1\n", "row 2 has 1 cells, and the header 2"),
        ("time,a\n0,one\n", "column 'a': could not convert"),
        ("time,AU01\n0,1\n", "no column 'a'"),
        ("time,a\n1,1\n0,1\n", "times do not rise"),
        ("time,a\nnan,1\n0,1\n", "times do not rise"),
        ("time,a\n0,\x00\n", "column 'a'"),
        ("time,a\n0," + "1" * 200_000, "field limit"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_bad_stream(tmp_path, content, said):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(BadClipError) as caught:
        computed(path, columns="a")
    assert caught.value.fault == "bad_stream"
    assert said in caught.value.message


def test_a_column_that_is_not_there_names_the_nearest(openface):
    with pytest.raises(BadClipError, match=r"no column 'AU1_r' \(did you mean 'AU01_r'"):
        computed(openface, columns="AU1_r")


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ("a, b", ["a", "b"]),
        ("AU{01,02}_r", ["AU01_r", "AU02_r"]),
        ("x_{0..3}", ["x_0", "x_1", "x_2", "x_3"]),
        ("AU{08..10}", ["AU08", "AU09", "AU10"]),
        ("{x,y}_{0..1},z", ["x_0", "x_1", "y_0", "y_1", "z"]),
    ],
)
def test_braces_stand_for_each_of_what_they_hold(columns, names):
    assert list(expand(columns)) == names


@pytest.mark.parametrize(
    ("columns", "said"),
    [("", "0 names"), ("a,a", "'a' twice"), ("x_{3..1}", "0 names"), ("valid", "none 'valid'")],
)
def test_columns_that_are_none_or_twice_are_refused(columns, said):
    with pytest.raises(ValueError, match=said):
        build("track", stream="face", columns=columns)


@pytest.mark.parametrize("settings", [{"stream": ""}, {"least": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="wanted a name, 0 to 1"):
        build("track", **{"stream": "face", "columns": "a", **settings})
