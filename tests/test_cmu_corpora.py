"""CMU-MOSI and CMU-MOSEI: labels, transcripts, media and folds brought together."""

import numpy as np
import pytest

from featurizers.dataset import read_clips
from pipelines.corpora.cmu_folds import MOSI, read_folds
from pipelines.experiment import InputError, parse
from pipelines.run import ingest_all
from pipelines.show import Show
from pipelines.sources import read_rows
from tests import corpora_maker
from tests.corpora_maker import POINTER, WORDS, csd, put

TRAIN, VALID, TEST = "2iD-tVS8NPw", "_dI--eQ6qVU", "tmZoasNr4rU"
LABELS = "CMU_MOSI_Opinion_Labels.csd"
SIX = ("sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear")
FOLDS = (
    f"standard_train_fold=['{TRAIN}']\nstandard_valid_fold=[u'{VALID}']\nstandard_test_fold=[]\n"
)


def read(name, root, **options):
    """Rows and notes, but those on the videos that these small folders lack."""
    rows, notes = corpora_maker.read(name, root, **options)
    return rows, [note for note in notes if note != ("incomplete", "")]


@pytest.fixture
def mosi(tmp_path):
    """Three videos of 0.5 s with two segments each; the second is told before the first."""
    spans = [[0.25, 0.5], [0.0, 0.25]]
    values = [[-1.5], [2.0]]
    videos = dict.fromkeys((TRAIN, VALID, TEST), (values, spans))
    csd(tmp_path / LABELS, "Opinion Segment Labels", videos)
    for video in videos:
        put(tmp_path, f"Raw/Video/Full/{video}.mp4", f"Raw/Audio/WAV_16000/Full/{video}.wav")
        told = b"1_DELIM_IT WAS GOOD\n2_DELIM_IT\x92S NOT\r\n"
        put(tmp_path, f"Raw/Transcript/Segmented/{video}.annotprocessed", content=told)
    return tmp_path


def test_mosi_has_the_folds_of_the_sdk():
    counts = [list(MOSI.values()).count(split) for split in ("train", "valid", "test")]
    assert counts == [52, 10, 31]
    assert all(len(video) == 11 for video in MOSI)


def test_segments_are_numbered_by_time_and_get_their_lines(mosi):
    rows, notes = read("mosi", mosi)
    assert notes == []
    assert list(rows) == [f"{video}_{n}" for video in (TRAIN, VALID, TEST) for n in (1, 2)]
    assert rows[f"{TEST}_1"] == {
        "id": f"{TEST}_1",
        "media": str(mosi / f"Raw/Video/Full/{TEST}.mp4"),
        "start": 0.0,
        "end": 0.25,
        "transcript": "IT WAS GOOD",
        "group": TEST,
        "split": "test",
        "sentiment": 2.0,
    }
    assert rows[f"{VALID}_2"]["sentiment"] == -1.5
    assert rows[f"{VALID}_2"]["transcript"] == "IT\N{RIGHT SINGLE QUOTATION MARK}S NOT"
    assert {row["split"] for row in rows.values()} == {"train", "valid", "test"}


def test_cut_videos_are_taken_whole(mosi):
    put(mosi, *(f"Raw/Video/Segmented/{v}_{n}.mp4" for v in (TRAIN, VALID, TEST) for n in (1, 2)))
    rows, _ = read("mosi", mosi, media="segmented")
    row = rows[f"{TEST}_2"]
    assert row["media"].endswith(f"Segmented/{TEST}_2.mp4")
    assert not {"start", "end"} & set(row)


def test_a_transcript_with_another_count_says_nothing(mosi):
    name = f"Raw/Transcript/Segmented/{TEST}.annotprocessed"
    put(mosi, name, content="1_DELIM_ONE\n2_DELIM_TWO\n3_DELIM_THREE\n")
    rows, notes = read("mosi", mosi)
    # Nor is it known which of the cut films is whose.
    assert notes == [
        (kind, f"{TEST}_at0000{at}") for kind in ("no_transcript",) for at in ("000", "250")
    ]
    assert "transcript" not in rows[f"{TEST}_at0000000"]
    (mosi / f"Raw/Video/Full/{TEST}.mp4").unlink()
    (mosi / f"Raw/Audio/WAV_16000/Full/{TEST}.wav").unlink()
    put(mosi, *(f"Raw/Video/Segmented/{TEST}_{n}.mp4" for n in (1, 2)))
    assert ("missing", f"{TEST}_at0000000") in read("mosi", mosi)[1]
    put(mosi, name, content="one\n")
    with pytest.raises(InputError, match=r"annotprocessed: line 1: wanted NUMBER_DELIM_TEXT"):
        read("mosi", mosi)


