import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.gate import (
    FEWEST_REPLICATES,
    IncomparableError,
    NoRulesError,
    judge,
)
from tracking.parts import Latency, Part, Subgroup
from tracking.rules import LatencyRule, Rule, rule_from_json
from tracking.scorecard import Scorecard

DRAWS = 200
NAN = math.nan
TOOK = Latency(median_s=0.01, p95_s=0.02, clips=20, machine="a machine")


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
        "reproducible": True,
        "duplicates": (),
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
    assert [reason.text for reason in verdict.reasons[4:]] == ["no champion yet"] * 2


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
        ((), "no speaker or source is shared with training; speakers are not known"),
        (("speaker anna",), "shared with training: speaker anna"),
        (tuple("abcdefgh"), "shared with training: a, b, c, d, e and 3 more"),
    ],
)
def test_nothing_may_be_shared_with_training(leaks, text):
    verdict = judge(card(leaks=leaks), None, [Rule(metric="mae", floor=9)])
    assert verdict.promote is (not leaks)
    assert verdict.reasons[2].text == text


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
        ({"metric": "mae", "no_subgroup_worse_by": -1}, "of at least 0, not -1"),
        ({"metric": "mae", "floor": 1, "least_clips": 0}, "whole number of at least 1, not 0"),
        ({"metric": "mae", "floor": 1, "least_clips": 2.5}, "whole number of at least 1, not 2.5"),
        ({"metric": "mae", "floor": 1, "least_clips": True}, "at least 1, not True"),
        ({"latency_ms": 0}, "a finite number above 0, not 0"),
        ({"latency_ms": NAN}, "a finite number above 0, not nan"),
        ({"latency_ms": 5, "metric": "mae"}, "has no other key, and 'metric' is one"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        rule_from_json(rule)


def test_a_rule_is_read_as_people_write_it():
    rule = rule_from_json({"metric": "mae", "better": "lower", "floor": 1.2})
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


@pytest.mark.parametrize(
    ("reproducible", "promoted", "text"),
    [
        (True, True, "says the same of a clip when it is asked again"),
        (False, False, "says something else of a clip when it is asked again"),
        (None, False, "nobody asked the registered model twice"),
    ],
)
def test_a_model_says_the_same_twice(reproducible, promoted, text):
    verdict = judge(card(reproducible=reproducible), None, [Rule(metric="mae", floor=9)])
    assert verdict.promote is promoted
    assert text in verdict.reasons[1].text


@pytest.mark.parametrize(
    ("duplicates", "promoted", "text"),
    [
        ((), True, "no clip looks or sounds like one of training"),
        (("a is like b",), False, "near-duplicates: a is like b"),
        (None, False, "not all clips were held against those of training"),
    ],
)
def test_no_clip_is_a_near_duplicate_of_one_of_training(duplicates, promoted, text):
    verdict = judge(card(duplicates=duplicates), None, [Rule(metric="mae", floor=9)])
    assert verdict.promote is promoted
    assert verdict.reasons[3].text == text


@pytest.mark.parametrize(
    ("p95_s", "promoted"), [(0.05, True), (0.0501, False), (NAN, False), (math.inf, False)]
)
def test_latency_has_an_upper_limit(p95_s, promoted):
    took = Latency(median_s=0.01, p95_s=p95_s, clips=20, machine="a machine")
    verdict = judge(card(latency=took), None, [LatencyRule(latency_ms=50)])
    assert verdict.promote is promoted
    assert "for 95 % of 20 clips (a machine); asked: at most 50 ms" in verdict.reasons[4].text


@pytest.mark.parametrize("changes", [{"mae": NAN}, {"acc": math.inf}])
def test_how_fast_a_model_says_nan_promotes_nothing(changes):
    asked = [LatencyRule(latency_ms=50)]
    assert judge(card(latency=TOOK), None, asked).promote
    verdict = judge(card(latency=TOOK, **changes), None, asked)
    assert not verdict.promote
    assert verdict.reasons[-1].text.endswith("which never wins")
    assert judge(card(latency=TOOK), card(**changes), asked).promote


def test_latency_that_nobody_measured_is_none_that_is_low_enough():
    verdict = judge(card(), None, [rule_from_json({"latency_ms": 1e9})])
    assert not verdict.promote
    assert verdict.reasons[4].rule == "latency_ms"
    assert "nobody measured" in verdict.reasons[4].text


def group(name, mae, count=20, clips=None):
    return Subgroup(
        kind="group",
        name=name,
        count=count,
        metrics={"mae": mae, "acc": 1 - mae / 10},
        intervals={},
        clips=clips or name,
    )


def part(streams, mae, count=20, clips=None):
    return Part(
        streams=streams,
        count=count,
        metrics={"mae": mae},
        intervals={},
        clips=clips or str(streams),
    )


def subgroups(ours, theirs, **rule):
    asked = Rule(**{"metric": "mae", "no_subgroup_worse_by": 0.1, **rule})
    reason = judge(card(**ours), card(**theirs), [asked]).reasons[-1]
    return reason.passed, reason.text


def test_no_group_of_speakers_may_be_worse_by_more_than_a_margin():
    theirs = {"by_group": (group("old", 1.0), group("young", 1.0))}
    better = {"by_group": (group("old", 0.1), group("young", 1.1))}
    assert subgroups(better, theirs)[0]
    assert not subgroups(better, theirs, no_subgroup_worse_by=0.09)[0]
    assert subgroups(better, theirs, metric="acc", no_subgroup_worse_by=0.01)[0]
    passed, text = subgroups({"by_group": (group("old", 1.2), group("young", 1.3))}, theirs)
    assert not passed
    assert text == (
        "the worst of 2 is group young (20 clips): 1.3, the champion 1; asked: worse by at most 0.1"
    )


def test_subgroups_of_few_clips_are_not_judged_and_told():
    theirs = {"by_group": (group("old", 1.0), group("young", 1.0, count=9))}
    worse = {"by_group": (group("old", 1.0), group("young", 3.0, count=9))}
    passed, text = subgroups(worse, theirs)
    assert passed
    assert text.endswith("; 1 of fewer than 10 clips are not judged")
    assert not subgroups(worse, theirs, least_clips=9)[0]
    passed, text = subgroups(worse, theirs, least_clips=50)
    assert passed
    assert text.startswith("there is no subgroup to judge; 2 of fewer than 50 clips")
    assert subgroups({}, {})[0]


def test_patterns_of_missing_streams_are_the_same_clips_whatever_the_champion_lacks():
    ours = {"as_found": (part((), 1.0, clips="a"), part(("video",), 2.0, clips="b"))}
    theirs = {"as_found": (part((), 1.0, clips="b"), part(("text",), 1.0, clips="a"))}
    passed, text = subgroups(ours, theirs)
    assert not passed
    assert "the worst of 2 is lacking video" in text
    # A single pattern is the whole set.
    assert subgroups({"as_found": ours["as_found"][1:]}, theirs)[0]


def test_a_stream_that_is_taken_away_is_compared_where_both_have_it():
    ours = {"as_asked": (part(("audio",), 2.0), part(("video",), 9.0))}
    passed, text = subgroups(ours, {"as_asked": (part(("audio",), 1.0),)})
    assert not passed
    assert "the worst of 1 is without audio" in text
    assert subgroups(ours, {"as_asked": (part(("text",), 0.0),)})[0]


@pytest.mark.parametrize(
    ("ours", "theirs", "passed"),
    [(NAN, 1.0, False), (NAN, NAN, True), (1.0, NAN, True), (math.inf, 1.0, False)],
)
def test_a_subgroup_without_a_number_never_wins(ours, theirs, passed):
    found = subgroups({"by_group": (group("old", ours),)}, {"by_group": (group("old", theirs),)})
    assert found[0] is passed


def test_a_champion_that_says_nothing_of_a_subgroup_cannot_be_compared():
    with pytest.raises(IncomparableError, match="says nothing of group old"):
        subgroups({"by_group": (group("old", 1.0),)}, {"by_group": (group("old", 1.0, clips="x"),)})


def test_a_candidate_that_says_nothing_of_a_subgroup_of_the_champion_cannot_be_compared():
    with pytest.raises(IncomparableError, match="candidate's scorecard says nothing of group old"):
        subgroups({}, {"by_group": (group("old", 1.0),)})


def test_it_is_said_where_speakers_are_not_known():
    asked = [Rule(metric="mae", floor=9)]
    known = judge(card(by_group=(group("old", 1.0),)), None, asked).reasons[2]
    assert known.text == "no speaker or source is shared with training"


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
        reproducible=draw(st.sampled_from([True, True, False, None])),
        duplicates=draw(st.sampled_from([(), (), ("a is like b",), None])),
        latency=draw(st.none() | st.just(TOOK)),
    )


