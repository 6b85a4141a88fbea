"""RAVDESS: names of files to clips; what is not there, twice there, or no file at all."""

import csv
import json
from itertools import product

import pytest

from featurizers.dataset import read_clips
from pipelines.corpora import formats
from pipelines.corpora.reading import Note, Read
from pipelines.corpus import read_corpus
from pipelines.experiment import FailedError, InputError, parse
from pipelines.films import load_source
from pipelines.run import ingest_all
from pipelines.show import Show
from tests.corpora_maker import POINTER, put, read


def names(actor, *, channel=1, kinds=(1,)):
    """All names of an actor's files, as the corpus has them."""
    emotions = range(1, 9 if channel == 1 else 7)
    return [
        f"Actor_{actor:02}/{kind:02}-{channel:02}-{e:02}-{i:02}-{s:02}-{r:02}-{actor:02}"
        + (".wav" if kind == 3 else ".mp4")
        for kind in kinds
        for e, i, s, r in product(emotions, (1, 2), (1, 2), (1, 2))
        if not (e == 1 and i == 2)
    ]


GONE = ("incomplete", "")  # the other actors


def test_a_name_says_all_of_a_clip(tmp_path):
    put(tmp_path, *names(1), *names(8))
    rows, notes = read("ravdess", tmp_path)
    assert len(rows) == 2 * 60
    assert notes == [GONE]
    assert rows["01-06-02-01-02-08"] == {
        "id": "01-06-02-01-02-08",
        "media": str(tmp_path / "Actor_08/01-01-06-02-01-02-08.mp4"),
        "transcript": "Kids are talking by the door",
        "speaker": "actor-08",
        "fold": 2,
        "emotion": "fearful",
        "intensity": "strong",
        "channel": "speech",
        "statement": "statement-1",
        "gender": "female",
    }
    assert rows["01-01-01-02-01-01"]["transcript"] == "Dogs are sitting by the door"


def test_actors_go_into_six_folds_of_four_in_order(tmp_path):
    put(tmp_path, *(f"01-01-03-01-01-01-{actor:02}.mp4" for actor in range(1, 25)))
    rows, _ = read("ravdess", tmp_path)
    folds = [rows[f"01-03-01-01-01-{actor:02}"]["fold"] for actor in range(1, 25)]
    assert folds == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4 + [6] * 4


def test_the_three_files_of_a_performance_are_one_clip(tmp_path):
    put(tmp_path, *names(3, kinds=(1, 2, 3)))
    taken = {take: read("ravdess", tmp_path, take=take)[0] for take in ("av", "video", "audio")}
    files = {
        take: {row["media"].split("/")[-1] for row in rows.values()} for take, rows in taken.items()
    }
    assert {take: len(some) for take, some in files.items()} == dict.fromkeys(taken, 60)
    assert {take: {(name[:2], name[-4:]) for name in some} for take, some in files.items()} == {
        "av": {("01", ".mp4")},
        "video": {("02", ".mp4")},
        "audio": {("03", ".wav")},
    }


def test_sound_alone_is_a_corpus_too_and_a_lone_one_is_told(tmp_path):
    put(tmp_path, *names(2, kinds=(3,)))
    rows, notes = read("ravdess", tmp_path)
    assert len(rows) == 60
    assert notes == [GONE]
    put(tmp_path, names(2, kinds=(1,))[0])
    rows, notes = read("ravdess", tmp_path)
    assert len(rows) == 60
    assert [kind for kind, clip in notes if clip] == ["incomplete"] * 59
    _, notes = read("ravdess", tmp_path, take="video")
    assert [kind for kind, clip in notes if clip] == ["missing"] * 59


def test_song_is_taken_where_it_is_asked_for_and_one_actor_has_none(tmp_path):
    put(tmp_path, *names(17, channel=2), *names(18))
    assert {row["channel"] for row in read("ravdess", tmp_path)[0].values()} == {"speech"}
    rows, notes = read("ravdess", tmp_path, channel="song")
    assert len(rows) == 44
    assert notes == [GONE]
    rows, _ = read("ravdess", tmp_path, channel="both")
    assert len(rows) == 104


def test_what_is_not_there_twice_there_or_no_file_is_told(tmp_path):
    all_of_it = names(1)
    put(tmp_path, *all_of_it[1:])
    put(tmp_path, "again/" + all_of_it[5])  # as Kaggle's copy has all of it twice
    put(tmp_path, all_of_it[6], content=POINTER)
    put(tmp_path, all_of_it[7], content=b"")
    put(tmp_path, "01-02-08-01-01-01-01.mp4", "readme.mp4", ".DS_Store", "__MACOSX/a.mp4")
    rows, notes = read("ravdess", tmp_path)
    assert len(rows) == 59
    assert notes == [
        ("duplicate", ""),
        ("empty", "01-02-01-02-02-01"),
        GONE,
        ("missing", "01-01-01-01-01-01"),
        ("pointer", "01-02-01-02-01-01"),
        ("unlisted", ""),
        ("unlisted", ""),
    ]