def test_videos_of_the_folds_that_have_no_labels_are_told(mosi):
    said = [each.message for each in corpora_maker.notes("mosi", mosi)]
    first = next(video for video in MOSI if video != TRAIN)
    assert len(said) == 3
    assert said[0].startswith(f"51 of 52 videos of the train fold have no labels: {first}, ")
    assert said[0].endswith(" and 48 more")
    assert said[1].startswith("9 of 10 videos of the valid fold")


def test_a_span_or_a_number_that_is_none_is_refused(mosi):
    videos = {TRAIN: ([[1.0], [1.0]], [[np.nan, 0.2], [0.0, 0.2]])}
    csd(mosi / LABELS, "Opinion Segment Labels", videos)
    with pytest.raises(InputError, match=f"intervals of {TRAIN} are not finite"):
        read("mosi", mosi)
    (mosi / LABELS).unlink()
    put(mosi, "OpinionLevelSentiment.csv", content=f"0,1,{TRAIN},1,2\n0,1,{TRAIN},nan,2\n")
    with pytest.raises(InputError, match="row 2: wanted start, end, video, segment and label"):
        read("mosi", mosi)


def test_two_transcripts_of_one_video_are_compared(mosi):
    first = f"Raw/Transcript/Segmented/{TEST}.annotprocessed"
    second = f"copy/{TEST}.annotprocessed"
    put(mosi, second, content=(mosi / first).read_bytes())
    assert read("mosi", mosi)[1] == []
    put(mosi, second, content="1_DELIM_A\n2_DELIM_B\n")
    with pytest.raises(InputError, match="annotprocessed differ, and which one is the transcript"):
        read("mosi", mosi)


def test_what_is_wrong_with_mosi_is_told(mosi):
    spans = [[0.0, 0.2], [0.2, 0.2], [-0.1, 0.2]]
    videos = {
        TRAIN: ([[1.0], [1.0], [np.nan]], spans),
        VALID: ([[1.0]], [[0, 1]]),
        TEST: ([[1.0]], [[0, 1]]),
        "stranger": ([[1.0]], [[0, 1]]),
    }
    csd(mosi / LABELS, "Opinion Segment Labels", videos)
    put(mosi, f"Raw/Video/Full/{VALID}.mp4", content=POINTER)
    (mosi / f"Raw/Video/Full/{TEST}.mp4").unlink()
    (mosi / f"Raw/Audio/WAV_16000/Full/{TEST}.wav").unlink()
    put(mosi, f"copy/{TRAIN}.mp4")
    for path in (mosi / "Raw/Transcript/Segmented").iterdir():
        path.unlink()
    rows, notes = read("mosi", mosi)
    assert list(rows) == [f"{TRAIN}_1", f"{TRAIN}_2", f"{VALID}_1", f"{TEST}_1"]
    assert [kind for kind, _ in notes if kind != "no_transcript"] == [
        "duplicate",
        "missing",
        "moved",
        "no_label",
        "no_span",
        "no_split",
        "pointer",
    ]
    assert rows[f"{TRAIN}_1"]["start"] == 0.0
    assert "sentiment" not in rows[f"{TRAIN}_1"]
    assert rows[f"{TEST}_1"]["media"] == str(mosi / f"{TEST}.mp4")


def test_the_labels_may_be_the_older_table(mosi):
    (mosi / LABELS).unlink()
    table = f"0.0,0.25,{TEST},1,2.4\n0.25,0.5,{TEST},2,-1\n"
    put(mosi, "Labels/OpinionLevelSentiment.csv", content=table)
    rows, notes = read("mosi", mosi)
    assert (list(rows), notes) == ([f"{TEST}_1", f"{TEST}_2"], [])
    assert rows[f"{TEST}_1"]["sentiment"] == 2.4
    put(mosi, "Labels/OpinionLevelSentiment.csv", content=table + "x,1,2\n")
    with pytest.raises(InputError, match="row 3: wanted start, end, video, segment and label"):
        read("mosi", mosi)
    (mosi / "Labels/OpinionLevelSentiment.csv").unlink()
    with pytest.raises(InputError, match="there are no labels: wanted CMU_MOSI_Opinion_Labels"):
        read("mosi", mosi)


