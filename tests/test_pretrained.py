"""Checkpoints: found where they are named or by their digest, and refused for what they hold."""

import functools
import json
import os
import pickle
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featurizers import pretrained
from featurizers.catalog import build, from_spec
from featurizers.pretrained import FOLDERS, SOUND, MissingWeightsError, find
from featurizers.spec import FeatureSpec
from tests import checkpoints

COMMIT = "0123456789abcdef0123456789abcdef01234567"
KINDS = ("wav2vec2", "hubert")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "wave"
    checkpoints.speech(folder, "wav2vec2")
    return folder


@pytest.fixture
def own(made, tmp_path):
    """A copy that a test may change."""
    return checkpoints.copied(made, tmp_path / "own")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    monkeypatch.delenv(FOLDERS, raising=False)


def found(folder, **more):
    return find(str(folder), files=SOUND, kinds=KINDS, **more)


def hubs_folder(cache, name, revision):
    """Where the hub's cache keeps a revision."""
    return cache / f"models--{name.replace('/', '--')}" / "snapshots" / revision


def sent(spec):
    """A spec as a worker gets it."""
    return pickle.loads(pickle.dumps(spec))  # noqa: S301 - our own bytes


# Identity.


def test_the_place_of_a_checkpoint_is_no_part_of_its_identity(made, own):
    there, here = (build("speech-encoder", model=str(each)).spec for each in (made, own))
    assert here.source != there.source
    assert here == there
    assert here.fingerprint == there.fingerprint
    assert here.to_json() == there.to_json()


def test_no_path_is_written_with_a_spec(made):
    spec = build("speech-encoder", model=str(made)).spec
    assert str(made) not in json.dumps(spec.to_json())
    assert sent(spec).source == spec.source == str(made)


def test_one_weight_changes_the_digest(made, own):
    weights = load_file(own / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    assert found(own).digest != found(made).digest


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_file_that_decides_numbers_changes_the_digest(made, own, file):
    plain = json.loads((own / file).read_text())
    checkpoints.write(own, file, {**plain, "layer_norm_eps": 0.1, "do_normalize": False})
    assert found(own).digest != found(made).digest


def test_a_file_that_decides_no_number_changes_nothing(made, own):
    before = build("speech-encoder", model=str(own)).spec
    (own / "vocab.json").write_text("{}")
    (own / "README.md").write_text("---\nlicense: mit\n---\n# Wave\n")
    after = build("speech-encoder", model=str(own)).spec
    assert after.fingerprint == before.fingerprint
    assert before.licence.startswith("unknown")
    assert after.licence == "mit"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\nText", "apache-2.0"),
        ("---\r\nlicense: cc-by-nc-4.0\r\n---\r\n", "cc-by-nc-4.0"),
        ("---\nlicense: [mit, gpl]\n---\n", "mit, gpl"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "other: llama3"),
        ("---\ntags: [a]\n---\n", "unknown"),
        ("---\nlicense: [\n---\n", "unknown"),
        ("license: mit", "unknown"),
    ],
)
def test_the_licence_is_what_the_model_card_says(own, card, licence):
    (own / "README.md").write_text(card, newline="")
    assert found(own).licence.startswith(licence)


