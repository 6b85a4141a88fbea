"""What a finished run came to, gathered for people: how it went, what it says of each test clip.

All of it lies in the run's folder and in the dataset, so that a page can be made of it without the
tracking server, now or later.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from featurizers.clip import Clip
from featurizers.manifest import Column
from featurizers.spec import FeatureSpec
from pipelines.featurize import Balance, ledger
from pipelines.lineage import Start, standing_lineage
from pipelines.masks import Step, Why, choose, masks
from pipelines.plans import PROGRESS, RUN, SCORECARD, Trained, labelled, score_test
from pipelines.tracked import attempts
from tracking.scorecard import Scorecard
from training.data import target_of
from training.recipe import Recipe, Target, Task

SHARE = "time/"
"""What the names of shares of time begin with in a run's progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says of one labelled test clip.

    Attributes:
        key, id: Of the clip.
        truth, said: As `training.recipe.Target`; NaN is said where the model gave none.
        lacking: The streams that it lacks.
        without: By stream, what is said when it is taken away.
    """

    key: str
    id: str
    truth: Target
    said: Target
    lacking: tuple[str, ...] = ()
    without: Mapping[str, Target] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """How far off: the distance of numbers, the share of wrong labels, or 1 for a wrong class.

        Infinite where nothing finite is said.
        """
        truth, said = np.atleast_1d(self.truth), np.atleast_1d(self.said)
        if not np.isfinite(said).all():
            return math.inf
        if isinstance(self.truth, int):
            return float((truth != said).mean())
        return float(np.abs(truth - said).mean())


@dataclass(frozen=True, slots=True)
class Noted:
    """What a run noted of an epoch when it was over; of one trained again, the last time.

    Attributes:
        attempt: How often the run had been begun, from 1.
        ranks: How many trained it; 0 where that was not noted.
        shares: Of the epoch's time, by what it went into.
    """

    attempt: int
    ranks: int
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Resumed:
    """A run went on in another attempt.

    Attributes:
        epoch: The first that the attempt ended, from 0.
        again: Epochs that had been ended before, and were trained once more.
        ranks: As of `Noted`.
    """

    attempt: int
    epoch: int
    again: int
    ranks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A stream of a run: its feature, and the manifest that it was read by."""

    spec: FeatureSpec
    manifest: str
    balance: Balance


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished run.

    Attributes:
        dataset: Its name.
        history: Metrics by epoch.
        noted: By epoch, for those of which something was noted.
        resumed: In order of time.
        attempts: How often the run was begun; 0 where that is not known.
        card: On the labelled test clips.
        answers: On each of them, sorted by key.
        sources: By stream, in the model's order.
        starts: The weights that it began with.
        made_by: What is known of code, versions and machine, by name.
        masks: Of a model with feedback how far it let each stream through, for a few clips by key,
            from the one with the least error to the one with the largest.
        chosen: Why these, by key.
    """

    name: str
    run_id: str
    dataset: str
    recipe: Recipe
    best_epoch: int
    standing: float
    history: Sequence[Mapping[str, float]]
    noted: Mapping[int, Noted]
    resumed: tuple[Resumed, ...]
    attempts: int
    card: Scorecard
    answers: tuple[Answer, ...]
    sources: Mapping[str, Source]
    starts: Sequence[Start]
    made_by: Mapping[str, str]
    masks: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    chosen: Mapping[str, Why] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.recipe.task


def result_of(trained: Trained, clips: Sequence[Clip], columns: Mapping[str, Column]) -> Result:
    """Gather what is known of a finished run.

    Args:
        trained: The run.
        clips: All clips of the dataset, with their folds where the run is of one.
        columns: At least those that it was trained on, by stream.
    """
    plan = trained.plan
    streams = plan.recipe.model.streams
    used = {stream: columns[stream] for stream in streams}
    noted, resumed = _course(plan.folder / PROGRESS, len(trained.history))
    answers = tuple(_answers(trained, clips))
    # Of a clip that lacks a stream, masks say little.
    fewest = min((len(each.lacking) for each in answers), default=0)
    chosen = choose({each.key: each.error for each in answers if len(each.lacking) == fewest})
    lineage = standing_lineage(plan.folder)
    by_key = {clip.key: clip for clip in clips if clip.key in chosen}
    return Result(
        name=plan.name,
        run_id=trained.run_id,
        dataset=str(plan.root).rstrip("/").rpartition("/")[2],
        recipe=plan.recipe,
        best_epoch=trained.best_epoch,
        standing=trained.standing,
        history=trained.history,
        noted=noted,
        resumed=resumed,
        attempts=attempts(plan),
        card=_card(trained, clips),
        answers=answers,
        sources={
            balance.stream: Source(
                spec=used[balance.stream].spec,
                manifest=used[balance.stream].digest,
                balance=balance,
            )
            for balance in ledger(used)
        },
        starts=lineage.starts if lineage else (),
        made_by=made_by_of(plan.folder),
        masks=masks(trained.predictor, plan.recipe, [by_key[key] for key in chosen], used),
        chosen=chosen,
    )


def _card(trained: Trained, clips: Sequence[Clip]) -> Scorecard:
    """The scorecard, with what registration found where it was of the same clips."""
    card = score_test(trained, clips, parity=None)
    file = trained.plan.folder / SCORECARD
    if not file.is_file():
        return card
    registered = Scorecard.from_json(json.loads(file.read_bytes()))
    same = registered.evaluation_set == card.evaluation_set
    if not same:
        return card
    return replace(
        card,
        parity=registered.parity,
        duplicates=registered.duplicates,
        reproducible=registered.reproducible,
    )


def _answers(trained: Trained, clips: Sequence[Clip]) -> list[Answer]:
    task = trained.plan.recipe.task
    return [
        Answer(
            key=clip.key,
            id=clip.id,
            truth=target_of(clip, task),
            said=trained.predictions[clip.key],
            lacking=tuple(trained.lacking[clip.key]),
            without={name: said[clip.key] for name, said in sorted(trained.without.items())},
        )
        for clip in sorted(labelled(trained.plan.recipe, clips, "test"), key=lambda clip: clip.key)
    ]


def _course(file: Path, epochs: int) -> tuple[dict[int, Noted], tuple[Resumed, ...]]:
    """What a run noted while it went, and where it was resumed."""
    noted: dict[int, Noted] = {}
    resumed: list[Resumed] = []
    reached, attempt = -1, 1
    for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
        if not line.endswith(b"\n") or "epoch" not in (entry := json.loads(line)):
            continue
        epoch, number, ranks = entry["epoch"], entry.get("attempt") or 1, entry.get("ranks", 0)
        if number > attempt:
            attempt = number
            resumed.append(Resumed(number, epoch, max(0, reached + 1 - epoch), ranks))
        reached = max(reached, epoch)
        shares = {
            name.removeprefix(SHARE): value
            for name, value in entry["metrics"].items()
            if name.startswith(SHARE)
        }
        noted[epoch] = Noted(number, ranks, shares)
    return {epoch: noted[epoch] for epoch in sorted(noted) if epoch < epochs}, tuple(resumed)


def made_by_of(folder: Path) -> dict[str, str]:
    """Code, versions and machine, as the run of a folder was told of them when it was made."""
    file = folder / RUN
    if not file.is_file():
        return {}
    made_by: dict[str, str] = json.loads(file.read_bytes()).get("made_by", {})
    return dict(sorted(made_by.items()))
