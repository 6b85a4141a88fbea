"""Shall a candidate replace the champion? Pure: same scorecards and rules, same verdict.

Two models are compared on the same clips by the paired bootstrap with percentile interval (Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13): clips are drawn with
replacement, both models are scored on each draw, and the middle 95 % of the differences tell how
much better the candidate is. The scorecards bring the metrics of every draw; draw i is the same
clips in all scorecards of one evaluation set.
"""

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from tracking.scorecard import CONFIDENCE, Better, Scorecard, middle

# An end of the interval is one of the draws: below 39 none stands for the 2.5 % quantile.
FEWEST_REPLICATES = 39

_RULE_KEYS = ("metric", "better", "floor", "not_worse_by", "better_by")


class NoRulesError(ValueError):
    """A verdict without rules would promote anything."""


class IncomparableError(ValueError):
    """Scorecards that say nothing about each other, or nothing about a rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is asked of one metric: at least one of `floor`, `not_worse_by` and `better_by`.

    Attributes:
        better: The direction that its author has in mind; checked against the scorecard's.
        floor: The worst value allowed: an upper limit where lower is better, else a lower limit.
        not_worse_by: The low end of the candidate's advantage over the champion must be at least
            minus this.
        better_by: That low end must be at least this; for 0, above 0.
    """

    metric: str
    better: Better | None = None
    floor: float | None = None
    not_worse_by: float | None = None
    better_by: float | None = None

    def __post_init__(self) -> None:
        if self.better is not None and self.better not in get_args(Better):
            raise ValueError(
                f"rule for {self.metric!r}: better is 'lower' or 'higher', not {self.better!r}"
            )
        if self.floor is None and self.not_worse_by is None and self.better_by is None:
            raise ValueError(
                f"rule for {self.metric!r} asks for nothing: "
                "give it at least one of floor, not_worse_by, better_by"
            )
        smallest = {"floor": -sys.float_info.max, "not_worse_by": 0.0, "better_by": 0.0}
        for key, least in smallest.items():
            value = getattr(self, key)
            if value is not None and not _is_number(value, least):
                kind = "a finite number" if key == "floor" else "a finite number of at least 0"
                raise ValueError(f"rule for {self.metric!r}: {key} is {kind}, not {value!r}")

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Rule":
        """A rule as people write it in an experiment file.

        Raises:
            ValueError: An unknown key, no metric, nothing asked, or a value of the wrong kind.
        """
        for key in data:
            if key not in _RULE_KEYS:
                near = difflib.get_close_matches(str(key), _RULE_KEYS, n=1, cutoff=0.4)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(
                    f"a rule has no key {key!r}{hint}; its keys are {', '.join(_RULE_KEYS)}"
                )
        if not data.get("metric"):
            raise ValueError(f"the rule {dict(data)} does not name its metric, as in metric: mae")
        return Rule(**data)


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


def judge(candidate: Scorecard, champion: Scorecard | None, rules: Sequence[Rule]) -> Verdict:
    """The candidate is promoted when every rule holds, parity was shown and nothing leaks.

    A number that is not finite never wins: a candidate with one fails every rule on that metric,
    and a champion with one loses to a finite candidate.

    Raises:
        NoRulesError: No rules.
        IncomparableError: The evaluation sets differ, a rule names an unknown metric or another
            direction, or replicates that a comparison needs are missing.
    """
    if not rules:
        raise NoRulesError("no rules were given, so nothing can be judged: add promote.rules")
    if champion is not None:
        _check_same_set(candidate, champion)
    reasons = [_parity(candidate), _leaks(candidate)]
    for rule in rules:
        reasons += _apply(rule, candidate, champion)
    return Verdict(all(reason.passed for reason in reasons), tuple(reasons))


def _apply(rule: Rule, candidate: Scorecard, champion: Scorecard | None) -> list[Reason]:
    _check_metric(rule, "the candidate", candidate)
    better = candidate.better[rule.metric]
    value = candidate.metrics[rule.metric]
    asked = [
        (f"{rule.metric} {name}", margin)
        for name, margin in (("not_worse_by", rule.not_worse_by), ("better_by", rule.better_by))
        if margin is not None
    ]
    floor = [] if rule.floor is None else [(f"{rule.metric} floor", rule.floor)]
    if undefined := _undefined(rule.metric, candidate):
        return [Reason(name, False, undefined) for name, _ in floor + asked]
    reasons = [_hold_floor(name, value, limit, better) for name, limit in floor]
    if champion is None:
        return reasons + [Reason(name, True, "no champion yet") for name, _ in asked]
    if asked:
        _check_metric(rule, "the champion", champion)
        reasons += _compare(rule, candidate, champion)
    return reasons


def _compare(rule: Rule, candidate: Scorecard, champion: Scorecard) -> list[Reason]:
    metric = rule.metric
    if champion.better[metric] != candidate.better[metric]:
        raise IncomparableError(
            f"{metric!r} is better when {candidate.better[metric]} for the candidate, "
            f"but when {champion.better[metric]} for the champion"
        )
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


def _parity(candidate: Scorecard) -> Reason:
    if candidate.parity is None:
        return Reason(
            "parity", False, "nobody compared the registered model's features with shards"
        )
    same = "equal" if candidate.parity else "differ from"
    text = f"the features that the registered model computes {same} those that training read"
    return Reason("parity", candidate.parity, text)


def _leaks(candidate: Scorecard) -> Reason:
    if not candidate.leaks:
        return Reason("leaks", True, "no speaker or source is shared with training")
    more = f" and {len(candidate.leaks) - 5} more" if len(candidate.leaks) > 5 else ""
    return Reason("leaks", False, f"shared with training: {', '.join(candidate.leaks[:5])}{more}")


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


def _is_number(value: object, smallest: float) -> bool:
    # bool is an int in Python; "floor: yes" in YAML is a mistake.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return smallest <= value < math.inf
