"""Real encoders on the way of all features: batches, jobs, shards, and scoring raw clips."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml

from featurizers.catalog import build
from featurizers.clip import Clip, Word
from featurizers.decoder import Decoder
from featurizers.extract import extract, extract_all
from featurizers.manifest import open_column
from featurizers.media import encode
from featurizers.pretrained import FOLDERS, MissingWeightsError
from featurizers.spec import EncodingFeaturizer
from featurizers.stages import Stages
from pipelines.executors import InProcess, Need
from pipelines.experiment import load
from pipelines.featurize import featurize, jobs, run_jobs
from pipelines.ingest import ingest
from pipelines.logbook import read_logs
from pipelines.model_process import listing
from pipelines.packaging import requirements_of, specs_of
from pipelines.worker import Job, MissingEncoderError, Part, need_of
from tests import checkpoints
from tests.checkpoints import hum
from tests.media_maker import stairs
from training.data import load as load_data
from training.models import build as build_model
from training.predict import Predictor, load_model
from training.recipe import Task
from training.recipes import named

pytestmark = pytest.mark.media

CLOSE = 2e-5  # float32 on one machine
SECONDS = (0.7, 1.2, 0.7, 0.9, 1.2)
SPOKEN = ("good day", "so really bad it", "it", "unbelievable good day", "so so")
FEATURES = {
    "text": {"featurizer": "text-encoder", "model": "weights/text"},
    "audio": {"featurizer": "speech-encoder", "model": "weights/speech"},
    "video": {"featurizer": "image-encoder", "model": "weights/image"},
    "motion": {"featurizer": "video-encoder", "model": "weights/video", "hop": 2},
    "vectors": {"featurizer": "word-vectors", "file": "weights/words.txt"},
    "plain": {"featurizer": "hashed-words"},
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    monkeypatch.delenv(FOLDERS, raising=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An experiment's folder: films, words, checkpoints."""
    folder = tmp_path_factory.mktemp("home")
    checkpoints.text(folder / "weights" / "text", "bert")
    checkpoints.speech(folder / "weights" / "speech", "wav2vec2-layer")
    checkpoints.image(folder / "weights" / "image", "clip")
    checkpoints.video(folder / "weights" / "video")
    (folder / "weights" / "words.txt").write_text("good 1 2\nbad -1 0.5\nit 0 1\n")
    rows = []
    for number, (seconds, words) in enumerate(zip(SECONDS, SPOKEN, strict=True)):
        path = folder / f"{number}.mp4"
        frames = stairs(round(10 * seconds))
        encode(path, frames=frames, fps=10, samples=hum(seconds, number), rate_hz=16_000)
        split = ["train", "train", "train", "valid", "test"][number]
        row = {"id": f"c{number}", "media": path.name, "transcript": words, "mood": number - 2.0}
        rows.append({**row, "split": split})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "dataset": "dataset",
        "source": {"table": "clips.jsonl", "label": "mood"},
        "features": FEATURES,
        "shards": {"clips": 2},
        "workers": {"featurize": 0, "gpus": 0.25},
        "model": {"recipe": "late_fusion"},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def made(home):
    """The experiment, and its committed columns by stream."""
    experiment = load(home / "experiment.yaml")
    ingest(experiment, InProcess(), lambda count: None)
    return experiment, featurize(experiment, InProcess(), lambda done: None)


def clips(home):
    return [
        Clip(
            key=f"k{number}",
            id=f"c{number}",
            media=str(home / f"{number}.mp4"),
            media_digest="",
            words=tuple(
                Word(text=word, start=0.1 * at, end=0.1 * at + 0.1)
                for at, word in enumerate(SPOKEN[number].split())
            ),
        )
        for number in range(len(SECONDS))
    ]


def built(home):
    experiment = load(home / "experiment.yaml")
    return [
        each for each in experiment.featurizers().values() if isinstance(each, EncodingFeaturizer)
    ]


