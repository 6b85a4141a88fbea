"""Whole media to clips: what is cut, what is told, what is left when it is run again."""

import csv
import json

import numpy as np
import pytest

from featurizers.dataset import read_clips
from pipelines.__main__ import app
from pipelines.executors import InProcess, OnRay
from pipelines.experiment import FailedError, InputError, parse
from pipelines.featurize import featurize
from pipelines.films import load_source
from pipelines.ingest import ingest
from pipelines.run import run
from pipelines.segment import segment
from pipelines.show import Show
from tests.media_maker import tone, tracks, wav
from tests.test_voice import SPOKEN, noisy, speech

FEATURES = {"audio": {"featurizer": "logmel"}}


@pytest.fixture
def films(tmp_path):
    """Three films, of which one has no voice and one is no film at all."""
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "a.wav").write_bytes(wav(noisy(speech(), 30)))
    (folder / "b.wav").write_bytes(wav(noisy(speech([(2.0, 5.0)], 8.0), 30)))
    (folder / "hum.wav").write_bytes(wav(tone(100, 5.0)))
    (folder / "cut.mp4").write_bytes(b"nothing")
    return folder


def experiment(at, **source):
    given = {"folder": "films", "label": "mood", **source}
    plain = {"dataset": "data", "source": given, "features": FEATURES, "max_dropped": 0.3}
    return parse(plain, at)


def cut_all(made, executor=None, done=lambda count: None):
    return segment(made, executor or InProcess(), done)


def table(made):
    with made.table.open() as file:
        return list(csv.DictReader(file))


def test_each_film_is_cut_where_nobody_speaks(films, tmp_path):
    made = experiment(tmp_path)
    told = []
    found = cut_all(made, done=told.append)
    assert (found.films, found.silent, sum(told)) == (4, 1, 4)
    assert [(each.fault, each.media) for each in found.lost] == [
        ("unreadable", str(films / "cut.mp4"))
    ]
    rows = table(made)
    assert [row["id"][:-9] for row in rows] == ["a", "a", "a", "a", "b"]
    spans = np.array([[float(row["start"]), float(row["end"])] for row in rows])
    wanted = [*SPOKEN, (2.0, 5.0)]
    assert np.abs(spans - (np.array(wanted) + np.array([-0.1, 0.1]))).max() <= 0.06
    assert [row["id"] for row in rows] == [
        f"{row['group']}-{round(float(row['start']) * 1000):08d}" for row in rows
    ]


def test_settings_decide_the_cut_and_other_settings_cut_anew(films, tmp_path):
    cut_all(experiment(tmp_path))
    made = experiment(tmp_path, segment={"most_s": 2.5, "least_s": 0.5, "pause_s": 0.3})
    rows = cut_all(made).clips
    assert len(rows) == 7  # one of 4 s and one of 3 s have no pause
    assert max(row["end"] - row["start"] for row in rows) <= 2.5
    assert len(list((made.raw / "spans").iterdir())) == 6  # of three films, twice


def test_running_again_hears_only_what_is_missing_and_writes_the_same(films, tmp_path):
    made = experiment(tmp_path)
    cut_all(made)
    before = made.table.read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in (made.raw / "spans").iterdir()}
    gone = min(kept)
    gone.unlink()
    cut_all(made)
    after = {path: path.stat().st_mtime_ns for path in (made.raw / "spans").iterdir()}
    assert made.table.read_bytes() == before
    assert after.keys() == kept.keys()
    assert [path for path in kept if after[path] != kept[path]] == [gone]
    (films / "b.wav").write_bytes((films / "a.wav").read_bytes())
    assert len(cut_all(made).clips) == 8


