"""Metrics over a whole evaluation set, never averaged over batches, and the scorecard made of them.

Every clip of a set is scored: one that lacks a stream with that stream masked, one of which nothing
can be read with the training mean or the commonest class. All metrics take arrays [..., N] and give
[...], so that the replicates of a bootstrap are computed at once.

The definitions for sentiment in [-3, 3] are those of MMSA (thuiar/MMSA): "has0" takes every clip
and asks for non-negative or negative, "non0" leaves out truths of exactly 0 and asks for positive
or negative; F1 is weighted by the support in the truth; Acc-7 and Acc-5 round half to even.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from featurizers.clip import Clip
from featurizers.spec import canonical_json
from tracking.gate import Better, Scorecard
from training.data import Samples, is_empty, target_of
from training.predict import decide, outputs
from training.recipe import Task

Floats: TypeAlias = NDArray[np.float64]
Metric: TypeAlias = Callable[[Floats, Floats], Floats]

REPLICATES = 1000
CONFIDENCE = 0.95
# Numbers that the arrays of one block of replicates may hold: 16 MB each.
BLOCK = 2_000_000


def mae(truth: Floats, predicted: Floats) -> Floats:
    """Mean absolute error, unclipped."""
    return _mean(np.abs(predicted - truth))


def corr(truth: Floats, predicted: Floats) -> Floats:
    """Pearson's correlation; NaN where either side does not vary."""
    x = truth - truth.mean(axis=-1, keepdims=True)
    y = predicted - predicted.mean(axis=-1, keepdims=True)
    return _ratio(_sum(x * y), np.sqrt(_sum(x * x) * _sum(y * y)))


def acc2_has0(truth: Floats, predicted: Floats) -> Floats:
    """Share of clips that are put on the right side of non-negative and negative."""
    return _mean((predicted >= 0) == (truth >= 0))


def acc2_non0(truth: Floats, predicted: Floats) -> Floats:
    """Share of clips with a truth other than 0 that are put on the right side of 0."""
    counts = truth != 0
    return _ratio(_sum(counts & ((predicted > 0) == (truth > 0))), _sum(counts))


def f1_has0(truth: Floats, predicted: Floats) -> Floats:
    """F1 of non-negative and negative, weighted by their support in the truth."""
    return _f1(truth >= 0, predicted >= 0, np.ones_like(truth, dtype=bool), (False, True))


def f1_non0(truth: Floats, predicted: Floats) -> Floats:
    """F1 of positive and negative among clips with a truth other than 0."""
    return _f1(truth > 0, predicted > 0, truth != 0, (False, True))


def acc7(truth: Floats, predicted: Floats) -> Floats:
    """Share of clips with the same whole number in [-3, 3]."""
    return _same_number(truth, predicted, 3)


def acc5(truth: Floats, predicted: Floats) -> Floats:
    """Share of clips with the same whole number in [-2, 2]."""
    return _same_number(truth, predicted, 2)


def accuracy(truth: Floats, predicted: Floats) -> Floats:
    """Share of clips in the right class."""
    return _mean(truth == predicted)


def uar(truth: Floats, predicted: Floats) -> Floats:
    """Unweighted average recall: the mean over the classes that occur in the truth."""
    recalls, present = np.zeros(truth.shape[:-1]), np.zeros(truth.shape[:-1])
    for label in np.unique(truth):
        support = _sum(truth == label)
        recalls += _sum((truth == label) & (predicted == label)) / np.maximum(support, 1)
        present += support > 0
    return _ratio(recalls, present)


def f1_weighted(truth: Floats, predicted: Floats) -> Floats:
    """F1 of each class, weighted by its support in the truth."""
    return _f1(truth, predicted, np.ones_like(truth, dtype=bool), tuple(np.unique(truth)))


