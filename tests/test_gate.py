import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.gate import (
    FEWEST_REPLICATES,
    IncomparableError,
    NoRulesError,
    Rule,
    judge,
)
from tracking.scorecard import Scorecard

DRAWS = 200
NAN = math.nan


def replicates(centre: float, seed: int = 0, spread: float = 0.1) -> tuple[float, ...]:
    """Values around a centre; the same seed is the same draws, as between two scorecards."""
    return tuple((centre + np.random.default_rng(seed).normal(0, spread, DRAWS)).tolist())


def card(mae: float = 1.0, acc: float = 0.8, **changes) -> Scorecard:
    plain = {
        "evaluation_set": "e" * 64,
        "count": 120,
        "metrics": {"mae": mae, "acc": acc},
        "better": {"mae": "lower", "acc": "higher"},
        "replicates": {"mae": replicates(mae), "acc": replicates(acc)},
        "parity": True,
    }
    return Scorecard(**{**plain, **changes})


def outcome(candidate: Scorecard, champion: Scorecard | None, **rule) -> bool:
    return judge(candidate, champion, [Rule(**rule)]).promote


@pytest.mark.parametrize(
    ("value", "rule", "promoted"),
    [
        (1.0, {"metric": "mae", "floor": 1.2}, True),
        (1.2, {"metric": "mae", "floor": 1.2}, True),
        (1.3, {"metric": "mae", "floor": 1.2}, False),
        (0.8, {"metric": "acc", "floor": 0.7}, True),
        (0.7, {"metric": "acc", "floor": 0.7}, True),
        (0.6, {"metric": "acc", "floor": 0.7}, False),
        (0.6, {"metric": "acc", "floor": 0.5, "better": "higher"}, True),
    ],
)
def test_a_floor_is_the_worst_value_allowed_in_the_metrics_own_direction(value, rule, promoted):
    assert outcome(card(**{rule["metric"]: value}), None, **rule) is promoted
    assert outcome(card(**{rule["metric"]: value}), card(), **rule) is promoted


@pytest.mark.parametrize(
    ("metric", "candidate", "champion", "asked", "promoted"),
    [
        # Equal draws: every draw differs by the same amount, so both bounds are that amount.
        ("mae", 1.0, 1.5, {"better_by": 0.25}, True),
        ("mae", 1.0, 1.5, {"better_by": 0.75}, False),
        ("mae", 1.5, 1.0, {"not_worse_by": 0.25}, False),
        ("mae", 1.5, 1.0, {"not_worse_by": 0.75}, True),
        ("acc", 0.9, 0.8, {"better_by": 0.05}, True),
        ("acc", 0.8, 0.9, {"not_worse_by": 0.05}, False),
        ("acc", 0.8, 0.8, {"not_worse_by": 0.0}, True),
        ("acc", 0.8, 0.8, {"better_by": 0.0}, False),
        ("acc", 0.81, 0.8, {"better_by": 0.0}, True),
        ("acc", 0.9, 0.8, {"better_by": 0.05, "not_worse_by": 0.0, "floor": 0.95}, False),
    ],
)
def test_a_candidate_is_compared_with_the_champion(metric, candidate, champion, asked, promoted):
    ours, theirs = card(**{metric: candidate}), card(**{metric: champion})
    assert outcome(ours, theirs, metric=metric, **asked) is promoted


def test_the_bound_is_the_end_of_the_paired_interval_and_not_the_mean():
    noisy = card(acc=0.9, replicates={"acc": replicates(0.9, seed=1)})
    champion = card(acc=0.8, replicates={"acc": replicates(0.8, seed=2)})
    differences = sorted(
        ours - theirs
        for ours, theirs in zip(noisy.replicates["acc"], champion.replicates["acc"], strict=True)
    )
    low = differences[4]  # the fifth of 200 is the 2.5 % quantile
    assert low < 0
    assert outcome(noisy, champion, metric="acc", not_worse_by=-low + 1e-9)
    assert not outcome(noisy, champion, metric="acc", not_worse_by=-low - 1e-9)


