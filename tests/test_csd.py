"""Computational sequences of the CMU SDK: in, aligned by word as the papers have it, and out."""

import json

import h5py
import numpy as np
import pytest

from featurizers.dataset import read_clips
from featurizers.manifest import committed, open_column
from pipelines.corpora.cmu_folds import MOSI
from pipelines.exchange.csd import NAMES
from pipelines.exchange.importing import Wanted, import_files
from pipelines.experiment import InputError, load
from pipelines.featurize import finished
from tests import published_features as made

LABELS = ("sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear")
VIDEOS = ("vidA", "vid_B", "c-1[", "lost")
SEGMENTS = {"vidA": [(0.5, 3.0), (3.0, 6.25)], "vid_B": [(-0.1, 4.0)], "lost": [(0.0, 2.0)]}
FOLDS = {"train": ["vidA"], "valid": [], "test": ["vid_B", "lost"]}


def written(path, root, videos, **metadata):
    """A file as the SDK's `write_CSD` makes it."""
    with h5py.File(path, "w") as file:
        data = file.create_group(f"{root}/data")
        for video, (features, intervals) in videos.items():
            each = data.create_group(video)
            each.create_dataset("features", data=features, compression="gzip")
            each.create_dataset("intervals", data=intervals, compression="gzip")
        told = file.create_group(f"{root}/metadata")
        for name, value in {"root name": root, **metadata}.items():
            cell = told.create_dataset(name, (1,), dtype=h5py.string_dtype())
            cell[0] = json.dumps(value)
    return path


def paced(rate_hz, seconds, width, random):
    edges = np.arange(round(rate_hz * seconds) + 1) / rate_hz
    values = random.normal(size=(len(edges) - 1, width)).astype(np.float32)
    return values, np.stack([edges[:-1], edges[1:]], axis=1)


def spoken(random):
    """Words of 0.2 to 0.5 s, with pauses that are told as words, too."""
    ends = np.cumsum(random.uniform(0.2, 0.5, size=18))
    times = np.stack([np.concatenate([[0.0], ends[:-1]]), ends], axis=1)
    words = [b"sp" if at % 5 == 4 else f"w{at}".encode() for at in range(len(ends))]
    return np.array(words, dtype="S8")[:, np.newaxis], times


def originals(folder, videos=("vidA", "vid_B")):
    """Words, their vectors, COVAREP, FACET and labels of some videos, as MOSEI's files are."""
    random = np.random.default_rng(0)
    words = {video: spoken(random) for video in videos}
    vectors = {
        video: (random.normal(size=(len(times), 4)).astype(np.float32), times)
        for video, (_, times) in words.items()
    }
    sound = {video: paced(100, 7.0, 3, random) for video in videos}
    faces = {video: paced(30, 6.0, 2, random) for video in videos}
    sound["vidA"][0][60, 1] = -np.inf
    faces["vidA"][0][40, 0] = np.nan
    labels = {
        video: (
            random.uniform(-3, 3, size=(len(spans), 7)).astype(np.float32),
            np.array(spans),
        )
        for video, spans in SEGMENTS.items()
    }
    folder.mkdir(exist_ok=True)
    written(folder / "CMU_MOSEI_TimestampedWords.csd", "words", words)
    written(folder / "CMU_MOSEI_TimestampedWordVectors.csd", "glove_vectors", vectors)
    written(
        folder / "CMU_MOSEI_COVAREP.csd",
        "COVAREP",
        sound,
        **{
            "creator": "somebody",
            "computational sequence version": 1.1,
            "dimension names": ["F0", "VUV", "NAQ"],
            "md5": None,
        },
    )
    written(folder / "CMU_MOSEI_VisualFacet42.csd", "FACET 4.2", faces)
    written(folder / "CMU_MOSEI_Labels.csd", "All Labels", labels)
    (folder / "folds.json").write_text(json.dumps(FOLDS))
    return {"text": vectors, "audio": sound, "video": faces}, words, labels


@pytest.fixture(scope="module")
def mosei(tmp_path_factory):
    """Originals, and the two datasets made of them."""
    root = tmp_path_factory.mktemp("mosei")
    streams, words, labels = originals(root / "csd")
    notes = {}
    for name, align in (("own", ""), ("aligned", "words")):
        wanted = Wanted(
            files=[root / "csd"],
            to=str(root / name),
            align=align,
            folds=root / "csd" / "folds.json",
        )
        notes[name] = import_files(wanted).notes
    return root, streams, words, labels, notes