REGRESSION: Mapping[str, Metric] = {
    "mae": mae,
    "corr": corr,
    "acc2_has0": acc2_has0,
    "acc2_non0": acc2_non0,
    "f1_has0": f1_has0,
    "f1_non0": f1_non0,
    "acc7": acc7,
    "acc5": acc5,
}
CLASSES: Mapping[str, Metric] = {"accuracy": accuracy, "uar": uar, "f1_weighted": f1_weighted}
DIRECTION: Mapping[str, Better] = {
    name: "lower" if name == "mae" else "higher" for name in [*REGRESSION, *CLASSES]
}


def metrics(task: Task, truth: Floats, predicted: Floats) -> dict[str, float]:
    """Every metric of a task over a whole set.

    Args:
        task: Decides which metrics.
        truth: [N] numbers, or indexes of classes.
        predicted: [N] likewise. One NaN or infinity makes every metric NaN, so it never wins.
    """
    return {name: float(values) for name, values in _measured(task, truth, predicted).items()}


def resamples(evaluation_set: str, count: int, replicates: int) -> NDArray[np.int64]:
    """Clips drawn with replacement, [replicates, count]; equal for all models on a set."""
    generator = np.random.Generator(np.random.PCG64(int(evaluation_set, 16)))
    return generator.integers(0, count, size=(replicates, count))


