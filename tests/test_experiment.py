"""The experiment file: checked at the door, each mistake told in one line."""

import csv
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from featurizers import catalog
from pipelines.experiment import InputError, check_model, load, save
from pipelines.run import recipes_of
from pipelines.sections import Ranks
from pipelines.sources import ask, read_rows
from tests import checkpoints
from tracking.rules import Rule
from training.models import build
from training.recipe import ModelSettings, Task

# The example of the documentation, word for word.
WHOLE = """\
dataset: runs/mydata
source: {table: clips.csv, label: sentiment, media_root: [., "s3://bucket/raw"]}
features:
  text:  {featurizer: hashed-words}
  audio: {featurizer: logmel, hop_ms: 10}
  video: {featurizer: face-motion, fps: 5}
model: {recipe: mmlatch, hidden: 64}
train: {epochs: 30, global_batch: 32, learning_rate: 5.0e-4, seeds: 3, zero: 1, precision: fp32}
workers: {featurize: 2, train: 2}
register: {name: mydata-sentiment}
promote: {rules: [{metric: mae, better: lower, floor: 1.2}, RULE]}
""".replace("RULE", "{metric: acc2_non0, not_worse_by: 0.01}")
TASK = Task(kind="regression", label="sentiment")


def given(tmp_path, text=WHOLE, overrides=()):
    file = tmp_path / "experiment.yaml"
    file.write_text(text, encoding="utf-8")
    return load(file, overrides)


def changed(tmp_path, key, value, overrides=()):
    """The whole example with one section replaced, or taken out for None."""
    plain = yaml.safe_load(WHOLE)
    plain[key] = value
    if value is None:
        del plain[key]
    return given(tmp_path, yaml.safe_dump(plain), overrides)


def told(call, *arguments):
    """The message of the InputError that a call raises: one line."""
    with pytest.raises(InputError) as refused:
        call(*arguments)
    message = str(refused.value)
    assert message
    assert "\n" not in message
    return message


def test_the_whole_example_works_as_it_stands(tmp_path):
    experiment = given(tmp_path)
    assert experiment.root == tmp_path / "runs/mydata"
    assert experiment.table == tmp_path / "clips.csv"
    assert experiment.source.media_root == (".", "s3://bucket/raw")
    assert {n: f.spec.name for n, f in experiment.featurizers().items()} == {
        "text": "hashed-words",
        "audio": "logmel",
        "video": "face-motion",
    }
    assert experiment.featurizers()["audio"].spec.rate_hz == 100
    recipe = experiment.recipe(TASK, seed=2)
    assert (recipe.name, recipe.seed, recipe.epochs, recipe.global_batch) == ("mmlatch", 2, 30, 32)
    assert (recipe.learning_rate, recipe.zero, recipe.precision) == (5e-4, 1, "fp32")
    assert recipe.model.streams == ("text", "audio", "video")
    assert recipe.model.settings["hidden"] == 64
    assert experiment.train.seeds == 3
    assert experiment.workers.featurize == 2
    assert experiment.workers.train == Ranks(least=2, most=2)
    assert experiment.register_.name == "mydata-sentiment"
    assert experiment.rules() == [
        Rule(metric="mae", better="lower", floor=1.2),
        Rule(metric="acc2_non0", not_worse_by=0.01),
    ]


def test_a_media_root_on_the_other_side_of_the_world_is_never_opened(tmp_path):
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["id", "media", "sentiment"], ["a", "a.mp4", 1], ["b", "s3://bucket/raw/b.mp4", -1]]
        )
    experiment = given(tmp_path)
    asked, task = ask(experiment, read_rows(experiment.table))
    assert [each.raw.media for each in asked] == [str(tmp_path / "a.mp4"), "s3://bucket/raw/b.mp4"]
    assert task == TASK


def test_classes_get_the_loss_of_classes(tmp_path):
    task = Task(kind="classes", label="sentiment", classes=("a", "b"))
    assert given(tmp_path).recipe(task).loss == "cross_entropy"
    assert given(tmp_path).recipe(TASK).loss == "l1"
    assert given(tmp_path, WHOLE, ["train.loss=cross_entropy"]).recipe(task).loss == "cross_entropy"


