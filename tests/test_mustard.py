"""MUStARD: utterances in JSON, films of them and of what was said before."""

import json

import pytest

from pipelines.experiment import InputError
from tests.corpora_maker import put, read

DATA = {
    "1_60": {"utterance": "A privilege.", "speaker": "SHELDON", "show": "BBT", "sarcasm": True},
    "2_1": {"utterance": "Fine. ", "speaker": "ROSS", "show": "FRIENDS", "sarcasm": False},
    "3_1": {"utterance": "Oh", "speaker": "ROSE", "show": "GOLDENGIRLS", "sarcasm": False},
}


@pytest.fixture
def corpus(tmp_path):
    put(tmp_path, "data/sarcasm_data.json", content=json.dumps(DATA))
    put(tmp_path, *(f"utterances_final/{key}.mp4" for key in DATA))
    put(tmp_path, *(f"context_final/{key}_c.mp4" for key in DATA))
    return tmp_path


def test_friends_test_and_nobody_is_in_two_splits(corpus):
    rows, notes = read("mustard", corpus)
    assert notes == []
    assert {key: row["split"] for key, row in rows.items()} == {
        "1_60": "train",
        "2_1": "test",
        "3_1": "valid",
    }
    assert rows["2_1"] == {
        "id": "2_1",
        "media": str(corpus / "utterances_final/2_1.mp4"),
        "speaker": "FRIENDS-ROSS",
        "show": "FRIENDS",
        "split": "test",
        "transcript": "Fine.",
        "sarcasm": "not sarcastic",
    }
    rows, _ = read("mustard", corpus, split="dealt")
    assert "split" not in rows["2_1"]


def test_what_is_wrong_is_told(corpus):
    (corpus / "utterances_final/2_1.mp4").unlink()
    put(corpus, "utterances_final/9_9.mp4")
    put(corpus, "utterances_final/3_1.mp4", content=b"")
    _, notes = read("mustard", corpus)
    assert notes == [("empty", "3_1"), ("missing", "2_1"), ("unlisted", "")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "sarcasm_data.json: Expecting value"),
        ("[]", "wanted utterances by name"),
        ('{"1": {"utterance": "a", "speaker": "b", "show": "c"}}', "1: wanted sarcasm, a bool"),
        ('{"1": 2}', "1: wanted utterance, a str"),
    ],
)
def test_a_file_that_is_otherwise_is_refused(corpus, content, said):
    put(corpus, "data/sarcasm_data.json", content=content)
    with pytest.raises(InputError, match=said):
        read("mustard", corpus)