def test_without_a_champion_comparisons_hold():
    verdict = judge(card(), None, [Rule(metric="mae", not_worse_by=0.0, better_by=1.0)])
    assert verdict.promote
    assert [reason.text for reason in verdict.reasons[2:]] == ["no champion yet"] * 2


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize(
    "asked", [{"floor": 9.0}, {"better_by": 0.0}, {"not_worse_by": 9.0}, {"floor": -9.0}]
)
def test_a_candidate_without_a_number_never_wins(bad, asked):
    for champion in (None, card(), card(mae=NAN)):
        assert not outcome(card(mae=bad), champion, metric="mae", **asked)
        torn = card(replicates={"mae": (NAN, *replicates(1.0)[1:])})
        assert not outcome(torn, champion, metric="mae", **asked)


def test_a_champion_without_a_number_loses_to_a_finite_candidate():
    for champion in (card(acc=NAN), card(acc=math.inf), card(acc=NAN, replicates={})):
        verdict = judge(card(acc=0.1), champion, [Rule(metric="acc", better_by=0.5)])
        assert verdict.promote
        assert "loses" in verdict.reasons[-1].text


def test_the_champion_loses_the_draws_on_which_it_has_no_number():
    theirs = card(acc=0.9, replicates={"acc": (NAN,) * (DRAWS - 4) + replicates(0.9)[-4:]})
    assert outcome(card(acc=0.8), theirs, metric="acc", better_by=0.0)
    theirs = card(acc=0.9, replicates={"acc": (NAN,) * (DRAWS - 5) + replicates(0.9)[-5:]})
    assert not outcome(card(acc=0.8), theirs, metric="acc", better_by=0.0)


@pytest.mark.parametrize(
    ("parity", "promoted", "text"),
    [(True, True, "equal"), (False, False, "differ from"), (None, False, "nobody compared")],
)
def test_parity_must_have_been_shown(parity, promoted, text):
    verdict = judge(card(parity=parity), None, [Rule(metric="mae", floor=9)])
    assert verdict.promote is promoted
    assert text in verdict.reasons[0].text


@pytest.mark.parametrize(
    ("leaks", "text"),
    [
        ((), "no speaker or source is shared with training"),
        (("speaker anna",), "shared with training: speaker anna"),
        (tuple("abcdefgh"), "shared with training: a, b, c, d, e and 3 more"),
    ],
)
def test_nothing_may_be_shared_with_training(leaks, text):
    verdict = judge(card(leaks=leaks), None, [Rule(metric="mae", floor=9)])
    assert verdict.promote is (not leaks)
    assert verdict.reasons[1].text == text


def test_without_rules_nothing_can_be_judged():
    with pytest.raises(NoRulesError, match="no rules"):
        judge(card(), None, [])


@pytest.mark.parametrize(
    ("candidate", "champion", "rule", "message"),
    [
        (card(), card(evaluation_set="f" * 64), {"floor": 1}, "score both on the same set"),
        (card(), card(count=119), {"floor": 1}, "score both on the same set"),
        (card(), None, {"metric": "f1", "floor": 1}, "the candidate does not have; known are acc"),
        (card(), None, {"better": "higher", "floor": 1}, "higher is better, but the candidate's"),
        (
            card(),
            card(metrics={"acc": 1.0}, better={"acc": "higher"}, replicates={}),
            {"better_by": 0},
            "the champion does not have",
        ),
        (
            card(),
            card(better={"mae": "higher", "acc": "higher"}),
            {"better_by": 0},
            "lower for the candidate, but when higher",
        ),
        (card(replicates={}), card(), {"better_by": 0}, "0 bootstrap replicates"),
        (card(), card(replicates={"mae": (1.0,) * 50}), {"better_by": 0}, "equally many"),
        (
            card(replicates={"mae": (1.0,) * 38}),
            card(replicates={"mae": (1.0,) * 38}),
            {"not_worse_by": 0},
            f"at least {FEWEST_REPLICATES}",
        ),
    ],
)
def test_scorecards_that_cannot_be_compared_are_an_error(candidate, champion, rule, message):
    with pytest.raises(IncomparableError, match=message):
        judge(candidate, champion, [Rule(**{"metric": "mae", **rule})])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"metric": "mae"}, "asks for nothing"),
        ({"metric": "mae", "better": "smaller", "floor": 1}, "'lower' or 'higher'"),
        ({"metric": "mae", "floor": NAN}, "floor is a finite number, not nan"),
        ({"metric": "mae", "floor": True}, "floor is a finite number, not True"),
        ({"metric": "mae", "better_by": "1"}, "better_by is a finite number of at least 0"),
        ({"metric": "mae", "not_worse_by": -0.1}, "of at least 0, not -0.1"),
        ({"floor": 1}, "does not name its metric"),
        ({"metric": "mae", "flor": 1}, "no key 'flor' .did you mean 'floor'."),
        ({"metric": "mae", "zzz": 1}, "no key 'zzz'; its keys are metric"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        Rule.from_json(rule)


def test_a_rule_is_read_as_people_write_it():
    rule = Rule.from_json({"metric": "mae", "better": "lower", "floor": 1.2})
    assert rule == Rule(metric="mae", better="lower", floor=1.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"better": {"mae": "lower"}}, "directions are for"),
        ({"better": {"mae": "less", "acc": "higher"}}, "not 'less'"),
        ({"replicates": {"f1": (1.0,)}}, "are no metrics"),
    ],
)
def test_a_scorecard_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        card(**changes)