def test_weights_to_start_from_are_named_by_file_and_must_fit_the_task(tmp_path):
    text = """\
dataset: runs/faces
source: {table: clips.csv, label: mood}
features:
  video: {featurizer: frames, size: 8}
  audio: {featurizer: mfcc, deltas: 0}
model: {recipe: msaf_ravdess, video_width: 4, cardinality: 2}
train: {global_batch: 4, start: {video: face.safetensors}}
"""
    assert "there is no file" in told(given, tmp_path, text)
    face = tmp_path / "face.safetensors"
    settings = {"width": 4, "cardinality": 2}
    network = ModelSettings(kind="resnext3d", streams=("video",), settings=settings)
    save_file(build(network, {"video": 192}, 2).state_dict(), face)
    experiment = given(tmp_path, text)
    two, three = (
        Task(kind="classes", label="mood", classes=tuple("abc"[:count])) for count in (2, 3)
    )
    (recipe,) = recipes_of(experiment, two)
    assert recipe.start["video"].startswith(f"{face}#")
    assert recipe.raw == ("video",)
    assert "train: start.video: fc.weight is [2, 128]" in told(recipes_of, experiment, three)


def test_a_model_for_classes_waits_for_the_labels_where_the_file_says_no_task(tmp_path):
    chosen = {"recipe": "decision_product"}
    experiment = changed(tmp_path, "model", chosen)
    check_model(experiment, Task(kind="classes", label="sentiment", classes=("a", "b")))
    with pytest.raises(InputError, match=r"model: 'decision_product' .*'decision_average'"):
        recipes_of(experiment, TASK)
    with pytest.raises(InputError, match="a regression has none"):
        given(tmp_path, WHOLE, ["model.recipe=decision_product", "source.task=regression"])


def test_what_is_left_out_has_a_default(tmp_path):
    experiment = given(
        tmp_path,
        "dataset: d\nsource: {table: t.csv, label: y}\nfeatures: {a: {featurizer: logmel}}\n",
    )
    assert experiment.max_dropped == 0.05
    assert experiment.source.media_root == (".",)
    assert (experiment.shards.clips, experiment.shards.minutes) == (128, 20)
    assert experiment.recipe(TASK).name == "unimodal"
    assert changed(tmp_path, "model", None).recipe(TASK).name == "mmlatch"
    assert experiment.register_ is None
    assert experiment.rules() == []


