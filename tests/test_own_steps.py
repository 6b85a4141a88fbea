"""MulT over streams that keep their own steps, from raw clips to a predictor that scores them."""

import numpy as np
import pytest

from featurizers.dataset import read_clips
from featurizers.media import encode
from pipelines.executors import InProcess
from pipelines.experiment import load
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from pipelines.sources import task_of
from pipelines.start import init
from tracking.run import MemoryRun
from training.data import load as load_data
from training.evaluate import predictions
from training.loop import fit
from training.predict import Predictor, load_model
from training.session import LocalSession

RATE_HZ = 16_000
SPLITS = ["train"] * 12 + ["valid"] * 3 + ["test"] * 3
SETTINGS = [
    "features={audio: {featurizer: logmel}}",
    "features.video={featurizer: frames, size: 8, colour: gray, fps: 10}",
    "model={recipe: mult, width: 8, heads: 2, layers: 1}",
    "train={epochs: 6, global_batch: 4, zero: 0, pooling: {kind: own, most: 40}}",
]


def film(path, number, seconds):
    """A tone and a grey picture, both the louder and lighter the greater the number."""
    random = np.random.default_rng(number)
    wave = np.sin(np.arange(int(seconds * RATE_HZ)) / 8) * 1_000 * (1 + number)
    samples = (wave + random.normal(0, 40, len(wave))).astype(np.int16)
    picture = np.full((16, 16, 3), 40 + 10 * number, dtype=np.uint8)
    encode(path, frames=[picture] * int(seconds * 10), fps=10, samples=samples, rate_hz=RATE_HZ)


@pytest.mark.media
def test_mult_is_trained_on_streams_of_their_own_rates_and_scores_raw_clips(tmp_path):
    rows = ["id,media,level,split"]
    for i, split in enumerate(SPLITS):
        film(tmp_path / f"{i}.mp4", i, 0.5 + 0.1 * (i % 4))
        rows.append(f"{i},{i}.mp4,{i / 3 - 3:.3f},{split}")
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    init(tmp_path / "clips.csv", "level", tmp_path / "experiment.yaml")
    experiment = load(tmp_path / "experiment.yaml", SETTINGS)
    ingest(experiment, InProcess(), lambda _: None)
    columns = featurize(experiment, InProcess(), lambda _: None, lambda _: None)
    clips = read_clips(experiment.root)
    recipe = experiment.recipe(task_of(experiment, clips))
    data = load_data(
        experiment.root, {name: each.spec.fingerprint for name, each in columns.items()}, recipe
    )
    batch = data.train.batch([(key, 1.0) for key in data.train.keys])
    steps = {name: stream.mask.sum(1) for name, stream in batch.streams.items()}
    # A tenth of a second is a step of pictures; of sound there are more than the 40 that are kept.
    assert sorted(set(steps["video"].tolist())) == [5, 6, 7, 8]
    assert set(steps["audio"].tolist()) == {40}
    found = fit(recipe, data, LocalSession(tmp_path / "run"), MemoryRun())
    losses = [epoch["train_loss"] for epoch in found.history]
    assert losses[-1] < 0.9 * losses[0]
    Predictor.save(
        tmp_path / "predictor",
        recipe=recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=found.weights,
    )
    said = predictions(load_model(tmp_path / "predictor"), data.test, recipe.task, data.fallback)
    test = [clip for clip in clips if clip.split == "test"]
    answers = Predictor.load(tmp_path / "predictor").predict(
        [{"id": clip.id, "media": clip.media} for clip in test]
    )
    assert [answer["state"] for answer in answers] == ["scored"] * 3
    assert [float(answer["prediction"]) for answer in answers] == pytest.approx(
        [said[clip.key] for clip in test], abs=1e-5
    )
