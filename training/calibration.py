"""Do a model's numbers mean what they say? Pure.

Classes: of the clips that a calibrated model is 80 % sure of, 80 % are right. Reliability bins of
equal width in the probability of the class that was said, and their mean distance, weighted by
count, the expected calibration error (Naeini et al., "Obtaining Well Calibrated Probabilities Using
Bayesian Binning", AAAI 2015; Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
The Brier score is the mean over clips of the squared distance of all probabilities from the truth
(Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950): 0 to 2 for classes.

Several labels: every answer "yes" or "no" to a label is one forecast; the probability is that of
"yes", and the Brier score is the mean over answers: 0 to 1.

Regression: a model that leans to the middle has small errors in the middle and large ones at the
ends, which the mean absolute error hides. So errors are told by the predicted number, in bins of
equal count; by the line of the truth over the prediction, whose slope is 1 and intercept 0 for a
calibrated model (Mincer and Zarnowitz, "The Evaluation of Economic Forecasts", 1969); and by
quantiles of said - true.
"""

import numpy as np

from tracking.parts import Bin, Calibration
from training.metrics import STILL, Floats
from training.recipe import Task

BINS = 10
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def calibration(task: Task, truth: Floats, said: Floats, scores: Floats) -> Calibration | None:
    """How well a model is calibrated; None where there is no clip.

    Args:
        task: What was predicted.
        truth: [N] numbers or indexes of classes; [N, K] of 0 and 1 for several labels.
        said: Likewise, what was decided; finite.
        scores: [N, K] probabilities of classes or labels; [N, 0] for a regression.
    """
    if not len(truth):
        return None
    bins, numbers = _measured(task, truth, said, scores)
    return Calibration(kind=task.kind, count=len(truth), bins=tuple(bins), numbers=numbers)


def _measured(
    task: Task, truth: Floats, said: Floats, scores: Floats
) -> tuple[list[Bin], dict[str, float]]:
    if task.kind == "regression":
        return _by_count(truth, said), _of_numbers(truth, said)
    if task.kind == "classes":
        sure = np.take_along_axis(scores, said.astype(np.int64)[:, np.newaxis], 1)[:, 0]
        right = (truth == said).astype(np.float64)
        wanted = (truth[:, np.newaxis] == np.arange(len(task.classes))).astype(np.float64)
        brier = float(np.square(scores - wanted).sum(axis=1).mean())
    else:
        sure, right = scores.ravel(), truth.ravel()
        brier = float(np.square(scores - truth).mean())
    bins = _by_width(sure, right)
    return bins, {**_summary(bins, sure, right), "brier": brier}


def _by_width(predicted: Floats, observed: Floats) -> list[Bin]:
    """Reliability: bins (low, high] of equal width; 0 lies in the first one."""
    places = np.clip(np.ceil(predicted * BINS).astype(np.int64) - 1, 0, BINS - 1)
    found = []
    for place in np.unique(places):
        mine = places == place
        mean, share = float(predicted[mine].mean()), float(observed[mine].mean())
        found.append(
            Bin(
                low=float(place / BINS),
                high=float((place + 1) / BINS),
                count=int(mine.sum()),
                predicted=mean,
                observed=share,
                error=abs(share - mean),
            )
        )
    return found


def _summary(bins: list[Bin], predicted: Floats, observed: Floats) -> dict[str, float]:
    total = sum(each.count for each in bins)
    return {
        "ece": sum(each.count * each.error for each in bins) / total,
        "mce": max(each.error for each in bins),
        "confidence": float(predicted.mean()),
        "accuracy": float(observed.mean()),
    }


def _by_count(truth: Floats, said: Floats) -> list[Bin]:
    """Bins of equal count, by the prediction; equal predictions may lie in two of them."""
    order = np.argsort(said, kind="stable")
    return [
        Bin(
            low=float(said[mine[0]]),
            high=float(said[mine[-1]]),
            count=len(mine),
            predicted=float(said[mine].mean()),
            observed=float(truth[mine].mean()),
            error=float(np.abs(said[mine] - truth[mine]).mean()),
        )
        for mine in np.array_split(order, min(BINS, len(order)))
    ]


def _of_numbers(truth: Floats, said: Floats) -> dict[str, float]:
    residuals = said - truth
    centred = said - said.mean()
    spread = float(np.square(centred).sum())
    still = spread <= STILL * float(np.square(said).sum())
    slope = np.nan if still else float((centred * truth).sum()) / spread
    quantiles = np.quantile(residuals, list(QUANTILES.values()))
    return {
        "bias": float(residuals.mean()),
        "slope": float(slope),
        "intercept": float(truth.mean() - slope * said.mean()),
        **dict(zip(QUANTILES, quantiles.tolist(), strict=True)),
    }
