"""Folders of .npy and .npz in, and one joined WebDataset out."""

import json
import pickle

import numpy as np
import pytest
import webdataset

from featurizers.dataset import read_clips
from featurizers.manifest import committed, open_column
from pipelines.exchange.importing import Wanted, import_files
from pipelines.experiment import InputError
from tests import published_features as made

TABLE = "id,split,score,mood,speaker,transcript\n"
WIDTHS = {"text": 6, "audio": 5}


def clips():
    """Of each clip: its id, split, and its streams with their times."""
    random = np.random.default_rng(0)
    for number in range(10):
        split = ["train", "dev", "test"][max(0, number - 7)]
        streams = {}
        for name, width in WIDTHS.items():
            steps = 3 + number
            edges = np.linspace(0.0, 2.0, steps + 1)
            values = random.normal(size=(steps, width)).astype(np.float32)
            streams[name] = values, np.stack([edges[:-1], edges[1:]], axis=1)
        yield f"film/{number}.a", split, streams


def table(folder):
    rows = [
        f"{clip_id},{split},{number / 4},{['glad', 'sad'][number % 2]},s{number},very good"
        for number, (clip_id, split, _) in enumerate(clips())
    ]
    (folder / "clips.csv").write_text(TABLE + "\n".join(rows) + "\n")


