"""Calibration and latency, held against numbers that were computed by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training.calibration import calibration
from training.latency import latency
from training.recipe import Task

SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "glad"))
TAGS = Task(kind="labels", label="tags", classes=("early", "even"))


def array(*values):
    return np.array(values, dtype=np.float64)


def test_reliability_of_classes_by_hand():
    scores = array([0.9, 0.1], [0.85, 0.15], [0.3, 0.7], [0.4, 0.6])
    found = calibration(MOOD, array(0, 1, 1, 0), array(0, 0, 1, 1), scores)
    # (0.8, 0.9] has both of the first two: 0.875 sure of, half right.
    told = [(each.low, each.high, each.count, each.predicted, each.observed) for each in found.bins]
    assert told == [
        (0.5, 0.6, 1, 0.6, 0.0),
        (0.6, 0.7, 1, 0.7, 1.0),
        (0.8, 0.9, 2, pytest.approx(0.875), 0.5),
    ]
    assert found.numbers["ece"] == pytest.approx((0.6 + 0.3 + 2 * 0.375) / 4)
    assert found.numbers["mce"] == pytest.approx(0.6)
    assert found.numbers["brier"] == pytest.approx(2 * (0.01 + 0.7225 + 0.09 + 0.36) / 4)
    assert found.numbers["confidence"] == pytest.approx((0.9 + 0.85 + 0.7 + 0.6) / 4)
    assert (found.numbers["accuracy"], found.count, found.kind) == (0.5, 4, "classes")


def test_each_answer_to_several_labels_is_a_forecast():
    scores = array([0.0, 1.0], [0.25, 0.5])
    found = calibration(TAGS, array([0, 1], [1, 0]), array([0, 1], [0, 0]), scores)
    told = [(each.low, each.high, each.count, each.observed) for each in found.bins]
    assert told == [(0.0, 0.1, 1, 0.0), (0.2, 0.3, 1, 1.0), (0.4, 0.5, 1, 0.0), (0.9, 1.0, 1, 1.0)]
    assert found.numbers["brier"] == pytest.approx((0.5625 + 0.25) / 4)
    assert found.numbers["ece"] == pytest.approx((0.75 + 0.5) / 4)
    assert found.count == 2


def test_errors_of_a_regression_by_what_was_said():
    # Leans to the middle: says half of what is true, and 1 too much.
    truth = np.arange(-10.0, 10.0)
    found = calibration(SCORE, truth, truth / 2 + 1, np.empty((20, 0)))
    assert (found.numbers["slope"], found.numbers["intercept"]) == pytest.approx((2.0, -2.0))
    assert found.numbers["bias"] == pytest.approx(1.25)
    residuals = np.sort(1 - truth / 2)
    assert found.numbers["q50"] == pytest.approx(np.median(residuals))
    assert found.numbers["q05"] == pytest.approx(residuals[0] + 0.95 * 0.5)
    assert [each.count for each in found.bins] == [2] * 10
    first = found.bins[0]
    assert (first.low, first.high, first.predicted, first.observed) == (-4, -3.5, -3.75, -9.5)
    assert first.error == pytest.approx(5.75)


def test_the_line_of_a_model_that_always_says_the_same_is_undefined():
    found = calibration(SCORE, array(1, 2, 3), array(0.1, 0.1, 0.1), np.empty((3, 0)))
    assert math.isnan(found.numbers["slope"])
    assert math.isnan(found.numbers["intercept"])
    assert found.numbers["bias"] == pytest.approx(-1.9)
    assert len(found.bins) == 3
    assert calibration(SCORE, array(), array(), np.empty((0, 0))) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_bins_hold_every_forecast_once_and_their_distance_is_within_bounds(pairs):
    sure = array(*(first for first, _ in pairs))
    yes = array(*(float(second) for _, second in pairs))
    one = Task(kind="labels", label="tags", classes=("early",))
    found = calibration(one, yes[:, None], np.round(sure)[:, None], sure[:, None])
    assert sum(each.count for each in found.bins) == len(pairs)
    assert all(each.low <= each.predicted <= each.high + 1e-12 for each in found.bins)
    # The distance of the means is no more than the mean distance.
    overall = abs(found.numbers["confidence"] - found.numbers["accuracy"])
    assert overall - 1e-12 <= found.numbers["ece"] <= found.numbers["mce"] + 1e-12
    assert 0 <= found.numbers["brier"] <= 1


class Samples:
    """A split of a few samples of one stream."""

    def __init__(self, count):
        self.keys, self.widths = [str(number) for number in range(count)], {"text": 2}

    def sample(self, key):
        from training.batch import Sample

        values = np.full((3, 2), float(key), dtype=np.float32)
        return Sample(key=key, values={"text": values}, valid={"text": None})


class Model(nn.Module):
    """Counts what it is given."""

    def __init__(self):
        super().__init__()
        self.clips = []

    def forward(self, batch):
        self.clips.append(batch.keys)
        return torch.zeros(len(batch.keys), 1)


def test_a_model_is_timed_one_clip_at_a_time():
    model = Model()
    ticks = iter([0.0, *(each for i in range(20) for each in (i, i + (i + 1) / 100)), 1.0])
    found = latency(model, Samples(20), lambda: next(ticks) * 0.1)
    assert found.clips == 20
    assert (found.median_s, found.p95_s) == pytest.approx((0.011, 0.02))
    assert all(len(keys) == 1 for keys in model.clips)
    assert "threads" in found.machine
    assert latency(model, Samples(0)) is None


def test_a_slow_model_is_timed_on_enough_clips_for_a_percentile_and_no_more():
    assert latency(Model(), Samples(30), itertools.count().__next__).clips == 20
    assert latency(Model(), Samples(30), lambda: 0.0).clips == 30