def test_resolved_settings_are_saved_whole_and_load_again(tmp_path):
    experiment = given(tmp_path)
    save(experiment)
    path = experiment.root / "experiment.resolved.yaml"
    assert load(path) == experiment.model_copy(update={"folder": experiment.root})
    assert "max_dropped: 0.05" in path.read_text()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("dataste", "x", "unknown key 'dataste' (did you mean 'dataset'?)"),
        ("zzz", 1, "unknown key 'zzz'; there are "),
        ("source", {"table": "t", "label": "y", "lable": "z"}, "'source.lable' (did you mean "),
        ("workers", {"featurise": 3}, "'workers.featurise' (did you mean 'featurize'?)"),
        ("register", {"nam": "x"}, "register.nam"),
        ("promote", {"rule": []}, "'promote.rule' (did you mean 'rules'?)"),
        ("shards", {"clip": 3}, "'shards.clip' (did you mean 'clips'?)"),
        ("cache", {"gigabyte": 3}, "'cache.gigabyte' (did you mean 'gigabytes'?)"),
        ("regster", {"name": "x"}, "(did you mean 'register'?)"),
        ("folder", "/elsewhere", "unknown key 'folder'"),
        ("source", None, "source: Field required"),
        ("features", {}, "features: "),
        ("features", "logmel", "features: there is no set of features 'logmel'; there are light,"),
        ("features", {"set": "strng"}, "'strng' (did you mean 'strong'?)"),
        ("features", {"set": "light", "text": {"dimz": 8}}, "(did you mean 'dims'?)"),
        ("features", ["light"], "features: Input should be a valid dictionary"),
        ("feature_set", "light", "unknown key 'feature_set'; write features: {set: NAME}"),
        ("features", {"audio": "logmel"}, "features.audio: "),
        ("features", {"audio": {"hop_ms": 10}}, "features.audio.featurizer: Field required"),
        ("features", {"audio": {"featurizer": "logmle"}}, "did you mean 'logmel'?"),
        ("features", {"audio": {"featurizer": "logmel", "hopms": 5}}, "did you mean 'hop_ms'?"),
        ("features", {"audio": {"featurizer": "logmel", "hop_ms": "x"}}, "hop_ms is 'x'; wanted"),
        ("features", {"audio": {"featurizer": "logmel", "hop_ms": [1]}}, "hop_ms is [1]; wanted"),
        ("features", {"audio": {"featurizer": "logmel", "hop_ms": 0}}, "wanted 1 to 1000"),
        ("model", {"recipe": "mmlach"}, "the nearest is 'mmlatch'"),
        ("model", {"hidden": 3}, "model.recipe: Field required"),
        ("train", {"epoch": 3}, "unknown key 'train.epoch' (did you mean 'epochs'?)"),
        ("train", {"epochs": "many"}, "epochs is 'many'; wanted a whole number"),
        ("train", {"epochs": True}, "epochs is True; wanted a whole number"),
        ("train", {"precision": "fp8"}, "precision is 'fp8'"),
        ("train", {"seeds": 0}, "train.seeds: "),
        ("train", {"pooling": {"how": "sum"}}, "train: pooling.how is 'sum'"),
        ("train", {"pooling": {"kind": "own"}}, "wants all streams on one time base"),
        ("train", {"seeds": "x"}, "train.seeds: "),
        ("train", {"seed": 3}, "unknown key 'train.seed' (did you mean 'seeds'?)"),
        ("train", {"name": "x"}, "unknown key 'train.name'"),
        ("train", {"task": "x"}, "unknown key 'train.task'"),
        ("train", {"streams": "x"}, "unknown key 'train.streams'"),
        ("train", {"settings": {}}, "unknown key 'train.settings'"),
        ("train", {"loss": "huber"}, "train: loss is 'huber'"),
        ("model", {"recipe": "mmlatch", "hiden": 3}, "the nearest known one is 'hidden'"),
        ("model", {"recipe": "mmlatch", "hidden": "big"}, "hidden is 'big'"),
        ("model", {"recipe": "unimodal"}, "'unimodal' reads exactly one stream"),
        ("train", {"modality_dropout": 1.5}, "modality_dropout is 1.5"),
        ("train", [1], "train: "),
        ("workers", {"train": 0}, "workers.train: "),
        ("workers", {"featurize": -1}, "workers.featurize: "),
        ("register", {"name": "has space"}, "register.name: "),
        ("promote", {"rules": [{"metric": "mae", "flor": 1}]}, "promote.rules[0]: "),
        ("promote", {"rules": [{"metric": "mae"}]}, "asks for nothing"),
        ("promote", {"rules": [{"floor": 1}]}, "does not name its metric"),
        ("promote", {"rules": [{"metric": "mae", "floor": "low"}]}, "not 'low'"),
        ("promote", {"rules": [{"metric": "mae", "floor": 1, "better": "up"}]}, "not 'up'"),
        ("promote", {"rules": ["mae"]}, "promote.rules.0: "),
        ("max_dropped", 7, "max_dropped: Input should be less than or equal to 1, found 7"),
        ("max_dropped", "some", "max_dropped: "),
        ("dataset", 7, "dataset: "),
        ("dataset", "nosuch://bucket/d", "dataset: nosuch://bucket/d: Protocol not known: nosuch"),
        ("features", {"a b": {"featurizer": "logmel"}}, "found a stream 'a b', wanted a name of"),
        ("features", {"../a": {"featurizer": "logmel"}}, "found a stream '../a', wanted a name of"),
        ("features", {"a\n": {"featurizer": "logmel"}}, "found a stream 'a\\n', wanted a name of"),
        ("train", {"micro_batch": 5}, "by 1 ranks x micro batch 5; the next smaller one that fits"),
        ("train", {"zero": 0, "offload": "optimizer"}, "stage 1, 2 or 3"),
        ("train", {"zero": 2, "offload": "all"}, "the weights too ('all') at stage 3"),
        (3, "x", "3"),
    ],
)
def test_a_wrong_setting_is_told_with_its_place_and_the_nearest_known(tmp_path, key, value, said):
    message = told(changed, tmp_path, key, value)
    assert said in message


