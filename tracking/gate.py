"""Shall a candidate replace the champion? Pure: same scorecards and rules, same verdict.

Two models are compared on the same clips by the paired bootstrap with percentile interval (Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13): clips are drawn with
replacement, both models are scored on each draw, and the middle 95 % of the differences tell how
much better the candidate is. The scorecards bring the metrics of every draw; draw i is the same
clips in all scorecards of one evaluation set.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tracking.rules import AnyRule, LatencyRule, Rule
from tracking.scorecard import CONFIDENCE, Better, Scorecard, middle
from tracking.subgroups import pairs

# An end of the interval is one of the draws: below 39 none stands for the 2.5 % quantile.
FEWEST_REPLICATES = 39


class NoRulesError(ValueError):
    """A verdict without rules would promote anything."""


class IncomparableError(ValueError):
    """Scorecards that say nothing about each other, or nothing about a rule."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that was asked, whether it holds, and the numbers behind it."""

    rule: str
    passed: bool
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to promote, and why."""

    promote: bool
    reasons: tuple[Reason, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a report."""
        return {
            "promote": self.promote,
            "reasons": [
                {"rule": reason.rule, "passed": reason.passed, "text": reason.text}
                for reason in self.reasons
            ],
        }


def judge(candidate: Scorecard, champion: Scorecard | None, rules: Sequence[AnyRule]) -> Verdict:
    """The candidate is promoted when every rule holds, and what is asked of every candidate does.

    That is: the registered model computes the features that training read, it says the same when
    it is asked twice, and no clip shares its speaker, its source or what it shows with training.
    Where nobody looked at one of these it does not hold.

    A number that is not finite never wins: a candidate with one fails every rule on that metric,
    and a champion with one loses to a finite candidate. Where no rule is on a metric, it fails by
    any of them.

    Raises:
        NoRulesError: No rules.
        IncomparableError: The evaluation sets differ, a rule names an unknown metric or another
            direction, or replicates or subgroups that a comparison needs are missing.
    """
    if not rules:
        raise NoRulesError("no rules were given, so nothing can be judged: add promote.rules")
    if champion is not None:
        _check_same_set(candidate, champion)
    reasons = [
        _parity(candidate),
        _reproducible(candidate),
        leaks(candidate),
        _duplicates(candidate),
    ]
    for rule in rules:
        if isinstance(rule, LatencyRule):
            reasons.append(_latency(rule, candidate))
        else:
            reasons += _apply(rule, candidate, champion)
    if all(isinstance(rule, LatencyRule) for rule in rules):
        reasons.append(_numbers(candidate))
    return Verdict(all(reason.passed for reason in reasons), tuple(reasons))


def _apply(rule: Rule, candidate: Scorecard, champion: Scorecard | None) -> list[Reason]:
    _check_metric(rule, "the candidate", candidate)
    better = candidate.better[rule.metric]
    value = candidate.metrics[rule.metric]
    asked = [
        (f"{rule.metric} {name}", margin)
        for name in ("not_worse_by", "better_by", "no_subgroup_worse_by")
        if (margin := getattr(rule, name)) is not None
    ]
    floor = [] if rule.floor is None else [(f"{rule.metric} floor", rule.floor)]
    if undefined := _undefined(rule.metric, candidate):
        return [Reason(name, False, undefined) for name, _ in floor + asked]
    reasons = [_hold_floor(name, value, limit, better) for name, limit in floor]
    if champion is None:
        return reasons + [Reason(name, True, "no champion yet") for name, _ in asked]
    if asked:
        _check_metric(rule, "the champion", champion)
        _check_direction(rule.metric, candidate, champion)
    if rule.not_worse_by is not None or rule.better_by is not None:
        reasons += _compare(rule, candidate, champion)
    if rule.no_subgroup_worse_by is not None:
        reasons.append(_subgroups(rule, rule.no_subgroup_worse_by, candidate, champion))
    return reasons


