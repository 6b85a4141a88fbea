"""From films and checkpoints to a fine-tuned predictor that needs no checkpoint any more."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from featurizers import catalog
from featurizers.align import cells, pool
from featurizers.dataset import write_clips
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.intake import RawClip, take_in
from featurizers.manifest import commit
from featurizers.media import encode
from featurizers.pretrained import MissingWeightsError
from featurizers.shards import job_id, write_shard
from featurizers.store import LocalStore
from pipelines.experiment import InputError
from pipelines.experiment import load as read
from tests import checkpoints
from tracking.run import MemoryRun
from training import pretrained
from training.data import load
from training.loop import fit
from training.models import build
from training.predict import Predictor, outputs
from training.recipe import Task
from training.recipes import fine_tuned, named
from training.session import LocalSession

SCORE = Task(kind="regression", label="score")
SPLITS = ["train"] * 4 + ["valid"] * 2 + ["test"]
VTT = "WEBVTT\n\n00:00.000 --> 00:00.500\nso good\n\n00:00.500 --> 00:01.000\nunbelievable\n"
PLAIN = {"model": {"hidden": 8, "encoder_dropout": 0.0, "fusion_dropout": 0.0}}


def film(path, seed, *, sound):
    """A second of noise, heard and seen."""
    random = np.random.default_rng(seed)
    noise = random.integers(-8000, 8000, size=16_000, dtype=np.int16) if sound else None
    pictures = random.integers(0, 256, size=(25, 32, 32, 3), dtype=np.uint8)
    encode(path, frames=list(pictures), fps=25, samples=noise, rate_hz=16_000)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Checkpoints as they come from the hub."""
    folder = tmp_path_factory.mktemp("hub")
    checkpoints.text(folder / "text", "roberta")
    checkpoints.speech(folder / "audio", "wav2vec2")
    checkpoints.image(folder / "video", "clip")
    return folder


@pytest.fixture(scope="module")
def encoders(places):
    given = {
        "text": {"model": "text", "width": 8, "freeze": 1},
        "audio": {"model": "audio", "learning_rate": 1e-3},
        "video": {"model": str(places / "video"), "most": 3, "freeze": "all"},
    }
    return {name: pretrained.encoder_settings(each, places) for name, each in given.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory, places):
    """Films, their raw columns, and the featurizers."""
    root = tmp_path_factory.mktemp("films")
    (root / "words.vtt").write_text(VTT)
    featurizers = {
        "text": catalog.build("word-pieces", model=str(places / "text")),
        "audio": catalog.build("waveform"),
        "video": catalog.build("frames", size=16, fps=5),
    }
    clips, found = [], []
    with Decoder() as decoder:
        for i, split in enumerate(SPLITS):
            path = root / f"{i}.mp4"
            film(path, i, sound=i != 3)
            raw = RawClip(
                key=f"k{i}",
                id=f"{i}",
                media=str(path),
                path=path,
                transcript_file=root / "words.vtt",
                columns={"split": split, "labels": {"score": float(i % 3)}},
            )
            clips.append(take_in(raw, decoder))
            found.append(extract(clips[-1], path, list(featurizers.values()), decoder))
    write_clips(root, clips)
    columns = {}
    for place, (name, featurizer) in enumerate(featurizers.items()):
        spec, own = featurizer.spec, [each[place] for each in found]
        record = write_shard(
            LocalStore(root), 0, job_id(spec, clips), spec, clips=clips, outcomes=own
        )
        commit(root, spec, "plan", [record])
        columns[name] = spec.fingerprint
    return root, columns


def recipe_of(encoders, name="late_fusion", **more):
    plain = named(name, SCORE, list(encoders), PLAIN["model"], epochs=2, global_batch=4, **more)
    return fine_tuned(plain, encoders)