def replicate(
    task: Task, truth: Floats, predicted: Floats, draws: NDArray[np.int64]
) -> dict[str, tuple[float, ...]]:
    """Every metric on every draw of a bootstrap, in order of the draws."""
    rows = max(1, BLOCK // len(truth))
    parts: dict[str, list[float]] = {name: [] for name in _of(task)}
    broken = not np.isfinite(predicted).all()
    for first in range(0, len(draws), rows):
        block = draws[first : first + rows]
        values = _measured(task, truth[block], predicted[block])
        for name, each in values.items():
            parts[name] += [math.nan] * len(block) if broken else each.tolist()
    return {name: tuple(values) for name, values in parts.items()}


def paired_bound(ours: Sequence[float], theirs: Sequence[float], better: Better) -> float:
    """Lower end of the 95 % interval of how much better ours is, from paired replicates.

    Percentile interval of the paired bootstrap (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 13), on the order statistic that errs to the outside. NaN when a
    replicate is.

    Args:
        ours: A metric on each draw.
        theirs: The same metric of another model on the same draws.
        better: The metric's direction.
    """
    sign = 1.0 if better == "higher" else -1.0
    gains = sorted(sign * (a - b) for a, b in zip(ours, theirs, strict=True))
    if not all(math.isfinite(gain) for gain in gains):
        return math.nan
    outside = math.floor((len(gains) + 1) * (1 - CONFIDENCE) / 2 + 1e-9)
    return gains[max(outside - 1, 0)]


def evaluation_set(clips: Sequence[Clip], label: str) -> str:
    """The name of a set of clips: sha256 in hex of what is scored and of the truth.

    Features are not in it: models that read other features are compared on the same set.
    """
    content = [
        [clip.key, clip.media_digest, *_chosen(clip), clip.start, clip.end, clip.labels[label]]
        for clip in _sorted(clips)
    ]
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _chosen(clip: Clip) -> list[list[str]]:
    """The streams that were chosen, if any was."""
    chosen = [clip.audio_stream, clip.video_stream]
    return [chosen] if any(chosen) else []


def predictions(
    model: nn.Module, samples: Samples, task: Task, fallback: float
) -> dict[str, float]:
    """A prediction for every labelled clip of a split, by key: a number, or the index of a class.

    Args:
        model: In main memory; is put into evaluation mode.
        samples: The split.
        task: What is predicted.
        fallback: For clips of which nothing can be read; see `training.data.fallback_of`.
    """
    found = dict.fromkeys((clip.key for clip in samples.clips), fallback)
    readable = [sample for key in samples.keys if not is_empty(sample := samples.sample(key))]
    if readable:
        decided = decide(task, outputs(model, readable, samples.widths)).tolist()
        found.update(zip((sample.key for sample in readable), decided, strict=True))
    return found


def scorecard(
    clips: Sequence[Clip],
    predicted: Mapping[str, float],
    task: Task,
    train_clips: Sequence[Clip],
    *,
    parity: bool | None,
    replicates: int = REPLICATES,
) -> Scorecard:
    """All that training tells promotion about one model.

    Args:
        clips: The evaluation set, labelled; their order does not matter.
        predicted: For each of their keys a number, or the index of a class.
        task: What is predicted.
        train_clips: Speakers and sources that are here too are reported as leaks.
        parity: Whether the registered model computes the features that training read; None when
            nobody looked.
        replicates: Draws of the bootstrap.

    Raises:
        ValueError: There are no clips, or a clip has no prediction.
    """
    ordered = _sorted(clips)
    if not ordered:
        raise ValueError("a scorecard of no clips says nothing; give a test split with labels")
    if missing := [clip.id for clip in ordered if clip.key not in predicted]:
        raise ValueError(f"{len(missing)} clips have no prediction, the first is {missing[0]!r}")
    truth = np.array([target_of(clip, task) for clip in ordered], dtype=np.float64)
    said = np.array([predicted[clip.key] for clip in ordered], dtype=np.float64)
    name = evaluation_set(ordered, task.label)
    found = metrics(task, truth, said)
    return Scorecard(
        evaluation_set=name,
        count=len(ordered),
        metrics=found,
        better={metric: DIRECTION[metric] for metric in found},
        replicates=replicate(task, truth, said, resamples(name, len(ordered), replicates)),
        leaks=leaks(ordered, train_clips),
        parity=parity,
    )


def leaks(clips: Sequence[Clip], train_clips: Sequence[Clip]) -> tuple[str, ...]:
    """Speakers and sources that are on both sides, sorted."""
    here, there = _origins(clips), _origins(train_clips)
    return tuple(sorted(here & there))


def _origins(clips: Sequence[Clip]) -> set[str]:
    speakers = {f"speaker {clip.speaker}" for clip in clips if clip.speaker}
    return speakers | {f"source {clip.source}" for clip in clips if clip.source}


def _sorted(clips: Sequence[Clip]) -> list[Clip]:
    return sorted(clips, key=lambda clip: clip.key)


def _of(task: Task) -> Mapping[str, Metric]:
    return REGRESSION if task.kind == "regression" else CLASSES


def _measured(task: Task, truth: Floats, predicted: Floats) -> dict[str, Floats]:
    finite = np.isfinite(predicted).all(axis=-1)
    # Where a number is missing the comparisons below would silently answer False.
    safe = np.where(np.isfinite(predicted), predicted, 0.0)
    return {
        name: np.where(finite, metric(truth, safe), np.nan) for name, metric in _of(task).items()
    }


def _sum(values: NDArray[np.bool_] | Floats) -> Floats:
    total: Floats = values.sum(axis=-1, dtype=np.float64)
    return total


def _mean(values: NDArray[np.bool_] | Floats) -> Floats:
    mean: Floats = _sum(values) / values.shape[-1]
    return mean


def _ratio(above: Floats, below: Floats) -> Floats:
    there = below > 0
    return np.where(there, above / np.where(there, below, 1.0), np.nan)


def _same_number(truth: Floats, predicted: Floats, limit: int) -> Floats:
    return _mean(
        np.round(np.clip(predicted, -limit, limit)) == np.round(np.clip(truth, -limit, limit))
    )


def _f1(
    truth: NDArray[np.bool_] | Floats,
    predicted: NDArray[np.bool_] | Floats,
    counts: NDArray[np.bool_],
    labels: Sequence[float],
) -> Floats:
    """F1 = 2 TP / (2 TP + FP + FN) of each label, weighted by its support in the truth.

    Only clips where `counts` is True are looked at.
    """
    weighted = np.zeros(truth.shape[:-1])
    for label in labels:
        is_true, is_said = counts & (truth == label), counts & (predicted == label)
        support, said = _sum(is_true), _sum(is_said)
        weighted += support * 2 * _sum(is_true & is_said) / np.maximum(support + said, 1)
    return _ratio(weighted, _sum(counts))
