"""Six small clips with their columns, and predictors with fresh weights that read them."""

import numpy as np
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
from pipelines import HOME
from pipelines.packaging import example, inputs_of, outputs_of, requirements_of, specs_of
from tracking import mlflow_store
from training.data import load
from training.models import build
from training.predict import Predictor
from training.recipe import Task
from training.recipes import named

FEATURIZERS = {
    "text": catalog.build("hashed-words", dims=16),
    "audio": catalog.build("logmel"),
    "video": catalog.build("face-motion"),
}
SPECS = {name: featurizer.spec for name, featurizer in FEATURIZERS.items()}
WIDTHS = {name: spec.width for name, spec in SPECS.items()}
SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("glad", "sad"))
TAGS = Task(kind="labels", label="tags", classes=("calm", "glad", "loud"))
VTT = "WEBVTT\n\n00:00.000 --> 00:00.600\nquite good\n\n00:00.600 --> 00:01.200\nreally\n"


def labels(i):
    return {"score": float(i), "mood": "glad", "tags": ("glad", "loud") if i % 2 else ()}


def record(path, seed, *, sound=True, pictures=True):
    """A second and a half of noise and moving bars."""
    random = np.random.default_rng(seed)
    tone = np.sin(np.arange(24_000) * (0.05 + 0.01 * seed)) * 6000 + random.normal(0, 300, 24_000)
    frames = [
        np.roll(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)), (i * (seed + 1)) % 64, axis=1)
        for i in range(15)
    ]
    encode(
        path,
        frames=[np.repeat(f[:, :, None], 3, axis=2) for f in frames] if pictures else None,
        fps=10,
        samples=tone.astype(np.int16) if sound else None,
        rate_hz=16_000,
    )


def make(root):
    """Six real clips, their committed columns, and predictors with fresh weights."""
    (root / "words.vtt").write_text(VTT)
    clips, outcomes = [], []
    with Decoder() as decoder:
        for i, split in enumerate(["train"] * 4 + ["valid", "test"]):
            path = root / f"{i}.mp4"
            record(path, i, sound=i != 3)
            raw = RawClip(
                key=f"k{i}",
                id=f"clip {i}",
                media=str(path),
                path=path,
                transcript_file=root / "words.vtt",
                columns={"split": split, "labels": labels(i)},
            )
            clips.append(take_in(raw, decoder))
            outcomes.append(extract(clips[-1], path, list(FEATURIZERS.values()), decoder))
    write_clips(root, clips)
    columns = {}
    for place, (name, spec) in enumerate(SPECS.items()):
        job = job_id(spec, clips)
        found = [each[place] for each in outcomes]
        commit(
            root,
            spec,
            "plan",
            [write_shard(LocalStore(root), 0, job, spec, clips=clips, outcomes=found)],
        )
        columns[name] = spec.fingerprint
    return root, columns, save(root, columns, SCORE), save(root, columns, MOOD)


def save(root, columns, task, kind="late_fusion"):
    recipe = named(kind, task, list(SPECS), {"hidden": 8})
    data = load(root, columns, recipe)
    torch.manual_seed(0)
    folder = root / f"predictor-{kind}-{task.kind}"
    Predictor.save(
        folder,
        recipe=recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=build(recipe.model, WIDTHS, task.outputs).state_dict(),
    )
    return folder


def row(root, i, **changes):
    found = {"id": f"clip {i}", "media": str(root / f"{i}.mp4")}
    return {**found, "transcript_file": str(root / "words.vtt"), **changes}


def log(folder, uri):
    """A predictor as a logged model: its run and its address."""
    run = mlflow_store.start_run(uri, "toys", "first", {})
    specs = specs_of(folder)
    recipe = Predictor.load(folder).recipe
    address = mlflow_store.log_model(
        run,
        folder,
        name="model",
        code=[HOME / "featurizers", HOME / "training"],
        inputs=inputs_of(specs),
        outputs=outputs_of(recipe.task),
        requirements=requirements_of(recipe, specs),
        example=example(),
    )
    return run, address