def test_a_fine_tuned_model_scores_raw_clips_as_training_did_without_its_checkpoints(
    tmp_path, world, places, encoders
):
    root, columns = world
    recipe = recipe_of(encoders)
    assert recipe.raw == ("text", "audio", "video")
    data = load(root, columns, recipe)
    assert not data.normaliser.mean
    found = fit(recipe, data, LocalSession(tmp_path / "run"), MemoryRun())
    begun = build(recipe.model, data.train.widths, 1)
    pretrained.begin(begun, recipe.model)
    moved = {
        name: not torch.equal(found.weights[name], tensor)
        for name, tensor in begun.state_dict().items()
    }
    assert not any(moved[name] for name in moved if name.startswith("encoders.video."))
    assert not moved["encoders.text.model.encoder.layer.0.attention.self.query.weight"]
    assert moved["encoders.text.model.encoder.layer.1.attention.self.query.weight"]
    assert moved["encoders.audio.model.feature_extractor.conv_layers.0.conv.weight"]
    hidden = tmp_path / "hidden"
    Predictor.save(
        tmp_path / "predictor",
        recipe=recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=found.weights,
        tokenizers=pretrained.tokenizers(recipe, data.specs),
    )
    shutil.move(places, hidden)
    try:
        predictor = Predictor.load(tmp_path / "predictor")
        rows = predictor.predict(
            [
                {"media": str(root / f"{i}.mp4"), "transcript_file": str(root / "words.vtt")}
                for i in range(len(SPLITS))
            ]
        )
    finally:
        shutil.move(hidden, places)
    assert [row["missing"] for row in rows] == ["", "", "", "audio", "", "", ""]
    for number, split in enumerate(SPLITS):
        sample = getattr(data, split).sample(f"k{number}")
        wanted = outputs(predictor.model, [sample], data.train.widths)[0, 0]
        assert rows[number]["prediction"] == pytest.approx(float(wanted), abs=1e-5)
    assert len({round(row["prediction"], 4) for row in rows}) > 3


