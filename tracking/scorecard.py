"""All that training tells promotion about one model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

Better: TypeAlias = Literal["lower", "higher"]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Metrics of the clips that lack the same streams, or of all clips when streams are taken away.

    Attributes:
        streams: What is missing, sorted; empty where nothing is.
        count: Clips.
        metrics: As in `Scorecard`.
        intervals: As there.
    """

    streams: tuple[str, ...]
    count: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain data for strict JSON, as in `Scorecard`."""
        return {
            "streams": list(self.streams),
            "count": self.count,
            "metrics": _plain(self.metrics),
            "intervals": _plain_ends(self.intervals),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Part":
        """The part that `to_json` wrote."""
        ends = data["intervals"].items()
        return Part(
            streams=tuple(data["streams"]),
            count=data["count"],
            metrics=_back(data["metrics"]),
            intervals={name: (_from_plain(low), _from_plain(high)) for name, (low, high) in ends},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorecard:
    """All that training tells promotion about one model.

    Attributes:
        evaluation_set: sha256 in hex that names the set: clips, media and labels.
        count: Clips in the set.
        metrics: Each metric on the whole set; NaN where it is undefined.
        better: For each metric, whether lower or higher is better.
        replicates: For each metric, its values on the bootstrap draws.
        leaks: Speakers and sources that are in the training data too, for people to read.
        parity: Whether the registered model computes the features that are in the shards; None
            when nobody looked.
        undefined: For each metric that is NaN, why.
        by_class: For each class or label its own support and metrics; empty for a regression.
        confusion: Counts of clips, rows are the truth and columns the prediction, in the order of
            `by_class`. Of several labels one such table for each, of "no" and "yes".
        as_found: The clips by the streams that they really lack; those that lack none come first.
        as_asked: All clips, with each stream taken away in turn.
    """

    evaluation_set: str
    count: int
    metrics: Mapping[str, float]
    better: Mapping[str, Better]
    replicates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    leaks: tuple[str, ...] = ()
    parity: bool | None = None
    undefined: Mapping[str, str] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    confusion: Sequence[Any] = ()
    as_found: tuple[Part, ...] = ()
    as_asked: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        if set(self.better) != set(self.metrics):
            raise ValueError(
                f"metrics are {sorted(self.metrics)}, but directions are for {sorted(self.better)}"
            )
        if wrong := sorted(set(self.better.values()) - set(get_args(Better))):
            raise ValueError(f"a metric is better when 'lower' or 'higher', not {wrong[0]!r}")
        if strange := sorted(set(self.replicates) - set(self.metrics)):
            raise ValueError(f"replicates are given for {strange}, which are no metrics")

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """For each metric with replicates its 95 % interval; NaN where a draw is undefined."""
        return {name: interval(values) for name, values in self.replicates.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain data for strict JSON: NaN is null, infinities are "inf" and "-inf"."""
        return {
            "evaluation_set": self.evaluation_set,
            "count": self.count,
            "metrics": _plain(self.metrics),
            "intervals": _plain_ends(self.intervals),
            "better": dict(self.better),
            "replicates": {
                name: [_to_plain(value) for value in values]
                for name, values in self.replicates.items()
            },
            "leaks": list(self.leaks),
            "parity": self.parity,
            "undefined": dict(self.undefined),
            "by_class": {name: _plain(values) for name, values in self.by_class.items()},
            "confusion": list(self.confusion),
            "as_found": [part.to_json() for part in self.as_found],
            "as_asked": [part.to_json() for part in self.as_asked],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Scorecard":
        """The scorecard that `to_json` wrote, now or before there were reasons and parts in it."""
        by_class = data.get("by_class", {})
        return Scorecard(
            evaluation_set=data["evaluation_set"],
            count=data["count"],
            metrics=_back(data["metrics"]),
            better=dict(data["better"]),
            replicates={
                name: tuple(_from_plain(value) for value in values)
                for name, values in data["replicates"].items()
            },
            leaks=tuple(data["leaks"]),
            parity=data["parity"],
            undefined=dict(data.get("undefined", {})),
            by_class={name: _back(values) for name, values in by_class.items()},
            confusion=data.get("confusion", ()),
            as_found=tuple(Part.from_json(part) for part in data.get("as_found", ())),
            as_asked=tuple(Part.from_json(part) for part in data.get("as_asked", ())),
        )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The percentile interval of a bootstrap's values.

    NaN when one of them is not finite, or there are none.
    """
    if not values or not all(math.isfinite(value) for value in values):
        return math.nan, math.nan
    return middle(values)


def middle(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the middle 95 % of some values, none of which is NaN.

    The ends are order statistics, of which those that err to the outside are taken.
    """
    ordered = sorted(values)
    outside = max(math.floor((len(ordered) + 1) * (1 - CONFIDENCE) / 2 + 1e-9), 1)
    return ordered[outside - 1], ordered[-outside]


def _plain(values: Mapping[str, float]) -> dict[str, float | str | None]:
    return {name: _to_plain(value) for name, value in values.items()}


def _plain_ends(ends: Mapping[str, tuple[float, float]]) -> dict[str, list[float | str | None]]:
    return {name: [_to_plain(end) for end in each] for name, each in ends.items()}


def _back(values: Mapping[str, float | str | None]) -> dict[str, float]:
    return {name: _from_plain(value) for name, value in values.items()}


def _to_plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def _from_plain(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
