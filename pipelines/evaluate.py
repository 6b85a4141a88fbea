"""The scorecards of an experiment's finished runs, and the tables that people read of one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featurizers.clip import Clip
from featurizers.dataset import read_clips
from featurizers.manifest import Column
from pipelines.experiment import Experiment, InputError
from pipelines.featurize import finished
from pipelines.folds import with_folds
from pipelines.plans import Trained, plan_run, read, score_test
from pipelines.run import recipes_of
from pipelines.show import with_interval
from pipelines.sources import task_of
from tracking.parts import Calibration, Latency, Part
from tracking.scorecard import Scorecard

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The finished runs of an experiment, with what they were trained and tested on."""

    trained: Sequence[Trained]
    clips: Sequence[Clip]
    columns: Mapping[str, Column]

    @property
    def cards(self) -> dict[str, Scorecard]:
        """The scorecard of each run on the labelled test clips, by the run's name."""
        return {each.plan.name: score_test(each, self.clips, parity=None) for each in self.trained}


def evaluate(experiment: Experiment) -> Evaluated:
    """The run of each seed and fold.

    Raises:
        InputError: A run is not trained as the experiment stands.
    """
    columns, standing = finished(experiment), read_clips(experiment.root)
    task = task_of(experiment, standing)
    recipes = recipes_of(experiment, task)
    clips = with_folds(experiment, standing, task, write=False)
    plans = [plan_run(experiment.root, experiment.work, columns, each, clips) for each in recipes]
    if missing := [plan.name for plan in plans if not plan.finished]:
        raise InputError(
            f"{len(missing)} of {len(plans)} runs are not trained as the experiment stands, the "
            f"first is {missing[0]}; `fuseline train` trains them"
        )
    return Evaluated([read(plan) for plan in plans], clips, columns)


def tables(card: Scorecard) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of each table: classes, streams, groups, calibration; those that there are."""
    if card.by_class:
        yield "by class", [{"class": name, **values} for name, values in card.by_class.items()]
    if card.confusion:
        yield "confusion", list(_confusion(card))
    if len(card.as_found) > 1:
        yield "clips by the streams that they lack", _by_metric(card.as_found)
    if card.as_asked:
        whole = Part(streams=(), count=card.count, metrics=card.metrics, intervals=card.intervals)
        yield "all clips, with streams taken away", _by_metric([whole, *card.as_asked])
    if len(card.by_group) > 1:
        yield "by group of speakers", list(_by_group(card))
    if card.calibration is not None:
        yield from _calibration(card.calibration)
    if card.latency is not None:
        yield "seconds of the model alone for one clip", [_latency(card.latency)]


def _confusion(card: Scorecard) -> Iterator[Row]:
    for name, counts in zip(card.by_class, card.confusion, strict=True):
        if isinstance(counts[0], int):
            said: Mapping[str, object] = dict(zip(card.by_class, counts, strict=True))
            yield {"truth": name, **{f"said {each}": count for each, count in said.items()}}
        else:
            (right, added), (left_out, hit) = counts
            yes = {"has it, said": hit, "has it, not said": left_out}
            yield {"label": name, **yes, "not, said": added, "not, not said": right}


def _by_group(card: Scorecard) -> Iterator[Row]:
    for each in card.by_group:
        scores = {
            name: with_interval(value, each.intervals[name]) for name, value in each.metrics.items()
        }
        yield {"speakers": each.name, "clips": each.count, **scores}


def _calibration(found: Calibration) -> Iterator[tuple[str, list[Row]]]:
    headings = ("mean prediction", "mean truth", "mean absolute error")
    if found.kind != "regression":
        headings = ("mean probability", "share right", "distance")
    rows: list[Row] = [
        {
            "from": each.low,
            "to": each.high,
            "clips": each.count,
            **dict(zip(headings, (each.predicted, each.observed, each.error), strict=True)),
        }
        for each in found.bins
    ]
    yield "calibration", [dict(found.numbers)]
    yield "calibration by what was said", rows


def _latency(found: Latency) -> Row:
    times = {"median": found.median_s, "95th percentile": found.p95_s}
    return {**times, "clips": found.clips, "machine": found.machine}


def _by_metric(parts: Sequence[Part]) -> list[Row]:
    """A column for each part, by what is missing; a row for the clips, and for each metric."""
    names = [", ".join(part.streams) or "nothing" for part in parts]
    counts = dict(zip(names, (str(part.count) for part in parts), strict=True))
    rows: list[Row] = [{"missing": "clips", **counts}]
    for metric in parts[0].metrics:
        scores = (with_interval(part.metrics[metric], part.intervals[metric]) for part in parts)
        rows.append({"missing": metric, **dict(zip(names, scores, strict=True))})
    return rows
