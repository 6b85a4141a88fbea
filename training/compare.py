"""Models side by side on the same clips: is a difference more than the choice of test clips? Pure.

Paired bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993): clips are drawn
with replacement, the same for all models, and the metrics are computed on each draw. The middle
95 % of the differences are the interval; p is twice the share of draws that are not on the side of
most, counting one more, so that p is at most 0.05 just where the interval leaves 0 out. It says
nothing of seeds: their spread is told beside it. Where two models share seeds, and with them the
order of clips, their difference is the mean over these seeds alone; else all runs of both count.

Many comparisons find something by chance: p is corrected over all that are shown (Holm, "A Simple
Sequentially Rejective Multiple Test Procedure", 1979).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from tracking.scorecard import Better, interval
from tracking.strict_json import plain
from training.bootstrap import replicate, resamples
from training.metrics import DIRECTION, METRICS, Floats, metrics
from training.predicted import Predicted

DRAWS = 10_000


class IncomparableRunsError(ValueError):
    """Runs that were not scored on the same clips, or have other metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A metric of one model.

    Attributes:
        seeds: Of each of its runs.
        values: Likewise.
        mean: Over them.
        deviation: Over them (n - 1); NaN of a single one.
        interval: 95 %, of the mean, over the choice of clips; NaN where a draw is undefined.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    deviation: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A metric of one model over that of the first.

    Attributes:
        seeds: Those that both have, by which their runs are paired; empty where they share none.
        difference: Of the means: above 0 where it is greater, whatever is better.
        deviation: Of the differences by seed (n - 1); NaN of a single one, or of none.
        interval: 95 %; NaN where a draw is undefined.
        p: Two-sided; NaN where a draw is undefined.
        corrected: The same after Holm, over all differences of the comparison.
    """

    name: str
    metric: str
    seeds: tuple[int, ...]
    difference: float
    deviation: float
    interval: tuple[float, float]
    p: float
    corrected: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Models on one evaluation set.

    Attributes:
        evaluation_set: Its name.
        count: Its clips.
        draws: Of the bootstrap.
        better: The direction of each metric that is compared.
        scores: By model, by metric.
        differences: Each model but the first over the first, by metric.
    """

    evaluation_set: str
    count: int
    draws: int
    better: Mapping[str, Better]
    scores: Mapping[str, Mapping[str, Score]]
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for strict JSON: NaN is null."""
        return {
            "evaluation_set": self.evaluation_set,
            "count": self.count,
            "draws": self.draws,
            "better": dict(self.better),
            "models": {
                name: {metric: _score_to_json(score) for metric, score in scores.items()}
                for name, scores in self.scores.items()
            },
            "differences": [
                {
                    "model": each.name,
                    "metric": each.metric,
                    "seeds": list(each.seeds),
                    "difference": plain(each.difference),
                    "deviation": plain(each.deviation),
                    "interval": [plain(end) for end in each.interval],
                    "p": plain(each.p),
                    "p_holm": plain(each.corrected),
                }
                for each in self.differences
            ],
        }


def _score_to_json(score: Score) -> dict[str, Any]:
    return {
        "seeds": list(score.seeds),
        "values": [plain(value) for value in score.values],
        "mean": plain(score.mean),
        "deviation": plain(score.deviation),
        "interval": [plain(end) for end in score.interval],
    }


def compare(runs: Sequence[Predicted], names: Sequence[str] = (), draws: int = DRAWS) -> Comparison:
    """Compare models on the clips of one evaluation set.

    Args:
        runs: What was said of each clip. Runs of one family are seeds of one model; that of the
            first run is what the others are held against.
        names: Metrics to compare; all of the task where none is given.
        draws: Of the bootstrap.

    Raises:
        IncomparableRunsError: The runs are not of one evaluation set, or have not these metrics.
    """
    first = runs[0]
    _check(runs)
    known = METRICS[first.task.kind]
    if strange := [name for name in names if name not in known]:
        raise IncomparableRunsError(
            f"there is no metric {strange[0]!r} of {first.task.kind}; there are {', '.join(known)}"
        )
    chosen = [name for name in known if name in names or not names]
    found = {name: [_measured(run, draws) for run in mine] for name, mine in _models(runs).items()}
    scores = {
        name: {metric: _score(mine, metric) for metric in chosen} for name, mine in found.items()
    }
    reference, *others = scores
    differences = [
        _difference(name, metric, _pairs(found[name], found[reference]))
        for name in others
        for metric in chosen
    ]
    corrected = holm([each.p for each in differences])
    return Comparison(
        evaluation_set=first.evaluation_set,
        count=len(first.keys),
        draws=draws,
        better={metric: DIRECTION[metric] for metric in chosen},
        scores=scores,
        differences=tuple(
            replace(each, corrected=p) for each, p in zip(differences, corrected, strict=True)
        ),
    )


def paired_p(differences: Sequence[float]) -> float:
    """The two-sided p of a bootstrap's differences; NaN where one is undefined."""
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        return math.nan
    fewest = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return min(1.0, 2 * (1 + fewest) / (1 + len(values)))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's procedure, in their order; NaN stays, and is no comparison."""
    order = sorted((p, place) for place, p in enumerate(values) if not math.isnan(p))
    corrected, greatest = [math.nan] * len(values), 0.0
    for before, (p, place) in enumerate(order):
        greatest = max(greatest, min(1.0, (len(order) - before) * p))
        corrected[place] = greatest
    return corrected