@pytest.mark.parametrize("content", [b"no hdf5", POINTER])
def test_labels_that_are_no_sequence_are_refused(mosi, content):
    put(mosi, LABELS, content=content)
    with pytest.raises(InputError, match=r"Labels.csd: (is pointer|not a computational sequence)"):
        read("mosi", mosi)


@pytest.fixture
def mosei(tmp_path):
    """Two videos; labels of some of the lines of their transcripts, and the SDK's file of folds."""
    labels = {
        TRAIN: ([[1, 0.5, 0, 0, 0, 0, 2], [0] * 7], [[2.5, 4.0], [0.0, 2.5]]),
        VALID: ([[-1.0, 0, 0, 1, 0, 0, 0]], [[1.0, 2.0]]),
    }
    csd(tmp_path / "CMU_MOSEI_Labels.csd", "All Labels", labels)
    lines = "{0}___0___0.0___2.5___first\n{0}___1___2.5002___4.0___second\n{0}___2___4.0___5___x\n"
    for video in labels:
        put(tmp_path, f"Raw/Videos/Full/Combined/{video}.mp4")
        text = lines.format(video)
        put(tmp_path, f"Raw/Transcript/Segmented/Combined/{video}.txt", content=text)
        put(tmp_path, f"Raw/Transcript/Full/Combined/{video}.txt", content="all of it")
    put(tmp_path, "cmu_mosei_std_folds.py", content=FOLDS)
    return tmp_path


def test_segments_are_joined_to_lines_by_time(mosei):
    rows, notes = read("mosei", mosei)
    # One label lies where no line begins, and is called after its time.
    assert list(rows) == [f"{TRAIN}_0", f"{TRAIN}_1", f"{VALID}_at0001000"]
    assert notes == [("no_transcript", f"{VALID}_at0001000")]
    assert rows[f"{TRAIN}_1"] == {
        "id": f"{TRAIN}_1",
        "media": str(mosei / f"Raw/Videos/Full/Combined/{TRAIN}.mp4"),
        "start": 2.5,
        "end": 4.0,
        "transcript": "second",
        "group": TRAIN,
        "split": "train",
        **dict(zip(SIX, (1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 2.0), strict=True)),
        "emotions": "happy,fear",
    }
    assert rows[f"{TRAIN}_0"]["emotions"] == ","  # none of them, which is known


def test_whole_transcripts_without_times_say_nothing(mosei):
    for path in (mosei / "Raw/Transcript/Segmented/Combined").iterdir():
        path.unlink()
    rows, notes = read("mosei", mosei)
    assert len(rows) == 3
    assert {kind for kind, _ in notes} == {"no_transcript"}
    put(mosei, f"texts/{VALID}.txt", content=f"{VALID}___4___1.0___2.0___there\n")
    (mosei / f"Raw/Transcript/Full/Combined/{VALID}.txt").unlink()
    assert read("mosei", mosei)[0][f"{VALID}_4"]["transcript"] == "there"
    put(mosei, f"texts/{VALID}.txt", content=f"{VALID}___4___1.0___2.0___a\nx___1___1.2.3___2___b")
    with pytest.raises(InputError, match="line 2: wanted VIDEO___NUMBER___START___END___TEXT"):
        read("mosei", mosei)


def test_the_file_of_labels_says_its_order(mosei):
    order = ("Happiness", "sentiment", *SIX[2:])
    labels = {TRAIN: ([[3.0, -2.0, 0, 0, 0, 0, 0]], [[0.0, 2.5]])}
    csd(mosei / "CMU_MOSEI_Labels.csd", "All Labels", labels, order)
    row = read("mosei", mosei)[0][f"{TRAIN}_0"]
    assert (row["sentiment"], row["happy"]) == (-2.0, 3.0)


