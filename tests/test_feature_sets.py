"""Features by one name: what a set stands for, what it asks for; nothing weaker is taken."""

import pytest
import yaml

from featurizers import catalog
from pipelines.doctor import doctor
from pipelines.experiment import RESOLVED, InputError, outline, parse, save
from pipelines.feature_sets import DEFAULT, FETCHED, SETS, STRONG, expand, needs, sentences
from pipelines.fetch import KNOWN
from tests import checkpoints
from tests.test_command_line import TABLE, settings

LIGHT = {
    "text": {"featurizer": "hashed-words"},
    "audio": {"featurizer": "logmel", "hop_ms": 10},
    "video": {"featurizer": "face-motion", "fps": 5},
}


def parsed(folder, features):
    plain = settings(features=features)
    if features is None:
        del plain["features"]
    return parse(plain, folder)


def sections(experiment):
    return {stream: each.model_dump() for stream, each in experiment.features.items()}


def refused(folder, features):
    with pytest.raises(InputError) as told:
        parsed(folder, features)
    return str(told.value)


def test_light_is_the_default_and_needs_nothing(tmp_path):
    for features in (None, "light", {"set": "light"}):
        made = parsed(tmp_path, features)
        assert sections(made) == LIGHT
        assert made.feature_set == DEFAULT
    assert needs("light") == ""
    assert [each.spec.weights for each in made.featurizers().values()] == ["", "", ""]


def test_sections_that_are_written_out_are_as_they_are(tmp_path):
    made = parsed(tmp_path, {"audio": {"featurizer": "mfcc"}})
    assert sections(made) == {"audio": {"featurizer": "mfcc"}}
    assert made.feature_set == ""
    stream_called_set = {"set": {"featurizer": "mfcc"}}
    assert expand(stream_called_set, tmp_path) == stream_called_set


def test_settings_are_laid_over_a_set_and_streams_replaced_left_out_and_added(tmp_path):
    made = parsed(
        tmp_path,
        {
            "set": "light",
            "audio": {"hop_ms": 20},
            "video": {"featurizer": "appearance"},
            "text": None,
            "hand": {"featurizer": "numbers", "stream": "hand", "dims": 3},
        },
    )
    assert sections(made) == {
        "audio": {"featurizer": "logmel", "hop_ms": 20},
        "video": {"featurizer": "appearance"},
        "hand": {"featurizer": "numbers", "stream": "hand", "dims": 3},
    }


def test_classic_says_at_once_all_that_is_missing_and_takes_nothing_weaker(tmp_path):
    told = refused(tmp_path, "classic")
    assert "the set 'classic' wants text.file, a file of word vectors" in told
    for stream in ("video", "face"):
        assert f"{stream}.model, YuNet's ONNX file, which `fuseline fetch yunet` gets" in told
    assert "landmarks.model, MediaPipe's face_landmarker.task, which `fuseline fetch fac" in told
    assert "audio" not in told
    assert "features: {set: classic, STREAM: {SETTING: ...}}, or leave a stream out with" in told
    (tmp_path / "words.txt").write_text("so 1 2 3\n")
    (tmp_path / "face.task").write_bytes(b"a model")
    given = {
        "set": "classic",
        "text": {"file": "words.txt"},
        "video": {"detector": "cascade"},
        "face": {"detector": "cascade"},
        "landmarks": {"model": "face.task"},
    }
    made = parsed(tmp_path, given)
    names = {stream: each.spec.name for stream, each in made.featurizers().items()}
    assert names == {
        "text": "word-vectors",
        "audio": "prosody",
        "video": "appearance",
        "face": "face-track",
        "landmarks": "landmarks",
    }
    assert made.featurizers()["text"].spec.width == 3
    gone = refused(tmp_path, {**given, "text": {"file": "none.txt"}})
    assert "text: word-vectors: file is 'none.txt': there is no such file; give the path" in gone


def test_files_that_fetch_put_beside_the_experiment_are_found(tmp_path, monkeypatch):
    beside, called_in = tmp_path / "here", tmp_path / "there"
    for folder, name in ((beside, "yunet"), (called_in, "face-landmarker")):
        (folder / FETCHED).mkdir(parents=True)
        (folder / FETCHED / KNOWN[name].file).write_bytes(b"a model")
    monkeypatch.chdir(called_in)
    made = outline(settings(features={"set": "classic", "video": {"model": ""}}), beside)
    found = {stream: each.get("model") for stream, each in sections(made).items()}
    assert found == {
        "text": None,
        "audio": None,
        "video": f"models/{KNOWN['yunet'].file}",
        "face": f"models/{KNOWN['yunet'].file}",
        "landmarks": str(called_in / "models" / KNOWN["face-landmarker"].file),
    }
    told = refused(beside, {"set": "classic", "video": {"model": "own.onnx"}, "landmarks": None})
    assert "the set 'classic' wants text.file, a file" in told
    assert "model" not in told
    own = outline(settings(features={"set": "classic", "video": {"model": "own.onnx"}}), beside)
    assert sections(own)["video"]["model"] == "own.onnx"
    drawn = outline(settings(features={"set": "classic", "face": {"detector": "cascade"}}), beside)
    assert "model" not in sections(drawn)["face"]


