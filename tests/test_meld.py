"""MELD: three tables, films of which names recur, and characters from two character sets."""

import pytest

from pipelines.experiment import InputError
from tests.corpora_maker import put, read

HEAD = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,"
    "StartTime,EndTime\n"
)
LAST = '8,21,"00:16:16,059","00:16:21,731"\n'
TRAIN = (
    HEAD.encode()
    + b"1,also I was the point person on my company\x92s transition, Chandler ,neutral,neutral,0,0,"
    + LAST.encode()
    + '2,"He said: ""It\u0092s \u2019fine\u2019, yes""",Joey,joy,positive,0,1,'.encode()
    + LAST.encode()
    + b"3,No,Joey,anger,negative,125,3,"
    + LAST.encode()
)
DEV = HEAD + "1,Oh my God,Phoebe,surprise,negative,0,0," + LAST
TEST = HEAD + "1,Why do all,Mark,surprise,positive,0,0," + LAST
MARK = "\N{RIGHT SINGLE QUOTATION MARK}"


@pytest.fixture
def corpus(tmp_path):
    for name, content in (("train", TRAIN), ("dev", DEV), ("test", TEST)):
        put(tmp_path, f"data/MELD/{name}_sent_emo.csv", content=content)
    put(tmp_path, *(f"train_splits/{n}.mp4" for n in ("dia0_utt0", "dia0_utt1", "dia125_utt3")))
    put(tmp_path, "dev_splits_complete/dia0_utt0.mp4")
    put(tmp_path, "output_repeated_splits_test/dia0_utt0.mp4", content=b"other bytes")
    return tmp_path


def test_each_table_has_the_films_of_its_own_folder(corpus):
    rows, notes = read("meld", corpus)
    assert notes == [("suspect", "train_dia125_utt3")]
    assert {each: row["split"] for each, row in rows.items()} == {
        "train_dia0_utt0": "train",
        "train_dia0_utt1": "train",
        "train_dia125_utt3": "train",
        "dev_dia0_utt0": "valid",
        "test_dia0_utt0": "test",
    }
    assert rows["train_dia0_utt0"] == {
        "id": "train_dia0_utt0",
        "media": str(corpus / "train_splits/dia0_utt0.mp4"),
        "speaker": "Chandler",
        "group": "train_dia0",
        "split": "train",
        "transcript": f"also I was the point person on my company{MARK}s transition",
        "emotion": "neutral",
        "sentiment": "neutral",
    }
    assert rows["train_dia0_utt1"]["transcript"] == f'He said: "It{MARK}s {MARK}fine{MARK}, yes"'
    assert rows["test_dia0_utt0"]["media"].endswith("output_repeated_splits_test/dia0_utt0.mp4")


def test_what_is_wrong_is_told(corpus):
    late = DEV.replace("00:16:21,731", "00:16:16,059").replace("Phoebe,surprise", "Phoebe,")
    put(corpus, "data/MELD/dev_sent_emo.csv", content=late + "2,Oh,Ross,joy,positive,0,0," + LAST)
    put(corpus, "dev_splits_complete/dia66_utt9.mp4", "train_splits/._dia0_utt0.mp4")
    (corpus / "train_splits/dia0_utt1.mp4").unlink()
    (corpus / "data/MELD/test_sent_emo.csv").unlink()
    rows, notes = read("meld", corpus)
    assert notes == [
        ("duplicate", "dev_dia0_utt0"),
        ("incomplete", ""),
        ("missing", "train_dia0_utt1"),
        ("no_label", "dev_dia0_utt0"),
        ("suspect", "dev_dia0_utt0"),
        ("suspect", "train_dia125_utt3"),
        ("unlisted", ""),
    ]
    assert rows["dev_dia0_utt0"]["speaker"] == "Phoebe"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Utterance,Speaker\n", "there is no column 'Dialogue_ID'; there are Utterance, Speaker"),
        (HEAD + "1,a,b\n", "row 1 has fewer cells than the heading"),
        (HEAD + '1,"a\n', "line 1: unexpected end of data"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(corpus, content, said):
    put(corpus, "data/MELD/dev_sent_emo.csv", content=content)
    with pytest.raises(InputError, match=rf"dev_sent_emo\.csv: {said}"):
        read("meld", corpus)


def test_a_folder_without_tables_is_refused(tmp_path):
    put(tmp_path, "train_splits/dia0_utt0.mp4")
    with pytest.raises(InputError, match=r"there is none of train_sent_emo\.csv, dev_sent_emo"):
        read("meld", tmp_path)
