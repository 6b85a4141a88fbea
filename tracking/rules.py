"""What is asked of a candidate for champion: data, as people write it in an experiment file."""

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, get_args

from tracking.scorecard import Better

FEWEST_CLIPS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is asked of one metric: at least one of `floor` and the three that compare.

    Attributes:
        better: The direction that its author has in mind; checked against the scorecard's.
        floor: The worst value allowed: an upper limit where lower is better, else a lower limit.
        not_worse_by: The low end of the candidate's advantage over the champion must be at least
            minus this.
        better_by: That low end must be at least this; for 0, above 0.
        no_subgroup_worse_by: On no group of speakers, on no pattern of missing streams and with no
            stream taken away may the candidate be worse than the champion by more than this.
        least_clips: Of subgroups with fewer clips that is not asked.
    """

    metric: str
    better: Better | None = None
    floor: float | None = None
    not_worse_by: float | None = None
    better_by: float | None = None
    no_subgroup_worse_by: float | None = None
    least_clips: int = FEWEST_CLIPS

    def __post_init__(self) -> None:
        if self.better is not None and self.better not in get_args(Better):
            raise ValueError(
                f"rule for {self.metric!r}: better is 'lower' or 'higher', not {self.better!r}"
            )
        if all(getattr(self, key) is None for key in _LEAST):
            raise ValueError(
                f"rule for {self.metric!r} asks for nothing: "
                f"give it at least one of {', '.join(_LEAST)}"
            )
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if value is not None and not _is_number(value, least):
                kind = "a finite number" if key == "floor" else "a finite number of at least 0"
                raise ValueError(f"rule for {self.metric!r}: {key} is {kind}, not {value!r}")
        if not _is_whole(self.least_clips):
            raise ValueError(
                f"rule for {self.metric!r}: least_clips is a whole number of at least 1, "
                f"not {self.least_clips!r}"
            )


_LEAST = {
    "floor": -sys.float_info.max,
    "not_worse_by": 0.0,
    "better_by": 0.0,
    "no_subgroup_worse_by": 0.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRule:
    """An upper limit of the time that the model alone takes for one clip.

    Attributes:
        latency_ms: Milliseconds that 95 % of the clips stay below.
    """

    latency_ms: float

    def __post_init__(self) -> None:
        if not _is_number(self.latency_ms, sys.float_info.min):
            raise ValueError(
                f"a rule's latency_ms is a finite number above 0, not {self.latency_ms!r}"
            )


AnyRule: TypeAlias = Rule | LatencyRule


def rule_from_json(data: Mapping[str, Any]) -> AnyRule:
    """A rule as people write it in an experiment file.

    Raises:
        ValueError: An unknown key, no metric, nothing asked, or a value of the wrong kind.
    """
    keys = [field.name for field in (*fields(Rule), *fields(LatencyRule))]
    for key in data:
        if key not in keys:
            raise ValueError(
                f"a rule has no key {key!r}{_near(str(key), keys)}; its keys are {', '.join(keys)}"
            )
    if "latency_ms" in data:
        if others := sorted(set(data) - {"latency_ms"}):
            raise ValueError(
                f"a rule for latency_ms has no other key, and {others[0]!r} is one; write two rules"
            )
        return LatencyRule(**data)
    if not data.get("metric"):
        raise ValueError(
            f"the rule {dict(data)} does not name its metric, as in metric: mae (or latency_ms: 50)"
        )
    return Rule(**data)


def _near(key: str, keys: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _is_number(value: object, smallest: float) -> bool:
    # bool is an int in Python; "floor: yes" in YAML is a mistake.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return smallest <= value < math.inf


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and _is_number(value, 1)
