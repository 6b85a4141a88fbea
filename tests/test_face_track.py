"""Faces are found where they were drawn, and one of them is followed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers import face_detector
from featurizers.catalog import build, from_spec
from featurizers.clip import BadClipError, Clip
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.face_detector import REMEMBERED, detector, faces_of_cascade, faces_of_yunet
from featurizers.face_track import DIMS, FaceTrack, Follower
from featurizers.pretrained import MissingWeightsError
from featurizers.spec import AudioChunk, FeatureSpec, VideoChunk
from tests import tiny_yunet
from tests.drawn_faces import box, draw, overlap, rgb
from tests.media_maker import write

CLIP = Clip(key="a", id="a", media="a", media_digest="")
COLUMN = {dim.name: number for number, dim in enumerate(DIMS)}
PLACE = [COLUMN[name] for name in ("centre_x", "centre_y", "width", "height")]
SIDE = 320


def cascade(**settings):
    return FaceTrack(detector="cascade", **settings)


def boxes_of(feature, side):
    """Left, top, width and height in pixels of pictures whose longer side is `side`."""
    centred = feature.values[:, PLACE].astype(np.float64) * side
    centred[:, :2] -= centred[:, 2:] / 2
    return centred


def column(feature, name):
    return feature.values[:, COLUMN[name]].tolist()


# Drawn faces.


@pytest.mark.media
@pytest.mark.parametrize(("width", "height"), [(320, 180), (180, 320)])
def test_a_drawn_face_is_found_on_its_way_though_it_is_off_the_centre(tmp_path, width, height):
    count, fps = 10, 5
    start, end = np.array([55.0, 60.0, 30.0]), np.array([width - 60.0, height - 60.0, 42.0])
    places = [start + (end - start) * step / (count - 1) for step in range(count)]
    pictures = [(i / fps, rgb(draw(height, width, [place]))) for i, place in enumerate(places)]
    path = tmp_path / "a.mp4"
    write(path, pictures=pictures)
    with Decoder() as decoder:
        (outcome,) = extract(CLIP, path, [cascade(fps=fps)], decoder)
    feature = outcome.feature
    seen = count - 1  # the last picture lasts for a 25th of a second, less than half a step
    assert column(feature, "found") == column(feature, "faces") == [1] * seen
    bars = np.array([max(0, height - width), max(0, width - height), 0, 0]) / 2
    for place, found in zip(places[:seen], boxes_of(feature, 320), strict=True):
        assert overlap(np.array(box(place)), found - bars) > 0.75


def shown(places, fps=5.0, pieces=None, featurizer=None):
    """The track of pictures with a drawn face at each place; None is a picture without one."""
    frames = np.stack([rgb(draw(SIDE, SIDE, [place] if place else [])) for place in places])
    return track(featurizer or cascade(fps=fps), frames, fps, pieces)


def track(featurizer, frames, fps=5.0, pieces=None):
    extraction = featurizer.begin(CLIP)
    times = np.arange(len(frames))[:, np.newaxis] / fps + np.array([0.0, 1 / fps])
    at = 0
    for size in pieces or [len(frames)]:
        extraction.add(VideoChunk(times[at : at + size], frames[at : at + size]))
        at += size
    return extraction.finish()


def test_a_short_gap_is_bridged_and_marked_and_a_long_one_is_left_open():
    way = [(80.0 + 12 * step, 150.0, 45.0) for step in range(12)]
    gone = {3, 4, 7, 8, 9}
    feature = shown([None if step in gone else place for step, place in enumerate(way)])
    assert column(feature, "found") == [1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    assert column(feature, "bridged") == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert column(feature, "faces") == column(feature, "found")
    scores = np.array(column(feature, "score"))
    np.testing.assert_array_equal(scores > 0, np.array(column(feature, "found")) > 0)
    places = boxes_of(feature, SIDE)
    for step in (3, 4):
        assert overlap(np.array(box(way[step])), places[step]) > 0.75
    assert not feature.values[7:10].any()


def test_pictures_without_a_face_are_a_sample_in_which_nothing_was_found():
    feature = shown([None, None, None])
    assert feature.values.shape == (3, len(DIMS))
    assert not feature.values.any()


@pytest.mark.parametrize("pieces", [[1] * 6, [4, 2]])
def test_chunks_of_any_size_give_equal_tracks(pieces):
    places = [(100.0, 100.0, 50.0), None, (120.0, 110.0, 50.0), (130.0, 110.0, 55.0), None, None]
    whole, parts = shown(places), shown(places, pieces=pieces)
    assert whole.values.tobytes() == parts.values.tobytes()
    assert whole.times.tobytes() == parts.times.tobytes()


def test_no_picture_is_empty():
    extraction = cascade().begin(CLIP)
    extraction.add(AudioChunk(0.0, np.zeros(10, np.int16)))
    with pytest.raises(BadClipError) as caught:
        extraction.finish()
    assert caught.value.fault == "empty"


COUNT = """
import json, sys
import cv2
import numpy as np
from featurizers.face_detector import detector
cv2.setNumThreads(int(sys.argv[1]))
find = detector("cascade", "", "").find
print(json.dumps([find(frame).tolist() for frame in np.load(sys.argv[2])]))
assert cv2.getNumThreads() == int(sys.argv[1])
"""


def test_the_cascade_is_exact_with_and_without_threads_and_vector_instructions(tmp_path):
    rng = np.random.default_rng(0)
    frames = [draw(SIDE, SIDE, [(90 + 5 * i, 120, 35 + i), (240, 200, 30)]) for i in range(4)]
    noisy = [np.clip(frame + rng.normal(0, 12, frame.shape), 0, 255) for frame in frames]
    np.save(tmp_path / "frames.npy", np.array([rgb(each) for each in noisy]).astype(np.uint8))
    plain = {"OPENCV_IPP": "disabled", "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FMA3,AVX,FP16"}
    found = []
    for threads, changed in (("1", {}), ("2", plain)):
        done = subprocess.run(
            [sys.executable, "-c", COUNT, threads, str(tmp_path / "frames.npy")],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={**os.environ, **changed},
        )
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert min(len(faces) for faces in found[0]) >= 1
    assert cascade().spec.atol is None


# Following, on made-up detections.


def follow(steps, *, reach=2, radius=0, side=100):
    """Steps of a Follower; each of `steps` lists faces: middle, width, height and score."""
    follower = Follower(side=side, reach=reach, radius=radius)
    for faces in steps:
        follower.add(corners(faces))
    follower.end()
    return [follower.step(index) for index in range(follower.settled)]


def corners(faces):
    table = np.array(faces, dtype=np.float64).reshape(-1, 5)
    table[:, :2] -= table[:, 2:4] / 2
    return table


def middle(step):
    return round(step.box[0] * 100, 6), round(step.box[1] * 100, 6)


def test_the_face_that_is_large_and_central_is_chosen():
    small = (50, 50, 10, 10, 0.99)
    large = (30, 40, 20, 20, 0.5)
    edge = (90, 90, 20, 20, 0.9)
    assert middle(follow([[small, large, edge]])[0]) == (30, 40)
    assert middle(follow([[small, edge]])[0]) == (50, 50)


def test_the_same_face_is_followed_when_another_becomes_larger():
    mine = [(30 + 2 * i, 50, 20, 20, 0.8) for i in range(5)]
    other = [(75, 50, 10 + 6 * i, 10 + 6 * i, 0.9) for i in range(5)]
    steps = follow([[b, a] for a, b in zip(mine, other, strict=True)])
    assert [middle(step)[0] for step in steps] == [30, 32, 34, 36, 38]
    assert all(step.faces == 2 for step in steps)


def test_another_face_is_taken_when_the_first_is_lost_for_longer_than_a_gap():
    mine, other = (30, 50, 20, 20, 0.8), (75, 50, 15, 15, 0.9)
    steps = follow([[mine, other]] + [[other]] * 5, reach=2)
    assert [step.found for step in steps] == [True, False, False, True, True, True]
    assert not any(step.bridged for step in steps)
    assert middle(steps[3]) == (75, 50)


def test_a_face_that_jumped_or_grew_too_much_is_not_the_same():
    near, far, huge = (30, 50, 20, 20, 0.8), (52, 50, 20, 20, 0.8), (30, 50, 50, 50, 0.8)
    for after in (far, huge):
        assert [step.found for step in follow([[near], [after], [near]])] == [True, False, True]


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_smoothing_does_not_delay_a_face_that_moves_evenly(radius):
    way = [(20 + 3 * i, 30 + i, 20 + i / 2, 20, 0.8) for i in range(12)]
    steps = follow([[face] for face in way], radius=radius)
    assert [middle(step) for step in steps] == [face[:2] for face in way]


def test_smoothing_takes_trembling_away_and_not_across_a_gap():
    trembling = [(50 + (-1) ** i, 50, 20, 20, 0.8) for i in range(9)]
    rough, smooth = (follow([[f] for f in trembling], radius=radius) for radius in (0, 2))
    inner = slice(2, -2)
    spread = [np.ptp([middle(step)[0] for step in each][inner]) for each in (rough, smooth)]
    assert spread[0] == 2
    assert spread[1] < 0.3
    left, right = (20, 50, 20, 20, 0.8), (80, 50, 20, 20, 0.8)
    jumped = follow([[left]] * 3 + [[]] * 3 + [[right]] * 3, reach=1, radius=4)
    assert [middle(step)[0] for step in jumped] == [20] * 3 + [0] * 3 + [80] * 3


faces = st.lists(
    st.tuples(*[st.integers(0, 100)] * 2, *[st.integers(0, 40)] * 2, st.floats(0, 1)), max_size=3
)


@settings(max_examples=200, deadline=None)
@given(st.lists(faces, min_size=1, max_size=25), st.integers(0, 4), st.integers(0, 3))
def test_a_step_that_is_settled_never_changes_and_waits_for_few(steps, reach, radius):
    follower = Follower(side=100, reach=reach, radius=radius)
    early = []
    for number, each in enumerate(steps, start=1):
        follower.add(corners(each))
        while len(early) < follower.settled:
            early.append(follower.step(len(early)))
        assert number - len(early) <= reach + radius + 1
    follower.end()
    assert follower.settled == len(steps)
    assert early == [follower.step(index) for index in range(len(early))]
    for index in range(len(steps)):
        step = follower.step(index)
        assert not (step.found and step.bridged)
        assert np.isfinite([*step.box, step.score]).all()
        assert (step.box[2] > 0) == (step.found or step.bridged)


# Detectors.


@pytest.fixture
def yunet(tmp_path):
    return tiny_yunet.write(tmp_path / "yunet.onnx")


def bright(place):
    """A black picture with a bright cell, which the tiny network takes for a face by its red."""
    x, y = place
    picture = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    picture[32 * y : 32 * y + 32, 32 * x : 32 * x + 32] = (250, 230, 210)
    return picture


def test_what_yunet_finds_is_followed(yunet):
    places = [(2, 3), (3, 3), None, (4, 4), None, None, None]
    empty = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    frames = np.stack([bright(place) if place else empty for place in places])
    featurizer = FaceTrack(model=str(yunet), smooth_s=0)
    assert (featurizer.wants.colour, featurizer.wants.fit) == ("rgb", "whole")
    feature = track(featurizer, frames)
    assert column(feature, "found") == [1, 1, 0, 1, 0, 0, 0]
    assert column(feature, "bridged") == [0, 0, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(column(feature, "score")[:2], 250 / 255, atol=1e-3)
    boxes = boxes_of(feature, SIDE)
    np.testing.assert_allclose(boxes[0], [80 - 24, 112 - 24, 48, 48], atol=0.1)
    np.testing.assert_allclose(boxes[2], [128 - 24, 128 - 24, 48, 48], atol=0.1)


def test_yunet_sees_colours_in_their_order(yunet):
    for dim, found in (([4, 1, 1], 0), ([1, 1, 4], 1)):
        frames = (bright((2, 3)) // dim).astype(np.uint8)[np.newaxis]
        assert column(track(FaceTrack(model=str(yunet)), frames), "found") == [found]


def test_the_settings_say_how_far_is_smoothed(yunet):
    frames = np.stack([bright((2 + step % 2, 3)) for step in range(9)])
    spread = [
        np.ptp(track(FaceTrack(model=str(yunet), smooth_s=width), frames).values[3:-3, 0] * SIDE)
        for width in (0, 0.3, 0.6, 1.0)
    ]
    # Windows of 1, 1, 3 and 5 pictures.
    np.testing.assert_allclose(spread, [32, 32, 0, 32 / 9], atol=0.1)


def test_the_cascade_passes_over_faces_of_less_than_a_tenth_of_the_picture():
    found = [shown([(160, 160, radius)] * 2) for radius in (12, 20)]
    assert [column(each, "found") for each in found] == [[0, 0], [1, 1]]


def test_pictures_that_were_seen_before_are_looked_at_once(tmp_path):
    files = [  # that no other test has seen pictures with
        tiny_yunet.write(tmp_path / f"{side}.onnx", side=side, bias=0.001) for side in (48, 64)
    ]
    looked = []

    def see(number, original):
        return lambda picture: looked.append(number) or original(picture)

    mine, others = (
        replace(found, see=see(number, found.see))
        for number, found in enumerate(detector("yunet", str(file), "") for file in files)
    )
    one, two = bright((2, 3)), bright((4, 4))
    first = [mine.find(one), mine.find(two), others.find(one), mine.find(one[:, ::-1])]
    assert looked == [0, 0, 1, 0]
    again = [mine.find(one.copy()), mine.find(two), others.find(one), mine.find(one[:, ::-1])]
    assert looked == [0, 0, 1, 0]
    assert [each.tolist() for each in again] == [each.tolist() for each in first]
    assert len({str(each.tolist()) for each in first}) == 4
    for number in range(REMEMBERED):
        mine.find(np.full((SIDE, SIDE, 3), number, dtype=np.uint8))
    mine.find(two)
    assert len(looked) == 4 + REMEMBERED + 1


def test_rows_of_yunet_are_read_as_opencv_documents_them():
    assert faces_of_yunet(None).shape == (0, 5)
    row = np.arange(15, dtype=np.float32)[np.newaxis]
    assert faces_of_yunet(row).tolist() == [[0, 1, 2, 3, 14]]


def test_votes_of_the_cascade_become_a_score_from_a_half_on():
    boxes, votes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([4, 36])
    assert faces_of_cascade(boxes, votes).tolist() == [[1, 2, 3, 4, 0.5], [5, 6, 7, 8, 0.9]]
    assert faces_of_cascade(np.array(()), np.array(())).shape == (0, 5)


def test_the_place_of_a_file_is_no_part_of_the_identity(yunet, tmp_path):
    (tmp_path / "b").mkdir()
    copy = shutil.copy(yunet, tmp_path / "b" / "other-name.onnx")
    one, other = FaceTrack(model=str(yunet)).spec, FaceTrack(model=str(copy)).spec
    assert one.fingerprint == other.fingerprint
    assert one.source != other.source
    assert str(tmp_path) not in json.dumps(one.to_json())
    another = tiny_yunet.write(tmp_path / "b" / "c.onnx", bias=0.01)
    assert FaceTrack(model=str(another)).spec.fingerprint != one.fingerprint


@pytest.mark.parametrize("name", ["face-track", "frames", "appearance"])
def test_the_file_of_a_spec_is_found_by_its_digest(yunet, tmp_path, monkeypatch, name):
    crop = {} if name == "face-track" else {"crop": "face"}
    spec = build(name, model=str(yunet), **crop).spec
    again = FeatureSpec.from_json(spec.to_json())
    yunet.rename(tmp_path / "moved.onnx")
    with pytest.raises(MissingWeightsError, match=r"cannot be computed.*export FUSELINE_WEIGHTS"):
        from_spec(again)
    monkeypatch.setenv("FUSELINE_WEIGHTS", str(tmp_path))
    assert from_spec(again).spec == spec


def test_a_file_that_is_not_there_is_named_with_what_gets_one():
    with pytest.raises(MissingWeightsError, match=r"no-such\.onnx.*no such file.*fetch yunet"):
        FaceTrack(model="no-such.onnx")
    with pytest.raises(
        MissingWeightsError, match="face-track: it wants `model`; give the path of YuNet's"
    ):
        FaceTrack()


def test_another_file_than_the_digest_says_is_refused(yunet):
    with pytest.raises(ValueError, match=r"has the sha256 .* wanted is 00ff"):
        FaceTrack(model=str(yunet), weights="00ff")
    with pytest.raises(ValueError, match=r"has the sha256 .* wanted is 00ff"):
        cascade(weights="00ff")


def test_a_file_that_is_no_network_is_told(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"a\.onnx: no YuNet in ONNX form"):
        track(FaceTrack(model=str(path)), bright((1, 1))[np.newaxis])


def test_an_opencv_without_cascades_and_none_at_all_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(face_detector, "_opencv", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"has no haarcascade.*version 5.*'fuseline\[faces\]'"):
        detector("cascade", "", "")
    monkeypatch.undo()
    monkeypatch.setattr(face_detector.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'fuseline\[faces\]'"):
        detector("cascade", "", "")


def test_the_cascade_says_what_it_is_good_for_and_yunet_is_silent(yunet):
    assert "for trying things out" in cascade().caution
    assert FaceTrack(model=str(yunet)).caution == ""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"detector": "haar"}, "detector is 'haar'; wanted one of yunet, cascade"),
        ({"detector": "cascade", "model": "a.onnx"}, "OpenCV's own and takes none"),
        ({"detector": "cascade", "fps": 0}, r"fps is 0 .*wanted 0\.1 to 120"),
        ({"detector": "cascade", "fps": float("nan")}, r"wanted 0\.1 to 120"),
        ({"detector": "cascade", "picture": 300}, "picture is 300.*steps of 32"),
        ({"detector": "cascade", "bridge_s": -1}, "bridge_s is -1 .*wanted 0 to 10"),
        ({"detector": "cascade", "smooth_s": float("inf")}, "smooth_s is inf; wanted 0 to 10"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(given, wanted):
    with pytest.raises(ValueError, match=f"face-track: .*{wanted}"):
        FaceTrack(**given)


def test_opencv_is_not_loaded_before_a_face_is_looked_for():
    code = (
        "import sys; from featurizers.catalog import build;"
        "build('face-track', detector='cascade'); print('cv2' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"


def test_weights_are_the_digest_of_the_file(yunet):
    spec = cascade().spec
    assert len(spec.weights) == 64
    assert spec.source == ""
    assert Path(FaceTrack(model=str(yunet)).spec.source) == yunet.resolve()