def columns_of(root):
    opened = [open_column(root, name) for name in committed(root)]
    return {each.spec.name.removeprefix("imported-"): each for each in opened}


def clips_of(root):
    return {clip.id: clip for clip in read_clips(root)}


def finite(values):
    return np.where(np.isfinite(values), values, 0).astype(np.float32)


def test_each_labelled_interval_is_a_clip_with_its_labels_and_words(mosei):
    root, _, words, labels, notes = mosei
    clips = clips_of(root / "own")
    assert set(clips) == {"vidA[0]", "vidA[1]", "vid_B[0]", "lost[0]"}
    clip = clips["vidA[1]"]
    assert (clip.start, clip.end, clip.seconds, clip.source) == (3.0, 6.25, 3.25, "vidA")
    assert clip.split == "train"
    assert clips["vid_B[0]"].start == 0.0  # a label may begin before its recording
    wanted = dict(zip(LABELS, labels["vidA"][0][1].tolist(), strict=True))
    assert clip.labels == pytest.approx(wanted)
    said, times = words["vidA"]
    middles = times.mean(axis=1)
    inside = [at for at in range(len(said)) if 3.0 <= middles[at] < 6.25 and said[at, 0] != b"sp"]
    assert [word.text for word in clip.words] == [said[at, 0].decode() for at in inside]
    assert not any(word.estimated for word in clip.words)
    assert any("1 labelled recordings are not in it, such as lost" in note for note in notes["own"])
    assert clips["lost[0]"].words is None


def test_a_clip_has_the_steps_that_overlap_it_on_its_own_clock(mosei):
    root, streams, *_ = mosei
    columns, clips = columns_of(root / "own"), clips_of(root / "own")
    assert columns.keys() == streams.keys()
    for name, recordings in streams.items():
        for clip in clips.values():
            found = columns[name].read(clip.key)
            if clip.source == "lost":
                assert columns[name].rows[clip.key].state == "absent"
                continue
            values, times = recordings[clip.source]
            inside = (times[:, 1] > clip.start) & (times[:, 0] < clip.end)
            assert np.array_equal(found.values, finite(values[inside]))
            assert np.array_equal(found.times, times[inside] - clip.start)


def mean_by_word(values, times, word):
    """As the SDK's `align` with the papers' `myavg`: all steps that share time, alike."""
    start = np.maximum(times[:, 0], word[0])
    end = np.minimum(times[:, 1], word[1])
    return np.average(values[end - start > 1e-5].astype(np.float64), axis=0)


def test_aligned_streams_have_the_mean_of_each_word_as_the_papers_do(mosei):
    """Of each word that shares time with a segment, whole, also where the segment cuts it."""
    root, streams, said, *_ = mosei
    columns, clips = columns_of(root / "aligned"), clips_of(root / "aligned")
    cut = 0
    for name, recordings in streams.items():
        for clip in clips.values():
            found = columns[name].read(clip.key)
            if found is None:
                assert clip.source == "lost"
                continue
            texts, spans = said[clip.source]
            shared = np.minimum(spans[:, 1], clip.end) - np.maximum(spans[:, 0], clip.start)
            whole = spans[(shared > 1e-5) & (texts[:, 0] != b"sp")]
            inside = np.clip(whole, clip.start, clip.end) - clip.start
            cut += int(((whole - clip.start) != inside).any(axis=1).sum())
            assert np.array([[w.start, w.end] for w in clip.words]) == pytest.approx(inside)
            values, times = recordings[clip.source]
            there = whole[:, 0] < times[-1, 1] - 1e-5  # the stream ends before the last word
            assert found.times == pytest.approx(inside[there])
            for row, span in zip(found.values, whole[there], strict=True):
                wanted = finite(mean_by_word(values, times, span))
                assert row == pytest.approx(wanted, abs=1e-6)
    assert cut > 0
    exact = columns["text"].read(clips["vidA[1]"].key).values
    words = streams["text"]["vidA"][0]
    assert all(row.tobytes() in {word.tobytes() for word in words} for row in exact)