def test_without_folds_nothing_is_dealt(mosei, tmp_path):
    (mosei / "cmu_mosei_std_folds.py").unlink()
    with pytest.raises(InputError, match="standard folds are not among its files"):
        read("mosei", mosei)
    put(mosei, "mine/folds.json", content=f'{{"train": ["{TRAIN}"], "dev": []}}')
    rows, notes = read("mosei", mosei)
    assert {row["split"] for row in rows.values()} == {"train"}
    assert ("no_split", f"{VALID}_at0001000") in notes
    put(mosei, "other.csv", content=f"video,split\n{TRAIN},test\n{VALID},valid\n")
    rows, _ = read("mosei", mosei, folds="other.csv")
    assert sorted({row["split"] for row in rows.values()}) == ["test", "valid"]
    with pytest.raises(InputError, match=r"options\.folds: there is no nothing\.py"):
        read("mosei", mosei, folds="nothing.py")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("f.py", "import os\nstandard_train_fold=[os.name]", "line 2: standard_train_fold is no"),
        ("f.py", "def (", "not Python"),
        ("f.py", "a = 1", "has no folds"),
        (
            "f.py",
            "standard_train_fold=['a']\nstandard_test_fold=['a']",
            "a is in train and in test",
        ),
        ("f.json", "[1]", "wanted lists of videos by split"),
        ("f.csv", "video,fold\na,1\n", "wanted the columns video and split"),
        ("f.csv", "video,split\na,1\n", "found a split '1', wanted one of train"),
        ("f.txt", "a", "wanted folds as .py, .json or .csv"),
    ],
)
def test_folds_that_cannot_be_read_are_refused(tmp_path, name, content, said):
    put(tmp_path, name, content=content)
    with pytest.raises(InputError, match=said):
        read_folds(tmp_path / name)


def test_words_with_times_are_taken_where_there_are_some(mosi, tmp_path):
    said = ([[b"it"], [b"sp"], [b"was"], [b"good"]], [[0, 0.1], [0.1, 0.2], [0.2, 0.3], [0.3, 0.5]])
    csd(mosi / "CMU_MOSI_TimestampedWords.csd", "words", {TEST: said}, WORDS)
    for video in (TRAIN, VALID, TEST):
        (mosi / f"Raw/Video/Full/{video}.mp4").unlink()
    rows, notes = read("mosi", mosi)
    assert notes == []
    assert rows[f"{TEST}_2"]["transcript_file"] == f"words/{TEST}.json"
    assert "transcript" not in rows[f"{TEST}_2"]
    assert rows[f"{TRAIN}_1"]["transcript"] == "IT WAS GOOD"
    source = {"folder": str(mosi), "format": "mosi"}
    features = {"audio": {"featurizer": "logmel"}}
    plain = {"dataset": "data", "source": source, "features": features}
    made = parse({**plain, "workers": {"featurize": 0}}, tmp_path)
    ingest_all(made, Show(quiet=True))
    (clip,) = (clip for clip in read_clips(made.root) if clip.id == f"{TEST}_2")
    assert [(word.text, round(word.start, 2), word.estimated) for word in clip.words] == [
        ("was", 0.0, False),
        ("good", 0.05, False),
    ]


def test_labels_beyond_the_media_are_told_and_written_down(mosi, tmp_path, capsys):
    for video in (TRAIN, VALID, TEST):
        (mosi / f"Raw/Video/Full/{video}.mp4").unlink()  # of which these tests have no real ones
        (mosi / f"Raw/Transcript/Segmented/{video}.annotprocessed").unlink()
    csd(
        mosi / LABELS,
        "Opinion Segment Labels",
        {
            TRAIN: ([[1.0], [-1.0], [2.0]], [[0, 0.25], [0.2, 0.45], [0.7, 1.2]]),
            VALID: ([[1.0]], [[0, 0.9]]),
            TEST: ([[2.0]], [[0, 0.5]]),
        },
    )
    source = {"folder": str(mosi), "format": "mosi"}
    features = {"audio": {"featurizer": "logmel"}}
    plain = {"dataset": "data", "source": source, "features": features}
    made = parse({**plain, "workers": {"featurize": 0}}, tmp_path)
    ingest_all(made, Show())
    clips = {clip.id: clip for clip in read_clips(made.root)}
    assert {clip.id: (clip.split, clip.labels["sentiment"]) for clip in clips.values()} == {
        f"{TRAIN}_1": ("train", 1.0),
        f"{TRAIN}_2": ("train", -1.0),
        f"{TRAIN}_3": ("train", 2.0),
        f"{VALID}_1": ("valid", 1.0),
        f"{TEST}_1": ("test", 2.0),
    }
    late = {
        row["clip"]: row["message"].split(" after")[0]
        for row in read_rows(made.raw / "corpus-notes.csv")
        if row["kind"] == "beyond"
    }
    assert late == {f"{TRAIN}_3": "ends 0.50 s", f"{VALID}_1": "ends 0.40 s"}
    assert "labels beyond the end of the media: 2" in " ".join(capsys.readouterr().out.split())