def test_init_writes_a_set_with_what_it_still_wants(called, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / KNOWN["yunet"].file).write_bytes(b"a model")
    (tmp_path / "clips.csv").write_text("id,media,transcript,mood\na,a.mp4,so,1.5\nb,b.mp4,no,2\n")
    asked = ("init", tmp_path / "clips.csv", "--label", "mood", "--to", tmp_path / "made.yaml")
    code, _, told = called(*asked, "--features", "clasic")
    assert code == 2
    assert "there is no set of features 'clasic' (did you mean 'classic'?)" in told
    code, out, _ = called(*asked, "--features", "classic")
    assert code == 0
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("missing: ")] == [
        f"missing: features.{stream}.{member.wants}, {member.what}"
        for stream, member in SETS["classic"].items()
        if stream in {"text", "landmarks"}
    ]
    assert "next: fill in what is missing, then fuseline run" in lines[-1]
    plain = yaml.safe_load((tmp_path / "made.yaml").read_text())
    assert plain["features"] == {
        "set": "classic",
        "text": {"file": ""},
        "landmarks": {"model": ""},
    }
    with pytest.raises(InputError) as wanted:
        parse(plain, tmp_path)
    assert "text.file" in str(wanted.value)
    assert "landmarks.model" in str(wanted.value)
    assert "YuNet" not in str(wanted.value)


def test_init_leaves_out_words_where_nothing_is_said(called, tmp_path):
    (tmp_path / "clips.csv").write_text("id,media,mood\na,a.mp4,1.5\nb,b.mp4,2\n")
    for name in SETS:
        to = tmp_path / f"{name}.yaml"
        called("init", tmp_path / "clips.csv", "--label", "mood", "--to", to, "--features", name)
        made = outline(yaml.safe_load(to.read_text()), tmp_path)
        assert set(made.features) == set(SETS[name]) - {"text"}


def test_strong_asks_for_the_commit_of_each_model_and_says_where_it_is_found(tmp_path):
    told = refused(tmp_path, STRONG)
    for stream, member in SETS[STRONG].items():
        model = member.settings["model"]
        assert f"{stream}.revision, the commit of {model}" in told
        assert f"https://huggingface.co/{model}/commits/main" in told
    one = refused(tmp_path, {"set": STRONG, "text": {"revision": "0" * 40}})
    assert "text.revision" not in one
    assert "audio.revision" in one
    branch = {"revision": "main"}
    told = refused(tmp_path, {"set": STRONG, "text": branch, "audio": branch, "video": branch})
    assert "branches and tags may move" in told


def test_strong_takes_folders_in_place_of_names_of_the_hub(tmp_path):
    checkpoints.text(tmp_path / "text", "roberta")
    checkpoints.speech(tmp_path / "speech", "hubert")
    checkpoints.image(tmp_path / "image", "siglip")
    folders = {"text": "text", "audio": "speech", "video": "image"}
    made = parsed(
        tmp_path, {"set": STRONG, **{each: {"model": at} for each, at in folders.items()}}
    )
    specs = {stream: each.spec for stream, each in made.featurizers().items()}
    assert {stream: spec.name for stream, spec in specs.items()} == {
        stream: member.featurizer for stream, member in SETS[STRONG].items()
    }
    assert specs["text"].parameters["layers"] == "mean"
    assert all(spec.weights for spec in specs.values())


def test_what_strong_needs_names_models_sizes_and_licences():
    told = needs(STRONG)
    for member in SETS[STRONG].values():
        assert member.settings["model"] in told
    assert told.count("MIT") + told.count("Apache-2.0") == len(SETS[STRONG])
    assert sentences(STRONG, {"text": "text-encoder"}) == [
        "features: set strong (text: text-encoder)"
    ]


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_of_featurizers_and_settings_that_there_are(name):
    for member in SETS[name].values():
        known = catalog.kind(member.featurizer).__init__.__kwdefaults__
        assert {*member.settings, *filter(None, [member.wants]), *member.instead} <= set(known)
        assert bool(member.wants) == bool(member.what) == bool(member.weights)


def test_the_doctor_looks_at_each_part_of_a_set_that_is_not_whole(tmp_path):
    experiment = outline(settings(features="classic"), tmp_path)
    found = {each.what: each for each in doctor(experiment, tmp_path, quick=True)}
    assert [found[stream].state for stream in SETS["classic"]] == [
        "failed",
        "ok",
        "failed",
        "failed",
        "failed",
    ]
    assert "it wants `model`; give the path of MediaPipe's" in found["landmarks"].found


def test_the_resolved_settings_hold_the_sections_and_are_read_again(tmp_path):
    made = parsed(tmp_path, "light")
    save(made)
    plain = yaml.safe_load((tmp_path / "data" / RESOLVED).read_text())
    assert plain["features"] == LIGHT
    assert sections(parse(plain, tmp_path)) == LIGHT


def test_run_says_which_features_are_used_and_what_strong_would_need(called, tmp_path):
    file = tmp_path / "experiment.yaml"
    (tmp_path / "clips.csv").write_text(TABLE)  # of media that are not there
    file.write_text(yaml.safe_dump(settings(features="light")))
    _, out, _ = called("run", file)
    told = " ".join(out.split())
    light = "features: set light (text: hashed-words, audio: logmel, video: face-motion)"
    assert light in told
    assert f"features: {{set: strong}} would need {needs(STRONG)}" in told
    _, out, _ = called("run", file, "--json")
    assert "features:" not in out
