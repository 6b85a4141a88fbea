"""The scorecard: every clip of a named set, what leaks, and two of them compared."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from featurizers.clip import Clip
from training.bootstrap import paired_bound
from training.evaluate import evaluation_set, members, regrouped, scorecard
from training.metrics import DIRECTION
from training.predicted import About, predicted
from training.recipe import Task

SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "calm", "glad"))
TAGS = Task(kind="labels", label="tags", classes=("early", "even"))


def tags(i):
    return tuple(name for name, has in (("early", i < 9), ("even", i % 2 == 0)) if has)


def clips(count=30):
    return [
        Clip(
            key=f"k{i:02d}",
            id=f"{i}",
            media="",
            media_digest=f"{i:064d}",
            source=f"film {i // 3}",
            speaker=f"speaker {i // 6}",
            labels={"score": (i % 7) - 3.0, "mood": MOOD.classes[i % 3], "tags": tags(i)},
        )
        for i in range(count)
    ]


def test_an_evaluation_set_is_named_by_media_spans_and_labels_in_any_order():
    made = clips()
    name = evaluation_set(made, "score")
    assert evaluation_set(made[::-1], "score") == name
    assert evaluation_set(made[1:], "score") != name
    assert len({name, evaluation_set(made, "mood"), evaluation_set(made, "tags")}) == 3
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
    assert set(card.metrics.values()) == {1.0}
    assert card.confusion == [[10, 0, 0], [0, 10, 0], [0, 0, 10]]
    assert card.by_class["calm"] == {"support": 10, "precision": 1, "recall": 1, "f1": 1}
    broken = scorecard(made, said | {"k00": math.nan}, MOOD, [], parity=None, replicates=40)
    assert broken.undefined["uar"] == "1 of 30 predictions are NaN or infinite"
    assert broken.confusion == ()


def test_scorecards_of_several_labels_take_a_number_for_each():
    made = clips()
    said = {clip.key: [float(i < 9), 1.0] for i, clip in enumerate(made)}
    card = scorecard(made, said, TAGS, [], parity=None, replicates=40)
    assert card.metrics["subset_accuracy"] == 0.5
    assert card.metrics["label_accuracy"] == 0.75
    assert card.metrics["f1_micro"] == pytest.approx(2 * 24 / (24 + 39))
    assert card.confusion == [[[21, 0], [0, 9]], [[0, 15], [0, 15]]]
    assert card.by_class["even"]["accuracy"] == 0.5


def test_a_scorecard_tells_clips_apart_by_what_they_lack_and_says_what_a_stream_is_worth():
    made = clips()
    said = {
        clip.key: clip.labels["score"] + (0.5 if i < 10 else 1.0) for i, clip in enumerate(made)
    }
    lacks = {clip.key: ("video", "audio") if i < 10 else () for i, clip in enumerate(made)}
    lacks[made[29].key] = ("text",)
    without = {"text": dict.fromkeys(said, 0.0), "audio": said}
    card = scorecard(
        made, said, SCORE, [], parity=None, replicates=60, missing=lacks, without=without
    )
    found = {part.streams: (part.count, part.metrics["mae"]) for part in card.as_found}
    assert list(found) == [(), ("text",), ("audio", "video")]
    assert found == {
        (): (19, pytest.approx(1.0)),
        ("text",): (1, pytest.approx(1.0)),
        ("audio", "video"): (10, pytest.approx(0.5)),
    }
    asked = {part.streams: part for part in card.as_asked}
    assert list(asked) == [("audio",), ("text",)]
    assert dict(asked["audio",].metrics) == dict(card.metrics)
    assert dict(asked["audio",].intervals) == card.intervals
    assert asked["text",].metrics["acc3"] == pytest.approx(4 / 30)
    low, high = asked["text",].intervals["mae"]
    assert low < asked["text",].metrics["mae"] < high
    plain = scorecard(made, said, SCORE, [], parity=None, replicates=60)
    assert replace(card, as_found=(), as_asked=()) == plain


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
    from tracking.gate import judge
    from tracking.rules import Rule

    made = clips()
    random = np.random.default_rng(1)
    said = [
        {clip.key: clip.labels["score"] + random.normal(0, scale) for clip in made}
        for scale in (0.9, 1.0)
    ]
    shown = {"parity": True, "reproducible": True, "duplicates": ()}
    ours, theirs = (scorecard(made, each, SCORE, [], **shown) for each in said)
    bound = paired_bound(ours.replicates["mae"], theirs.replicates["mae"], "lower")
    for margin, wanted in ((-bound + 1e-9, True), (-bound - 1e-9, False)):
        verdict = judge(ours, theirs, [Rule(metric="mae", not_worse_by=margin)])
        assert verdict.promote is wanted


def test_a_scorecard_tells_groups_apart_and_speakers_who_are_in_none():
    made = [
        replace(clip, group="young" if i < 6 else None, speaker=None if i > 26 else clip.speaker)
        for i, clip in enumerate(clips())
    ]
    said = {clip.key: clip.labels["score"] + i / 10 for i, clip in enumerate(made)}
    card = scorecard(made, said, SCORE, [], parity=None, replicates=60)
    found = [(each.kind, each.name, each.count) for each in card.by_group]
    assert found == [
        ("group", "young", 6),
        ("speaker", "speaker 1", 6),
        ("speaker", "speaker 2", 6),
        ("speaker", "speaker 3", 6),
        ("speaker", "speaker 4", 3),
    ]
    young = card.by_group[0]
    assert young.metrics["mae"] == pytest.approx(0.25)
    low, high = young.intervals["mae"]
    assert low < 0.25 < high
    assert young.clips == members(clip.key for clip in made[5::-1])
    assert len({each.clips for each in card.by_group}) == 5


def test_calibration_is_of_what_the_model_itself_said():
    made = clips()
    said = {clip.key: 0.0 for clip in made}
    scores = {clip.key: [0.8, 0.1, 0.1] for clip in made[3:]}
    card = scorecard(made, said, MOOD, [], parity=None, replicates=40, scores=scores)
    assert card.calibration.count == 27
    assert card.calibration.numbers["confidence"] == pytest.approx(0.8)
    scores["k05"] = [math.nan] * 3
    broken = scorecard(made, said, MOOD, [], parity=None, replicates=40, scores=scores)
    assert broken.calibration is None
    assert scorecard(made, said, MOOD, [], parity=None, replicates=40).calibration is None


def test_an_evaluation_set_is_named_by_exactly_what_it_should_be():
    made = clips()[:2]
    one = {"key": "k00", "digest": f"{0:064d}", "start": 0.0, "end": None, "label": -3.0}
    two = {"key": "k01", "digest": f"{1:064d}", "start": 0.0, "end": None, "label": -2.0}
    plain = json.dumps([list(one.values()), list(two.values())], separators=(",", ":"))
    assert evaluation_set(made, "score") == hashlib.sha256(plain.encode()).hexdigest()


def test_a_scorecard_is_told_apart_as_another_model_is():
    made, about = clips(), About(name="a", recipe="r", seed=0, fold="", family="f")
    name = evaluation_set(made, "score")
    said = {clip.key: clip.labels["score"] + i / 10 for i, clip in enumerate(made)}
    card = scorecard(made, said, SCORE, [], parity=None, replicates=60)
    grouped = [replace(clip, group="young" if i < 6 else "old") for i, clip in enumerate(made)]
    lacks = {clip.key: ("video",) if i < 3 else () for i, clip in enumerate(made)}
    other = scorecard(grouped, said, SCORE, [], parity=None, replicates=60, missing=lacks)
    own = predicted(name, made, SCORE, about, said)
    found = regrouped(card, own, [predicted(name, grouped, SCORE, about, said, lacking=lacks)])
    assert found == other
    assert [each.name for each in found.by_group] == ["old", "young"]
