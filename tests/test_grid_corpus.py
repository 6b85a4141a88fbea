"""GRID: six words that a name spells, with their times where there are some."""

import pytest

from tests.corpora_maker import POINTER, put, read

ALIGN = "0 23750 sil\n23750 29500 bin\n29500 34000 blue\n"


@pytest.fixture
def corpus(tmp_path):
    put(tmp_path, "s1/bbaf2n.mpg", "s1/bbaf2n.wav", "s22/bbaf2n.mpg", "s21/swiz3n.wav")
    put(tmp_path, "align/s1/bbaf2n.align", content=ALIGN)
    return tmp_path


def test_a_name_spells_its_words(corpus):
    rows, notes = read("grid", corpus)
    assert notes == []
    assert list(rows) == ["s1_bbaf2n", "s21_swiz3n", "s22_bbaf2n"]
    assert rows["s22_bbaf2n"] == {
        "id": "s22_bbaf2n",
        "media": str(corpus / "s22/bbaf2n.mpg"),
        "sentence": "bbaf2n",
        "transcript": "bin blue at f two now",
        "speaker": "speaker-22",
        "command": "bin",
        "colour": "blue",
        "preposition": "at",
        "letter": "f",
        "digit": "two",
        "adverb": "now",
    }
    assert rows["s1_bbaf2n"]["transcript_file"] == str(corpus / "align/s1/bbaf2n.align")
    assert "transcript" not in rows["s1_bbaf2n"]
    assert rows["s21_swiz3n"]["media"].endswith(".wav")


def test_speakers_that_are_not_seen_test(corpus):
    put(corpus, *(f"s{n}/bbaf2n.mpg" for n in range(1, 35)))
    rows, _ = read("grid", corpus, split="unseen")
    by_split = {row["speaker"]: row["split"] for row in rows.values()}
    assert [name[-2:] for name, split in by_split.items() if split == "test"] == [
        "01",
        "20",
        "22",
        "02",
    ]
    assert sorted(name[-2:] for name, split in by_split.items() if split == "valid") == ["03", "23"]


def test_names_that_tell_their_speaker_and_names_that_do_not(tmp_path):
    put(tmp_path, "id2_vcd_swwp2s.mpg", "bbaf2n.mpg", "bbaw2n.mpg")
    put(tmp_path, "swwp2s.align", content=ALIGN)
    rows, notes = read("grid", tmp_path)
    assert rows["s2_swwp2s"]["transcript_file"] == str(tmp_path / "swwp2s.align")
    assert list(rows) == ["bbaf2n", "s2_swwp2s"]
    assert notes == [("unlisted", "")]  # nobody says w
    assert "speaker" not in rows["bbaf2n"]


def test_what_is_wrong_is_told(corpus):
    put(corpus, "s22/bbaf2n.mpg", content=POINTER)
    put(corpus, "s1/video/bbaf2n.mpg")
    put(corpus, "align/s1/bbaf2n.align", content=b"")
    rows, notes = read("grid", corpus)
    assert notes == [("duplicate", ""), ("empty", "s1_bbaf2n"), ("pointer", "s22_bbaf2n")]
    assert rows["s1_bbaf2n"]["transcript"] == "bin blue at f two now"
