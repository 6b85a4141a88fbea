"""Clips without words to clips with them: what is kept, told and done again."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from featurizers.dataset import read_clips
from pipelines.__main__ import app
from pipelines.executors import InProcess, OnRay
from pipelines.experiment import InputError, parse
from pipelines.films import apart
from pipelines.ingest import ingest
from pipelines.run import run
from pipelines.segment import segment
from pipelines.show import Show
from pipelines.transcribe import transcribe
from tests import checkpoints
from tests.media_maker import wav
from tests.test_voice import SPOKEN, noisy, speech

FEATURES = {"text": {"featurizer": "hashed-words"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transcribe") / "small"
    checkpoints.recogniser(folder)
    return folder


@pytest.fixture
def films(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(noisy(speech(), 30)))
    (tmp_path / "b.wav").write_bytes(wav(noisy(speech([(2.0, 4.5)], 6.0), 30)))
    (tmp_path / "films.csv").write_text("id,media,mood\na,a.wav,1\nb,b.wav,2\n")
    return tmp_path


def experiment(at, model, **source):
    given = {"table": "films.csv", "label": "mood", "segment": {}, **source}
    given["transcribe"] = {"model": str(model), **source.get("transcribe", {})}
    plain = {"dataset": "data", "source": given, "features": FEATURES, "workers": {"featurize": 0}}
    return parse({**plain, "max_dropped": 0.5}, at)


def hear_all(made, executor=None, done=lambda count: None):
    if made.segment is not None:
        segment(made, executor or InProcess(), lambda count: None)
    return transcribe(made, executor or InProcess(), done)


def kept(made):
    return {path: path.stat().st_mtime_ns for path in (made.raw / "words").iterdir()}


def test_each_clip_gets_words_with_times_and_confidence_inside_of_it(films, model):
    made = experiment(films, model)
    found = hear_all(made)
    assert (found.heard, found.lost) == (5, [])
    ingest(made, InProcess(), lambda count: None)
    clips = read_clips(made.root)
    assert len(clips) == 5
    for clip in clips:
        assert clip.words
        for word in clip.words:
            assert 0 <= word.start <= word.end <= clip.seconds + 1e-9
            assert 0 < word.confidence < 1


def test_words_are_kept_once_a_file_with_language_and_model(films, model):
    made = experiment(films, model)
    hear_all(made)
    plain = [json.loads(path.read_text()) for path in kept(made)]
    assert sorted(len(each["segments"]) for each in plain) == [2, 7]  # windows of 2 s
    assert {each["model"] for each in plain} == {made.recogniser()["weights"]}
    assert {each["language"] for each in plain} <= {"en", "de", "ja"}


def test_what_is_longer_than_the_model_hears_at_once_is_heard_in_parts(films, model):
    made = experiment(films, model, segment=None)
    hear_all(made)
    (longer,) = [
        each["segments"]
        for each in map(json.loads, (path.read_text() for path in kept(made)))
        if len(each["segments"]) > 3
    ]
    assert all(part["end"] - part["start"] <= 2.0 for part in longer)
    voiced = [part for part in longer if any(a <= part["start"] + 0.2 < b for a, b in SPOKEN)]
    assert len(voiced) == len(longer)


def test_running_again_hears_only_what_is_missing_and_writes_the_same(films, model):
    made = experiment(films, model)
    hear_all(made)
    before, table = kept(made), made.table.read_bytes()
    gone = min(before)
    gone.unlink()
    hear_all(made)
    after = kept(made)
    assert made.table.read_bytes() == table
    assert [path for path in before if after[path] != before[path]] == [gone]
    moved = checkpoints.copied(model, films / "moved")
    hear_all(experiment(films, moved))  # the same weights elsewhere
    assert kept(made) == after
    hear_all(experiment(films, model, transcribe={"language": "de"}))
    assert len(kept(made)) == 4


def words_of(made):
    table = csv.DictReader(made.table.read_text().splitlines())
    found = {}
    for row in table:
        span = float(row["start"]), float(row["end"])
        parts = json.loads(Path(row["transcript_file"]).read_text())
        inside = [part for part in parts["segments"] if span[0] <= part["start"] < span[1]]
        found[row["id"]] = (parts["language"], inside)
    return found


def test_a_long_film_is_kept_in_pieces_and_a_kill_costs_the_last_one_alone(
    films, model, monkeypatch
):
    starts = [0.5, 1.5, 2.5, 3.5, 4.5]
    rows = [f"c{at},a.wav,{start},{start + 1},1" for at, start in enumerate(starts)]
    (films / "clips.csv").write_text("\n".join(["id,media,start,end,mood", *rows]) + "\n")
    monkeypatch.setattr(  # so that each clip would say another one
        "featurizers.whisper.Recogniser.language_of",
        lambda self, sounds: ("en", "de", "ja")[sum(sounds[0].tobytes()) % 3],
    )
    made = experiment(films, model, table="clips.csv", segment=None)
    hear_all(made)
    whole = words_of(made)
    shutil.rmtree(made.raw)
    monkeypatch.setattr("pipelines.transcribe.SPANS", 2)
    heard = []

    def killed(count):
        heard.append(count)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hear_all(made, done=killed)
    before = kept(made)
    assert len(before) == 2
    hear_all(made)
    after = kept(made)
    assert len(after) == 3
    assert {path: after[path] for path in before} == before
    assert words_of(made) == whole  # their language too: the film's first clips say it


def test_a_bad_file_costs_its_own_words_and_is_told(films, model):
    (films / "cut.wav").write_bytes(b"nothing")
    (films / "clips.csv").write_text(
        "id,media,start,end,mood,transcript\n"
        "a,a.wav,1,3,1,\nb,a.wav,3.5,5.5,1,so it goes\nc,cut.wav,0,1,2,\nd,a.wav,2,4,3,\n"
    )
    made = experiment(films, model, table="clips.csv", segment=None)
    found = hear_all(made)
    assert found.heard == 3
    ((lost),) = found.lost
    assert (lost.media, lost.fault) == (str(films / "cut.wav"), "unreadable")
    with made.table.open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert rows["b"]["transcript"] == "so it goes"
    assert not rows["b"]["transcript_file"]
    assert not rows["c"]["transcript_file"]
    # Clips that overlap are heard apart, so that no word is told twice in one.
    assert rows["a"]["transcript_file"] != rows["d"]["transcript_file"]


def test_spans_that_overlap_go_to_different_lists():
    spans = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (2.5, None), (5.0, 6.0)]
    assert apart(spans) == [[(0.0, 2.0), (2.0, 4.0), (5.0, 6.0)], [(1.0, 3.0)], [(2.5, None)]]
    assert apart([]) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "nowhere"}, "source.transcribe: model is 'nowhere': there is no such folder"),
        ({"model": "openai/whisper-tiny"}, "pin its `revision`"),
        ({"language": "fr"}, "it does not know the language 'fr'"),
    ],
)
def test_a_model_that_will_not_do_is_told(films, model, settings, said):
    made = experiment(films, model, segment=None, transcribe=settings)
    with pytest.raises(InputError, match=said):
        hear_all(made)


def test_no_model_is_told(films, model):
    made = experiment(films, model)
    source = made.source.model_copy(update={"transcribe": None})
    with pytest.raises(InputError, match="no model is given; name a folder"):
        transcribe(made.model_copy(update={"source": source}), InProcess(), lambda count: None)


def test_a_wrong_key_is_told(films, model):
    with pytest.raises(InputError, match=r"did you mean 'language'"):
        experiment(films, model, transcribe={"langage": "en"})


@pytest.mark.parametrize("cells", ["3,1", "x,2", "-1,2"])
def test_a_span_that_cannot_be_is_told(films, model, cells):
    (films / "clips.csv").write_text(f"id,media,start,end,mood\na,a.wav,{cells},1\n")
    with pytest.raises(InputError, match="'a' goes from"):
        hear_all(experiment(films, model, table="clips.csv", segment=None))


def test_a_run_cuts_and_hears_before_it_ingests(films, model):
    (films / "films.csv").write_text("id,media\na,a.wav\n")
    made = experiment(films, model)
    with pytest.raises(InputError, match=r"spoken\.csv: there are 4 clips, and none has 'mood'"):
        run(made, Show(quiet=True))
    assert len(kept(made)) == 1


@pytest.mark.ray
@pytest.mark.soak
def test_workers_of_ray_hear_the_same(films, model):
    made = experiment(films, model, transcribe={"language": "en"})
    alone = hear_all(made)
    before = {path.name: path.read_text() for path in kept(made)}
    (films / "data").rename(films / "before")
    assert hear_all(made, OnRay(1)).clips == alone.clips
    assert {path.name for path in kept(made)} == before.keys()


def test_the_command_cuts_and_hears(films, model, capsys, monkeypatch):
    monkeypatch.chdir(films)
    some = ["workers.featurize=0", f"source.transcribe.model={model}"]
    settings = [each for setting in some for each in ("--set", setting)]
    app(["transcribe", "films.csv", *settings, "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "table": str(films / "runs/films/raw/spoken.csv"),
        "clips": 5,
        "heard": 5,
        "lost": [],
    }