def _compare(rule: Rule, candidate: Scorecard, champion: Scorecard) -> list[Reason]:
    metric = rule.metric
    if math.isfinite(champion.metrics[metric]):
        low, high = _interval(metric, candidate, champion)
        text = (
            f"{candidate.metrics[metric]:.6g}, the champion {champion.metrics[metric]:.6g}; "
            f"better by {low:.6g} to {high:.6g} with {CONFIDENCE:.0%} confidence"
        )
    else:
        low, text = math.inf, f"the champion's {metric} is {champion.metrics[metric]}, and loses"
    reasons = []
    if rule.not_worse_by is not None:
        passed = low >= -rule.not_worse_by
        reasons.append(Reason(f"{metric} not_worse_by", passed, _asks(text, -rule.not_worse_by)))
    if rule.better_by is not None:
        passed = low > 0 if rule.better_by == 0 else low >= rule.better_by
        reasons.append(Reason(f"{metric} better_by", passed, _asks(text, rule.better_by)))
    return reasons


def _asks(text: str, margin: float) -> str:
    return f"{text}; asked: {'above' if margin == 0 else 'at least'} {margin:.6g}"


def _interval(metric: str, candidate: Scorecard, champion: Scorecard) -> tuple[float, float]:
    """Ends of the percentile interval of the candidate's advantage."""
    if candidate.draws != champion.draws:
        raise IncomparableError(
            f"the bootstrap of the candidate drew other clips ({candidate.draws or 'unnamed'}) "
            f"than that of the champion ({champion.draws or 'unnamed'}), so draws cannot be "
            f"paired; register both with one version of fuseline"
        )
    ours = candidate.replicates.get(metric, ())
    theirs = champion.replicates.get(metric, ())
    if len(ours) != len(theirs) or len(ours) < FEWEST_REPLICATES:
        raise IncomparableError(
            f"{metric!r} has {len(ours)} bootstrap replicates for the candidate and {len(theirs)} "
            f"for the champion; a comparison needs equally many, at least {FEWEST_REPLICATES}"
        )
    sign = 1.0 if candidate.better[metric] == "higher" else -1.0
    # A draw on which the champion has no number is one that it loses.
    return middle(
        [
            sign * (our - their) if math.isfinite(their) else math.inf
            for our, their in zip(ours, theirs, strict=True)
        ]
    )


def _hold_floor(name: str, value: float, floor: float, better: Better) -> Reason:
    if better == "lower":
        return Reason(name, value <= floor, f"{value:.6g}; asked: at most {floor:.6g}")
    return Reason(name, value >= floor, f"{value:.6g}; asked: at least {floor:.6g}")


def _subgroups(rule: Rule, margin: float, candidate: Scorecard, champion: Scorecard) -> Reason:
    name, asked = f"{rule.metric} no_subgroup_worse_by", f"asked: worse by at most {margin:.6g}"
    found = pairs(rule.metric, candidate, champion)
    if unknown := [pair.title for pair in found if pair.theirs is None]:
        raise IncomparableError(
            f"the champion's scorecard says nothing of {unknown[0]}, which a rule asks about; "
            f"train it again, or leave out no_subgroup_worse_by"
        )
    own = {each.clips for each in candidate.by_group}
    if hidden := [each for each in champion.by_group if each.clips not in own]:
        raise IncomparableError(
            f"the candidate's scorecard says nothing of {hidden[0].kind} {hidden[0].name}, of "
            f"which the champion's does; train it again with the champion's speakers and groups"
        )
    judged = [pair for pair in found if pair.count >= rule.least_clips]
    few = len(found) - len(judged)
    more = f"; {few} of fewer than {rule.least_clips} clips are not judged" if few else ""
    if not judged:
        return Reason(name, True, f"there is no subgroup to judge{more}; {asked}")
    worst = max(judged, key=lambda pair: pair.worse_by)
    text = (
        f"the worst of {len(judged)} is {worst.title} ({worst.count} clips): {worst.ours:.6g}, "
        f"the champion {worst.theirs:.6g}; {asked}{more}"
    )
    return Reason(name, worst.worse_by <= margin, text)


