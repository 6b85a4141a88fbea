"""Forced alignment: when each of some labels is said, by the outputs of a CTC head. Pure."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Path:
    """The most likely way to say some labels.

    Attributes:
        spans: int64 [N, 2]: the first step of each label, and the one after its last.
        score: The logarithm of the path's probability.
    """

    spans: NDArray[np.int64]
    score: float


def fits(steps: int, labels: Sequence[int]) -> bool:
    """Whether there is any path: equal labels that follow each other need a blank between them."""
    twice = sum(a == b for a, b in itertools.pairwise(labels))
    return 0 < len(labels) + twice <= steps


def best_path(log_probs: NDArray[np.float64], labels: Sequence[int], blank: int) -> Path:
    """Viterbi's path through the trellis of connectionist temporal classification.

    Graves et al. 2006: the states are the labels with a blank before, between and after them; a
    step stays, goes on by one, or over a blank to another label. Of paths that are equally likely
    the one that is ahead earlier is taken.

    Args:
        log_probs: [T, V], the logarithm of each output's probability at each step.
        labels: N numbers of outputs, none of them the blank; `fits(T, labels)` must hold.
        blank: The number of the blank.

    Raises:
        ValueError: There is no path.
    """
    steps = len(log_probs)
    if not fits(steps, labels) or blank in labels:
        raise ValueError(
            f"{len(labels)} labels do not fit into {steps} steps with the blank {blank}; wanted "
            f"labels other than the blank, at least one, and a step for each and between equal ones"
        )
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    jumps = np.full(len(states), -np.inf)
    jumps[3::2] = np.where(states[3::2] == states[1:-2:2], -np.inf, 0.0)
    best = np.full(len(states), -np.inf)
    best[:2] = log_probs[0, states[:2]]
    back = np.zeros((steps, len(states)), dtype=np.int8)
    ways = np.full((3, len(states)), -np.inf)
    for step in range(1, steps):
        ways[0] = best
        ways[1, 1:] = best[:-1]
        ways[2, 2:] = best[:-2] + jumps[2:]
        back[step] = ways.argmax(axis=0)
        best = ways.max(axis=0) + log_probs[step, states]
    at = len(states) - 1 if best[-1] > best[-2] else len(states) - 2
    score = float(best[at])
    place = np.empty(steps, dtype=np.int64)
    for step in range(steps - 1, -1, -1):
        place[step] = at
        at -= int(back[step, at])
    spoken = 2 * np.arange(len(labels)) + 1
    begins = np.searchsorted(place, spoken, side="left")
    ends = np.searchsorted(place, spoken, side="right")
    return Path(np.stack([begins, ends], axis=1), score)