def test_training_on_words_sees_just_those_means(mosei, tmp_path):
    from training import data as training_data

    root, *_ = mosei
    file = root / "aligned.yaml"
    file.write_text(
        "dataset: aligned\nsource: {imported: true, label: sentiment}\nfeatures:\n"
        + "".join(
            f"  {name}: {{featurizer: imported, column: {column.spec.fingerprint}}}\n"
            for name, column in columns_of(root / "aligned").items()
        )
        + "model: {recipe: late_fusion}\n"
    )
    experiment = load(file)
    columns = finished(experiment)
    from pipelines.sources import task_of

    recipe = experiment.recipe(task_of(experiment, read_clips(experiment.root)))
    names = {stream: column.spec.fingerprint for stream, column in columns.items()}
    data = training_data.load(experiment.root, names, recipe)
    clip = clips_of(root / "aligned")["vidA[1]"]
    sample = data.train.sample(clip.key)
    for name, column in columns.items():
        stored = column.read(clip.key).values
        scaled = data.normaliser.apply(name, stored.copy())
        there = sample.valid[name]
        seen = sample.values[name] if there is None else sample.values[name][there]
        assert seen == pytest.approx(scaled, abs=1e-6)


def test_the_spec_says_whose_the_file_is_and_what_its_dimensions_are(mosei):
    root, *_ = mosei
    spec = columns_of(root / "own")["audio"].spec
    assert [dim.name for dim in spec.dims] == ["F0", "VUV", "NAQ"]
    told = {name: spec.parameters[name] for name in ("file", "part", "creator", "version")}
    assert told == {
        "file": "CMU_MOSEI_COVAREP.csd",
        "part": "COVAREP",
        "creator": "somebody",
        "version": "1.1",
    }
    assert len(spec.parameters["sha256"]) == 64
    assert "aligned_to" not in spec.parameters
    aligned = columns_of(root / "aligned")["audio"].spec
    assert aligned.parameters["aligned_to"] == "words"
    assert aligned.digest != spec.digest
    assert str(root) not in json.dumps(spec.to_json())


def test_what_is_not_finite_is_counted_of_what_is_stored(mosei):
    *_, notes = mosei
    assert "audio: 1 -inf in 1 clips; 0 stands in their place" in notes["own"]
    assert "video: 1 NaN in 1 clips; 0 stands in their place" in notes["own"]
    assert "audio: 1 -inf in 1 clips; 0 stands in their place" in notes["aligned"]


def test_mosi_has_its_folds_and_a_recording_without_one_is_left_out(tmp_path):
    random = np.random.default_rng(0)
    videos = [next(v for v, split in MOSI.items() if split == each) for each in FOLDS]
    sound = {video: paced(10, 3.0, 2, random) for video in [*videos, "other"]}
    labels = {video: (np.ones((1, 1)), np.array([[0.0, 2.0]])) for video in videos}
    files = [
        written(tmp_path / "CMU_MOSI_COVAREP.csd", "COVAREP", sound),
        written(tmp_path / "l.csd", "Opinion Segment Labels", labels),
    ]
    made_of = import_files(Wanted(files=files, to=str(tmp_path / "set")))
    assert made_of.counts == {"train": 1, "valid": 1, "test": 1}
    assert made_of.labels == ["sentiment"]
    (tmp_path / "folds.csv").write_text(f"video,split\n{videos[0]},train\n")
    wanted = Wanted(files=files, to=str(tmp_path / "two"), folds=tmp_path / "folds.csv")
    found = import_files(wanted)
    assert found.counts == {"train": 1, "valid": 0, "test": 0}
    assert "2 labelled intervals are in no fold, and are left out" in found.notes


def test_files_that_the_sdk_aligned_are_read_by_their_segments(tmp_path):
    random = np.random.default_rng(0)
    values, times = paced(10, 4.0, 2, random)
    labels = {"v[0]": (np.ones((1, 1)), [[0.0, 2.0]]), "v[1]": (np.zeros((1, 1)), [[2.0, 4.0]])}
    by_label = {"v[0]": (values[:20], times[:20]), "v[1]": (values[20:], times[20:])}
    by_word = {f"v[{at}]": (values[at : at + 5], times[at : at + 5]) for at in range(0, 40, 5)}
    written(
        tmp_path / "labels.csd", "All Labels", {n: (v, np.array(t)) for n, (v, t) in labels.items()}
    )
    columns = {}
    for name, entries in (("segments", by_label), ("by_word", by_word)):
        file = written(tmp_path / f"COVAREP_{name}.csd", "COVAREP", entries)
        root = tmp_path / name
        import_files(Wanted(files=[file, tmp_path / "labels.csd"], to=str(root)))
        assert set(clips_of(root)) == {"v[0]", "v[1]"}
        columns[name] = columns_of(root)["audio"]
    for clip in clips_of(tmp_path / "segments").values():
        ours = columns["segments"].read(clip.key)
        first = round(clip.start * 10)
        assert np.array_equal(ours.values, values[first : first + 20])


