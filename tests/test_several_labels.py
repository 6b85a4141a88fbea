"""Several labels at once, from a table with commas to a predictor that names them."""

import json

import numpy as np
import pytest

from featurizers.dataset import read_clips
from featurizers.media import encode
from pipelines.executors import InProcess
from pipelines.experiment import load
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from pipelines.packaging import outputs_of
from pipelines.sources import task_of
from pipelines.start import init
from tracking.run import MemoryRun
from training.data import load as load_data
from training.evaluate import predictions, scorecard
from training.loop import fit
from training.predict import Predictor, load_model
from training.recipe import Task
from training.recipes import named
from training.session import LocalSession

pytestmark = pytest.mark.media

RATE_HZ = 16_000
SPLITS = ["train"] * 24 + ["valid"] * 8 + ["test"] * 8


def tone(path, *, high, loud, seed):
    """Half a second of a tone with a little noise."""
    random = np.random.default_rng(seed)
    steps = np.arange(RATE_HZ // 2) / RATE_HZ
    wave = np.sin(2 * np.pi * (3000 if high else 300) * steps) * (12_000 if loud else 400)
    samples = (wave + random.normal(0, 40, len(steps))).astype(np.int16)
    encode(path, frames=None, fps=10, samples=samples, rate_hz=RATE_HZ)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """An experiment that `init` wrote, ingested, with its one column."""
    folder = tmp_path_factory.mktemp("tones")
    rows = ["id,media,sound,split"]
    for i, split in enumerate(SPLITS):
        high, loud = i % 2 == 0, i % 4 < 2
        tone(folder / f"{i}.mp4", high=high, loud=loud, seed=i)
        names = ", ".join(name for name, has in (("high", high), ("loud", loud)) if has)
        rows.append(f'{i},{i}.mp4,"{names or ","}",{split}')
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    told = init(folder / "clips.csv", "sound", folder / "experiment.yaml")
    assert "40 rows, sound is 2 labels" in told[0]
    small = ["features={audio: {featurizer: logmel}}", "model={recipe: late_fusion, hidden: 8}"]
    more = ["train={epochs: 8, global_batch: 8, learning_rate: 2.0e-2, zero: 0}"]
    experiment = load(folder / "experiment.yaml", [*small, *more])
    ingest(experiment, InProcess(), lambda _: None)
    columns = featurize(experiment, InProcess(), lambda _: None, lambda _: None)
    return experiment, columns


def test_labels_with_commas_are_learnt_kept_and_named_for_raw_clips(project, tmp_path):
    experiment, columns = project
    clips = read_clips(experiment.root)
    task = task_of(experiment, clips)
    assert task == Task(kind="labels", label="sound", classes=("high", "loud"))
    assert [rule.metric for rule in experiment.rules()] == ["f1_macro"]
    recipe = experiment.recipe(task)
    assert recipe.loss == "bce"
    fingerprints = {name: column.spec.fingerprint for name, column in columns.items()}
    data = load_data(experiment.root, fingerprints, recipe)
    found = fit(recipe, data, LocalSession(tmp_path / "run"), MemoryRun())
    Predictor.save(
        tmp_path / "predictor",
        recipe=recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=found.weights,
    )
    said = predictions(load_model(tmp_path / "predictor"), data.test, task, data.fallback)
    said = json.loads(json.dumps(said))
    test = [clip for clip in clips if clip.split == "test"]
    card = scorecard(test, said, task, [], parity=None, replicates=50)
    assert card.metrics["subset_accuracy"] >= 7 / 8
    assert list(card.by_class) == ["high", "loud"]
    rows = [{"id": clip.id, "media": clip.media} for clip in test]
    answers = Predictor.load(tmp_path / "predictor").predict(rows)
    for clip, answer in zip(test, answers, strict=True):
        named = [name for name, yes in zip(task.classes, said[clip.key], strict=True) if yes]
        assert answer["prediction"] == ",".join(named)
        assert list(json.loads(answer["scores"])) == ["high", "loud"]
    assert {answer["prediction"] for answer in answers} >= {"", "high,loud"}


def test_a_registered_model_of_several_labels_promises_text(project):
    experiment, _ = project
    task = task_of(experiment, read_clips(experiment.root))
    assert ("prediction", "string") in outputs_of(task)
    assert ("scores", "string") in outputs_of(task)


@pytest.mark.parametrize("name", ["mmlatch", "mult", "msaf"])
def test_a_recipe_keeps_its_own_rates_in_a_file_that_init_wrote(tmp_path, name):
    table = tmp_path / "clips.csv"
    table.write_text("id,media,score\na,a.mp4,1\nb,b.mp4,2\n")
    init(table, "score", tmp_path / "experiment.yaml")
    experiment = load(tmp_path / "experiment.yaml", [f"model.recipe={name}"])
    task = Task(kind="regression", label="score")
    assert experiment.recipe(task) == named(name, task, list(experiment.features))


def test_init_asks_for_the_task_that_it_is_told(tmp_path):
    table = tmp_path / "clips.csv"
    table.write_text('id,media,mood\na,a.mp4,"so, so"\nb,b.mp4,well\n')
    init(table, "mood", tmp_path / "asked.yaml", "classes")
    init(table, "mood", tmp_path / "guessed.yaml")
    asked, guessed = (load(tmp_path / f"{name}.yaml") for name in ("asked", "guessed"))
    assert (asked.source.task, guessed.source.task) == ("classes", None)
    assert [each.rules()[0].metric for each in (asked, guessed)] == ["uar", "f1_macro"]