def run(home, featurizers, notes=None):
    with Decoder() as decoder:
        paths = {f"k{number}": home / f"{number}.mp4" for number in range(len(SECONDS))}
        fetch = lambda clip: paths[clip.key]  # noqa: E731 - one line of a test
        found = extract_all(clips(home), fetch, featurizers, decoder, Stages(), notes=notes)
        return [[outcome.feature for outcome in each] for each in found]


def assert_alike(some, others):
    for one, other in zip(some, others, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_allclose(left.values, right.values, atol=CLOSE)
            np.testing.assert_array_equal(left.times, right.times)


def alone(home, featurizers):
    with Decoder() as decoder:
        return [
            [
                each.feature
                for each in extract(clip, home / f"{clip.id[1:]}.mp4", featurizers, decoder)
            ]
            for clip in clips(home)
        ]


def test_clips_in_common_batches_are_what_they_are_alone(home):
    featurizers, sizes = built(home), []
    for each in featurizers:
        each.encoder.batch = 3
        each.encoder._run = counted(each.encoder._run, sizes)
    together = run(home, featurizers)
    assert max(sizes) > 1
    assert_alike(together, alone(home, built(home)))


def counted(inner, sizes):
    def counting(model, items, device):
        sizes.append(len(items))
        return inner(model, items, device)

    return counting


def test_a_batch_for_which_memory_is_short_is_halved_and_numbers_keep_their_promise(home):
    featurizers, notes = built(home), []
    for each in featurizers:
        each.encoder.batch = 8
        each.encoder._run = cramped(each.encoder._run)
    assert_alike(run(home, featurizers, notes), alone(home, built(home)))
    assert max(each.encoder.batch for each in featurizers) < 8
    assert any("text-encoder ran out of memory" in note for note in notes)


def cramped(inner):
    """A model for which there is room for one item."""

    def running(model, items, device):
        if len(items) > 1:
            raise torch.OutOfMemoryError("no room")
        return inner(model, items, device)

    return running


def test_columns_hold_what_each_clip_gives_alone(home, made):
    experiment, columns = made
    for stream, featurizer in experiment.featurizers().items():
        wanted = alone(home, [featurizer])
        column = columns[stream]
        for number in range(len(SECONDS)):
            stored = column.read(f"c{number}")
            if stream in {"audio", "video", "motion"}:  # words' times are estimated otherwise here
                np.testing.assert_array_equal(stored.times, wanted[number][0].times)
            np.testing.assert_allclose(stored.values, wanted[number][0].values, atol=CLOSE)


def test_no_place_of_weights_is_written_anywhere(home, made):
    experiment, _ = made
    written = [path for path in experiment.root.rglob("*") if path.is_file()]
    assert len(written) > 20
    for path in written:
        if path.name != "experiment.resolved.yaml":
            assert b"weights/" not in path.read_bytes()


def test_the_log_says_where_encoders_computed(made):
    experiment, _ = made
    done = [line for line in read_logs(experiment.root) if line["kind"] == "job"]
    named = {name: device for line in done for name, device in line["devices"].items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = ("text-encoder", "speech-encoder", "image-encoder", "video-encoder")
    assert named == dict.fromkeys(names, device)


def test_moving_the_weights_leaves_nothing_to_do(home, made, tmp_path):
    shutil.copytree(home / "weights", tmp_path / "weights")
    shutil.copy(home / "clips.jsonl", tmp_path)
    settings = yaml.safe_load((home / "experiment.yaml").read_text())
    settings["dataset"] = os.path.relpath(home / "dataset", tmp_path)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    moved = load(tmp_path / "experiment.yaml")
    specs = [each.spec for each in moved.featurizers().values()]
    assert len(jobs(moved.root, specs).todo) == 0
    assert sum(spec.source.startswith(str(tmp_path)) for spec in specs) == 5


def test_a_node_without_weights_fails_their_jobs_alone(home, tmp_path):
    shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("dataset"))
    experiment = load(tmp_path / "home" / "experiment.yaml")
    ingest(experiment, InProcess(), lambda count: None)
    specs = [each.spec for each in experiment.featurizers().values()]
    (tmp_path / "home" / "weights" / "text").rename(tmp_path / "away")
    todo, done = jobs(experiment.root, specs).todo, []
    with pytest.raises(MissingEncoderError, match=r"on .*: text-encoder-.* 2 more failed"):
        run_jobs(experiment, InProcess(), todo, done.append, lambda text: None)
    finished = {name.rpartition("-")[0] for each in done for name in each.columns}
    assert finished == {each.name for each in specs} - {"text-encoder"}


def test_only_workers_of_encoders_ask_for_a_gpu_and_only_where_it_is_set(made):
    experiment, _ = made
    assert experiment.workers.gpus == 0.25
    for stream, each in experiment.featurizers().items():
        job = Job(shard=0, clips=(), parts=(Part(spec=each.spec, job=""),))
        encodes = stream in {"text", "audio", "video", "motion"}
        assert need_of(job, gpus=0.25) == Need(gpus=0.25 if encodes else 0.0)
        assert need_of(job) == Need()


@pytest.fixture(scope="module")
def predictor(home, made):
    """A predictor with fresh weights of its own, trained on nothing."""
    experiment, columns = made
    recipe = named(
        "late_fusion", Task(kind="regression", label="mood"), list(columns), {"hidden": 8}
    )
    fingerprints = {stream: column.spec.fingerprint for stream, column in columns.items()}
    found = load_data(experiment.root, fingerprints, recipe)
    widths = {stream: column.spec.width for stream, column in columns.items()}
    Predictor.save(
        home / "predictor",
        recipe=recipe,
        specs=found.specs,
        normaliser=found.normaliser,
        fallback=found.fallback,
        weights=build_model(recipe.model, widths, 1).state_dict(),
    )
    return home / "predictor"


def test_a_predictor_finds_its_encoders_by_digest_and_gives_the_shards_features(
    home, made, predictor, monkeypatch
):
    experiment, columns = made
    places = {each.spec.source for each in experiment.featurizers().values()} - {""}
    for name, value in listing(sorted(places)).items():
        monkeypatch.setenv(name, value)
    loaded = Predictor.load(predictor)
    row = {"media": str(home / "1.mp4"), "transcript": SPOKEN[1]}
    found = loaded.features(row)
    for stream, column in columns.items():
        stored = column.read("c1")
        away = np.abs(found[stream].feature.values - stored.values).max()
        assert away <= (column.spec.atol or 0.0)
        np.testing.assert_array_equal(found[stream].feature.times, stored.times)
    (said,) = loaded.predict([row])
    assert said["state"] == "scored"


def test_a_predictor_without_its_encoders_says_what_is_wanted(made, predictor):
    _, columns = made
    first = columns[next(iter(columns))].spec
    with pytest.raises(MissingWeightsError, match=rf"{first.fingerprint} .*{first.weights}"):
        Predictor.load(predictor)
    # Its own model needs none of them.
    assert not load_model(predictor).training


def test_a_registered_model_asks_for_transformers_only_if_it_has_an_encoder(made, predictor):
    recipe = named("late_fusion", Task(kind="regression", label="score"), ["plain"])
    specs = specs_of(predictor)
    weightless = {name: specs[name] for name in ("plain", "vectors")}
    for chosen, asked in ((specs, True), (weightless, False)):
        names = [each.partition("==")[0] for each in requirements_of(recipe, chosen)]
        assert ("transformers" in names) == asked
        assert {"torch", "mlflow"} <= set(names)
        assert not {"ray", "deepspeed"} & set(names)


def test_places_of_weights_are_told_beside_those_that_are_set(monkeypatch):
    assert listing([]) == {}
    assert listing(["/a", "/b"]) == {FOLDERS: os.pathsep.join(["/a", "/b"])}
    monkeypatch.setenv(FOLDERS, "/set")
    assert listing(["/a"]) == {FOLDERS: os.pathsep.join(["/a", "/set"])}


def test_a_column_is_read_without_its_weights(home, made):
    experiment, columns = made
    spec = columns["audio"].spec
    assert open_column(experiment.root, spec.fingerprint).spec == spec
    assert spec.source == ""
    assert build("speech-encoder", model=str(home / "weights" / "speech")).spec == spec