def _check(runs: Sequence[Predicted]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if (run.evaluation_set, run.task) != (first.evaluation_set, first.task):
            raise IncomparableRunsError(
                f"{first.about.name} was scored on {len(first.keys)} clips of set "
                f"{first.evaluation_set[:12]}, {run.about.name} on {len(run.keys)} of "
                f"{run.evaluation_set[:12]}; compare runs that were scored on the same set"
            )


def _models(runs: Sequence[Predicted]) -> dict[str, list[Predicted]]:
    """The runs of each model by its name, in the order in which they were given."""
    families: dict[str, list[Predicted]] = {}
    for run in runs:
        families.setdefault(run.about.family or run.about.name, []).append(run)
    titles = {family: _title(mine[0]) for family, mine in families.items()}
    times = {title: list(titles.values()).count(title) for title in titles.values()}
    return {
        title if times[title] == 1 else f"{title} {family[:6]}": families[family]
        for family, title in titles.items()
    }


def _title(run: Predicted) -> str:
    """The name of a run without its seed."""
    return re.sub(r" seed \d+", "", run.about.name) or run.about.recipe


@dataclass(frozen=True, slots=True)
class _Measured:
    """Each metric of a run on the whole set, and on each draw."""

    seed: int
    whole: Mapping[str, float]
    drawn: Mapping[str, Floats]


Pair: TypeAlias = tuple[Sequence[_Measured], Sequence[_Measured]]


def _measured(run: Predicted, draws: int) -> _Measured:
    blocks = resamples(run.evaluation_set, len(run.keys), draws)
    drawn = replicate(run.task, run.truth, run.said, blocks)
    whole = metrics(run.task, run.truth, run.said)
    return _Measured(
        run.about.seed, whole, {name: np.array(values) for name, values in drawn.items()}
    )


def _pairs(ours: Sequence[_Measured], theirs: Sequence[_Measured]) -> dict[int | None, Pair]:
    """The runs of both by each seed that both have; all together where they share none."""
    shared = sorted({run.seed for run in ours} & {run.seed for run in theirs})
    if not shared:
        return {None: (ours, theirs)}
    return {
        seed: (
            [run for run in ours if run.seed == seed],
            [run for run in theirs if run.seed == seed],
        )
        for seed in shared
    }


def _score(runs: Sequence[_Measured], metric: str) -> Score:
    values = [run.whole[metric] for run in runs]
    return Score(
        seeds=tuple(run.seed for run in runs),
        values=tuple(values),
        mean=_mean(runs, metric),
        deviation=_deviation(values),
        interval=interval(_mean_drawn(runs, metric).tolist()),
    )


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _mean(runs: Sequence[_Measured], metric: str) -> float:
    return float(np.mean([run.whole[metric] for run in runs]))


def _mean_drawn(runs: Sequence[_Measured], metric: str) -> Floats:
    return np.asarray(np.mean([run.drawn[metric] for run in runs], axis=0))


def _difference(name: str, metric: str, pairs: Mapping[int | None, Pair]) -> Difference:
    """The mean over pairs of what the first of each has over the second."""
    whole: list[float] = []
    drawn: list[Floats] = []
    for ours, theirs in pairs.values():
        whole.append(_mean(ours, metric) - _mean(theirs, metric))
        drawn.append(_mean_drawn(ours, metric) - _mean_drawn(theirs, metric))
    draws = np.mean(drawn, axis=0).tolist()
    p = paired_p(draws)
    return Difference(
        name=name,
        metric=metric,
        seeds=tuple(seed for seed in pairs if seed is not None),
        difference=float(np.mean(whole)),
        deviation=_deviation(whole),
        interval=interval(draws),
        p=p,
        corrected=p,
    )
