"""Metrics against slow twins that follow the definitions word by word, and the scorecard."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurizers.clip import Clip
from training.evaluate import (
    CLASSES,
    DIRECTION,
    REGRESSION,
    evaluation_set,
    metrics,
    paired_bound,
    replicate,
    resamples,
    scorecard,
)
from training.recipe import Task

SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "calm", "glad"))


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
    }


def slow_classes(truth, said):
    recalls = [
        slow_accuracy(
            [t for t in truth if t == label],
            [s for t, s in zip(truth, said, strict=True) if t == label],
        )
        for label in set(truth)
    ]
    return {
        "accuracy": slow_accuracy(truth, said),
        "uar": statistics.fmean(recalls),
        "f1_weighted": slow_f1(truth, said),
    }


def agree(ours, theirs):
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


# Halves and thirds: truths of exactly 0, and numbers that round half to even.
SCORES = st.one_of(
    st.sampled_from([0.0, -0.5, 0.5, 1.5, 2.5, -2.5, 3.0, -3.0, 4.5]), st.floats(-4, 4, width=32)
)


@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=30))
def test_regression_metrics_equal_the_slow_twin(pairs):
    truth, said = (list(side) for side in zip(*pairs, strict=True))
    ours = metrics(SCORE, np.array(truth), np.array(said))
    theirs = slow_regression(truth, said)
    # Where numbers barely vary, the two ways of summing differ in whether they see it at all.
    if min(np.ptp(truth), np.ptp(said)) < 1e-6:
        del ours["corr"], theirs["corr"]
    agree(ours, theirs)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_class_metrics_equal_the_slow_twin(pairs):
    truth, said = (list(side) for side in zip(*pairs, strict=True))
    agree(metrics(MOOD, np.array(truth, float), np.array(said, float)), slow_classes(truth, said))


def test_f1_takes_its_weights_from_the_truth():
    truth, said = np.array([1.0] * 8 + [-1.0] * 2), np.array([1.0] * 2 + [-1.0] * 8)
    found = metrics(SCORE, truth, said)["f1_non0"]
    assert found == pytest.approx(0.8 * 0.4 + 0.2 * 0.4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_prediction_that_is_no_number_makes_every_metric_nan(bad):
    truth, said = np.array([1.0, -1.0, 2.0]), np.array([1.0, bad, 2.0])
    assert all(math.isnan(value) for value in metrics(SCORE, truth, said).values())
    drawn = replicate(SCORE, truth, said, np.zeros((5, 3), dtype=np.int64))
    assert all(math.isnan(value) for values in drawn.values() for value in values)


def test_replicates_are_the_metrics_of_each_draw_however_they_are_cut_into_blocks(monkeypatch):
    random = np.random.default_rng(0)
    truth, said = random.normal(size=(2, 40))
    draws = resamples("ab" * 32, 40, 50)
    whole = replicate(SCORE, truth, said, draws)
    monkeypatch.setattr("training.evaluate.BLOCK", 40 * 7)
    assert replicate(SCORE, truth, said, draws) == whole
    for i in (0, 49):
        one = metrics(SCORE, truth[draws[i]], said[draws[i]])
        assert {name: values[i] for name, values in whole.items()} == pytest.approx(one)


def test_every_metric_has_a_direction():
    assert set(DIRECTION) == {*REGRESSION, *CLASSES}
    assert [name for name, better in DIRECTION.items() if better == "lower"] == ["mae"]


def clips(count=30):
    return [
        Clip(
            key=f"k{i:02d}",
            id=f"{i}",
            media="",
            media_digest=f"{i:064d}",
            source=f"film {i // 3}",
            speaker=f"speaker {i // 6}",
            labels={"score": (i % 7) - 3.0, "mood": MOOD.classes[i % 3]},
        )
        for i in range(count)
    ]


def test_an_evaluation_set_is_named_by_media_spans_and_labels_in_any_order():
    made = clips()
    name = evaluation_set(made, "score")
    assert evaluation_set(made[::-1], "score") == name
    assert evaluation_set(made[1:], "score") != name
    assert evaluation_set(made, "mood") != name
    for change in ({"media_digest": "f"}, {"start": 1.0}, {"labels": {"score": 9.0}}):
        assert evaluation_set([replace(made[0], **change), *made[1:]], "score") != name
    assert evaluation_set([replace(made[0], split="test"), *made[1:]], "score") == name


def test_a_scorecard_has_every_clip_and_says_what_leaks():
    made = clips()
    said = {clip.key: clip.labels["score"] + 0.5 for clip in made}
    train = [Clip(key="t", id="t", media="", media_digest="", source="film 2", speaker="x")]
    card = scorecard(made, said, SCORE, train, parity=True, replicates=60)
    assert card == scorecard(made[::-1], said, SCORE, train, parity=True, replicates=60)
    assert (card.count, card.parity) == (30, True)
    assert card.metrics["mae"] == pytest.approx(0.5)
    assert card.leaks == ("source film 2",)
    assert {len(values) for values in card.replicates.values()} == {60}
    with pytest.raises(ValueError, match="1 clips have no prediction, the first is '0'"):
        scorecard(made, {key: said[key] for key in list(said)[1:]}, SCORE, train, parity=None)
    with pytest.raises(ValueError, match="no clips"):
        scorecard([], {}, SCORE, train, parity=None)


def test_class_scorecards_take_indexes_of_classes():
    made = clips()
    said = {clip.key: float(i % 3) for i, clip in enumerate(made)}
    card = scorecard(made, said, MOOD, [], parity=None, replicates=40)
    assert card.metrics == {"accuracy": 1.0, "uar": 1.0, "f1_weighted": 1.0}


def test_the_paired_bound_is_low_for_noise_and_high_for_a_real_gain():
    made = clips()
    random = np.random.default_rng(0)
    noise = dict(zip((c.key for c in made), random.normal(0, 2, 30).tolist(), strict=True))
    good = {clip.key: clip.labels["score"] + 0.1 for clip in made}
    cards = [scorecard(made, said, SCORE, [], parity=None) for said in (good, noise)]
    for metric in ("mae", "acc2_non0"):
        ours, theirs = (card.replicates[metric] for card in cards)
        better = DIRECTION[metric]
        assert paired_bound(ours, theirs, better) > 0.2
        assert paired_bound(theirs, ours, better) < 0
        assert paired_bound(ours, ours, better) == 0
    assert math.isnan(paired_bound([1.0, math.nan], [0.0, 0.0], "higher"))


def test_the_paired_bound_is_the_one_that_promotion_uses():
    from tracking.gate import Rule, judge

    made = clips()
    random = np.random.default_rng(1)
    said = [
        {clip.key: clip.labels["score"] + random.normal(0, scale) for clip in made}
        for scale in (0.9, 1.0)
    ]
    ours, theirs = (scorecard(made, each, SCORE, [], parity=True) for each in said)
    bound = paired_bound(ours.replicates["mae"], theirs.replicates["mae"], "lower")
    for margin, wanted in ((-bound + 1e-9, True), (-bound - 1e-9, False)):
        verdict = judge(ours, theirs, [Rule(metric="mae", not_worse_by=margin)])
        assert verdict.promote is wanted
