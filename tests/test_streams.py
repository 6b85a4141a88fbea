"""The featurizer that fits a file of numbers, and the line that `init` writes for it."""

import numpy as np
import pytest
import yaml

from featurizers.catalog import build
from featurizers.clip import BadClipError
from featurizers.streams import fitting
from pipelines.start import init

OPENFACE = "frame, face_id, timestamp, confidence, success, gaze_0_x, AU01_r, AU45_r, AU01_c\n"


@pytest.fixture
def folder(tmp_path):
    for name, shape in (("table", (9, 5)), ("body", (9, 17, 3)), ("two", (9, 2, 17, 2))):
        np.save(tmp_path / f"{name}.npy", np.zeros(shape))
    (tmp_path / "openface.csv").write_text(OPENFACE + "1, 0, 0.0, 0.9, 1, 0, 1, 2, 1\n")
    (tmp_path / "sensor.csv").write_text("time,a,b\n0,1,2\n")
    (tmp_path / "eyes.csv").write_text("frame,confidence,left,right\n0,1,2,3\n")
    (tmp_path / "a.skeleton").write_text("1\n0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "featurizer", "settings"),
    [
        ("table.npy", "numbers", {"dims": 5}),
        ("body.npy", "skeleton", {"joints": 17}),
        ("two.npy", "skeleton", {"joints": 17, "persons": 2, "coordinates": 2}),
        ("openface.csv", "track", {"columns": "AU01_r, AU45_r"}),
        ("eyes.csv", "track", {"columns": "left, right"}),
        ("sensor.csv", "numbers", {"dims": 2}),
        ("a.skeleton", "skeleton", {}),
    ],
)
def test_a_file_gets_the_featurizer_that_fits_it(folder, name, featurizer, settings):
    assert fitting(folder / name) == (featurizer, settings)
    assert build(featurizer, stream="pose", **settings).spec.name == featurizer


def test_a_file_that_cannot_be_read_fits_none(folder):
    (folder / "empty.csv").write_text("")
    (folder / "empty.npy").write_text("")
    for name, fault in (("none.csv", "missing"), ("empty.csv", "bad_stream")):
        with pytest.raises(BadClipError) as caught:
            fitting(folder / name)
        assert caught.value.fault == fault
    with pytest.raises(BadClipError, match="bad_stream"):
        fitting(folder / "empty.npy")


def test_init_writes_lines_that_say_what_was_found(folder):
    table = folder / "clips.csv"
    table.write_text(
        "id,media,y,stream:face,stream:body,stream:body:hz\n"
        "a,a.mp4,1,openface.csv,two.npy,25\nb,b.mp4,0,,,\n"
    )
    init(table, "y", folder / "experiment.yaml")
    features = yaml.safe_load((folder / "experiment.yaml").read_text())["features"]
    assert features["face"] == {
        "featurizer": "track",
        "stream": "face",
        "columns": "AU01_r, AU45_r",
    }
    assert features["body"] == {
        "featurizer": "skeleton",
        "stream": "body",
        "joints": 17,
        "persons": 2,
        "coordinates": 2,
    }
