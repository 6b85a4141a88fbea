"""Pictures are cut out where they should be, and stored in the order that is told."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.clip import BadClipError, Clip
from featurizers.crops import CROPS, FINE, cut_out
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.face_detector import brightness
from featurizers.face_track import FaceTrack
from featurizers.frames import Frames
from featurizers.intake import RawClip, take_in
from featurizers.media import encode
from featurizers.spec import AudioChunk, FeatureSpec, VideoChunk, canonical_json
from tests import tiny_yunet
from tests.drawn_faces import draw, rgb

CLIP = Clip(key="a", id="a", media="a", media_digest="")


def feature(featurizer, frames, fps=5.0, pieces=None):
    extraction = featurizer.begin(CLIP)
    times = np.arange(len(frames))[:, np.newaxis] / fps + np.array([0.0, 1 / fps])
    at = 0
    for size in pieces or [len(frames)]:
        extraction.add(VideoChunk(times[at : at + size], frames[at : at + size]))
        at += size
    return extraction.finish()


@pytest.mark.parametrize(("colour", "channels"), [("gray", ()), ("rgb", (3,))])
def test_the_middle_of_the_picture_is_stored_row_by_row_as_the_names_say(colour, channels):
    featurizer = Frames(size=16, colour=colour)
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, *channels), dtype=np.uint8)
    found = feature(featurizer, frames)
    assert found.values.dtype == np.uint8
    np.testing.assert_array_equal(found.values.reshape(frames.shape), frames)
    named = [dim.name for dim in featurizer.spec.dims].index(
        "row03_column11_green" if channels else "row03_column11_grey"
    )
    wanted = frames[1, 3, 11, 1] if channels else frames[1, 3, 11]
    assert found.values[1, named] == wanted


def test_pictures_of_224_pixels_are_told_in_a_few_lines():
    featurizer = Frames(size=224)
    spec = featurizer.spec
    assert spec.width == 150_528
    assert len(canonical_json(spec.to_json())) < 1000
    assert FeatureSpec.from_json(json.loads(canonical_json(spec.to_json()))) == spec
    assert spec.dims[(3 * 224 + 11) * 3 + 1].name == "row003_column011_green"
    assert spec.digest != Frames(size=223).spec.digest
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    found = feature(featurizer, frames)
    np.testing.assert_array_equal(found.values.reshape(2, *spec.dims.shape), frames)


def test_a_clip_of_more_pixels_than_a_worker_can_hold_is_too_large(monkeypatch):
    frames = np.zeros((40, 16, 16), dtype=np.uint8)
    monkeypatch.setattr("featurizers.frames.MOST_BYTES", 40 * 16 * 16)
    assert len(feature(Frames(size=16, colour="gray"), frames).values) == 40
    monkeypatch.setattr("featurizers.frames.MOST_BYTES", 40 * 16 * 16 - 1)
    with pytest.raises(BadClipError, match=r"lower size or fps") as caught:
        feature(Frames(size=16, colour="gray"), frames, pieces=[20, 20])
    assert caught.value.fault == "too_large"


@pytest.mark.media
def test_a_scene_is_all_of_the_picture_between_black_bars(tmp_path):
    grey = np.full((64, 128, 3), 120, dtype=np.uint8)
    grey[:, :16] = 255  # the left edge, which the middle lacks
    encode(tmp_path / "a.mp4", frames=[grey] * 10, fps=10, samples=None, rate_hz=16_000)
    with Decoder() as decoder:
        raw = RawClip(key="a", id="a", media="a.mp4", path=tmp_path / "a.mp4", columns={})
        clip = take_in(raw, decoder)
        chosen = [Frames(size=32, colour="gray", crop=crop) for crop in ("whole", "centre")]
        found = extract(clip, raw.path, chosen, decoder)
    whole, middle = (each.feature.values[2].reshape(32, 32).astype(int) for each in found)
    assert not whole[:7].any()
    assert not whole[25:].any()
    assert (abs(whole[10:22, 6:] - 120) < 6).all()
    assert (whole[10:22, :3] > 240).all()
    assert (abs(middle - 120) < 6).all()
    specs = [each.spec for each in chosen]
    assert [spec.parameters["crop"] for spec in specs] == ["whole", "centre"]


def faces_at(places, side=320):
    return np.stack([rgb(draw(side, side, [place] if place else [])) for place in places])


def test_a_face_is_cut_out_wherever_it_is_and_steps_without_one_are_black():
    still = (160.0, 150.0, 50.0)
    places = [still] * 3 + [None] * 4 + [(220.0, 110.0, 50.0)] * 3
    featurizer = Frames(size=32, colour="gray", crop="face", detector="cascade", smooth_s=0)
    found = feature(featurizer, faces_at(places)).values.reshape(-1, 32, 32).astype(int)
    assert not found[3:7].any()
    before, after = found[2], found[8]
    assert np.abs(before - after).mean() < 6  # the same face, though it moved by 72 pixels
    assert np.ptp(before) > 40


def test_a_gap_in_the_track_is_cut_out_where_the_face_must_be():
    way = [(100.0 + 10 * step, 150.0, 45.0) for step in range(5)]
    frames = faces_at(way)
    # Without eyes it is no face to the detector, but the mouth tells where it is.
    hidden = frames.copy()
    hidden[2, 120:160, 70:180] = 180
    whole, gap = (
        feature(Frames(size=64, colour="gray", crop="face", detector="cascade"), each)
        for each in (frames, hidden)
    )
    track = feature(FaceTrack(detector="cascade"), hidden)
    assert track.values[:, 5].tolist() == [1, 1, 0, 1, 1]
    one, other = (each.values.reshape(-1, 64, 64)[2, 44:].astype(int) for each in (whole, gap))
    assert np.abs(one - other).mean() < 8


@pytest.mark.parametrize("pieces", [[1] * 8, [5, 3], [7, 1]])
def test_chunks_of_any_size_give_equal_pictures(pieces):
    places = [(150.0 + 4 * i, 150.0, 45.0) if i not in {2, 6} else None for i in range(8)]
    featurizer = Frames(size=16, colour="gray", crop="face", detector="cascade")
    whole, parts = (feature(featurizer, faces_at(places), pieces=each) for each in (None, pieces))
    assert whole.values.tobytes() == parts.values.tobytes()
    assert whole.times.tobytes() == parts.times.tobytes()


def test_grey_faces_are_cut_out_of_the_colours_that_yunet_sees(tmp_path):
    path = tiny_yunet.write(tmp_path / "a.onnx")
    frames = np.zeros((2, 320, 320, 3), dtype=np.uint8)
    frames[:, 96:128, 64:96] = (250, 230, 210)
    shape = {"gray": (2, 48, 48), "rgb": (2, 48, 48, 3)}
    for colour, level in (("gray", 234), ("rgb", (250, 230, 210))):
        featurizer = Frames(size=48, colour=colour, crop="face", margin=1, model=str(path))
        assert featurizer.wants.colour == "rgb"
        assert featurizer.spec.atol == 1.0
        cut = feature(featurizer, frames).values.reshape(shape[colour])
        assert (cut[:, 8:40, 8:40] == level).all()
        assert not cut[:, :7].any()


def test_a_margin_shows_what_is_around_the_face(tmp_path):
    path = tiny_yunet.write(tmp_path / "a.onnx")
    frames = np.zeros((1, 320, 320, 3), dtype=np.uint8)
    frames[:, 96:128, 64:96] = 250
    wide, narrow = (
        feature(Frames(size=48, crop="face", margin=margin, model=str(path)), frames)
        for margin in (2, 1)
    )
    areas = [(each.values.reshape(48, 48, 3) > 125).all(axis=-1).sum() for each in (wide, narrow)]
    assert areas == [16**2, 32**2]  # a cell of 32 in a face of 48


def test_no_picture_is_empty():
    for crop in CROPS:
        extraction = Frames(crop=crop, detector="cascade").begin(CLIP)
        extraction.add(AudioChunk(0.0, np.zeros(10, np.int16)))
        with pytest.raises(BadClipError) as caught:
            extraction.finish()
        assert caught.value.fault == "empty"


def test_a_detector_is_no_part_of_what_needs_none():
    spec = Frames().spec
    assert spec.weights == ""
    assert set(spec.parameters) == {"size", "colour", "fps", "crop"}
    assert spec.atol is None
    assert spec.licence == "Apache-2.0"
    assert Frames().caution == ""
    with_face = Frames(crop="face", detector="cascade")
    assert "OpenCV" in with_face.spec.licence
    assert with_face.spec.weights == FaceTrack(detector="cascade").spec.weights
    assert with_face.caution == FaceTrack(detector="cascade").caution


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ({"size": 7}, "size is 7 .*wanted 8 to 512"),
        ({"size": 513}, "size is 513 .*wanted 8 to 512"),
        ({"colour": "bgr"}, "colour is 'bgr'; wanted .*gray, rgb"),
        ({"crop": "mouth"}, "crop is 'mouth'; wanted one of centre, whole, face"),
        ({"fps": 0}, r"fps is 0 .*wanted 0\.1 to 120"),
        ({"crop": "face", "detector": "cascade", "margin": 4}, r"margin is 4; .*0\.5 to 3"),
        ({"model": "a.onnx"}, "looks for no face; for `model` give crop: face"),
        ({"crop": "face"}, "it wants `model`; give the path of YuNet's"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(given_, wanted):
    with pytest.raises(ValueError, match=f"frames: .*{wanted}"):
        Frames(**given_)


# Cutting.


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
    st.floats(0.01, 15),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_a_square_is_the_mean_of_areas_pixel_by_pixel(shape, corner, side, size, seed):
    picture = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    found = cut_out(picture, *corner, side, size)
    left, top = (Fraction(round(each * FINE), FINE) for each in corner)
    cell = Fraction(max(1, round(side * FINE)), FINE * size)
    for row in range(size):
        for column in range(size):
            y, x = top + row * cell, left + column * cell
            total = sum(
                _shared(y, cell, at_y) * _shared(x, cell, at_x) * int(picture[at_y, at_x])
                for at_y in range(shape[0])
                for at_x in range(shape[1])
            )
            assert found[row, column] == int(total / cell**2 + Fraction(1, 2))


def _shared(start, length, pixel):
    return max(0, min(start + length, pixel + 1) - max(start, pixel))


def test_a_square_of_a_coloured_picture_is_that_of_its_colours():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    whole = cut_out(picture, 3.3, -2.2, 17.7, 8)
    parts = [cut_out(picture[:, :, each], 3.3, -2.2, 17.7, 8) for each in range(3)]
    np.testing.assert_array_equal(whole, np.stack(parts, axis=-1))


def test_the_largest_square_does_not_overflow():
    white = np.full((1024, 1024), 255, dtype=np.uint8)
    assert (cut_out(white, 0, 0, 1024, 512) == 255).all()
    assert cut_out(white, -1024, -1024, 3072, 512)[171:341, 171:341].all()
    assert cut_out(white, -1024, -1024, 3072, 3).tolist() == [[0, 0, 0], [0, 255, 0], [0, 0, 0]]


def test_brightness_is_that_of_the_colours():
    white, red = np.full((1, 1, 3), 255, np.uint8), np.array([[[255, 0, 0]]], np.uint8)
    assert brightness(white).tolist() == [[255]]
    assert brightness(red).tolist() == [[round(255 * 77 / 256)]]
