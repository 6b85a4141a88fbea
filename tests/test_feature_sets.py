"""Features by one name: what a set stands for, what it asks for; nothing weaker is taken."""

import pytest
import yaml

from featurizers import catalog
from pipelines.doctor import doctor
from pipelines.experiment import RESOLVED, InputError, outline, parse, save
from pipelines.feature_sets import DEFAULT, SETS, STRONG, expand, needs, sentences
from tests import checkpoints, test_command_line
from tests.test_command_line import TABLE, settings

called = test_command_line.called
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
    assert expand(stream_called_set) == stream_called_set


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
    assert "video.model, YuNet's ONNX file, which `fuseline fetch yunet` gets" in told
    assert "audio" not in told
    assert "features: {set: classic, STREAM: {SETTING: ...}}" in told
    (tmp_path / "words.txt").write_text("so 1 2 3\n")
    given = {"set": "classic", "text": {"file": "words.txt"}, "video": {"detector": "cascade"}}
    made = parsed(tmp_path, given)
    names = {stream: each.spec.name for stream, each in made.featurizers().items()}
    assert names == {"text": "word-vectors", "audio": "prosody", "video": "appearance"}
    assert made.featurizers()["text"].spec.width == 3
    assert refused(tmp_path, {**given, "text": {"file": "none.txt"}}).endswith("no such file")


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
    assert [found[stream].state for stream in ("text", "audio", "video")] == [
        "failed",
        "ok",
        "failed",
    ]


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
