"""Metrics over a whole evaluation set, never averaged over batches. Pure.

Each is a function of sums over clips, so that all replicates of a bootstrap are one product of
matrices: how often each clip was drawn, times what each clip adds; see `training.bootstrap`.

The definitions for sentiment in [-3, 3] are those of MMSA (thuiar/MMSA): "has0" takes every clip
and asks for non-negative or negative, "non0" leaves out truths of exactly 0 and asks for positive
or negative; F1 is weighted by the support in the truth, never in the prediction; Acc-7, Acc-5 and
Acc-3 compare scores that are cut to [-3, 3], [-2, 2] and [-1, 1] and rounded half to even.

Of several labels at once, accuracy and weighted F1 are means over the labels, each seen as a
question of yes or no, which is how MulT (Tsai et al., "Multimodal Transformer for Unaligned
Multimodal Language Sequences", 2019) reports IEMOCAP.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tracking.scorecard import Better
from training.recipe import Task, TaskKind

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Terms: TypeAlias = Mapping[str, Floats]
"""What each clip adds, [N, C] by name; or sums of it, [R, C] for R draws of clips."""
Metric: TypeAlias = Callable[[Terms], Floats]
"""From sums [R, C] to [R]; NaN where it is undefined."""

# What varies less than this share of its size does so by rounding alone.
STILL = 1e-12


def terms(task: Task, truth: Floats, said: Floats) -> dict[str, Floats]:
    """What each clip adds to the sums that the task's metrics are made of: [N, C] by name.

    Args:
        task: Decides which.
        truth: [N] numbers or indexes of classes; [N, K] of 0 and 1 for several labels.
        said: Likewise. All of them finite.
    """
    match task.kind:
        case "regression":
            return _terms_of_numbers(truth, said)
        case "classes":
            indexes = np.arange(len(task.classes))
            return {"classes": _agreement(_each(truth, indexes), _each(said, indexes))}
        case "labels":
            all_right = (truth == said).all(axis=1).astype(np.float64)
            return {
                "clips": np.ones((len(truth), 1)),
                "all_right": all_right[:, np.newaxis],
                "classes": _agreement(truth > 0, said > 0),
            }


def whole(parts: Terms) -> dict[str, Floats]:
    """The sums over every clip once: [1, C] by name."""
    return {name: each.sum(axis=0, keepdims=True) for name, each in parts.items()}


def drawn(parts: Terms, times_RN: Floats) -> dict[str, Floats]:
    """The sums over draws of clips: [R, C] by name.

    Args:
        parts: See `terms`.
        times_RN: How often each clip is in each draw.
    """
    ends = np.cumsum([each.shape[1] for each in parts.values()])[:-1]
    sums = times_RN @ np.concatenate(list(parts.values()), axis=1)
    return dict(zip(parts, np.split(sums, ends, axis=1), strict=True))


def measured(task: Task, sums: Terms) -> dict[str, Floats]:
    """Every metric of a task from sums [R, C]: [R] by name."""
    return {name: metric(sums) for name, metric in METRICS[task.kind].items()}


def metrics(task: Task, truth: Floats, said: Floats) -> dict[str, float]:
    """Every metric of a task over a whole set.

    Args:
        task: Decides which metrics.
        truth: As in `terms`.
        said: As in `terms`. One NaN or infinity makes every metric NaN, so it never wins.
    """
    if not np.isfinite(said).all():
        # The comparisons would silently answer False.
        return dict.fromkeys(METRICS[task.kind], np.nan)
    found = measured(task, whole(terms(task, truth, said)))
    return {name: float(values[0]) for name, values in found.items()}


def undefined(task: Task, truth: Floats, said: Floats) -> dict[str, str]:
    """Why metrics are NaN: a sentence for each one that is."""
    names = [name for name, value in metrics(task, truth, said).items() if np.isnan(value)]
    rows = np.isfinite(said).reshape(len(said), -1).all(axis=1)
    if broken := int((~rows).sum()):
        return dict.fromkeys(names, f"{broken} of {len(said)} predictions are NaN or infinite")
    still = "the truth" if np.ptp(truth) == 0 else "the prediction"
    reasons = {"corr": f"{still} is the same number for every clip"}
    zeros = "the truth of every clip is exactly 0"
    reasons |= {"acc2_non0": zeros, "f1_non0": zeros}
    return {name: reasons.get(name, "no clip has any label, or is said to") for name in names}


def confusion(task: Task, truth: Floats, said: Floats) -> NDArray[np.int64]:
    """How often what was said of what: counts, rows are the truth, columns the prediction.

    Args:
        task: Of classes: [K, K]. Of several labels: a table for each, [K, 2, 2], of no and yes.
        truth: As in `terms`.
        said: As in `terms`, all of them finite.
    """
    if task.kind == "labels":
        one = Task(kind="classes", label=task.label, classes=("no", "yes"))
        return np.stack([confusion(one, *each) for each in zip(truth.T, said.T, strict=True)])
    size = len(task.classes)
    pairs = truth.astype(np.int64) * size + said.astype(np.int64)
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def by_class(task: Task, truth: Floats, said: Floats) -> dict[str, dict[str, float]]:
    """Each class by itself: support in the truth, precision, recall and F1.

    Of several labels each as a question of yes or no, with its accuracy, and its F1 weighted by the
    support of both answers. NaN where it is undefined: the recall of a class that is not in the
    truth, the precision of one that is never said.
    """
    sums = whole(terms(task, truth, said))
    hits, true, told = _unpacked(sums["classes"])[:, 0]
    found = {
        name: {
            "support": float(true[k]),
            "precision": float(_ratio(hits[k], told[k])),
            "recall": float(_ratio(hits[k], true[k])),
            "f1": float(_ratio(2 * hits[k], true[k] + told[k])),
        }
        for k, name in enumerate(task.classes)
    }
    if task.kind == "labels":
        answers = zip(task.classes, _right(sums)[0], _f1_of_answers(sums)[0], strict=True)
        for name, right, f1 in answers:
            found[name] |= {"accuracy": float(right), "f1_weighted": float(f1)}
    return found


def _terms_of_numbers(truth: Floats, said: Floats) -> dict[str, Floats]:
    x, y = _centred(truth), _centred(said)
    every, sides = np.ones(truth.shape, dtype=bool), (False, True)
    return {
        "error": np.abs(said - truth)[:, np.newaxis],
        "moments": np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1),
        "same": np.stack([_same(truth, said, limit) for limit in (3, 2, 1)], axis=1),
        "has0": _agreement(_each(truth >= 0, sides), _each(said >= 0, sides), every),
        "non0": _agreement(_each(truth > 0, sides), _each(said > 0, sides), truth != 0),
    }


def _centred(values: Floats) -> Floats:
    """Values without their mean; exactly 0 where all are equal, whose mean may be rounded."""
    return np.zeros_like(values) if np.ptp(values) == 0 else values - values.mean()


def _same(truth: Floats, said: Floats, limit: int) -> Floats:
    """1 for clips with the same whole number in [-limit, limit]."""
    both = (np.round(np.clip(values, -limit, limit)) for values in (truth, said))
    return np.equal(*both).astype(np.float64)


def _each(values: Floats | Bools, among: Floats | NDArray[np.int64] | tuple[bool, ...]) -> Bools:
    """Which of some values each clip has: [N, K]."""
    has: Bools = values[:, np.newaxis] == np.asarray(among)
    return has


def _agreement(truth_NK: Bools, said_NK: Bools, counts_N: Bools | None = None) -> Floats:
    """For each of K classes whether a clip is a hit, is in the truth, is said: [N, 3 K].

    Only clips where `counts_N` is True are looked at.
    """
    three = np.concatenate([truth_NK & said_NK, truth_NK, said_NK], axis=1).astype(np.float64)
    return three if counts_N is None else three * counts_N[:, np.newaxis]


def _unpacked(sums: Floats) -> Floats:
    """Hits, truth and said: [3, R, K] from [R, 3 K]."""
    return np.stack(np.split(sums, 3, axis=1))


def _ratio(above: Floats, below: Floats) -> Floats:
    there = below > 0
    return np.where(there, above / np.where(there, below, 1.0), np.nan)


def _mean_of_defined(values_RK: Floats) -> Floats:
    """The mean of those that are not NaN; NaN where all are."""
    there = ~np.isnan(values_RK)
    return _ratio(np.where(there, values_RK, 0.0).sum(axis=1), there.sum(axis=1))


def _mae(sums: Terms) -> Floats:
    """Mean absolute error, unclipped."""
    return sums["error"][:, 0] / sums["moments"][:, 0]


def _corr(sums: Terms) -> Floats:
    """Pearson's correlation; NaN where either side does not vary."""
    n, x, y, xx, yy, xy = sums["moments"].T
    of_x, of_y = xx - x * x / n, yy - y * y / n
    varies = (of_x > STILL * xx) & (of_y > STILL * yy)
    below = np.sqrt(np.where(varies, of_x * of_y, 0.0))
    return np.clip(_ratio(xy - x * y / n, below), -1.0, 1.0)