def test_work_that_stops_half_way_leaves_what_is_finished_and_no_table(films, tmp_path):
    def stop(count):
        raise KeyboardInterrupt

    made = experiment(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cut_all(made, done=stop)
    assert len(list((made.raw / "spans").iterdir())) == 1
    assert not made.table.exists()


def test_too_many_bad_films_are_a_failure_without_a_table(films, tmp_path):
    (films / "worse.mp4").write_bytes(b"")
    with pytest.raises(FailedError, match=r"2 of 5 media files are bad, .*cut\.mp4: unreadable"):
        cut_all(experiment(tmp_path))
    assert not experiment(tmp_path).table.exists()


def test_no_voice_at_all_is_a_failure(films, tmp_path):
    for name in ("a.wav", "b.wav", "cut.mp4"):
        (films / name).unlink()
    with pytest.raises(FailedError, match="no voice is in any of 1 media files"):
        cut_all(experiment(tmp_path))


def test_clips_of_a_table_keep_its_columns_and_rows_with_spans_stay(films, tmp_path):
    (films / "a.ctm").write_text("a 1 1.2 0.5 so\na 1 4.0 0.5 it\na 1 11.6 0.5 goes\n")
    (films / "films.csv").write_text(
        "id,media,start,end,speaker,mood,transcript_file\n"
        "a,a.wav,,,ann,1,a.ctm\nb,b.wav,2.5,4,bob,2,\n"
    )
    made = experiment(tmp_path, folder="", table="films/films.csv", segment={})
    rows = cut_all(made).clips
    assert [(row["speaker"], row["mood"]) for row in rows] == [("ann", "1")] * 4 + [("bob", "2")]
    assert (rows[4]["id"], rows[4]["start"], rows[4]["end"]) == ("b", "2.5", "4")
    assert "group" not in rows[0]
    ingest(made, InProcess(), lambda count: None)
    columns = featurize(made, InProcess(), lambda done: None)
    assert {row.state for row in columns["audio"].rows.values()} == {"sample"}
    words = {clip.id: clip.words for clip in read_clips(made.root)}
    assert [[word.text for word in words[row["id"]] or ()] for row in rows] == [
        ["so"],
        ["it"],
        [],
        ["goes"],
        [],
    ]
    first = words[rows[0]["id"]][0]
    assert first.start == pytest.approx(1.2 - rows[0]["start"])


def test_the_sound_that_a_row_chooses_decides_its_clips(films, tmp_path):
    tracks(films / "two.mkv", 2, np.round(speech()).astype(np.int16))
    (films / "films.csv").write_text(
        "id,media,audio_stream,mood\na,two.mkv,0,1\nb,two.mkv,1,2\nc,two.mkv,7,3\n"
    )
    made = experiment(tmp_path, folder="", table="films/films.csv", segment={})
    with pytest.raises(FailedError, match=r"1 of 3 media files are bad, .* no stream '7'"):
        cut_all(made)
    found = cut_all(made.model_copy(update={"max_dropped": 0.4}))
    assert [row["audio_stream"] for row in found.clips] == ["0"] * 4 + ["1"] * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,media,mood,transcript\na,a.wav,1,so it goes\n", "has a transcript without times"),
        ("id,media,mood,transcript_file\na,a.wav,1,a.txt\n", "has a transcript without times"),
        ("id,media,mood,stream:pose\na,a.wav,1,a.npy\n", "column stream:pose cannot be"),
        ("id,media,mood\na,/etc/passwd,1\n", "lies outside every media root"),
        ("id,media,mood\n,a.wav,1\n", "row 1, column id: is empty"),
    ],
)
def test_what_cannot_be_cut_is_told_before_anything_is_heard(films, tmp_path, text, said):
    (films / "films.csv").write_text(text)
    made = experiment(tmp_path, folder="", table="films/films.csv", segment={})
    with pytest.raises(InputError, match=said):
        cut_all(made)
    assert not made.raw.exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"table": "clips.csv"}, "either table .* folder"),
        ({"folder": ""}, "either table .* folder"),
        ({"segment": {"pause": 1}}, r"'source.segment.pause' \(did you mean 'pause_s'\?\)"),
        ({"segment": {"least_s": 8.0}}, r"wanted at most half of most_s without its margin: 7\.4"),
    ],
)
def test_wrong_settings_are_told(tmp_path, source, said):
    with pytest.raises(InputError, match=said):
        experiment(tmp_path, **source)


def test_a_table_of_clips_is_not_cut_unless_it_says_so(tmp_path):
    with pytest.raises(InputError, match="to cut whole media, give `source"):
        cut_all(experiment(tmp_path, folder="", table="clips.csv"))


def test_a_table_that_is_not_written_yet_is_told(films, tmp_path):
    with pytest.raises(InputError, match=r"clips\.csv: there is no such table yet; `fuseline seg"):
        ingest(experiment(tmp_path), InProcess(), lambda count: None)


def test_a_run_cuts_and_then_asks_for_labels(films, tmp_path):
    made = experiment(tmp_path).model_copy(
        update={"workers": experiment(tmp_path).workers.model_copy(update={"featurize": 0})}
    )
    with pytest.raises(InputError, match="there are 5 clips, and none has 'mood'"):
        run(made, Show(quiet=True))
    assert len(table(made)) == 5


@pytest.mark.ray
@pytest.mark.soak
def test_workers_of_ray_cut_the_same(films, tmp_path):
    made = experiment(tmp_path)
    alone = cut_all(made).clips
    (tmp_path / "data").rename(tmp_path / "before")
    assert cut_all(made, OnRay(2)).clips == alone


# The command


def called(capsys, *arguments):
    app([str(each) for each in arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_the_command_takes_a_folder_a_table_or_an_experiment(films, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some = ["--set", "workers.featurize=0", "--set", "max_dropped=0.5", "--json"]
    told = json.loads(called(capsys, "segment", films, *some))
    assert (told["clips"], told["films"], told["silent"]) == (5, 4, 1)
    assert told["table"] == str(tmp_path / "runs/films/raw/clips.csv")
    (films / "two.csv").write_text("id,media\na,a.wav\nb,b.wav\n")
    told = json.loads(called(capsys, "segment", films / "two.csv", *some))
    assert (told["clips"], told["lost"]) == (5, [])
    (tmp_path / "experiment.yaml").write_text(
        json.dumps(
            {"dataset": "d", "source": {"folder": "films", "label": "m"}} | {"features": FEATURES}
        )
    )
    told = json.loads(called(capsys, "segment", "experiment.yaml", *some))
    assert told["table"] == str(tmp_path / "d/raw/clips.csv")


def test_a_source_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="there is no such table or folder"):
        load_source(tmp_path / "films")
