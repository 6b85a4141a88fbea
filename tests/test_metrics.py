"""Metrics against slow twins that follow their definitions, scikit-learn, and by hand."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs

from training.metrics import DIRECTION, METRICS, by_class, confusion, metrics, undefined
from training.recipe import Task

SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "calm", "glad"))
TAGS = Task(kind="labels", label="tags", classes=("happy", "loud", "sad"))


def slow_f1(truth, said):
    """F1 of each label, weighted by how often the truth has it."""
    total = 0.0
    for label in set(truth):
        true_positives = sum(t == label and s == label for t, s in zip(truth, said, strict=True))
        predicted = sum(s == label for s in said)
        support = sum(t == label for t in truth)
        precision = true_positives / predicted if predicted else 0.0
        recall = true_positives / support
        both = precision + recall
        total += support * (2 * precision * recall / both if both else 0.0)
    return total / len(truth) if truth else math.nan


def slow_accuracy(truth, said):
    hits = [t == s for t, s in zip(truth, said, strict=True)]
    return sum(hits) / len(hits) if hits else math.nan


def slow_regression(truth, said):
    pairs = [(t, s) for t, s in zip(truth, said, strict=True) if t != 0]
    sides = [t > 0 for t, _ in pairs], [s > 0 for _, s in pairs]
    halves = [t >= 0 for t in truth], [s >= 0 for s in said]
    try:
        corr = statistics.correlation(truth, said)
    except statistics.StatisticsError:
        corr = math.nan

    def rounded(values, limit):
        return [round(min(max(value, -limit), limit)) for value in values]

    return {
        "mae": statistics.fmean(abs(t - s) for t, s in zip(truth, said, strict=True)),
        "corr": corr,
        "acc2_has0": slow_accuracy(*halves),
        "acc2_non0": slow_accuracy(*sides),
        "f1_has0": slow_f1(*halves),
        "f1_non0": slow_f1(*sides),
        "acc7": slow_accuracy(rounded(truth, 3), rounded(said, 3)),
        "acc5": slow_accuracy(rounded(truth, 2), rounded(said, 2)),
        "acc3": slow_accuracy(rounded(truth, 1), rounded(said, 1)),
    }


def slow_classes(truth, said):
    recalls = [
        slow_accuracy(
            [t for t in truth if t == label],
            [s for t, s in zip(truth, said, strict=True) if t == label],
        )
        for label in set(truth)
    ]
    f1 = []
    for label in {*truth, *said}:
        true_positives = sum(t == label == s for t, s in zip(truth, said, strict=True))
        f1.append(2 * true_positives / (truth.count(label) + said.count(label)))
    return {
        "accuracy": slow_accuracy(truth, said),
        "uar": statistics.fmean(recalls),
        "f1_weighted": slow_f1(truth, said),
        "f1_macro": statistics.fmean(f1),
    }


def slow_labels(truth, said):
    """Each label by itself, as MulT does it; and all of them together."""
    columns = list(zip(zip(*truth, strict=True), zip(*said, strict=True), strict=True))
    hits = [sum(t and s for t, s in zip(*each, strict=True)) for each in columns]
    both = [sum(t) + sum(s) for t, s in columns]
    f1 = [2 * hit / size for hit, size in zip(hits, both, strict=True) if size]
    return {
        "f1_macro": statistics.fmean(f1) if f1 else math.nan,
        "f1_micro": 2 * sum(hits) / sum(both) if sum(both) else math.nan,
        "subset_accuracy": slow_accuracy(truth, said),
        "label_accuracy": statistics.fmean(slow_accuracy(*each) for each in columns),
        "label_f1_weighted": statistics.fmean(slow_f1(*each) for each in columns),
    }


def agree(ours, others):
    assert set(ours) == set(others)
    for name, value in others.items():
        assert ours[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


# Halves and thirds: truths of exactly 0, and numbers that round half to even.
SCORES = st.one_of(
    st.sampled_from([0.0, -0.5, 0.5, 1.5, 2.5, -2.5, 3.0, -3.0, 4.5]), st.floats(-4, 4, width=32)
)


@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=30))
def test_regression_metrics_equal_the_slow_twin(pairs):
    truth, said = (list(side) for side in zip(*pairs, strict=True))
    ours = metrics(SCORE, np.array(truth), np.array(said))
    slow = slow_regression(truth, said)
    # Where numbers barely vary, the two ways of summing differ in whether they see it at all.
    if min(np.ptp(truth), np.ptp(said)) < 1e-6:
        del ours["corr"], slow["corr"]
    agree(ours, slow)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_class_metrics_equal_the_slow_twin(pairs):
    truth, said = (list(side) for side in zip(*pairs, strict=True))
    agree(metrics(MOOD, np.array(truth, float), np.array(said, float)), slow_classes(truth, said))


SOME = st.tuples(*[st.integers(0, 1)] * 3)


@given(st.lists(st.tuples(SOME, SOME), min_size=1, max_size=30))
def test_metrics_of_several_labels_equal_the_slow_twin(pairs):
    truth, said = (list(side) for side in zip(*pairs, strict=True))
    agree(metrics(TAGS, np.array(truth, float), np.array(said, float)), slow_labels(truth, said))


def scores(count, seed=0):
    """Truths in thirds, as people give them on average, and predictions that lean to one side."""
    random = np.random.default_rng(seed)
    truth = np.clip(np.round(random.normal(0.3, 1.3, count) * 3) / 3, -3, 3)
    return truth, truth * 0.6 + random.normal(0.4, 0.9, count)


def test_regression_metrics_equal_those_of_scikit_learn():
    truth, said = scores(700)
    found = metrics(SCORE, truth, said)
    assert 0 < (truth == 0).sum() < 200
    kept = truth != 0
    for name, true, told in (
        ("has0", truth >= 0, said >= 0),
        ("non0", truth[kept] > 0, said[kept] > 0),
    ):
        assert found[f"acc2_{name}"] == pytest.approx(theirs.accuracy_score(true, told))
        f1 = theirs.f1_score(true, told, average="weighted")
        assert found[f"f1_{name}"] == pytest.approx(f1)
    assert found["mae"] == pytest.approx(theirs.mean_absolute_error(truth, said))
    assert found["corr"] == pytest.approx(np.corrcoef(truth, said)[0, 1])


def test_class_metrics_equal_those_of_scikit_learn():
    random = np.random.default_rng(0)
    truth = random.choice(3, 300, p=[0.7, 0.2, 0.1])
    said = np.where(random.random(300) < 0.6, truth, random.integers(0, 3, 300))
    agree(
        metrics(MOOD, truth.astype(float), said.astype(float)),
        {
            "accuracy": theirs.accuracy_score(truth, said),
            "uar": theirs.balanced_accuracy_score(truth, said),
            "f1_weighted": theirs.f1_score(truth, said, average="weighted"),
            "f1_macro": theirs.f1_score(truth, said, average="macro"),
        },
    )
    counts = confusion(MOOD, truth.astype(float), said.astype(float))
    assert counts.tolist() == theirs.confusion_matrix(truth, said).tolist()
    each = theirs.precision_recall_fscore_support(truth, said)
    for k, (name, values) in enumerate(by_class(MOOD, truth, said).items()):
        assert name == MOOD.classes[k]
        wanted = {"precision": each[0][k], "recall": each[1][k], "f1": each[2][k]}
        assert values == pytest.approx({**wanted, "support": each[3][k]})


def test_metrics_of_several_labels_equal_those_of_scikit_learn():
    random = np.random.default_rng(0)
    truth = (random.random((200, 3)) < [0.7, 0.4, 0.1]).astype(float)
    said = np.where(random.random((200, 3)) < 0.7, truth, 1 - truth)
    truth[:, 2] = said[:, 2] = 0
    found = metrics(TAGS, truth, said)
    f1 = {
        kind: theirs.f1_score(truth, said, average=kind, zero_division=np.nan)
        for kind in ("macro", "micro")
    }
    columns = list(zip(truth.T, said.T, strict=True))
    weighted = [theirs.f1_score(*each, average="weighted") for each in columns]
    agree(
        found,
        {
            "f1_macro": f1["macro"],
            "f1_micro": f1["micro"],
            "subset_accuracy": theirs.accuracy_score(truth, said),
            "label_accuracy": np.mean([theirs.accuracy_score(*each) for each in columns]),
            "label_f1_weighted": np.mean(weighted),
        },
    )
    counts = confusion(TAGS, truth, said)
    assert counts[:2].tolist() == theirs.multilabel_confusion_matrix(truth, said)[:2].tolist()
    assert counts[2].tolist() == [[200, 0], [0, 0]]
    each = by_class(TAGS, truth, said)
    assert list(each) == list(TAGS.classes)
    assert each["happy"]["f1_weighted"] == pytest.approx(weighted[0])
    assert each["sad"]["accuracy"] == 1.0
    assert math.isnan(each["sad"]["f1"])


def test_labels_that_nobody_has_and_nobody_is_said_to_have_are_no_score():
    none = np.zeros((4, 3))
    found = metrics(TAGS, none, none)
    assert math.isnan(found["f1_macro"])
    assert found["subset_accuracy"] == found["label_f1_weighted"] == 1.0
    reason = "no clip has any label, or is said to"
    assert undefined(TAGS, none, none) == {"f1_macro": reason, "f1_micro": reason}
    broken = np.where(np.eye(4, 3) > 0, np.nan, none)
    assert all(math.isnan(value) for value in metrics(TAGS, none, broken).values())
    assert undefined(TAGS, none, broken)["f1_micro"] == "3 of 4 predictions are NaN or infinite"


def test_six_clips_by_hand():
    truth = np.array([0.0, -1 / 3, 2.5, 1.5, -3.0, 0.5])
    said = np.array([0.0, 0.2, 3.5, 0.9, -0.6, -0.1])
    found = metrics(SCORE, truth, said)
    # Errors: 0, 0.5333, 1, 0.6, 2.4, 0.6.
    assert found["mae"] == pytest.approx((0.2 + 1 / 3 + 1 + 0.6 + 2.4 + 0.6) / 6)
    # Right of >= 0: the first, third, fourth and fifth; of > 0 without the first: three of five.
    assert found["acc2_has0"] == pytest.approx(4 / 6)
    assert found["acc2_non0"] == pytest.approx(3 / 5)
    # Negative: 1 hit, 2 true, 2 said. Non-negative: 3 hits, 4 true, 4 said; positive: 2, 3, 3.
    assert found["f1_has0"] == pytest.approx(2 / 6 * 1 / 2 + 4 / 6 * 3 / 4)
    assert found["f1_non0"] == pytest.approx(2 / 5 * 1 / 2 + 3 / 5 * 2 / 3)
    # Half to even: truths 0 0 2 2 -3 0, predictions 0 0 3 1 -1 0; then cut to 2, and to 1.
    assert found["acc7"] == pytest.approx(3 / 6)
    assert found["acc5"] == pytest.approx(4 / 6)
    assert found["acc3"] == pytest.approx(6 / 6)


def test_f1_takes_its_weights_from_the_truth_so_that_swapped_arguments_differ():
    truth, said = np.array([1.0] * 8 + [-1.0] * 2), np.array([1.0] * 10)
    # Positive: 8 hits of 8 true and 10 said; negative: none.
    assert metrics(SCORE, truth, said)["f1_non0"] == pytest.approx(0.8 * 16 / 18)
    assert metrics(SCORE, said, truth)["f1_non0"] == pytest.approx(1.0 * 16 / 18)
    truth, said = scores(700)
    said += 0.6  # a model that leans to one side
    right, swapped = metrics(SCORE, truth, said), metrics(SCORE, said, truth)
    assert abs(right["f1_has0"] - swapped["f1_has0"]) > 0.01
    sides = (truth >= 0, said >= 0)
    assert right["f1_has0"] == pytest.approx(theirs.f1_score(*sides, average="weighted"))


def test_half_scores_round_to_even_and_a_third_counts_as_zero():
    truth = np.array([0.5, 1.5, -0.5, 1 / 3])
    assert metrics(SCORE, truth, np.array([0.0, 2.0, 0.0, 0.0]))["acc7"] == 1.0
    assert metrics(SCORE, truth, np.array([1.0, 1.0, -1.0, 1.0]))["acc7"] == 0.0


def test_a_metric_that_is_undefined_is_nan_and_says_why():
    still, moving = np.array([0.1, 0.1, 0.1]), np.array([0.1, 0.2, 0.4])
    for truth, said, whose in ((still, moving, "the truth"), (moving, still, "the prediction")):
        assert math.isnan(metrics(SCORE, truth, said)["corr"])
        reason = f"{whose} is the same number for every clip"
        assert undefined(SCORE, truth, said) == {"corr": reason}
    zeros = undefined(SCORE, np.zeros(3), moving)
    assert set(zeros) == {"corr", "acc2_non0", "f1_non0"}
    assert zeros["f1_non0"] == "the truth of every clip is exactly 0"
    assert undefined(SCORE, moving, moving) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_prediction_that_is_no_number_makes_every_metric_nan(bad):
    truth, said = np.array([1.0, -1.0, 2.0]), np.array([1.0, bad, 2.0])
    assert all(math.isnan(value) for value in metrics(SCORE, truth, said).values())
    assert set(undefined(SCORE, truth, said).values()) == {"1 of 3 predictions are NaN or infinite"}


def test_a_class_that_is_never_said_or_never_true_has_no_precision_or_recall():
    found = by_class(MOOD, np.array([0.0, 0.0, 1.0]), np.array([0.0, 2.0, 2.0]))
    assert math.isnan(found["calm"]["precision"])
    assert math.isnan(found["glad"]["recall"])
    assert (found["calm"]["f1"], found["sad"]["recall"]) == (0.0, 0.5)


def test_every_metric_has_a_direction():
    assert set(DIRECTION) == {name for known in METRICS.values() for name in known}
    assert [name for name, better in DIRECTION.items() if better == "lower"] == ["mae"]
