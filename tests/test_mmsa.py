"""MMSA's pickle: in, trained on, looked at as any other dataset, and out again."""

import json
import pickle

import numpy as np
import pytest
import torch

from featurizers.dataset import read_clips
from featurizers.manifest import committed, open_column
from featurizers.spec import FeatureSpec
from pipelines.exchange.importing import Wanted, import_files
from pipelines.exchange.mmsa import read_mmsa
from pipelines.executors import InProcess
from pipelines.experiment import InputError, load, parse
from pipelines.featurize import finished
from pipelines.ingest import survey
from pipelines.packaging import example_of
from pipelines.run import check_usable
from pipelines.sources import task_of
from tests import published_features as made
from tracking.run import MemoryRun
from training import data as training_data
from training.loop import fit
from training.predict import Predictor
from training.rows import WrongRowsError
from training.session import LocalSession


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both forms, imported, with the experiment file of each."""
    from typer.testing import CliRunner

    from pipelines.__main__ import app

    root = tmp_path_factory.mktemp("mmsa")
    for name, data in (("unaligned", made.unaligned()), ("aligned", made.aligned())):
        file = made.dumped(root / f"{name}_50.pkl", data)
        asked = ["--to", root / name, "--experiment", root / f"{name}.yaml", "--json"]
        done = CliRunner().invoke(app, ["import", str(file), *map(str, asked)])
        assert done.exit_code == 0, done.output
        (root / f"{name}.json").write_text(done.output)
    return root


def columns_of(root):
    opened = [open_column(root, name) for name in committed(root)]
    return {each.spec.name.removeprefix("imported-"): each for each in opened}


def all_clips():
    return [(split, *each) for split in made.SPLITS for each in made.clips_of(split)]


def test_features_come_without_their_padding_and_finite(folder):
    columns = columns_of(folder / "unaligned")
    assert columns.keys() == made.WIDTHS.keys()
    by_id = {clip.id: clip for clip in read_clips(folder / "unaligned")}
    for split, clip_id, _, _, streams in all_clips():
        for name, values in streams.items():
            found = columns[name].read(by_id[clip_id].key)
            wanted = values.copy()
            if (split, clip_id, name) == ("train", "trainfilm0$_$0", "audio"):
                wanted[0, 2] = 0.0
            if (split, clip_id, name) == ("train", "trainfilm0$_$1", "audio"):
                wanted[1, :2] = 0.0
            assert found.values.dtype == np.float32
            assert np.array_equal(found.values, wanted)
            assert found.times[0, 0] == 0.0
            # As many seconds as steps of text, which each stream shares out.
            assert found.times[-1, 1] == len(streams["text"])


def test_what_was_not_finite_is_counted_and_said(folder):
    notes = json.loads((folder / "unaligned.json").read_text())["notes"]
    assert "audio: 1 -inf, 1 NaN, 1 inf in 2 clips; 0 stands in their place" in notes
    assert "text_bert (numbers of word pieces) is no feature, and is not imported" in notes


def test_clips_keep_splits_labels_recordings_and_words(folder):
    by_id = {clip.id: clip for clip in read_clips(folder / "unaligned")}
    assert len(by_id) == sum(made.SPLITS.values())
    for split, clip_id, said, label, _ in all_clips():
        clip = by_id[clip_id]
        assert (clip.split, clip.source) == (split, clip_id.partition("$_$")[0])
        assert " ".join(word.text for word in clip.words) == said
        assert all(word.estimated for word in clip.words)
        assert clip.labels["regression_labels"] == pytest.approx(label, abs=1e-6)
        assert clip.labels["annotations"] == made.signs(label)
        assert clip.labels["classification_labels"] == str(int(np.sign(label)) + 1)


def test_a_spec_says_from_which_file_a_column_comes_and_no_path(folder):
    spec = columns_of(folder / "unaligned")["vision"].spec
    assert spec.modality == "video"
    assert spec.parameters["file"] == "unaligned_50.pkl"
    assert len(spec.parameters["sha256"]) == 64
    assert str(folder) not in json.dumps(spec.to_json())
    assert FeatureSpec.from_json(spec.to_json()) == spec
    again = columns_of(folder / "aligned")["vision"].spec
    assert again.digest != spec.digest


def test_the_aligned_form_shares_its_steps_and_keeps_those_of_zeros(folder):
    columns = columns_of(folder / "aligned")
    by_id = {clip.id: clip for clip in read_clips(folder / "aligned")}
    for split, clip_id, _, _, streams in all_clips():
        clip = by_id[clip_id]
        for name, values in streams.items():
            found = columns[name].read(clip.key)
            wanted = values[:5].copy()
            if name == "vision" and clip_id == f"{split}film0$_$0":
                wanted[-2:] = 0.0
            assert np.array_equal(found.values, wanted)
            assert found.times.tolist() == [[step, step + 1.0] for step in range(5)]
        assert clip.seconds == 5.0


def test_the_four_answers_of_mults_iemocap_are_several_labels(tmp_path):
    answers = [[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]
    part = {
        "text": np.ones((3, 2, 4), np.float32),
        "audio": np.ones((3, 2, 2), np.float32),
        "labels": np.array([[[1 - yes, yes] for yes in each] for each in answers], np.float32),
    }
    file = tmp_path / "iemocap_data.pkl"
    file.write_bytes(pickle.dumps(dict.fromkeys(("train", "valid", "test"), part)))
    clips = read_mmsa(file).clips
    assert [clip.labels["labels"] for clip in clips[:3]] == [
        ("angry", "happy"),
        (),
        ("neutral", "sad"),
    ]


def test_padding_behind_is_padding_too(tmp_path, folder):
    file = made.dumped(tmp_path / "behind.pkl", made.aligned(in_front=False))
    data = made.aligned(in_front=False)
    import_files(Wanted(files=[file], to=str(tmp_path / "set")))
    key = next(clip.key for clip in read_clips(tmp_path / "set") if clip.id == "testfilm1$_$1")
    ours, theirs = (
        columns_of(root)["text"].read(key) for root in (tmp_path / "set", folder / "aligned")
    )
    assert np.array_equal(ours.values, theirs.values)
    assert np.array_equal(ours.values, data["test"]["text"][3, :5])


def test_streams_of_unlike_lengths_are_unaligned_as_mults_own_files_are(tmp_path):
    data = {}
    for split in made.SPLITS:
        ids, _, labels, streams = zip(*made.clips_of(split), strict=True)
        data[split] = {
            name: made.padded([each[name] for each in streams], longest, in_front=True)
            for name, longest in made.LONGEST.items()
        }
        data[split] |= {"id": list(ids), "labels": np.array(labels)[:, None, None]}
    file = made.dumped(tmp_path / "mosi_data_noalign.pkl", data)
    found = read_mmsa(file)
    assert found.pooling == {"kind": "own"}
    assert "mosi_data_noalign.pkl: unaligned" in found.notes[0]
    by_id = {clip.id: clip for clip in found.clips}
    for _, clip_id, _, _, streams in all_clips():
        clip = by_id[clip_id]
        assert clip.seconds == len(streams["text"])
        for name, stream in found.streams.items():
            feature = stream.read(clip).feature
            assert np.array_equal(feature.values, streams[name])
            assert feature.times[-1, 1] == clip.seconds


def test_importing_again_writes_nothing_and_a_killed_import_goes_on(folder, tmp_path):
    root = tmp_path / "set"
    wanted = Wanted(files=[folder / "unaligned_50.pkl"], to=str(root))
    import_files(wanted)
    first = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for path in [*root.glob("columns/*audio*/*.json"), root / "clips.parquet"]:
        path.unlink()
    import_files(wanted)
    again = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    logs = {path for path in first.keys() | again.keys() if "logs" in path.parts}
    assert {path: again[path] for path in again.keys() - logs} == {
        path: first[path] for path in first.keys() - logs
    }


def test_it_is_verified_and_looked_at_as_any_other(folder, called, monkeypatch):
    monkeypatch.chdir(folder)
    assert called("verify", "unaligned")[0] == 0
    code, out, err = called("check", "unaligned", "--json")
    assert code == 0, err
    assert {each["area"] for each in json.loads(out)} >= {"leaks", "balance", "words", "features"}
    code, out, err = called("peek", "unaligned", "testfilm1$_$1", "--json")
    assert code == 0, err
    shown = json.loads(out)["columns"]
    assert [each["stream"] for each in shown] == [
        f"imported-{n}" for n in ("vision", "audio", "text")
    ]
    assert {each["state"] for each in shown} == {"sample"}
    assert called("report", "unaligned")[0] == 0


def test_a_clip_of_it_can_be_forgotten(folder, called, tmp_path):
    root = tmp_path / "set"
    wanted = Wanted(files=[folder / "unaligned_50.pkl"], to=str(root))
    import_files(wanted)
    assert called("forget", root, "testfilm1$_$1")[0] == 0
    assert called("verify", root)[0] == 0
    assert columns_of(root)["text"].rows.keys() == {clip.key for clip in read_clips(root)}
    found = import_files(wanted)
    assert found.clips == sum(made.SPLITS.values()) - 1
    assert any("to be forgotten" in note for note in found.notes)


def test_an_import_that_is_run_again_tells_what_the_first_one_found(folder, called, tmp_path):
    root = tmp_path / "set"
    wanted = Wanted(files=[folder / "unaligned_50.pkl"], to=str(root))
    first = import_files(wanted)
    before = {path: path.stat().st_mtime_ns for path in root.glob("columns/*/*.tar")}
    assert "audio: 1 -inf, 1 NaN, 1 inf in 2 clips; 0 stands in their place" in first.notes
    assert import_files(wanted).notes == first.notes
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert called("forget", root, "trainfilm0$_$1")[0] == 0
    key = next(clip.key for clip in read_clips(folder / "unaligned") if clip.id == "trainfilm0$_$1")
    assert not any(key.encode() in path.read_bytes() for path in root.glob("logs/**/*.*"))
    assert "audio: 1 -inf in 1 clips; 0 stands in their place" in import_files(wanted).notes


@pytest.fixture(scope="module", params=["unaligned", "aligned"])
def trained(folder, request, tmp_path_factory):
    """The form, its columns and data, and a predictor that was trained on them for a few steps."""
    form, root = request.param, tmp_path_factory.mktemp(request.param)
    pooling = "{kind: steps, steps: 6}" if form == "unaligned" else "{kind: cells, cell_s: 1.0}"
    settings = ["train.epochs=1", "train.global_batch=4", "model.recipe=late_fusion"]
    experiment = load(folder / f"{form}.yaml", [*settings, f"train.pooling={pooling}"])
    columns, clips = finished(experiment), read_clips(experiment.root)
    recipe = experiment.recipe(task_of(experiment, clips))
    check_usable(recipe, clips, columns)
    names = {stream: column.spec.fingerprint for stream, column in columns.items()}
    data = training_data.load(experiment.root, names, recipe)
    found = fit(recipe, data, LocalSession(root / "run"), MemoryRun())
    Predictor.save(
        root / "predictor",
        recipe=recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=found.weights,
    )
    return form, columns, data, Predictor.load(root / "predictor")


def test_aligned_streams_are_trained_on_step_by_step(trained):
    form, _, data, _ = trained
    sample = data.train.sample(data.train.keys[0])
    assert {len(values) for values in sample.values.values()} == {6 if form == "unaligned" else 5}


def test_a_raw_clip_is_not_scored_where_nothing_computes_its_features(trained):
    form, _, _, predictor = trained
    with pytest.raises(WrongRowsError) as refused:
        predictor.predict([{"media": "clip.mp4", "transcript": "quite good"}])
    assert f"imported from {form}_50.pkl" in str(refused.value)
    assert "give features:text and times:text" in str(refused.value)


def test_a_row_with_features_is_scored_as_in_training(trained):
    _, columns, data, predictor = trained
    clip = data.test.clips[0]
    row = {"id": clip.id, "end": clip.seconds}
    for stream, column in columns.items():
        feature = column.read(clip.key)
        row |= {f"features:{stream}": feature.values, f"times:{stream}": feature.times}
    (answer,) = predictor.predict([row])
    assert answer["state"] == "scored"
    with torch.no_grad():
        said = float(predictor.model(data.test.batch([(clip.key, 1.0)]))[0, 0])
    assert answer["prediction"] == pytest.approx(said, abs=1e-6)


def test_the_row_that_a_registered_model_shows_is_one_that_it_scores(trained):
    *_, data, predictor = trained
    (answer,) = predictor.predict([example_of(data.specs)])
    assert answer["state"] == "scored"


def test_what_trains_on_steps_of_their_own_is_what_the_experiment_file_asks_for(folder):
    assert load(folder / "unaligned.yaml").model.recipe == "mult"
    experiment = load(folder / "aligned.yaml")
    assert experiment.model.recipe == "mmlatch"
    assert experiment.source.imported


def test_ingest_takes_it_as_it_is_and_plan_says_why_not(folder, called, monkeypatch):
    monkeypatch.chdir(folder)
    code, out, _ = called("ingest", "aligned.yaml")
    assert code == 0
    assert "as they were imported" in out
    code, _, err = called("plan", "aligned.yaml")
    assert code == 2
    assert "was imported" in err
    code, _, err = called("train", "aligned.yaml", "--set", "features.text.column=imported-text-0")
    assert code == 2
    assert "wanted column, one of those that were imported" in err


# Out


@pytest.mark.parametrize("form", ["unaligned", "aligned"])
def test_an_exported_set_is_imported_with_equal_features(folder, form, tmp_path, called):
    file = tmp_path / "out.pkl"
    options = ["--aligned"] if form == "aligned" else []
    label = ["--label", "regression_labels"]
    code, _, err = called("export", folder / form, "--to", file, *label, *options)
    assert code == 0, err
    import_files(Wanted(files=[file], to=str(tmp_path / "again")))
    before, after = columns_of(folder / form), columns_of(tmp_path / "again")
    clips = {clip.key: clip for clip in read_clips(tmp_path / "again")}
    for clip in read_clips(folder / form):
        again = clips[clip.key]
        for field in ("id", "split", "seconds", "words", "source"):
            assert getattr(again, field) == getattr(clip, field), field
        assert clip.labels.items() <= again.labels.items()
        for name, column in before.items():
            ours, theirs = column.read(clip.key), after[name].read(clip.key)
            assert ours.values.tobytes() == theirs.values.tobytes()
            assert ours.times.tobytes() == theirs.times.tobytes()


def test_plain_pickle_reads_what_is_exported_as_the_originals_are_laid_out(
    folder, tmp_path, called
):
    file = tmp_path / "out.pkl"
    assert (
        called("export", folder / "unaligned", "--to", file, "--label", "regression_labels")[0] == 0
    )
    ours, theirs = pickle.loads(file.read_bytes()), made.unaligned()  # noqa: S301 - our own
    assert ours.keys() == theirs.keys()
    for split, part in theirs.items():
        count = made.SPLITS[split]
        order = [list(ours[split]["id"]).index(each) for each in part["id"]]
        for name in made.WIDTHS:
            assert ours[split][name].shape[::2] == (count, made.WIDTHS[name])
            assert ours[split][name].dtype == np.float32
            wanted = np.nan_to_num(part[name], nan=0, posinf=0, neginf=0)
            longest = ours[split][name].shape[1]
            assert np.array_equal(ours[split][name][order], wanted[:, :longest].astype(np.float32))
            assert not wanted[:, longest:].any()
        for name in ("audio_lengths", "vision_lengths", "raw_text", "annotations"):
            assert np.array_equal(ours[split][name][order], part[name])
        for name in ("regression_labels", "regression_labels_T", "classification_labels"):
            assert np.array_equal(ours[split][name][order].astype(np.float32), part[name])


def test_an_export_takes_no_place_and_says_what_is_missing(folder, tmp_path, called):
    file = tmp_path / "out.pkl"
    label = ("--label", "regression_labels")
    asked = ("export", folder / "unaligned", "--to", file, *label, "--most", "4")
    code, out, err = called(*asked, "--stream", "speech=imported-text", "--json")
    assert code == 0, err
    notes = json.loads(out)["notes"]
    assert any("there is no text and no audio and no vision" in note for note in notes)
    assert "train: 12 clips have more than 4 steps, and are cut there" in notes
    assert called(*asked)[0] == 2
    code, _, err = called(
        "export", folder / "unaligned", "--to", tmp_path / "b.pkl", "--stream", "x=y"
    )
    assert code == 2
    assert "no column begins with 'y'" in err


# Refused


def without(name):
    def change(data):
        for part in data.values():
            part.pop(name)

    return change


def set_to(split, name, value):
    return lambda data: data[split].update({name: value})


WRONG = {
    "another split": (lambda data: data.update(dev2=data.pop("test")), "a split 'dev2'"),
    "no splits": (lambda data: data.clear(), "no split has clips"),
    "fewer labels": (set_to("test", "regression_labels", np.zeros(3)), "unlike numbers of clips"),
    "several labels": (set_to("test", "regression_labels", np.zeros((4, 2))), "one label a clip"),
    "two vectors": (set_to("valid", "text", np.zeros((4, 7, 2, 2))), "wanted numbers"),
    "another width": (set_to("valid", "text", np.zeros((4, 7, 3))), "unlike dimensions"),
    "another length": (set_to("valid", "text", np.zeros((4, 9, 6))), "neither the aligned form"),
    "lengths of text": (set_to("train", "audio_lengths", ["a"] * 12), "wanted finite numbers"),
    "an id twice": (set_to("test", "id", ["a", "b", "a", "c"]), "share an id"),
    "no label": (without("regression_labels"), "say which label is predicted"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_pickle_that_does_not_fit_is_refused_by_one_line(name, tmp_path):
    change, said = WRONG[name]
    data = made.aligned()
    change(data)
    file = made.dumped(tmp_path / "a.pkl", data)
    with pytest.raises(InputError, match=said):
        import_files(Wanted(files=[file], to=str(tmp_path / "set")))
    assert not (tmp_path / "set" / "columns").exists()


def test_a_dataset_of_media_is_not_overwritten(folder, tmp_path):
    from dataclasses import replace

    from featurizers.dataset import write_clips

    clips = [
        replace(clip, media_digest="d", media="a.mp4") for clip in read_clips(folder / "aligned")
    ]
    write_clips(tmp_path, clips)
    with pytest.raises(InputError, match="was ingested from media"):
        import_files(Wanted(files=[folder / "aligned_50.pkl"], to=str(tmp_path)))


def test_an_import_is_not_overwritten_by_an_ingest(folder, tmp_path):
    import_files(Wanted(files=[folder / "aligned_50.pkl"], to=str(tmp_path / "set")))
    before = (tmp_path / "set/clips.parquet").read_bytes()
    (tmp_path / "clips.csv").write_text("id,media,mood\na,a.wav,up\nb,b.wav,down\n")
    source = {"table": "clips.csv", "label": "mood"}
    features = {"audio": {"featurizer": "logmel"}}
    made = parse({"dataset": "set", "source": source, "features": features}, tmp_path)
    with pytest.raises(InputError, match="was imported from published features, and an ingest"):
        survey(made, InProcess(), lambda count: None)
    assert (tmp_path / "set/clips.parquet").read_bytes() == before
