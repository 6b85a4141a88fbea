"""What a run is made of: which clips it takes, and their digests."""

import hashlib
from dataclasses import replace

import pytest

from featurizers.spec import canonical_json
from pipelines.lineage import Start, standing_lineage, write_lineage
from tests.made_of import CLIPS, made_of
from training.evaluate import leaks


def test_a_run_is_made_of_the_clips_that_training_takes_and_of_all_that_are_tested():
    found = made_of("/data", take_absent=False)
    # Of f nothing can be read; something is said of it all the same, and it counts.
    assert {row["key"]: row["role"] for row in found.clips} == {
        "a": "train",
        "b": "test",
        "d": "valid",
        "f": "test",
    }
    assert {row["key"] for row in made_of("/data").clips} == set("abcdf")
    states = {row["key"]: row["states"] for row in made_of("/data").clips}
    assert states["f"] == {"audio": "quarantined", "video": "quarantined"}


def test_all_that_a_clip_was_read_from_is_named_by_its_digest():
    rows = {row["key"]: row for row in made_of("/data").clips}
    said = hashlib.sha256(canonical_json([["so", 0.0, 0.5]])).hexdigest()
    assert (rows["a"]["media_digest"], rows["a"]["words"]) == ("a" * 64, said)
    assert (rows["c"]["words"], rows["c"]["streams"]) == ("", {"pose": "p" * 64})


def test_what_is_written_is_read_back_with_equal_bytes(tmp_path):
    start = Start(part="audio", file="/run/weights", sha256="1" * 64, run_id="run")
    before = {"run": made_of("/data/before")}
    lineage = replace(made_of("/data"), starts=[start], before=before)
    for name in ("one", "other"):
        write_lineage(tmp_path / name, lineage)
        assert standing_lineage(tmp_path / name) == lineage
    for file in (tmp_path / "one" / "lineage").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / "lineage" / file.name).read_bytes()
    assert standing_lineage(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ()),
        ({"speaker": "anna"}, ("speaker anna (in run r, which it starts from)",)),
        ({"source": "/media/a.mp4"}, ("source /media/a.mp4 (in run r, which it starts from)",)),
        # The same bytes, another part, under another name.
        (
            {"media_digest": "a" * 64, "start": 5.0},
            ("source /media/b.mp4 (in run r, which it starts from)",),
        ),
    ],
)
def test_training_clips_of_a_run_before_leak_as_ones_own(changes, found):
    test = [replace(CLIPS[1], **changes)]
    before = {"r": made_of("/data").clips_of("train")}
    assert leaks(test, [CLIPS[2]], before) == found
    assert leaks(test, before["r"]) == tuple(name.partition(" (")[0] for name in found)