margins = st.none() | st.floats(min_value=0, max_value=1e6)
rules = st.builds(
    Rule,
    metric=st.sampled_from(["mae", "acc"]),
    floor=st.floats(-1e6, 1e6),
    not_worse_by=margins,
    better_by=margins,
) | st.builds(LatencyRule, latency_ms=st.sampled_from([10.0, 50.0]))


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
        assert ours.reproducible
        assert not ours.leaks
        assert ours.duplicates == ()
        named = {rule.metric for rule in asked if isinstance(rule, Rule)}
        for metric in named or ours.metrics:
            assert math.isfinite(ours.metrics[metric])
            assert all(math.isfinite(value) for value in ours.replicates[metric])


def test_draws_of_another_bootstrap_are_not_paired():
    ours, theirs = card(draws="one"), card(draws="other")
    rules = [Rule(metric="mae", not_worse_by=0.1)]
    assert judge(ours, replace(theirs, draws="one"), rules).promote
    with pytest.raises(IncomparableError, match=r"drew other clips \(one\) than .* \(other\)"):
        judge(ours, theirs, rules)
    # Where nothing is compared draw by draw, it does not matter.
    assert judge(ours, theirs, [Rule(metric="mae", floor=9.0)]).promote


def test_what_nobody_knows_of_a_start_is_said_by_the_gate_of_leaks():
    started = card(unknown_starts=("video from kinetics.pth (sha256 0123)",))
    verdict = judge(started, None, [Rule(metric="mae", floor=9.0)])
    (reason,) = [each for each in verdict.reasons if each.rule == "leaks"]
    assert reason.passed
    assert reason.text.endswith(
        "; what it starts from was trained on clips that nobody knows: video from kinetics.pth "
        "(sha256 0123)"
    )