def test_weights_in_several_files_are_found_and_counted(made, own):
    weights = load_file(own / "model.safetensors")
    (own / "model.safetensors").unlink()
    parts = [dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {}
    for name, part in zip(names, parts, strict=True):
        save_file(part, own / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    checkpoints.write(own, "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    split, whole = (build("speech-encoder", model=str(each)) for each in (own, made))
    assert split.spec.weights != whole.spec.weights
    sound = [checkpoints.hum(1.0).astype(np.float32) / 32768]
    np.testing.assert_array_equal(split.encoder.encode(sound), whole.encoder.encode(sound))
    (own / names[1]).unlink()
    with pytest.raises(MissingWeightsError, match=f"has no {names[1]}"):
        found(own)


def test_weights_are_digested_once(made, monkeypatch):
    first = found(made).digest
    monkeypatch.setattr(pretrained.hashlib, "file_digest", None)  # which would fail now
    assert found(made).digest == first


# Refusals.


def test_pickled_weights_are_refused_by_name(own):
    (own / "model.safetensors").unlink()
    (own / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(
        MissingWeightsError, match=r"no model.safetensors \(found pytorch_model.bin"
    ):
        found(own)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_comes_with_a_checkpoint_is_refused(own, file):
    plain = json.loads((own / file).read_text())
    checkpoints.write(own, file, {**plain, "auto_map": {"AutoModel": "modeling.Evil"}})
    (own / "modeling.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ValueError, match=rf"{file} asks for code.*auto_map.*never run"):
        build("speech-encoder", model=str(own))


def test_a_model_of_another_kind_is_refused_with_the_list(own):
    checkpoints.write(own, "config.json", {"model_type": "gpt2"})
    with pytest.raises(ValueError, match="'gpt2'; wanted is one of wav2vec2, hubert"):
        found(own)


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:12], COMMIT.upper()])
def test_a_revision_that_may_move_is_refused(revision):
    with pytest.raises(ValueError, match=f"revision is '{revision}'.*pin the commit"):
        find("facebook/wav2vec2-base", revision, kinds=KINDS)


def test_a_name_of_the_hub_without_a_revision_is_told_to_pin_one():
    with pytest.raises(ValueError, match="pin its `revision`"):
        found("facebook/wav2vec2-base")


def test_a_folder_has_no_revision(made):
    with pytest.raises(ValueError, match="with a `revision` wanted is a name of the hub"):
        found(made, revision=COMMIT)


@pytest.mark.parametrize(
    ("model", "said"), [("", "wanted `model`"), ("/no/such/folder", "there is no such folder")]
)
def test_a_model_that_is_nowhere_is_told(model, said):
    with pytest.raises(ValueError, match=said):
        found(model)


def test_a_checkpoint_that_lacks_weights_is_not_filled_up_with_random_ones(own):
    weights = load_file(own / "model.safetensors")
    name = next(each for each in sorted(weights) if "feed_forward" in each)
    del weights[name]
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    encoder = build("speech-encoder", model=str(own)).encoder
    with pytest.raises(ValueError, match=r"lacks 1 of the weights.*would be random"):
        encoder.encode([np.zeros(16_000, np.float32)])


def test_weights_of_another_shape_are_refused(own):
    plain = json.loads((own / "config.json").read_text())
    checkpoints.write(own, "config.json", {**plain, "intermediate_size": 56})
    encoder = build("speech-encoder", model=str(own)).encoder
    with pytest.raises(ValueError, match=r"of the weights of Wav2Vec2Model.*would be random"):
        encoder.encode([np.zeros(16_000, np.float32)])


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("dtype", "float64", "dtype is 'float64'; wanted float32, float16, bfloat16"),
        ("layers", 4, "layers is '4'; wanted last, mean, a number from 0 to 3"),
        ("layers", "3-2", "layers is '3-2'"),
        ("layers", "first", "layers is 'first'"),
        ("window_s", 0.5, "window_s is 0.5; wanted 1 to 600"),
        ("context_s", 6.0, "context_s is 6.0; wanted 0 to 5"),
    ],
)
def test_a_wrong_setting_is_refused(made, setting, value, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        build("speech-encoder", model=str(made), **{setting: value})


OLD_NAMES = {
    "wave": [
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ],
    "text": [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")],
}


@pytest.mark.parametrize("kind", OLD_NAMES)
def test_weights_with_the_names_of_older_checkpoints_are_read(made, tmp_path, kind):
    if kind == "wave":
        new, name, item = made, "speech-encoder", np.sin(np.arange(9000, dtype=np.float32))
    else:
        checkpoints.text(tmp_path / "new", "bert")
        new, name, item = tmp_path / "new", "text-encoder", np.arange(9)
    old = checkpoints.copied(new, tmp_path / "old")
    weights = load_file(new / "model.safetensors")
    renamed = {
        functools.reduce(lambda name, pair: name.replace(*pair), OLD_NAMES[kind], weight): values
        for weight, values in weights.items()
    }
    assert set(renamed) != set(weights)
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    (here,), (there,) = (build(name, model=str(each)).encoder.encode([item]) for each in (new, old))
    np.testing.assert_array_equal(here, there)


# By digest.


def test_a_spec_finds_its_weights_where_they_were(made):
    spec = build("speech-encoder", model=str(made)).spec
    assert from_spec(sent(spec)).spec == spec


@pytest.mark.parametrize("depth", ["itself", "child"])
def test_weights_that_moved_are_found_by_their_digest(own, monkeypatch, tmp_path, depth):
    spec = build("speech-encoder", model=str(own)).spec
    moved = own.rename(tmp_path / "store" if depth == "itself" else tmp_path / "moved")
    if depth == "child":
        (tmp_path / "store" / "other").mkdir(parents=True)
        moved = moved.rename(tmp_path / "store" / "some")
    monkeypatch.setenv(FOLDERS, os.pathsep.join(["/no/such", str(tmp_path / "store")]))
    for each in (spec, FeatureSpec.from_json(spec.to_json())):
        again = from_spec(each).spec
        assert again.digest == spec.digest
        assert again.source == str(moved)


def test_weights_that_are_gone_are_asked_for_by_digest_and_with_the_way(own, monkeypatch, tmp_path):
    spec = build("speech-encoder", model=str(own)).spec
    own.rename(tmp_path / "away")
    with pytest.raises(MissingWeightsError, match=rf"{own} is not there.*not set.*{spec.weights}"):
        from_spec(spec)
    monkeypatch.setenv(FOLDERS, str(tmp_path / "none"))
    written = FeatureSpec.from_json(spec.to_json())
    with pytest.raises(
        MissingWeightsError, match=rf"lists \({tmp_path}/none\).*{spec.weights}.*export"
    ):
        from_spec(written)


def test_other_weights_in_the_same_place_are_not_taken(own):
    spec = build("speech-encoder", model=str(own)).spec
    checkpoints.speech(own, "wav2vec2", layer_norm_eps=1e-3)
    with pytest.raises(ValueError, match=f"wanted are {spec.weights}"):
        from_spec(spec)


def test_the_user_can_pin_a_folder_by_its_digest(made):
    digest = found(made).digest
    assert build("speech-encoder", model=str(made), weights=digest).spec.weights == digest
    with pytest.raises(ValueError, match="holds weights with the digest"):
        build("speech-encoder", model=str(made), weights="0" * 64)


def test_the_licence_of_a_spec_with_weights_is_no_part_of_its_name(made):
    spec = build("speech-encoder", model=str(made)).spec
    assert replace(spec, licence="mit").digest == spec.digest
    assert replace(spec, weights="").digest != replace(spec, weights="", licence="mit").digest


# The hub's cache, without a network.

OFFLINE = """
import json, sys
from featurizers.catalog import build, from_spec
from featurizers.spec import FeatureSpec
asked = json.loads(sys.argv[1])
try:
    if "spec" in asked:
        made = from_spec(FeatureSpec.from_json(asked["spec"]))
    else:
        made = build("speech-encoder", **asked)
    print(json.dumps({"spec": made.spec.to_json(), "source": made.spec.source}))
except ValueError as error:
    print(json.dumps({"kind": type(error).__name__, "error": str(error)}))
"""


def offline(cache, asked, **environment):
    """What another process says, without a network unless it is told of one."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), **environment}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, json.dumps(asked)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_without_a_network_it_says_what_is_missing_and_how_to_get_it(tmp_path):
    name = "facebook/wav2vec2-base"
    said = offline(tmp_path, {"model": name, "revision": COMMIT})
    assert said["kind"] == "MissingWeightsError"
    for part in (
        name,
        COMMIT,
        "config.json is missing",
        f"`hf download {name} --revision {COMMIT}`",
    ):
        assert part in said["error"]


def test_a_model_in_the_hubs_cache_is_found_without_a_network(made, tmp_path):
    name = "some/wave"
    snapshot = hubs_folder(tmp_path / "cache", name, COMMIT)
    checkpoints.copied(made, snapshot)
    asked = {"model": name, "revision": COMMIT}
    said = offline(tmp_path / "cache", asked)
    assert said["source"] == ""
    assert said["spec"]["parameters"]["model"] == name
    assert said["spec"]["parameters"]["revision"] == COMMIT
    assert said["spec"]["weights"] == found(made).digest
    with socket.create_server(("127.0.0.1", 0)) as hub:
        # Nor is the hub asked where there is one: a commit does not change.
        there = f"http://127.0.0.1:{hub.getsockname()[1]}"
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": there}
        assert offline(tmp_path / "cache", asked, **online) == said
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):
            hub.accept()
    (snapshot / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json is missing" in offline(tmp_path / "cache", asked)["error"]
    # Elsewhere its digest finds it, when it was copied by hand.
    listed = {FOLDERS: str(Path(made).parent)}
    again = offline(tmp_path / "empty", {"spec": said["spec"]}, **listed)
    assert again["spec"] == said["spec"]


def test_a_featurizer_is_built_without_its_weights_being_loaded(made, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__init__", None)
    assert build("speech-encoder", model=str(made)).spec.width == 32