# Out


@pytest.fixture(scope="module")
def exported(mosei):
    from typer.testing import CliRunner

    from pipelines.__main__ import app

    root, *_ = mosei
    for name in ("own", "aligned"):
        asked = [str(root / name), "--to", str(root / f"{name}-out"), "--label", "sentiment"]
        done = CliRunner().invoke(app, ["export", *asked])
        assert done.exit_code == 0, done.output
    return root


@pytest.mark.parametrize(("name", "align"), [("own", ""), ("aligned", ""), ("aligned", "words")])
def test_an_exported_set_is_imported_with_equal_features(exported, name, align, tmp_path):
    out = exported / f"{name}-out"
    wanted = Wanted(
        files=[out], to=str(tmp_path), label="sentiment", align=align, folds=out / "folds.json"
    )
    import_files(wanted)
    before, after = columns_of(exported / name), columns_of(tmp_path)
    again = clips_of(tmp_path)
    for clip in clips_of(exported / name).values():
        ours = again[clip.id]
        for field in ("seconds", "split", "source", "words", "labels"):
            assert getattr(ours, field) == getattr(clip, field), field
        for stream, column in before.items():
            one, other = column.read(clip.key), after[stream].read(ours.key)
            if one is None:
                assert other is None
                continue
            assert one.values.tobytes() == other.values.tobytes()
            assert one.times.tobytes() == other.times.tobytes()
            assert column.spec.dims == after[stream].spec.dims


def test_h5py_reads_what_is_exported_as_the_originals_are_laid_out(exported):
    columns, clips = columns_of(exported / "own"), clips_of(exported / "own")
    assert {path.name for path in (exported / "own-out").iterdir()} == {
        *("text.csd", "audio.csd", "video.csd", "labels.csd", "words.csd", "folds.json")
    }
    with h5py.File(exported / "own-out" / "audio.csd") as file:
        assert list(file) == ["audio"]
        assert set(file["audio"]) == {"data", "metadata"}
        told = {name: json.loads(cell[0]) for name, cell in file["audio/metadata"].items()}
        assert set(NAMES) <= told.keys()
        assert told["root name"] == "audio"
        assert told["dimension names"] == ["F0", "VUV", "NAQ"]
        assert len(told["md5"]) == 32
        for name, each in file["audio/data"].items():
            feature = columns["audio"].read(clips[name].key)
            assert np.array_equal(each["features"][:], feature.values)
            assert np.array_equal(each["intervals"][:], feature.times)
    with h5py.File(exported / "own-out" / "words.csd") as file:
        words = file["words/data/vidA[0]/features"]
        assert words.dtype.kind == "S"
        assert words.shape == (len(clips["vidA[0]"].words), 1)
        assert words[0, 0].decode() == clips["vidA[0]"].words[0].text
    with h5py.File(exported / "own-out" / "labels.csd") as file:
        names = json.loads(file["labels/metadata/dimension names"][0])
        assert names[0] == "sentiment"
        assert set(names) == set(LABELS)
        assert file["labels/data/vidA[1]/intervals"][:].tolist() == [[0.0, 3.25]]


def test_equal_sets_give_equal_bytes(exported, tmp_path, called):
    assert (
        called("export", exported / "own", "--to", tmp_path / "b", "--label", "sentiment")[0] == 0
    )
    for path in (exported / "own-out").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_set_from_a_pickle_goes_out_as_csd_and_comes_back_equal(tmp_path, called):
    file = made.dumped(tmp_path / "a.pkl", made.unaligned())
    import_files(Wanted(files=[file], to=str(tmp_path / "a")))
    out = tmp_path / "out"
    code, told, err = called(
        *("export", tmp_path / "a", "--to", out, "--label", "regression_labels", "--json")
    )
    assert code == 0, err
    assert "annotations, classification_labels" in json.loads(told)["notes"][0]
    import_files(Wanted(files=[out], to=str(tmp_path / "b"), folds=out / "folds.json"))
    before, after = columns_of(tmp_path / "a"), columns_of(tmp_path / "b")
    for clip in read_clips(tmp_path / "a"):
        ours = clips_of(tmp_path / "b")[clip.id]
        assert ours.labels["regression_labels"] == clip.labels["regression_labels"]
        for stream, theirs in (("text", "text"), ("audio", "audio"), ("vision", "video")):
            one, other = before[stream].read(clip.key), after[theirs].read(ours.key)
            assert one.values.tobytes() == other.values.tobytes()
            assert one.times.tobytes() == other.times.tobytes()