def test_a_metric_that_is_undefined_does_not_pass_and_says_why():
    asked = [Rule(metric="mae", floor=9)]
    verdict = judge(card(mae=NAN, undefined={"mae": "the truth is not there"}), None, asked)
    assert not verdict.promote
    assert verdict.reasons[-1].text == "mae is nan (the truth is not there), which never wins"


def test_a_verdict_says_all_reasons_in_plain_data():
    plain = judge(card(mae=2.0), None, [Rule(metric="mae", floor=1.2)]).to_json()
    assert plain["promote"] is False
    assert plain["reasons"][-1] == {
        "rule": "mae floor",
        "passed": False,
        "text": "2; asked: at most 1.2",
    }
    assert json.loads(json.dumps(plain)) == plain


numbers = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def scorecards(draw):
    few = draw(st.sampled_from([0, FEWEST_REPLICATES, DRAWS]))
    return card(
        mae=draw(numbers),
        acc=draw(numbers),
        replicates={
            name: (*draw(st.lists(numbers, max_size=3)), *replicates(draw(st.floats(0, 2))))[:few]
            for name in ("mae", "acc")
        },
        leaks=tuple(draw(st.lists(st.text(max_size=3), max_size=2))),
        parity=draw(st.sampled_from([True, True, False, None])),
    )


margins = st.none() | st.floats(min_value=0, max_value=1e6)
rules = st.builds(
    Rule,
    metric=st.sampled_from(["mae", "acc"]),
    floor=st.floats(-1e6, 1e6),
    not_worse_by=margins,
    better_by=margins,
)


def verdict_or_error(candidate, champion, asked):
    try:
        return judge(candidate, champion, asked)
    except IncomparableError as error:
        return str(error)


@settings(deadline=None)
@given(scorecards(), st.none() | scorecards(), st.lists(rules, min_size=1, max_size=3))
def test_the_same_scorecards_have_the_same_verdict_after_a_trip_through_json(ours, theirs, asked):
    once = verdict_or_error(ours, theirs, asked)
    text = json.dumps([one and one.to_json() for one in (ours, theirs)], allow_nan=False)
    again = [one and Scorecard.from_json(one) for one in json.loads(text)]
    assert verdict_or_error(again[0], again[1], asked) == once


@settings(deadline=None)
@given(scorecards(), st.none() | scorecards(), st.lists(rules, min_size=1, max_size=3))
def test_whoever_is_promoted_has_numbers_parity_and_no_leaks(ours, theirs, asked):
    verdict = verdict_or_error(ours, theirs, asked)
    if not isinstance(verdict, str) and verdict.promote:
        assert ours.parity
        assert not ours.leaks
        for rule in asked:
            assert math.isfinite(ours.metrics[rule.metric])
            assert all(math.isfinite(value) for value in ours.replicates[rule.metric])
