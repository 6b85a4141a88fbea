"""Runs to be trained, and what came of them: each in a folder named by what decides its numbers.

Recipe, columns, labels, splits, words, code and the libraries that compute are in that name, so
nothing resumes by accident, and a finished run is taken as it is.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurizers.clip import Clip
from featurizers.manifest import Column
from featurizers.node_cache import NodeCache
from featurizers.spec import canonical_json
from featurizers.store import Root
from pipelines import HOME
from pipelines.lineage import standing_lineage
from tracking.parts import Latency
from tracking.provenance import code_digest, versions
from tracking.scorecard import Scorecard
from training.evaluate import evaluation_set, scorecard
from training.folds import in_fold
from training.predicted import About, Predicted, predicted
from training.recipe import Recipe, Target
from training.schedule import losses_like

COMPUTES = ("torch", "numpy", "deepspeed")
"""Libraries of which another version may give other bits."""

FOLDER = "training"
FINISHED = "finished.json"
SETTLED = "settled.json"
LATENCY = "latency.json"
"""How long the model took for a clip when it was trained: measured, so it is not in `FINISHED`."""

PROGRESS = "progress.jsonl"
NOW = "now.json"
CHECKPOINTS = "checkpoints"
PREDICTOR = "predictor"
RUN = "run.json"
"""Which run on the tracking server a folder belongs to."""

SCORECARD = "scorecard.json"
"""What a run was registered with."""

PREDICTIONS = "predictions.parquet"
"""What was said of each clip; see `training.predicted`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a run's batches are brought; it is in no digest, as the number of ranks is in none.

    Attributes:
        workers: Processes of each rank that make batches ahead of time.
        node_cache: Where each machine keeps copies of shards; None reads clips from the dataset.
    """

    workers: int = 0
    node_cache: NodeCache | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run to be trained.

    Attributes:
        name: For people: recipe, streams and seed.
        folder: Where its results go, named by its digest.
        columns: The fingerprint of each stream's column.
        loading: How its batches are brought.
        family: A digest of all that decides its numbers but the seed.
    """

    name: str
    recipe: Recipe
    root: Root
    folder: Path
    columns: Mapping[str, str]
    loading: Loading = Loading()
    family: str = ""

    @property
    def finished(self) -> bool:
        """Whether the results are there."""
        return (self.folder / FINISHED).is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished run.

    Attributes:
        history: Metrics by epoch.
        predictions: For each labelled test clip.
        lacking: The streams that each of them lacks.
        without: By stream, the predictions when no clip has it.
        scores: For each test clip of which something can be read, the probability of each class or
            label; of a regression nothing.
    """

    plan: Plan
    run_id: str
    best_epoch: int
    history: Sequence[Mapping[str, float]]
    predictions: Mapping[str, Target]
    lacking: Mapping[str, Sequence[str]]
    without: Mapping[str, Mapping[str, Target]]
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def predictor(self) -> Path:
        """The folder of the predictor."""
        return self.plan.folder / PREDICTOR

    @property
    def latency(self) -> Latency | None:
        """How long the model takes for a clip; None when nothing could be timed."""
        file = self.plan.folder / LATENCY
        return Latency.from_json(json.loads(file.read_bytes())) if file.is_file() else None

    @property
    def valid_loss(self) -> float:
        """Of the best epoch."""
        return float(self.history[self.best_epoch]["valid_loss"])

    @property
    def standing(self) -> float:
        """What the recipe monitors, of the best epoch, such that less is better."""
        monitor = self.plan.recipe.monitor
        return losses_like([self.history[self.best_epoch][monitor]], monitor)[0]


def plan_run(
    root: Root, work: Path, columns: Mapping[str, Column], recipe: Recipe, clips: Sequence[Clip]
) -> Plan:
    """The plan of one run, named by a digest of all that decides its numbers.

    Args:
        root: Where the dataset lies.
        work: The local folder of runs.
        columns: The column of each stream.
        recipe: What is trained.
        clips: All clips of the dataset.
    """
    used = {stream: columns[stream] for stream in recipe.model.streams}
    seen = [
        [
            clip.key,
            clip.split,
            clip.labels.get(recipe.task.label),
            clip.seconds,
            [[word.start, word.end] for word in clip.words or ()],
        ]
        for clip in in_fold(clips, recipe.fold)
    ]
    code = [bundled_code_digest(), versions(COMPUTES)]
    given = [{n: c.digest for n, c in used.items()}, seen, code]
    digest, family = (
        hashlib.sha256(canonical_json([each.digest, *given])).hexdigest()
        for each in (recipe, replace(recipe, seed=0))
    )
    streams = "+".join(recipe.model.streams) if recipe.name == "unimodal" else recipe.name
    name = f"{streams} seed {recipe.seed}" + (f" fold {recipe.fold}" if recipe.fold else "")
    folder = work / FOLDER / f"{recipe.name}-{digest[:16]}"
    fingerprints = {stream: column.spec.fingerprint for stream, column in used.items()}
    return Plan(
        name=name,
        recipe=recipe,
        root=root,
        folder=folder,
        columns=fingerprints,
        family=family[:16],
    )


def bundled_code_digest() -> str:
    """sha256 of the code that a registered model carries."""
    return code_digest([HOME / "featurizers", HOME / "training"])


def read(plan: Plan) -> Trained:
    """A finished run's results."""
    plain = json.loads((plan.folder / FINISHED).read_bytes())
    run = json.loads((plan.folder / RUN).read_bytes())
    return Trained(plan=plan, run_id=run["run_id"], **plain)


def score_test(
    trained: Trained,
    clips: Sequence[Clip],
    parity: bool | None,
    *,
    duplicates: Sequence[str] | None = None,
    reproducible: bool | None = None,
) -> Scorecard:
    """The scorecard of a finished run on the labelled test clips.

    Args:
        trained: The run.
        clips: All clips of the dataset.
        parity: As in `training.evaluate.scorecard`.
        duplicates: As there.
        reproducible: As there.
    """
    task = trained.plan.recipe.task
    lineage = standing_lineage(trained.plan.folder)
    before = lineage.before if lineage else {}
    return scorecard(
        labelled(trained.plan.recipe, clips, "test"),
        trained.predictions,
        task,
        labelled(trained.plan.recipe, clips, "train"),
        parity=parity,
        missing=trained.lacking,
        without=trained.without,
        scores=trained.scores,
        duplicates=duplicates,
        reproducible=reproducible,
        latency=trained.latency,
        before={run_id: each.clips_of("train") for run_id, each in before.items()},
        unknown=list(map(str, lineage.unknown)) if lineage else (),
    )


def predicted_test(trained: Trained, clips: Sequence[Clip]) -> Predicted:
    """What a finished run says of each labelled test clip."""
    plan, task = trained.plan, trained.plan.recipe.task
    test = labelled(plan.recipe, clips, "test")
    return predicted(
        evaluation_set(test, task.label),
        test,
        task,
        About.of(plan.name, plan.recipe, plan.family),
        trained.predictions,
        scores=trained.scores,
        lacking=trained.lacking,
        without=trained.without,
    )


def labelled(recipe: Recipe, clips: Sequence[Clip], split: str) -> list[Clip]:
    """The clips of a split that have the recipe's label, as the recipe's fold deals them."""
    dealt = in_fold(clips, recipe.fold)
    return [clip for clip in dealt if recipe.task.label in clip.labels and clip.split == split]
