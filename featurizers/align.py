"""Arithmetic of time: pool steps to words or to equal cells. Pure."""

import math

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip
from featurizers.spec import Feature

WEIGHTS = 1 << 22
"""Overlaps of targets with steps that are held at one time: 32 MiB, a few times over."""


def word_times(clip: Clip) -> NDArray[np.float64]:
    """Start and end of each word in seconds from the clip's start: [W, 2]."""
    spans = [[word.start, word.end] for word in clip.words or ()]
    return np.array(spans, dtype=np.float64).reshape(-1, 2)


def cells(seconds: float, cell_s: float) -> NDArray[np.float64]:
    """Equal cells that cover a duration, at least one: [W, 2]."""
    count = max(1, math.ceil(seconds / cell_s - 1e-9))
    edges = np.arange(count + 1, dtype=np.float64) * cell_s
    return np.stack([edges[:-1], edges[1:]], axis=1)


def pool(
    feature: Feature, targets: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Mean of the steps that overlap each target, weighted by the overlap.

    A target shorter than a step takes that step, so a short word has a value. A target without any
    step (the stream had ended, or not begun) is 0 and not valid. Targets are pooled some rows at a
    time, as many as the number of steps permits, so memory does not grow with their number.

    Args:
        feature: Values [T, D] with times [T, 2] in seconds.
        targets: [W, 2] in seconds.

    Returns:
        Values float32 [W, D] and valid bool [W].
    """
    # A power of two that only the number of steps decides: a product's last bits may depend on how
    # many rows it has, so the blocks must not follow from anything else.
    rows = 1 << max(0, (WEIGHTS // max(1, len(feature.times))).bit_length() - 1)
    steps = feature.values.astype(np.float64)
    values = np.zeros((len(targets), steps.shape[1]), dtype=np.float32)
    valid = np.zeros(len(targets), dtype=np.bool_)
    for first in range(0, len(targets), rows):
        block = slice(first, first + rows)
        values[block], valid[block] = _pool(steps, feature.times, targets[block])
    return values, valid


def _pool(
    steps: NDArray[np.float64], times: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    begin, end = times[:, 0], times[:, 1]
    low, high = targets[:, :1], targets[:, 1:]
    overlap = np.minimum(high, end) - np.maximum(low, begin)
    weights = np.clip(overlap, 0.0, None)
    # Where nothing overlaps: a target without length lies in the step that contains it, a step
    # without length in the target that does, and two of them in each other.
    inside = (low == high) & (begin <= low) & (low < end)
    points = (begin == end) & (low <= begin) & ((begin < high) | (begin == low))
    alone = weights.sum(axis=1, keepdims=True) == 0
    weights = np.where(alone, (inside | points).astype(np.float64), weights)
    total = weights.sum(axis=1, keepdims=True)
    valid = total[:, 0] > 0
    # Divided before the sum: the shortest overlaps would lose their values in it.
    means = weights / np.where(total > 0, total, 1.0) @ steps
    return np.where(valid[:, np.newaxis], means, 0.0), valid
