"""Every featurizer by name: what is declared is what comes out."""

import importlib.util
import re
from dataclasses import replace

import numpy as np
import pytest

from featurizers.catalog import NAMES, build, from_spec, places
from featurizers.clip import Clip, Word
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.media import encode
from featurizers.spec import FeatureSpec, check_feature
from tests import checkpoints
from tests.media_maker import stairs, voice

# Where weights are wanted, "@" stands for the folder of checkpoints that the tests make.
OTHERS = {
    "hashed-words": {"dims": 16},
    "logmel": {"hop_ms": 20, "mels": 16},
    "mfcc": {"hop_ms": 20, "coefficients": 12, "mels": 20, "deltas": 1},
    "prosody": {"hop_ms": 20},
    "waveform": {"hop": 160, "rate_hz": 8000},
    "egemaps": {"level": "functionals"},
    "face-motion": {"fps": 12.5},
    "face-track": {"detector": "cascade", "fps": 12.5},
    "frames": {"size": 16, "colour": "gray"},
    "appearance": {"fps": 12.5},
    "landmarks": {"model": "@/face.task", "points": "none"},
    "numbers": {"stream": "hand", "dims": 2},
    "track": {"stream": "face", "columns": "AU{01,02}_r", "least": 0.8, "time": "timestamp"},
    "skeleton": {"stream": "joints", "joints": 4, "persons": 2, "coordinates": 2},
    "speech-encoder": {"model": "@/speech", "layers": 2},
    "text-encoder": {"model": "@/text", "unit": "pieces"},
    "image-encoder": {"model": "@/image", "fps": 10.0},
    "video-encoder": {"model": "@/video", "hop": 2},
    "word-vectors": {"file": "@/other.txt"},
    "word-pieces": {"model": "@/bytes"},
}
WANTED = {  # settings that have no default
    "face-track": {"detector": "cascade"},
    "landmarks": {"model": "@/face.task"},
    "numbers": {"stream": "pose", "dims": 3},
    "track": {"stream": "face", "columns": "AU01_r"},
    "skeleton": {"stream": "body"},
    "speech-encoder": {"model": "@/speech"},
    "text-encoder": {"model": "@/text"},
    "image-encoder": {"model": "@/image"},
    "video-encoder": {"model": "@/video", "hop": 4},
    "word-vectors": {"file": "@/words.txt"},
    "word-pieces": {"model": "@/text"},
}
WEIGHED = {name for name, settings in WANTED.items() if "@" in str(settings)} | {"face-track"}
EXACT = {"word-vectors", "word-pieces", "face-track"}  # though weights decide their numbers
PACKAGES = {"egemaps": "opensmile"}  # extras that are not installed for the tests
UNMADE = {"landmarks"}  # their model files cannot be made by a test
BUILT = [(name, WANTED.get(name, {})) for name in NAMES] + list(OTHERS.items())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a checkpoint for each featurizer that wants one."""
    folder = tmp_path_factory.mktemp("weights")
    checkpoints.speech(folder / "speech", "wav2vec2")
    checkpoints.text(folder / "text", "bert")
    checkpoints.byte_pieces(folder / "bytes", "roberta")
    checkpoints.image(folder / "image", "dinov2")
    checkpoints.video(folder / "video")
    (folder / "face.task").write_bytes(b"stands for a model that nobody can make here")
    (folder / "words.txt").write_text("so 1 2 3\nit 0.5 -1 2\n")
    (folder / "other.txt").write_text("so 1 2\n")
    return folder


@pytest.fixture(scope="module")
def built(weights):
    """Builds a featurizer; knows where the weights lie."""

    def make(name, **settings):
        there = {
            setting: value.replace("@", str(weights)) if isinstance(value, str) else value
            for setting, value in settings.items()
        }
        return build(name, **there)

    return make


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, built):
    """What every featurizer makes of one generated clip."""
    folder = tmp_path_factory.mktemp("clip")
    path = folder / "a.mp4"
    for name, dims in (("pose", 3), ("hand", 2)):
        np.save(folder / f"{name}.npy", np.arange(10.0 * dims).reshape(10, dims))
    np.save(folder / "body.npy", np.zeros((10, 25, 3)))
    np.save(folder / "joints.npy", np.zeros((10, 4, 2)))
    (folder / "face.csv").write_text("timestamp,AU01_r,AU02_r\n0,1,2\n0.1,3,4\n")
    streams = {name: str(folder / f"{name}.npy") for name in ("pose", "hand", "body", "joints")}
    encode(path, frames=stairs(25), fps=25, samples=voice(150, 1.0), rate_hz=16_000)
    words = (Word(text="so", start=0.0, end=0.5), Word(text="it", start=0.5, end=0.5))
    clip = Clip(
        key="a",
        id="a",
        media=str(path),
        media_digest="",
        words=words,
        seconds=1.0,
        streams={**streams, "face": str(folder / "face.csv")},
        stream_rates=dict.fromkeys(streams, 10.0),
    )
    featurizers = {
        number: built(name, **settings)
        for number, (name, settings) in enumerate(BUILT)
        if _runs(name)
    }
    with Decoder() as decoder:
        found = extract(clip, path, list(featurizers.values()), decoder)
    return {
        number: (featurizer, outcome)
        for (number, featurizer), outcome in zip(featurizers.items(), found, strict=True)
    }


def _runs(name):
    if name in UNMADE:
        return False
    return name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is not None


def test_every_name_has_a_case_here():
    assert set(OTHERS) == set(NAMES)


@pytest.mark.media
@pytest.mark.parametrize(
    "number", range(len(BUILT)), ids=[f"{name}-{i}" for i, (name, _) in enumerate(BUILT)]
)
def test_what_comes_out_is_what_the_spec_declares(outcomes, number):
    name = BUILT[number][0]
    if not _runs(name):
        pytest.skip(f"{PACKAGES.get(name, 'a model file')} is not on this machine")
    featurizer, outcome = outcomes[number]
    spec = featurizer.spec
    assert outcome.state == "sample"
    check_feature(spec, outcome.feature)
    assert outcome.feature.values.shape[1] == spec.width == len(spec.dims)
    assert str(outcome.feature.values.dtype) == spec.dtype
    assert outcome.feature.times.shape == (len(outcome.feature.values), 2)
    assert (outcome.feature.times[:, 0] <= outcome.feature.times[:, 1]).all()
    if spec.rate_hz is not None:
        np.testing.assert_allclose(np.diff(outcome.feature.times), 1 / spec.rate_hz)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_a_spec_of_that_name_with_all_its_settings(built, name):
    spec = built(name, **WANTED.get(name, {})).spec
    assert spec.name == name
    assert (spec.atol is None) == (name not in {*WEIGHED, *PACKAGES} - EXACT)
    assert len(spec.weights) == (64 if name in WEIGHED else 0)
    assert set(OTHERS[name]) - {places(name)} <= set(spec.parameters)
    assert len({dim.name for dim in spec.dims}) == spec.width
    assert re.fullmatch(rf"{name}-[0-9a-f]{{12}}", spec.fingerprint)


@pytest.mark.parametrize(("name", "settings"), BUILT)
def test_a_spec_builds_the_featurizer_that_it_came_from(
    built, weights, monkeypatch, name, settings
):
    monkeypatch.setenv("FUSELINE_WEIGHTS", str(weights))
    spec = built(name, **settings).spec
    again = from_spec(FeatureSpec.from_json(spec.to_json()))
    assert again.spec == spec
    assert again.spec.digest == spec.digest


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_changes_the_fingerprint_and_its_default_does_not(built, name):
    default = built(name, **WANTED.get(name, {})).spec
    assert built(name, **OTHERS[name]).spec.fingerprint != default.fingerprint
    given = {**WANTED.get(name, {}), **default.parameters}
    assert built(name, **given).spec.fingerprint == default.fingerprint


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"atol": 1e-5}, {"licence": "MIT"}, {"weights": "ff"}, {"dtype": "uint8"}],
    ids=lambda change: next(iter(change)),
)
def test_another_version_is_not_computed_under_the_old_name(change):
    spec = replace(build("logmel").spec, **change)
    with pytest.raises(ValueError, match="cannot be computed: this code makes") as caught:
        from_spec(spec)
    assert spec.fingerprint in str(caught.value)
    assert f"version {spec.version}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"), [("logmal", "'logmel'"), ("face_motion", "'face-motion'")]
)
def test_an_unknown_name_is_refused_and_the_nearest_is_named(name, nearest):
    with pytest.raises(ValueError, match=f"no featurizer '{name}'.*did you mean {nearest}"):
        build(name)


def test_a_name_like_no_other_is_refused_with_the_list():
    with pytest.raises(ValueError, match="there are hashed-words, logmel, mfcc, pro") as caught:
        build("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "setting", "nearest"),
    [("logmel", "hop_s", "hop_ms"), ("logmel", "mel", "mels"), ("face-motion", "fp", "fps")],
)
def test_an_unknown_setting_is_refused_and_the_nearest_is_named(name, setting, nearest):
    with pytest.raises(ValueError, match=f"has no setting '{setting}'.*mean '{nearest}'"):
        build(name, **{setting: 10})


@pytest.mark.parametrize("given", [{}, {"dims": 3}])
def test_a_setting_without_a_default_is_asked_for(given):
    with pytest.raises(ValueError, match="featurizer 'numbers' wants a setting 'stream'"):
        build("numbers", **given)


@pytest.mark.parametrize("setting", ["self", "name", "kind"])
def test_no_word_of_our_own_code_is_taken_for_a_setting(setting):
    with pytest.raises(ValueError, match=f"has no setting '{setting}'.*it has hop_ms, mels"):
        build("logmel", **{setting: 10})


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("logmel", {"hop_ms": 2.5}, "hop_ms is 2.5; wanted a whole number"),
        ("logmel", {"hop_ms": "10"}, "hop_ms is '10'; wanted a whole number"),
        ("logmel", {"mels": True}, "mels is True; wanted a whole number"),
        ("logmel", {"mels": None}, "mels is None; wanted a whole number"),
        ("hashed-words", {"dims": [64]}, r"dims is \[64\]; wanted a whole number"),
        ("face-motion", {"fps": "5"}, "fps is '5'; wanted a number"),
        ("face-motion", {"fps": False}, "fps is False; wanted a number"),
        ("speech-encoder", {"layers": 1.5}, "layers is 1.5; wanted a text or a whole number"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(name, settings, wanted):
    with pytest.raises(ValueError, match=wanted):
        build(name, **settings)
