"""The layout of MMSA-FET: label.csv, and clips that are called alike in every video."""

import pytest

from pipelines.experiment import InputError
from tests.corpora_maker import put, read

HEAD = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode\n"
ROWS = (
    "video_0001,0001,\u6211\u4e0d\u60f3\u5ac1\u7ed9\u674e\u8328,-1.0,-0.8,-0.6,-1.0,Negative,train\n"
    "video_0001,2,text,0.2,,0.4,0.2,Positive,valid\n"
    "video_0002,0001,text,0.0,0.0,0.0,0.0,Neutral,test\n"
)


@pytest.fixture
def corpus(tmp_path):
    put(tmp_path, "label.csv", content="\ufeff" + HEAD + ROWS)
    for number, clip in enumerate(("video_0001/0001", "video_0001/0002", "video_0002/0001")):
        put(tmp_path, f"Raw/{clip}.mp4", content=bytes([number]))
    return tmp_path


def test_clips_are_found_by_video_and_number(corpus):
    rows, notes = read("mmsa", corpus)
    assert notes == []
    assert rows["video_0001$_$0001"] == {
        "id": "video_0001$_$0001",
        "media": str(corpus / "Raw/video_0001/0001.mp4"),
        "group": "video_0001",
        "split": "train",
        "transcript": "\u6211\u4e0d\u60f3\u5ac1\u7ed9\u674e\u8328",
        "label": -1.0,
        "label_T": -0.8,
        "label_A": -0.6,
        "label_V": -1.0,
        "annotation": "Negative",
    }
    # A spreadsheet took its zeros away.
    assert rows["video_0001$_$2"]["media"] == str(corpus / "Raw/video_0001/0002.mp4")
    assert "label_T" not in rows["video_0001$_$2"]
    assert rows["video_0002$_$0001"]["media"] == str(corpus / "Raw/video_0002/0001.mp4")


def test_what_is_wrong_is_told(corpus):
    more = (
        "video_0001,0001,again,1,,,,,train\n"
        "video_0003,0001,,nan?,,,,,train\n"
        "video_0002,0009,text,1,,,,,unsupervised\n"
    )
    put(corpus, "label.csv", content=HEAD + ROWS + more)
    put(corpus, "Raw/video_0002/0009.mp4")
    _, notes = read("mmsa", corpus)
    assert notes == [
        ("duplicate", "video_0001$_$0001"),
        ("missing", "video_0003$_$0001"),
        ("no_label", "video_0003$_$0001"),
        ("no_split", "video_0002$_$0009"),
        ("no_transcript", "video_0003$_$0001"),
        ("unlisted", ""),
    ]


def test_a_folder_without_labels_is_refused(tmp_path):
    put(tmp_path, "Raw/video_0001/0001.mp4")
    with pytest.raises(InputError, match=r"there is no label\.csv"):
        read("mmsa", tmp_path)