def test_two_files_of_one_name_that_differ_are_refused(tmp_path):
    put(tmp_path, names(1)[0])
    put(tmp_path, "again/" + names(1)[0], content=b"other")
    with pytest.raises(InputError, match="have one name and differ"):
        read("ravdess", tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    put(tmp_path, "holiday.mp4")
    with pytest.raises(InputError, match=r"no clip of RAVDESS is there; unlisted: holiday\.mp4"):
        read("ravdess", tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        read("ravdess", tmp_path / "nowhere")


def experiment(at, **more):
    source = {"folder": "films", "format": "ravdess"}
    features = {"audio": {"featurizer": "logmel"}}
    plain = {"dataset": "data", "source": source, "features": features}
    workers = {"workers": {"featurize": 0}}
    return parse({**plain, **workers, **more}, at)


def test_a_corpus_is_ingested_with_its_folds_and_labels(tmp_path, capsys):
    put(tmp_path / "films", *names(1, kinds=(3,)), *names(24, kinds=(3,)))
    made = experiment(tmp_path)
    assert made.source.label == "emotion"
    ingest_all(made, Show())
    clips = read_clips(made.root)
    assert len(clips) == 120
    assert {(clip.speaker, clip.fold) for clip in clips} == {("actor-01", 1), ("actor-24", 6)}
    assert {clip.labels["emotion"] for clip in clips} >= {"calm", "disgust"}
    assert {round(clip.seconds, 2) for clip in clips} == {0.5}
    with made.table.open() as file:
        assert len(list(csv.DictReader(file))) == 120
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "warning corpus parts of the corpus that are not there: 1: no speech of actors 02" in said
    )


def test_a_corpus_that_lacks_too_much_is_refused_and_all_of_it_is_written_down(tmp_path):
    put(tmp_path / "films", *names(1)[:50])
    with pytest.raises(FailedError, match="10 of 60 clips of ravdess are lost, at most 5% may be"):
        ingest_all(experiment(tmp_path), Show(quiet=True))
    made = experiment(tmp_path, max_dropped=0.2)
    with (made.raw / "corpus-notes.csv").open() as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert sorted(kinds) == ["incomplete", *["missing"] * 10]


def test_a_split_that_has_few_of_the_clips_is_refused(tmp_path, monkeypatch):
    put(tmp_path / "films", *names(1)[:1])
    made = experiment(tmp_path)
    notes = [Note(kind="no_split", clip=f"c{n}", message="is in no fold") for n in (1, 1, 2)]
    rows = [{"id": f"r{n}", "media": "a.mp4"} for n in range(17)]
    monkeypatch.setattr(formats, "read", lambda *_: Read(rows=rows, notes=notes))
    with pytest.raises(FailedError, match=r"2 of 19 clips of ravdess are in no split; the first: "):
        read_corpus(made)
    rows.append({"id": "another", "media": "a.mp4"})
    assert len(read_corpus(made).rows) == 18


def test_the_commands_take_a_format(tmp_path, monkeypatch, called):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "films", *names(1, kinds=(3,)), *names(2, kinds=(3,)), *names(3, kinds=(3,)))
    code, out, err = called("init", "films", "--format", "ravdess")
    assert (code, err) == (0, "")
    assert "emotion is 8 classes" in " ".join(out.split())
    written = (tmp_path / "experiment.yaml").read_text()
    assert "  folder: films\n  format: ravdess\n  label: emotion" in written
    assert "# options: {channel: speech, take: av}" in written
    assert "text" not in written.split("features:")[1].split("# recipes")[0]
    code, out, err = called("ingest", "experiment.yaml", "--json", "--set", "workers.featurize=0")
    assert (code, json.loads(out)["clips"]) == (0, 180), err
    code, _, err = called("ingest", "films", "--format", "ravdes")
    assert code == 2
    assert err.startswith("fuseline: unknown format 'ravdes' (did you mean 'ravdess'?); there are")


def test_a_format_goes_with_a_folder_alone():
    wrong = [
        ({"table": "a.csv", "format": "ravdess"}, "a format is that of a folder"),
        ({"folder": "a", "format": "ravdess", "segment": {}}, "has its own clips"),
        ({"folder": "a", "label": "b", "options": {"take": "av"}}, "none is given"),
        ({"folder": "a", "format": "ravdess", "options": {"tkae": 1}}, "did you mean 'take'"),
        ({"folder": "a", "format": "ravdess", "options": {"take": "all"}}, "found 'all'"),
    ]
    for source, said in wrong:
        with pytest.raises(InputError, match=said):
            parse({"dataset": "data", "source": source}, "here")


def test_a_folder_alone_is_an_experiment_with_a_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "films", *names(1)[:1])
    made = load_source(tmp_path / "films", (), "ravdess")
    assert (made.table.name, made.segment, made.source.label) == ("corpus.csv", None, "emotion")