def saved(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def folder_of(root, layout):
    """The same clips laid out in one of three ways."""
    root.mkdir()
    table(root)
    every = list(clips())
    if layout == "a file for each":
        for clip_id, _, streams in every:
            for name, (values, times) in streams.items():
                saved(root / name / f"{clip_id}.npy", values)
                saved(root / name / f"{clip_id}.times.npy", times)
    elif layout == "a file for each stream":
        for name in WIDTHS:
            values = {clip_id: streams[name][0] for clip_id, _, streams in every}
            times = {f"{clip_id}.times": streams[name][1] for clip_id, _, streams in every}
            np.savez(root / f"{name}.npz", **values, **times)
    else:
        text = (root / "clips.csv").read_text().replace("film/", "film-")
        (root / "clips.csv").write_text(text)
        for clip_id, _, streams in every:
            arrays = {}
            for name, (values, times) in streams.items():
                arrays |= {name: values, f"{name}.times": times}
            np.savez_compressed(root / f"{clip_id.replace('/', '-')}.npz", **arrays)
    return root


def columns_of(root):
    opened = [open_column(root, name) for name in committed(root)]
    return {each.spec.name.removeprefix("imported-"): each for each in opened}


LAYOUTS = ["a file for each", "a file for each stream", "a file for each clip"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_are_imported_with_their_times_labels_and_splits(layout, tmp_path):
    found = import_files(
        Wanted(files=[folder_of(tmp_path / "in", layout)], to=str(tmp_path / "set"), label="score")
    )
    assert found.counts == {"train": 8, "valid": 1, "test": 1}
    assert found.labels == ["mood", "score"]
    assert found.pooling == {"kind": "words"}
    columns, by_id = columns_of(tmp_path / "set"), {c.id: c for c in read_clips(tmp_path / "set")}
    for number, (clip_id, _, streams) in enumerate(clips()):
        clip = by_id[clip_id.replace("/", "-") if layout == LAYOUTS[2] else clip_id]
        assert clip.labels == {"score": number / 4, "mood": ["glad", "sad"][number % 2]}
        assert (clip.speaker, clip.seconds) == (f"s{number}", 2.0)
        assert [word.text for word in clip.words] == ["very", "good"]
        for name, (values, times) in streams.items():
            feature = columns[name].read(clip.key)
            assert feature.values.tobytes() == values.tobytes()
            assert feature.times.tobytes() == times.tobytes()
    spec = columns["audio"].spec
    assert spec.parameters["file"] == "in/audio"
    assert str(tmp_path) not in json.dumps(spec.to_json())


def test_a_stream_without_times_has_a_rate_or_a_second_a_step(tmp_path):
    folder = folder_of(tmp_path / "in", LAYOUTS[0])
    for path in folder.glob("*/film/*.times.npy"):
        path.unlink()
    wanted = Wanted(files=[folder], to=str(tmp_path / "a"), label="score", rates={"audio": 10.0})
    found = import_files(wanted)
    assert found.notes[0] == "text: no times and no --rate: a step lasts a second"
    assert found.pooling == {"kind": "own"}
    key = next(clip.key for clip in read_clips(tmp_path / "a") if clip.id == "film/2.a")
    columns = columns_of(tmp_path / "a")
    assert columns["audio"].read(key).times[-1].tolist() == [0.4, 0.5]
    assert columns["text"].read(key).times[-1].tolist() == [4.0, 5.0]


def test_what_is_missing_is_absent_and_what_is_wrong_is_quarantined(tmp_path):
    folder = folder_of(tmp_path / "in", LAYOUTS[0])
    (folder / "audio/film/0.a.npy").unlink()
    rows = "".join(f"more{number},train,1,glad,s,\n" for number in range(40))
    with (folder / "clips.csv").open("a") as file:
        file.write(rows)
    for number in range(40):
        saved(folder / f"audio/more{number}.npy", np.ones((2, 5)))
    saved(folder / "audio/film/1.a.npy", np.ones((4, 3)))
    (folder / "audio/film/2.a.npy").write_bytes(pickle.dumps(np.ones((4, 5))))
    import_files(Wanted(files=[folder], to=str(tmp_path / "set"), label="score"))
    rows = {row.key: row for row in columns_of(tmp_path / "set")["audio"].rows.values()}
    by_id = {clip.id: rows[clip.key] for clip in read_clips(tmp_path / "set")}
    assert by_id["film/0.a"].state == "absent"
    assert (by_id["film/1.a"].state, by_id["film/1.a"].fault) == ("quarantined", "bad_stream")
    assert "wanted numbers [T, 5]" in by_id["film/1.a"].message
    assert by_id["film/2.a"].fault == "bad_stream"
    assert by_id["more3"].state == "sample"


WRONG = {
    "no table": (lambda folder: (folder / "clips.csv").unlink(), "there is no table of clips"),
    "an id that leads away": (
        lambda folder: (folder / "clips.csv").write_text("id,score\n../../secret,1\n"),
        "column id: found '../../secret'",
    ),
    "another split": (
        lambda folder: (folder / "clips.csv").write_text("id,split,score\nfilm/0.a,eval,1\n"),
        "row 1, column split: found a split 'eval'",
    ),
    "no arrays": (
        lambda folder: [path.unlink() for path in folder.rglob("*.npy")],
        "there are no arrays",
    ),
    "no rate": (lambda folder: None, "--rate vision: there is no such stream"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_none_is_refused_by_one_line(name, tmp_path):
    change, said = WRONG[name]
    folder = folder_of(tmp_path / "in", LAYOUTS[0])
    change(folder)
    rates = {"vision": 1.0} if name == "no rate" else {}
    with pytest.raises(InputError, match=said):
        import_files(Wanted(files=[folder], to=str(tmp_path / "set"), label="score", rates=rates))


def test_a_rate_is_asked_for_by_stream(tmp_path, called):
    folder = folder_of(tmp_path / "in", LAYOUTS[0])
    asked = ("import", folder, "--to", tmp_path / "set", "--label", "score")
    assert called(*asked, "--rate", "audio=ten")[0] == 2
    assert called(*asked, "--rate", "audio=10")[0] == 0
    assert called("import", folder, tmp_path / "x.pkl", "--to", tmp_path / "b")[0] == 2


def test_one_joined_webdataset_has_all_of_a_clip_together(tmp_path, called):
    file = made.dumped(tmp_path / "a.pkl", made.unaligned())
    import_files(Wanted(files=[file], to=str(tmp_path / "set")))
    options = ("--format", "webdataset", "--label", "regression_labels")
    for out in ("one", "two"):
        assert called("export", tmp_path / "set", "--to", tmp_path / out, *options)[0] == 0
    shards = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert shards == ["test-00000.tar", "train-00000.tar", "valid-00000.tar"]
    columns, seen = columns_of(tmp_path / "set"), {}
    for name in shards:
        path = tmp_path / "one" / name
        assert path.read_bytes() == (tmp_path / "two" / name).read_bytes()
        samples = webdataset.WebDataset(str(path), shardshuffle=False).decode()
        for sample in samples:
            seen[sample["__key__"]] = sample
            assert sample["json"]["split"] == name.partition("-")[0]
    by_key = {clip.key: clip for clip in read_clips(tmp_path / "set")}
    assert seen.keys() == by_key.keys()
    for key, sample in seen.items():
        about = sample["json"]
        assert about["id"] == by_key[key].id
        assert about["labels"] == by_key[key].labels
        assert [word[0] for word in about["words"]] == [word.text for word in by_key[key].words]
        for stream, column in columns.items():
            feature = column.read(key)
            assert np.array_equal(sample[f"{stream}.npy"], feature.values)
            assert np.array_equal(sample[f"{stream}.times.npy"], feature.times)