def _share_same(place: int) -> Metric:
    return lambda sums: sums["same"][:, place] / sums["moments"][:, 0]


def _accuracy(name: str) -> Metric:
    """Share of clips in the right class, of those that are looked at."""

    def accuracy(sums: Terms) -> Floats:
        hits, true, _ = _unpacked(sums[name])
        return _ratio(hits.sum(axis=1), true.sum(axis=1))

    return accuracy


def _f1_weighted(name: str) -> Metric:
    """F1 = 2 TP / (2 TP + FP + FN) of each class, weighted by its support in the truth."""

    def f1_weighted(sums: Terms) -> Floats:
        hits, true, told = _unpacked(sums[name])
        f1 = 2 * hits / np.maximum(true + told, 1)
        return _ratio((true * f1).sum(axis=1), true.sum(axis=1))

    return f1_weighted


def _f1_macro(sums: Terms) -> Floats:
    """Mean F1 over the classes or labels that occur in the truth or the prediction."""
    hits, true, told = _unpacked(sums["classes"])
    return _mean_of_defined(_ratio(2 * hits, true + told))


def _uar(sums: Terms) -> Floats:
    """Unweighted average recall: the mean over the classes that occur in the truth."""
    hits, true, _ = _unpacked(sums["classes"])
    return _mean_of_defined(_ratio(hits, true))


