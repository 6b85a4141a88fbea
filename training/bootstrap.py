"""The bootstrap over the clips of an evaluation set.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Draw i is the same clips
for all models on a set, so that two of them can be compared pair by pair.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tracking.scorecard import Better, interval
from training.metrics import METRICS, Floats, drawn, measured, terms
from training.recipe import Task

REPLICATES = 1000
# Numbers that the arrays of one block of draws may hold: 16 MB each.
BLOCK = 2_000_000
# Sums by BLAS differ in their last bits between machines; no metric means anything there.
DECIMALS = 12


def resamples(evaluation_set: str, count: int, replicates: int) -> Iterator[NDArray[np.int64]]:
    """Clips drawn with replacement, block by block of [draws, count].

    They follow from the arguments alone, and the first draws are the same however many are asked
    for.

    Args:
        evaluation_set: The name of the set, a number in hex: the seed.
        count: Clips in the set.
        replicates: Draws in all.
    """
    generator = np.random.Generator(np.random.PCG64(int(evaluation_set, 16)))
    rows = max(1, BLOCK // count)
    for first in range(0, replicates, rows):
        yield generator.integers(0, count, size=(min(rows, replicates - first), count))


def draws_name(evaluation_set: str, count: int) -> str:
    """A digest of the first of the draws, from which all others follow: other draws, another name.

    The arguments are those of `resamples`.
    """
    first = next(resamples(evaluation_set, count, 1))
    return hashlib.sha256(first.astype("<i8").tobytes()).hexdigest()[:16]


def replicate(
    task: Task, truth: Floats, said: Floats, draws: Iterable[NDArray[np.int64]]
) -> dict[str, tuple[float, ...]]:
    """Every metric on every draw of a bootstrap, in order of the draws.

    Args:
        task: Decides which metrics.
        truth: As in `training.metrics.terms`.
        said: As there. One NaN or infinity makes every metric of every draw NaN.
        draws: Blocks of numbers of clips, as `resamples` gives them.
    """
    broken = not np.isfinite(said).all()
    parts = terms(task, truth, np.where(np.isfinite(said), said, 0.0))
    found: dict[str, list[float]] = {name: [] for name in METRICS[task.kind]}
    for block in draws:
        for name, values in measured(task, drawn(parts, _times(block, len(truth)))).items():
            each = np.full_like(values, np.nan) if broken else np.round(values, DECIMALS)
            found[name] += each.tolist()
    return {name: tuple(values) for name, values in found.items()}


def paired_bound(ours: Sequence[float], theirs: Sequence[float], better: Better) -> float:
    """Lower end of the 95 % interval of how much better ours is, from paired replicates.

    NaN when a replicate is.

    Args:
        ours: A metric on each draw.
        theirs: The same metric of another model on the same draws.
        better: The metric's direction.
    """
    sign = 1.0 if better == "higher" else -1.0
    gains = [sign * (a - b) for a, b in zip(ours, theirs, strict=True)]
    return interval(gains)[0]


def _times(draws_RN: NDArray[np.int64], count: int) -> Floats:
    """How often each clip is in each draw: [R, count]."""
    rows = len(draws_RN)
    own = draws_RN + count * np.arange(rows)[:, np.newaxis]
    return np.bincount(own.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
