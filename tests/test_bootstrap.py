"""Replicates are the metrics of the clips that were drawn, whatever the blocks and the model."""

import itertools
import math
import time

import numpy as np
import pytest

from tracking.scorecard import interval
from training.bootstrap import paired_bound, replicate, resamples
from training.metrics import metrics
from training.recipe import Task

SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "calm", "glad"))
TAGS = Task(kind="labels", label="tags", classes=("happy", "loud", "sad"))
NAME = "ab" * 32


def drawn_for(task, count):
    """Truths and predictions of a task."""
    random = np.random.default_rng(0)
    if task.kind == "regression":
        return np.round(random.normal(size=(2, count)) * 2) / 2
    if task.kind == "classes":
        return random.integers(0, 3, size=(2, count)).astype(float)
    return (random.random((2, count, 3)) < [0.5, 0.3, 0.05]).astype(float)


@pytest.mark.parametrize("task", [SCORE, MOOD, TAGS], ids=lambda task: task.kind)
def test_replicates_are_the_metrics_of_each_draw_however_they_are_cut_into_blocks(
    task, monkeypatch
):
    truth, said = drawn_for(task, 40)
    whole = replicate(task, truth, said, resamples(NAME, 40, 50))
    monkeypatch.setattr("training.bootstrap.BLOCK", 40 * 7)
    draws = np.concatenate(list(resamples(NAME, 40, 50)))
    assert draws.shape == (50, 40)
    assert replicate(task, truth, said, resamples(NAME, 40, 50)) == whole
    for i, draw in enumerate(draws):
        one = metrics(task, truth[draw], said[draw])
        assert {name: values[i] for name, values in whole.items()} == pytest.approx(
            one, abs=1e-9, nan_ok=True
        )


def test_the_first_draws_are_the_same_however_many_are_asked_for():
    (few,), (many,) = resamples(NAME, 9, 5), resamples(NAME, 9, 50)
    assert few.tolist() == many[:5].tolist()
    (other,) = resamples("cd" * 32, 9, 5)
    assert other.tolist() != few.tolist()
    generator = np.random.Generator(np.random.PCG64(int(NAME, 16)))
    assert few.tolist() == generator.integers(0, 9, size=(5, 9)).tolist()


def test_draws_on_which_a_metric_is_undefined_are_nan():
    draws = [np.array([[0, 0, 0], [0, 1, 2]])]
    found = replicate(SCORE, np.array([0.0, 1.0, 2.0]), np.array([0.3, 0.1, 0.9]), draws)
    assert [math.isnan(value) for value in found["corr"]] == [True, False]
    assert [math.isnan(value) for value in found["acc2_non0"]] == [True, False]
    assert found["mae"] == pytest.approx((0.3, (0.3 + 0.9 + 1.1) / 3))
    broken = replicate(SCORE, np.array([0.0, 1.0, 2.0]), np.array([0.3, np.nan, 0.9]), draws)
    assert all(math.isnan(value) for values in broken.values() for value in values)


def test_the_interval_is_made_of_order_statistics_that_err_to_the_outside():
    shuffled = np.random.default_rng(0).permutation(np.arange(1.0, 1001.0)).tolist()
    assert interval(shuffled) == (25.0, 976.0)
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert all(math.isnan(end) for end in interval([1.0, math.nan]))
    assert paired_bound([2.0, 3.0], [1.0, 1.0], "higher") == 1.0
    assert paired_bound([2.0, 3.0], [1.0, 1.0], "lower") == -2.0


def test_nineteen_of_twenty_intervals_hold_the_true_value():
    inside = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        truth = random.normal(size=120)
        said = truth + random.normal(size=120)
        name = f"{seed + 1:064x}"
        low, high = interval(replicate(SCORE, truth, said, resamples(name, 120, 200))["mae"])
        inside += low <= math.sqrt(2 / math.pi) <= high
    assert 180 <= inside <= 199


def test_ten_thousand_replicates_of_five_thousand_clips_take_seconds():
    truth, said = drawn_for(SCORE, 5000)
    began = time.process_time()
    found = replicate(SCORE, truth, said, resamples(NAME, 5000, 10_000))
    assert time.process_time() - began < 10
    assert {len(values) for values in found.values()} == {10_000}
    low, high = interval(found["mae"])
    middle = metrics(SCORE, truth, said)["mae"]
    assert low < middle < high
    assert high - low < 0.1


def test_the_draws_of_a_set_never_repeat_a_block():
    blocks = list(itertools.islice(resamples(NAME, 1_000_000, 4), 4))
    assert [block.shape for block in blocks] == [(2, 1_000_000)] * 2
    assert blocks[0][0, :9].tolist() != blocks[1][0, :9].tolist()