def test_every_featurizer_of_the_catalog_can_be_named(tmp_path):
    checkpoints.speech(tmp_path / "weights" / "speech", "wav2vec2")
    checkpoints.text(tmp_path / "weights" / "text", "bert")
    checkpoints.image(tmp_path / "weights" / "image", "vit")
    checkpoints.video(tmp_path / "weights" / "video")
    (tmp_path / "words.txt").write_text("so 1 2 3\n")
    (tmp_path / "face.task").write_bytes(b"stands for a model")
    needed = {
        "face-track": {"detector": "cascade"},
        "landmarks": {"model": "face.task"},
        "track": {"stream": "face", "columns": "AU01_r"},
        "skeleton": {"stream": "body"},
        "numbers": {"stream": "pose", "dims": 8},
        "speech-encoder": {"model": "weights/speech"},
        "text-encoder": {"model": "weights/text"},
        "image-encoder": {"model": "weights/image"},
        "video-encoder": {"model": "weights/video", "hop": 4},
        "word-vectors": {"file": "words.txt"},
        "word-pieces": {"model": "weights/text"},
    }
    for name in catalog.NAMES:
        some = {"featurizer": name, **needed.get(name, {})}
        features = {"some": some, "other": {"featurizer": "logmel"}}
        made = changed(tmp_path, "features", features)
        assert made.featurizers()["some"].spec.name == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dataset: [unclosed\n", "not YAML"),
        ("dataset: a: b\n", "not YAML"),
        ("a: &x [*x, !!python/object:os.system {}]\n", "not YAML"),
        ("\tdataset: x\n", "not YAML"),
        ("", "wanted keys such as dataset"),
        ("- dataset\n", "wanted keys such as dataset"),
        ("just words\n", "wanted keys such as dataset"),
        ("{}\n", "dataset: Field required"),
    ],
)
def test_a_file_that_is_no_experiment_is_told(tmp_path, text, said):
    message = told(given, tmp_path, text)
    assert said in message
    assert "experiment.yaml" in message


def test_a_file_that_is_no_text_is_told(tmp_path):
    (tmp_path / "experiment.yaml").write_bytes(b"\xff\xfe\x00binary")
    assert "not YAML" in told(load, tmp_path / "experiment.yaml")


def test_a_missing_file_is_told_with_the_way_to_make_one(tmp_path):
    message = told(load, tmp_path / "experiment.yaml")
    assert "No such file" in message
    assert "fuseline init" in message
    assert "Is a directory" in told(load, tmp_path)


def test_settings_on_the_command_line_win(tmp_path):
    overrides = [
        "train.epochs=3",
        "dataset=elsewhere",
        "features.audio.hop_ms=20",
        "max_dropped=0.5",
        "shards.clips=7",
        "source.media_root=[a, b]",
        "register.name=other",
    ]
    experiment = given(tmp_path, WHOLE, overrides)
    assert experiment.recipe(TASK).epochs == 3
    assert experiment.root == tmp_path / "elsewhere"
    assert experiment.featurizers()["audio"].spec.parameters["hop_ms"] == 20
    assert experiment.max_dropped == 0.5
    assert experiment.shards.clips == 7
    assert experiment.source.media_root == ("a", "b")
    assert experiment.register_.name == "other"
    assert given(tmp_path, WHOLE, ["train.epochs=3", "train.epochs=4"]).recipe(TASK).epochs == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs", "wanted key=value"),
        ("=3", "wanted key=value"),
        ("train.epoch=3", "'train.epoch' (did you mean 'epochs'?)"),
        ("trian.epochs=3", "did you mean 'train'?"),
        ("dataset.name=x", "'dataset' has no keys of its own"),
        ("train.epochs=[1", "is no YAML value"),
        ("train.epochs=x", "epochs is 'x'"),
        ("train.=3", "unknown key 'train.'"),
        ("model.hiden=3", "the nearest known one is 'hidden'"),
        (".train=3", "unknown key"),
        ("folder=/elsewhere", "unknown key 'folder'"),
    ],
)
def test_a_wrong_setting_on_the_command_line_is_told(tmp_path, override, said):
    assert said in told(given, tmp_path, WHOLE, [override])


def test_relative_paths_start_from_the_file_and_not_from_the_current_folder(tmp_path, monkeypatch):
    given(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    experiment = load(Path(tmp_path.name) / "experiment.yaml")
    assert experiment.root == tmp_path.resolve() / "runs/mydata"
    assert experiment.cache_folder == experiment.root / "cache"
    cached = changed(tmp_path, "cache", {"folder": "media-cache"})
    assert cached.cache_folder == tmp_path / "media-cache"
