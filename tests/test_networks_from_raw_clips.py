"""From a film to the scores of a network of pictures: scoring computes what training read."""

import json

import numpy as np
import pytest
import torch

from featurizers import catalog
from featurizers.dataset import write_clips
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.intake import RawClip, take_in
from featurizers.manifest import commit
from featurizers.media import encode
from featurizers.shards import job_id, write_shard
from featurizers.store import LocalStore
from training.data import load
from training.models import build
from training.predict import Predictor, outputs
from training.recipe import Task
from training.recipes import named

MOOD = Task(kind="classes", label="mood", classes=("sad", "glad"))
SETTINGS = {"frames": 6, "video_width": 4, "cardinality": 2, "steps": 60, "audio_width": 4}


def film(path, seed, *, sound):
    """A second of noise, heard and seen."""
    random = np.random.default_rng(seed)
    noise = random.integers(-8000, 8000, size=16_000, dtype=np.int16) if sound else None
    pictures = random.integers(0, 256, size=(25, 32, 32, 3), dtype=np.uint8)
    encode(path, frames=list(pictures), fps=25, samples=noise, rate_hz=16_000)


@pytest.mark.media
@pytest.mark.parametrize("size", [8, 224])  # the least, and that of the paper
def test_a_registered_network_scores_a_raw_clip_as_training_would(tmp_path, size):
    featurizers = {
        "face": catalog.build("frames", size=size, fps=10),
        "voice": catalog.build("mfcc", deltas=0),
    }
    clips, found = [], []
    with Decoder() as decoder:
        for i, split in enumerate(["train", "train", "valid", "test"]):
            path = tmp_path / f"{i}.mp4"
            film(path, i, sound=i != 3)
            columns = {"split": split, "labels": {"mood": "glad" if i % 2 else "sad"}}
            raw = RawClip(key=f"k{i}", id=f"{i}", media=str(path), path=path, columns=columns)
            clips.append(take_in(raw, decoder))
            found.append(extract(clips[-1], path, list(featurizers.values()), decoder))
    write_clips(tmp_path, clips)
    fingerprints = {}
    for place, (name, featurizer) in enumerate(featurizers.items()):
        spec, own = featurizer.spec, [each[place] for each in found]
        job = job_id(spec, clips)
        record = write_shard(LocalStore(tmp_path), 0, job, spec, clips=clips, outcomes=own)
        commit(tmp_path, spec, "plan", [record])
        fingerprints[name] = spec.fingerprint
    recipe = named("msaf_ravdess", MOOD, list(featurizers), SETTINGS)
    data = load(tmp_path, fingerprints, recipe)
    torch.manual_seed(0)
    model = build(recipe.model, data.train.widths, 2)
    Predictor.save(
        tmp_path / "predictor",
        recipe=recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=model.state_dict(),
    )
    assert data.train.batch([("k0", 1.0)]).streams["face"].values.max() > 100
    predictor = Predictor.load(tmp_path / "predictor")
    rows = predictor.predict([{"media": str(tmp_path / f"{i}.mp4")} for i in range(4)])
    assert [row["state"] for row in rows] == ["scored"] * 4
    assert [row["missing"] for row in rows] == ["", "", "", "voice"]
    for split, number in (("train", 0), ("train", 1), ("valid", 2), ("test", 3)):
        sample = getattr(data, split).sample(f"k{number}")
        scores = torch.from_numpy(outputs(model, [sample], data.train.widths))
        wanted = dict(zip(MOOD.classes, scores[0].double().softmax(0).tolist(), strict=True))
        assert json.loads(rows[number]["scores"]) == pytest.approx(wanted, abs=1e-6)