# Refused


def elsewhere(path, kind):
    """A file whose features stand in another one."""
    secret = written(path / "secret.csd", "s", {"v": (np.ones((2, 2)), np.array([[0, 1], [1, 2]]))})
    labels = {"v": (np.ones((1, 1)), np.array([[0.0, 2.0]]))}
    written(path / "labels.csd", "All Labels", labels)
    file = written(path / "COVAREP.csd", "COVAREP", labels)
    with h5py.File(file, "a") as opened:
        group = opened["COVAREP/data/v"]
        del group["features"]
        match kind:
            case "external link":
                group["features"] = h5py.ExternalLink(str(secret), "/s/data/v/features")
            case "soft link":
                group["features"] = h5py.SoftLink("/COVAREP/data/v/intervals")
            case "virtual":
                layout = h5py.VirtualLayout((2, 2), dtype=np.float64)
                layout[:] = h5py.VirtualSource(str(secret), "/s/data/v/features", (2, 2))
                group.create_virtual_dataset("features", layout)
            case "external bytes":
                group.create_dataset("features", (2, 1), "f8", external=[(str(secret), 0, 16)])
    return [file, path / "labels.csd"]


@pytest.mark.parametrize("kind", ["external link", "soft link", "virtual", "external bytes"])
def test_what_stands_in_another_file_is_refused(kind, tmp_path):
    files = elsewhere(tmp_path, kind)
    with pytest.raises(InputError, match=r"COVAREP\.csd.*(is a link|stands in another file)"):
        import_files(Wanted(files=files, to=str(tmp_path / "set")))
    assert not (tmp_path / "set" / "columns").exists()


def good(path):
    labels = {"v": (np.ones((1, 1)), np.array([[0.0, 2.0]]))}
    sound = {"v": (np.ones((2, 2)), np.array([[0.0, 1.0], [1.0, 2.0]]))}
    return [
        written(path / "labels.csd", "All Labels", labels),
        written(path / "COVAREP.csd", "COVAREP", sound),
    ]


def changed(files, name, value):
    with h5py.File(files[1], "a") as file:
        group = file["COVAREP/data/v"]
        del group[name]
        if value is not None:
            group[name] = value
    return files


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
WRONG = {
    "no HDF5": (lambda files: files[1].write_bytes(b"x" * 5000), "not a computational sequence"),
    "a pointer of Git LFS": (lambda files: files[1].write_bytes(POINTER), "is pointer"),
    "no intervals": (lambda files: changed(files, "intervals", None), "intervals is not there"),
    "fewer intervals": (
        lambda files: changed(files, "intervals", np.zeros((1, 2))),
        "unlike numbers of features and intervals",
    ),
    "intervals that are not finite": (
        lambda files: changed(files, "intervals", np.full((2, 2), np.nan)),
        "are not finite",
    ),
    "no labels": (lambda files: files.pop(0), "0 of them are called labels"),
    "labels alone": (lambda files: files.pop(1), "no stream of numbers beside the labels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_none_is_refused_by_one_line(name, tmp_path):
    change, said = WRONG[name]
    files = good(tmp_path)
    change(files)
    with pytest.raises(InputError, match=said) as refused:
        import_files(Wanted(files=files, to=str(tmp_path / "set")))
    assert "\n" not in str(refused.value)


def test_another_word_for_the_labels_is_named(tmp_path):
    files = good(tmp_path)
    for asked in ("labels", "All Labels", "labels.csd"):
        import_files(Wanted(files=files, to=str(tmp_path / "set"), labels=asked))
    with pytest.raises(InputError, match="--labels x: wanted one of COVAREP"):
        import_files(Wanted(files=files, to=str(tmp_path / "set"), labels="x"))
