"""Forced alignment against all paths there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.ctc import best_path, fits

BLANK = 0


def said(path):
    """The labels of a path: equal neighbours are one, and blanks are none."""
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


def all_paths(log_probs, labels):
    """Every path that says the labels, with its score: the slow and obvious way."""
    steps, outputs = log_probs.shape
    return {
        path: sum(log_probs[step, label] for step, label in enumerate(path))
        for path in itertools.product(range(outputs), repeat=steps)
        if said(path) == list(labels)
    }


@st.composite
def cases(draw):
    steps = draw(st.integers(1, 6))
    labels = draw(st.lists(st.integers(1, 2), min_size=1, max_size=4))
    seed = draw(st.integers(0, 999))
    logits = np.random.default_rng(seed).normal(0, 2, (steps, 3))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), labels


@settings(deadline=None, max_examples=60)
@given(cases())
def test_the_path_is_the_best_of_all(case):
    log_probs, labels = case
    paths = all_paths(log_probs, labels)
    assert fits(len(log_probs), labels) == bool(paths)
    if not paths:
        with pytest.raises(ValueError, match="do not fit into"):
            best_path(log_probs, labels, BLANK)
        return
    found = best_path(log_probs, labels, BLANK)
    best = max(paths, key=paths.__getitem__)
    assert found.score == pytest.approx(paths[best], abs=1e-9)
    path = np.full(len(log_probs), BLANK)
    for label, (begin, end) in zip(labels, found.spans, strict=True):
        assert begin < end
        path[begin:end] = label
    assert tuple(path) == best


@pytest.mark.parametrize("labels", [[], [BLANK], [1, BLANK]])
def test_what_cannot_be_said_is_refused(labels):
    with pytest.raises(ValueError, match="wanted labels other than the blank"):
        best_path(np.zeros((5, 3)), labels, BLANK)


def test_outputs_that_are_impossible_are_not_taken_where_there_is_another_way():
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1.0]]))
    assert best_path(log_probs, [1, 2], BLANK).spans.tolist() == [[0, 1], [2, 4]]