def test_training_begins_with_the_checkpoint_s_weights(world, encoders, places):
    from safetensors.torch import load_file

    root, columns = world
    recipe = recipe_of(encoders)
    data = load(root, columns, recipe)
    model = build(recipe.model, data.train.widths, 1)
    pretrained.begin(model, recipe.model)
    kept = load_file(places / "text" / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(kept[f"roberta.{name}"], model.encoders["text"].model.state_dict()[name])


def test_an_encoder_on_the_way_gives_what_its_featurizer_gives(world, encoders, places):
    """Not trained yet, states on the time base are the features that the same encoder gives."""
    root, columns = world
    whole = {name: replace(each, width=0, most=0) for name, each in encoders.items()}
    recipe = recipe_of(whole, pooling={"kind": "cells", "cell_s": 0.25})
    data = load(root, columns, recipe)
    model = build(recipe.model, data.train.widths, 1).eval()
    pretrained.begin(model, recipe.model)
    with torch.no_grad():
        found = model.encoded(data.train.batch([("k0", 1.0), ("k1", 1.0)]))
    featurizers = {
        "text": catalog.build("text-encoder", model=str(places / "text"), unit="pieces"),
        "audio": catalog.build("speech-encoder", model=str(places / "audio")),
        "video": catalog.build("image-encoder", model=str(places / "video"), fps=5),
    }
    path = root / "1.mp4"
    raw = RawClip(
        key="k1",
        id="1",
        media=str(path),
        path=path,
        transcript_file=root / "words.vtt",
        columns={},
    )
    with Decoder() as decoder:
        clip = take_in(raw, decoder)
        outcomes = extract(clip, path, list(featurizers.values()), decoder)
    for name, outcome in zip(featurizers, outcomes, strict=True):
        wanted, there = pool(outcome.feature, cells(clip.seconds, 0.25), "overlap")
        stream = found.streams[name]
        assert stream.mask[1].tolist() == there.tolist()
        # Of sound, `waveform` leaves out what is behind its last whole step of 20 ms.
        atol = 5e-3 if name == "audio" else 2e-5
        np.testing.assert_allclose(stream.values[1].numpy(), wanted, atol=atol, err_msg=name)


def test_with_mult_every_encoder_keeps_its_own_steps(world, encoders):
    root, columns = world
    plain = named(
        "mult",
        SCORE,
        list(encoders),
        {"width": 8, "heads": 2, "layers": 1},
        pooling={"kind": "own", "most": 5},
        global_batch=4,
    )
    recipe = fine_tuned(plain, encoders)
    data = load(root, columns, recipe)
    batch = data.train.batch([("k0", 1.0), ("k3", 1.0)])
    assert batch.base is None
    assert batch.streams["audio"].values.shape[1] > 45  # no most of features cuts what is raw
    model = build(recipe.model, data.train.widths, 1).eval()
    with torch.no_grad():
        assert model(batch).isfinite().all()


def test_an_experiment_file_names_encoders(tmp_path, places):
    file = tmp_path / "experiment.yaml"
    plain = {
        "dataset": "data",
        "source": {"table": "clips.csv", "label": "score", "task": "regression"},
        "features": {
            "text": {"featurizer": "word-pieces", "model": str(places / "text")},
            "audio": {"featurizer": "waveform"},
            "tone": {"featurizer": "prosody"},
        },
        "model": {
            "recipe": "late_fusion",
            "hidden": 8,
            "encoders": {
                "text": {"model": str(places / "text"), "layer_decay": 0.9},
                "audio": {"model": str(places / "audio"), "freeze": "features", "width": 8},
            },
        },
    }
    file.write_text(json.dumps(plain))
    recipe = read(file).recipe(SCORE)
    assert recipe.raw == ("text", "audio")
    assert recipe.model.encoders["text"].layer_decay == 0.9
    assert recipe.model.encoders["audio"].weights.startswith(str(places / "audio"))
    for setting, value, said in (
        (
            "text.freze",
            2,
            "model.encoders.text: an encoder has no setting 'freze'; the nearest is 'freeze'",
        ),
        ("text.freeze", 9, "freeze is 9; this encoder has 3 layers"),
        ("text.layer_decay", 2, "encoders.text.layer_decay is 2"),
        ("tone", {"model": str(places / "text")}, "roberta reads word-pieces, not prosody"),
        ("face", {"model": str(places / "text")}, "'face' is no raw stream of the model"),
        ("audio.model", str(places / "none"), "there is no such folder"),
        ("text.model", str(places / "audio"), "wav2vec2 reads waveform, not word-pieces"),
    ):
        given = json.dumps(value)
        with pytest.raises(InputError, match=said):
            read(file, [f"model.encoders.{setting}={given}"]).recipe(SCORE)


def test_pieces_of_another_tokenizer_are_refused(tmp_path, places, encoders, world):
    other = tmp_path / "other"
    checkpoints.byte_pieces(other, "modernbert")
    spec = catalog.build("word-pieces", model=str(other)).spec
    with pytest.raises(ValueError, match="was cut by another tokenizer"):
        pretrained.check_streams(recipe_of({"text": encoders["text"]}), {"text": spec})


def test_a_checkpoint_that_changed_is_refused(tmp_path, encoders, places, world):
    shutil.copytree(places / "text", tmp_path / "text")
    config = tmp_path / "text" / "config.json"
    config.write_text(config.read_text() + " ")
    place, _, digest = encoders["text"].weights.rpartition("#")
    moved = replace(encoders["text"], weights=f"{tmp_path / 'text'}#{digest}")
    recipe = recipe_of({"text": moved})
    model = build(recipe.model, {"text": 1}, 1)
    with pytest.raises(ValueError, match="holds weights with the digest"):
        pretrained.begin(model, recipe.model)
    gone = replace(moved, weights=f"{tmp_path / 'gone'}#{digest}")
    recipe = recipe_of({"text": gone})
    with pytest.raises(MissingWeightsError, match="gone is not there"):
        pretrained.begin(model, recipe.model)
    assert place
