"""CREMA-D: names of files, votes by voice, face and both, and files that are only pointers."""

import pytest

from pipelines.experiment import FailedError, parse
from pipelines.run import ingest_all
from pipelines.show import Show
from tests.corpora_maker import POINTER, put, read

VOTES = """\
"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"
"1","1001_IEO_ANG_HI","A","80","A","70","A","80"
"2","1002_DFA_HAP_XX","N","50","H","60","A:H","50:60"
"3","1040_ITH_SAD_X","S","50","S","60","S","50"
"""
ACTORS = "ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Caucasian,Not Hispanic\n"
NAMES = ("1001_IEO_ANG_HI", "1002_DFA_HAP_XX", "1040_ITH_SAD_X")


@pytest.fixture
def corpus(tmp_path):
    put(tmp_path, "processedResults/summaryTable.csv", content=VOTES)
    put(tmp_path, "VideoDemographics.csv", content=ACTORS)
    for name in NAMES:
        put(tmp_path, f"VideoFlash/{name}.flv", f"AudioWAV/{name}.wav", f"AudioMP3/{name}.mp3")
    return tmp_path


def test_a_recording_has_what_was_played_and_what_was_seen(corpus):
    rows, notes = read("crema-d", corpus)
    assert (list(rows), notes) == (list(NAMES), [])
    assert rows["1001_IEO_ANG_HI"] == {
        "id": "1001_IEO_ANG_HI",
        "media": str(corpus / "VideoFlash/1001_IEO_ANG_HI.flv"),
        "speaker": "actor-1001",
        "transcript": "It's eleven o'clock",
        "emotion": "anger",
        "level": "high",
        "emotion_voice": "anger",
        "emotion_face": "anger",
        "emotion_both": "anger",
        "age": 51.0,
        "gender": "male",
    }
    tied = rows["1002_DFA_HAP_XX"]
    assert (tied["emotion_voice"], tied["emotion_face"]) == ("neutral", "happy")
    assert not {"emotion_both", "level", "age"} & set(tied)
    assert rows["1040_ITH_SAD_X"]["emotion_both"] == "sad"  # whose name is short of an X
    rows, _ = read("crema-d", corpus, media="audio")
    assert rows["1001_IEO_ANG_HI"]["media"].endswith("AudioWAV/1001_IEO_ANG_HI.wav")


def test_what_is_wrong_is_told(corpus):
    (corpus / "VideoFlash/1002_DFA_HAP_XX.flv").unlink()
    put(corpus, "VideoFlash/1076_MTI_SAD_XX.flv", "VideoFlash/9999_IEO_ANG_HI.flv")
    put(corpus, "VideoFlash/1001_IEO_ANG_HI.flv", content=POINTER)
    rows, notes = read("crema-d", corpus, media="video")
    assert notes == [
        ("missing", "1002_DFA_HAP_XX"),
        ("no_label", "1076_MTI_SAD_XX"),
        ("pointer", "1001_IEO_ANG_HI"),
        ("suspect", "1076_MTI_SAD_XX"),
        ("unlisted", ""),
    ]
    assert len(rows) == 4
    (corpus / "processedResults/summaryTable.csv").unlink()
    rows, notes = read("crema-d", corpus)
    assert ("incomplete", "") in notes
    assert "emotion_voice" not in rows["1001_IEO_ANG_HI"]


def test_a_checkout_without_git_lfs_is_refused_before_anything_is_decoded(corpus, tmp_path):
    for name in NAMES:
        put(corpus, f"VideoFlash/{name}.flv", content=POINTER)
    source = {"folder": str(corpus), "format": "crema-d"}
    made = parse({"dataset": "data", "source": source, "workers": {"featurize": 0}}, tmp_path)
    said = r"3 of 3 clips of crema-d are lost, .* pointer: VideoFlash/1001_IEO_ANG_HI.flv"
    with pytest.raises(FailedError, match=said):
        ingest_all(made, Show(quiet=True))