def _latency(rule: LatencyRule, candidate: Scorecard) -> Reason:
    found = candidate.latency
    if found is None:
        return Reason("latency_ms", False, "nobody measured how long the model takes for a clip")
    text = (
        f"{found.p95_s * 1000:.3g} ms for 95 % of {found.clips} clips ({found.machine}); "
        f"asked: at most {rule.latency_ms:.6g} ms"
    )
    return Reason("latency_ms", found.p95_s * 1000 <= rule.latency_ms, text)


def _numbers(candidate: Scorecard) -> Reason:
    """Asked where no rule is on a metric: how fast a model says NaN is no merit."""
    bad = [metric for metric in sorted(candidate.metrics) if _undefined(metric, candidate)]
    if bad:
        return Reason("metrics", False, _undefined(bad[0], candidate))
    if not candidate.metrics:
        return Reason("metrics", False, "nobody measured how well the model does")
    return Reason("metrics", True, "all metrics are numbers; no rule asks how good they are")


def _reproducible(candidate: Scorecard) -> Reason:
    if candidate.reproducible is None:
        return Reason("reproducible", False, "nobody asked the registered model twice")
    how = "the same" if candidate.reproducible else "something else"
    text = f"the registered model says {how} of a clip when it is asked again"
    return Reason("reproducible", candidate.reproducible, text)


def _parity(candidate: Scorecard) -> Reason:
    if candidate.parity is None:
        return Reason(
            "parity", False, "nobody compared the registered model's features with shards"
        )
    same = "equal" if candidate.parity else "differ from"
    text = f"the features that the registered model computes {same} those that training read"
    return Reason("parity", candidate.parity, text)


def leaks(candidate: Scorecard) -> Reason:
    """Whether its clips are new to it: what is shared with training, or not known to be."""
    if not candidate.leaks:
        unknown = "" if candidate.by_group else "; speakers are not known"
        if candidate.unknown_starts:
            unknown += (
                f"; what it starts from was trained on clips that nobody knows: "
                f"{_some(candidate.unknown_starts)}"
            )
        return Reason("leaks", True, f"no speaker or source is shared with training{unknown}")
    return Reason("leaks", False, f"shared with training: {_some(candidate.leaks)}")


def _duplicates(candidate: Scorecard) -> Reason:
    if candidate.duplicates is None:
        return Reason("duplicates", False, "not all clips were held against those of training")
    if not candidate.duplicates:
        return Reason("duplicates", True, "no clip looks or sounds like one of training")
    return Reason("duplicates", False, f"near-duplicates: {_some(candidate.duplicates)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _undefined(metric: str, card: Scorecard) -> str:
    """Why a metric cannot win, or nothing."""
    if not math.isfinite(card.metrics[metric]):
        why = f" ({card.undefined[metric]})" if metric in card.undefined else ""
        return f"{metric} is {card.metrics[metric]}{why}, which never wins"
    replicates = card.replicates.get(metric, ())
    if bad := sum(not math.isfinite(value) for value in replicates):
        return f"{metric} is undefined on {bad} of {len(replicates)} bootstrap draws"
    return ""


def _check_same_set(candidate: Scorecard, champion: Scorecard) -> None:
    if (candidate.evaluation_set, candidate.count) != (champion.evaluation_set, champion.count):
        raise IncomparableError(
            f"the candidate was scored on {candidate.count} clips of set "
            f"{candidate.evaluation_set[:12]}, the champion on {champion.count} of "
            f"{champion.evaluation_set[:12]}; score both on the same set"
        )


def _check_direction(metric: str, candidate: Scorecard, champion: Scorecard) -> None:
    if champion.better[metric] != candidate.better[metric]:
        raise IncomparableError(
            f"{metric!r} is better when {candidate.better[metric]} for the candidate, "
            f"but when {champion.better[metric]} for the champion"
        )


def _check_metric(rule: Rule, whose: str, card: Scorecard) -> None:
    if rule.metric not in card.metrics:
        raise IncomparableError(
            f"a rule asks for {rule.metric!r}, which {whose} does not have; "
            f"known are {', '.join(sorted(card.metrics))}"
        )
    if rule.better not in (None, card.better[rule.metric]):
        raise IncomparableError(
            f"the rule for {rule.metric!r} says that {rule.better} is better, "
            f"but {whose}'s scorecard says {card.better[rule.metric]}"
        )
