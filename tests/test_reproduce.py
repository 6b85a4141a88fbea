"""A published experiment goes the whole way, and is told beside the published figures."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from featurizers.clip import Clip
from pipelines.corpora.reading import Note
from pipelines.executors import stop_ray
from pipelines.experiment import InputError
from pipelines.plans import Plan
from pipelines.reproduce import corpora, flow
from pipelines.reproduce.corpora import ROLES, Data, _is, _published, name_of, prepare
from pipelines.reproduce.differences import differences, lost
from pipelines.reproduce.flow import Wish, _begun, reproduce
from pipelines.reproduce.outcome import markdown, to_json
from pipelines.reproduce.protocol import Metric, Model, Protocol, Published
from pipelines.reproduce.protocols import IEMOCAP, MOSEI, MOSI, NTU
from pipelines.run import are_alike
from pipelines.show import Show
from tracking.mlflow_store import client_of, read_file, tracking_uri
from training.recipe import Task
from training.recipes import named

TINY = Protocol(
    name="tiny",
    corpus="made up",
    split="3 folds of 2 speakers",
    label="mood",
    task="classes",
    metrics=(Metric(title="Acc", name="accuracy"), Metric(title="UAR", name="uar")),
    models=(
        Model(
            recipe="unimodal",
            title="one hand",
            streams=("left",),
            settings={"hidden": 4},
            published=(
                Published(
                    what="one hand",
                    values={"Acc": 62.5},
                    source="a paper, Table 1",
                    chosen_on="test",
                ),
            ),
        ),
        Model(recipe="late_fusion", title="both hands", streams=("left", "right")),
    ),
    features={
        name: {"featurizer": "numbers", "stream": name, "dims": 2} for name in ("left", "right")
    },
    seeds=2,
    folds=3,
    best_on_test=True,
    monitor="valid_accuracy",
)


def write_clips(folder, speakers=6, each=4):
    """A table of clips without media worth looking at; one hand says what is right."""
    folder.mkdir()
    rows, random = (
        ["id,media,speaker,fold,mood,stream:left,stream:left:hz"],
        np.random.default_rng(0),
    )
    (folder / "silence.wav").write_bytes(silence())
    for speaker in range(speakers):
        for i in range(each):
            name, up = f"s{speaker}-{i}", i % 2
            np.save(folder / f"{name}.npy", random.normal(2 * up, 1, (5, 2)).astype(np.float32))
            mood = "up" if up else "down"
            rows.append(f"{name},silence.wav,{speaker},{speaker // 2 + 1},{mood},{name}.npy,5")
    (folder / "clips.csv").write_text("\n".join(rows))


def silence():
    import io
    import wave

    content = io.BytesIO()
    with wave.open(content, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(2 * 16_000))
    return content.getvalue()


def prepared(protocol, data, folder, show):
    features = {"left": protocol.features["left"]}
    source = {"table": str(data / "clips.csv"), "label": protocol.label}
    return Data(source=source, features=features, notes=("made up",))


def finished(folder):
    """When each run was finished."""
    files = folder.glob("runs/tiny/training/*/finished.json")
    return {file.parent.name: file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What was asked for, what it came to, where, and what was finished when it was killed."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_clips(folder / "corpus")
    wish = Wish(
        data=folder / "corpus",
        folder=folder,
        seeds=1,
        settings=(
            "train.epochs=2",
            "unimodal.model.hidden=3",
            "workers.train=1",
            "workers.featurize=0",
        ),
    )

    def killed(*given):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "_measured", killed)  # behind the training of the first model
        with pytest.raises(KeyboardInterrupt):
            reproduce(TINY, wish, Show(quiet=True), prepared)
    before = finished(folder)
    outcome, at = reproduce(TINY, wish, Show(quiet=True), prepared)
    yield wish, outcome, at, before
    stop_ray()


@pytest.mark.ray
def test_each_fold_is_tested_on_once_by_validation_and_once_as_the_paper_does(done):
    _, outcome, _, _ = done
    assert [(run.chosen_on, run.fold) for run in outcome.runs] == [
        (chosen_on, f"{i}/3") for chosen_on in ("valid", "test") for i in (1, 2, 3)
    ]
    by_fold = {
        run.fold: {r.evaluation_set for r in outcome.runs if r.fold == run.fold}
        for run in outcome.runs
    }
    assert all(len(sets) == 1 for sets in by_fold.values())
    assert len(set.union(*by_fold.values())) == 3
    assert {run.clips for run in outcome.runs} == {8}
    assert {run.epochs for run in outcome.runs} == {2}
    assert len({run.digest for run in outcome.runs}) == 6
    assert outcome.clips == {"fold 1": 8, "fold 2": 8, "fold 3": 8}
    assert all(0 <= run.values["Acc"] <= 1 for run in outcome.runs)


@pytest.mark.ray
def test_the_tables_lie_in_files_and_with_a_run_of_the_tracking_server(done):
    wish, outcome, at, _ = done
    assert at.parent == wish.folder / "runs" / "reproduced"
    assert (at / "table.md").read_text() == markdown(outcome)
    assert json.loads((at / "table.json").read_bytes()) == to_json(outcome)
    uri = tracking_uri(wish.folder)
    run_id = json.loads((at / "run.json").read_bytes())["run_id"]
    for name in ("table.md", "table.json"):
        assert read_file(uri, run_id, name) == (at / name).read_bytes()
    metrics = client_of(uri).get_run(run_id).data.metrics
    mean = sum(run.values["UAR"] for run in outcome.runs[:3]) / 3
    assert metrics["unimodal_uar"] == pytest.approx(mean)
    assert "unimodal_best_on_test_accuracy" in metrics


@pytest.mark.ray
def test_what_is_not_the_protocols_is_told(done):
    _, _, at, _ = done
    page = (at / "table.md").read_text()
    wanted = "1 seed(s), not 2; train.epochs=2; unimodal.model.hidden=3"
    assert f"- **Not the protocol's: {wanted}.**" in page
    assert "- Data: late_fusion is left out: it wants right, and the data have left.\n" in page
    assert at.name.startswith("tiny-")


@pytest.mark.ray
def test_killed_it_goes_on_and_takes_what_is_finished_as_it_is(done):
    wish, outcome, _, before = done
    assert set(before) == {run.digest for run in outcome.runs if run.chosen_on == "valid"}
    after = finished(wish.folder)
    assert {name: after[name] for name in before} == before
    assert set(after) == {run.digest for run in outcome.runs}


def refused(wish, protocol=TINY, data=None):
    def given(protocol, folder, to, show):
        return data or prepared(protocol, folder, to, show)

    with pytest.raises(InputError) as caught:
        reproduce(protocol, wish, Show(quiet=True), given)
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("source.label=x", "tiny has its own source.label; settings of features, model, train"),
        ("unimodal.train.seeds=3", "tiny has its own train.seeds"),
        ("model.recipe=mult", "tiny has its own model.recipe"),
        ("nonsense", "late_fusion.train.epochs=2"),
        ("unimodal.features.left.dims=3", "features is that of all models; leave out unimodal"),
        ("train.epoch=3", "unknown key 'train.epoch' (did you mean 'epochs'?)"),
        ("unimodal.model.hiden=3", "hiden"),
    ],
)
def test_a_setting_that_is_not_to_be_replaced_is_refused(tmp_path, setting, said):
    assert said in refused(Wish(data=tmp_path, folder=tmp_path, settings=(setting,)))


def test_a_model_whose_streams_are_not_there_is_refused_where_it_is_asked_for(tmp_path):
    wish = Wish(data=tmp_path, folder=tmp_path, models=("late_fusion",))
    assert "late_fusion wants right, and the data have left" in refused(wish)
    nothing = Data(source={}, features={})
    wish = Wish(data=tmp_path, folder=tmp_path)
    assert "no model of this experiment can do with that" in refused(wish, data=nothing)
    aligned = replace(TINY, models=(replace(TINY.models[0], time_base="one"),))
    own = Data(source={}, features={"left": {}}, pooling={"kind": "own"})
    wish = Wish(data=tmp_path, folder=tmp_path, models=("unimodal",))
    assert "those of the data are not aligned" in refused(wish, aligned, own)


def test_a_model_starts_from_what_was_learned_on_its_own_fold_with_its_seed(tmp_path):
    fused = replace(TINY.models[1], start={"left": "unimodal"})
    learned = {}
    for fold in ("1/3", "2/3"):
        for seed in (0, 1):
            folder = tmp_path / f"{fold[0]}-{seed}"
            folder.mkdir()
            (folder / "weights.safetensors").write_bytes(f"{fold} {seed}".encode())
            learned["unimodal", fold, seed] = folder
    task = Task(kind="classes", label="mood", classes=("down", "up"))
    recipe = replace(named("late_fusion", task, ("left", "right")), fold="2/3", seed=1)
    begun = _begun(recipe, fused, learned, tmp_path)
    path, _, digest = begun.start["left"].partition("#")
    assert path == str(tmp_path / "2-1" / "weights.safetensors")
    assert digest == hashlib.sha256(b"2/3 1").hexdigest()
    assert _begun(recipe, TINY.models[1], learned, tmp_path) == recipe


def test_runs_that_start_from_weights_of_their_own_fold_are_one_family(tmp_path):
    task = Task(kind="classes", label="mood", classes=("down", "up"))
    recipe = named("unimodal", task, ("left",))
    plans = [
        Plan(
            name=f"{i}",
            recipe=replace(recipe, fold=f"{i}/3", start={"model": f"w#{i}"}),
            root=tmp_path,
            folder=tmp_path / f"{i}",
            columns={},
        )
        for i in (1, 2, 3)
    ]
    assert are_alike(plans)
    assert not are_alike([plans[0], replace(plans[1], recipe=replace(recipe, epochs=3))])


def test_a_folder_of_data_is_looked_at_for_published_features_first(tmp_path):
    def found(*names, protocol=MOSEI):
        for name in names:
            (tmp_path / name).touch()
        return _published(protocol, tmp_path, tmp_path)

    assert found() is None
    assert found("CMU_MOSEI_Labels.csd") is None  # the corpus itself has its labels, too
    wanted = found("CMU_MOSEI_TimestampedWordVectors.csd", "cmu_mosei_std_folds.py")
    assert (len(wanted.files), wanted.label) == (2, "sentiment")
    assert wanted.align == "CMU_MOSEI_TimestampedWordVectors"
    assert wanted.folds == tmp_path / "cmu_mosei_std_folds.py"
    with pytest.raises(InputError, match="has 2 files where one is wanted: cmu_mosei_std_folds"):
        found("folds.json")
    other = tmp_path / "other"
    other.mkdir()
    (other / "mosei.pkl").touch()
    assert _published(MOSEI, other, tmp_path).files == [other / "mosei.pkl"]
    (other / "mosei_noalign.pickle").touch()
    with pytest.raises(InputError, match=r"has 2 files where one is wanted: mosei\.pkl"):
        _published(MOSEI, other, tmp_path)
    assert _published(MOSEI, other / "mosei.pkl", tmp_path).files == [other / "mosei.pkl"]
    with pytest.raises(InputError, match="there is no such folder; --data names that of mosei"):
        prepare(MOSEI, tmp_path / "nowhere", tmp_path, Show(quiet=True))


def test_other_published_features_have_another_dataset_and_result(tmp_path, monkeypatch):
    asked = []

    def imported(wanted, show):
        asked.append(wanted.to)
        return Data(source={}, features={})

    monkeypatch.setattr(corpora, "_imported", imported)
    for content in (b"one", b"other"):
        (tmp_path / "mosi.pkl").write_bytes(content)
        mark = prepare(MOSI, tmp_path, tmp_path, Show(quiet=True)).mark
        assert mark == f"pickle-{hashlib.sha256(content).hexdigest()[:8]}"
        assert asked[-1] == tmp_path / f"runs/mosi-{mark}"
        assert name_of(MOSI, mark) == f"mosi-{mark}"
    (tmp_path / "mosi.pkl").unlink()
    (tmp_path / "COVAREP.csd").touch()
    marks = []
    for content in ("{}", "[]"):
        (tmp_path / "folds.json").write_text(content)
        marks.append(prepare(MOSI, tmp_path, tmp_path, Show(quiet=True)).mark)
    assert marks[0] != marks[1]
    assert marks[0].startswith("csd-")


def clip(name, split, source, **given):
    return Clip(key=name, id=name, media="", media_digest="", source=source, split=split, **given)


def test_what_is_not_the_papers_of_features_and_split_is_told():
    right = {"text": 300, "audio": 5, "visual": 20}
    counts = {"train": 1284, "valid": 229, "test": 686}
    of_train, of_test = "2iD-tVS8NPw", "tmZoasNr4rU"
    clips = [clip("a", "train", of_train), clip("b", "test", of_test)]
    assert list(differences(MOSI, MOSI.models, right, counts, clips)) == []
    clips = [replace(each, source="a.mp4", group=each.source) for each in clips]
    assert list(differences(MOSI, MOSI.models, {}, counts, clips)) == []  # the corpus itself
    bert, fewer = {**right, "text": 768}, {**counts, "train": 1280}
    clips = [clip("a", "test", of_train), clip("b", "test", "")]
    said = "; ".join(differences(MOSI, MOSI.models, bert, fewer, clips))
    assert said == (
        "text of 768 numbers, not 300 (mult_mosi); 1280 clips of train, not 1284; 1 clips whose "
        "ids name no recording of the folds, such as b: their split is the file's word; 1 clips "
        "in another split than the folds have, such as a in test"
    )
    some = {"train": 30_000, "valid": 10_091, "test": 16_487}
    assert list(differences(NTU, NTU.models, {}, some, [])) == []
    assert list(differences(NTU, NTU.models, {}, {**some, "valid": 9}, [])) == [
        "30009 clips of train+valid, not 40091"
    ]
    (said,) = differences(MOSEI, MOSEI.models, {}, {**some, "train": 16_322, "valid": 1871}, [])
    assert said == "16487 clips of test, not 4659"


def test_clips_that_are_lost_are_a_difference():
    from types import SimpleNamespace as Made

    clips = [clip(name, "train", "") for name in "abcd"]
    states = {"a": "sample", "b": "quarantined", "c": "absent", "d": "absent"}
    column = Made(rows={key: Made(state=state) for key, state in states.items()})
    notes = [
        Note(kind="missing", clip="c"),
        Note(kind="no_span", clip="e"),
        Note(kind="pointer", clip="e"),
        Note(kind="missing", clip="a"),  # of which all features are there
        Note(kind="no_transcript", clip="d"),
    ]
    (said,) = lost(notes, clips, [column])
    assert said == "3 of 5 clips are lost, with all of their features or some"
    assert list(lost(notes[3:], clips[::3], [column])) == []


def test_the_corpus_itself_has_its_own_split_where_the_papers_is_of_its_features(tmp_path):
    data = prepare(IEMOCAP, tmp_path, tmp_path, Show(quiet=True))
    assert data.itself
    assert data.source == {"folder": str(tmp_path), "format": "iemocap", "label": "emotions"}
    assert "no repetition of its result" in data.notes[0]
    assert (IEMOCAP.folds, IEMOCAP.own_folds) == (0, 5)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("glove_vectors", "text"),
        ("CMU_MOSI_TimestampedWordVectors", "text"),
        ("COVAREP", "audio"),
        ("FACET-4-2", "visual"),
        ("vision", "visual"),
        ("text", "text"),
        ("OpenFace_2", None),
        ("OpenSMILE", None),
        ("text_bert", "bert"),
    ],
)
def test_published_streams_are_known_by_what_papers_call_them(name, role):
    assert [each for each in ROLES if _is(name, each)] == ([role] if role else [])