def _f1_micro(sums: Terms) -> Floats:
    """F1 of all answers "yes" together, whatever the label."""
    hits, true, told = _unpacked(sums["classes"]).sum(axis=2)
    return _ratio(2 * hits, true + told)


def _right(sums: Terms) -> Floats:
    """For each label the share of clips of which it is rightly said or not said: [R, K]."""
    hits, true, told = _unpacked(sums["classes"])
    right: Floats = 1 - (true + told - 2 * hits) / sums["clips"]
    return right


def _f1_of_answers(sums: Terms) -> Floats:
    """For each label the F1 of yes and of no, weighted by their support in the truth: [R, K]."""
    clips = sums["clips"]
    hits, true, told = _unpacked(sums["classes"])
    yes = true * 2 * hits / np.maximum(true + told, 1)
    neither = clips - true - told + hits
    no = (clips - true) * 2 * neither / np.maximum(2 * clips - true - told, 1)
    f1: Floats = (yes + no) / clips
    return f1


METRICS: Mapping[TaskKind, Mapping[str, Metric]] = {
    "regression": {
        "mae": _mae,
        "corr": _corr,
        "acc2_has0": _accuracy("has0"),
        "acc2_non0": _accuracy("non0"),
        "f1_has0": _f1_weighted("has0"),
        "f1_non0": _f1_weighted("non0"),
        "acc7": _share_same(0),
        "acc5": _share_same(1),
        "acc3": _share_same(2),
    },
    "classes": {
        "accuracy": _accuracy("classes"),
        "uar": _uar,
        "f1_weighted": _f1_weighted("classes"),
        "f1_macro": _f1_macro,
    },
    "labels": {
        "f1_macro": _f1_macro,
        "f1_micro": _f1_micro,
        "subset_accuracy": lambda sums: (sums["all_right"] / sums["clips"])[:, 0],
        "label_accuracy": lambda sums: _right(sums).mean(axis=1),
        "label_f1_weighted": lambda sums: _f1_of_answers(sums).mean(axis=1),
    },
}
"""The metrics of each kind of task."""

DIRECTION: Mapping[str, Better] = {
    name: "lower" if name == "mae" else "higher" for known in METRICS.values() for name in known
}
