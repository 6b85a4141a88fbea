"""All that training tells promotion about one model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from tracking.parts import Calibration, Latency, Part, Subgroup
from tracking.strict_json import by_name, number, plain, plain_by_name, plain_ends

Better: TypeAlias = Literal["lower", "higher"]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorecard:
    """All that training tells promotion about one model.

    Attributes:
        evaluation_set: sha256 in hex that names the set: clips, media and labels.
        count: Clips in the set.
        metrics: Each metric on the whole set; NaN where it is undefined.
        better: For each metric, whether lower or higher is better.
        replicates: For each metric, its values on the bootstrap draws.
        draws: What names these draws: two cards can be compared draw by draw where it is equal.
        leaks: Speakers and sources that are in the training data too, for people to read.
        unknown_starts: Weights that the model began with, of which nobody knows what they were
            trained on, for people to read.
        duplicates: Clips that look or sound like one of the training data, for people to read; None
            when nobody looked.
        parity: Whether the registered model computes the features that are in the shards; None
            when nobody looked.
        reproducible: Whether the registered model says the same of a clip when it is asked again,
            in another process; None when nobody looked.
        undefined: For each metric that is NaN, why.
        by_class: For each class or label its own support and metrics; empty for a regression.
        confusion: Counts of clips, rows are the truth and columns the prediction, in the order of
            `by_class`. Of several labels one such table for each, of "no" and "yes".
        as_found: The clips by the streams that they really lack; those that lack none come first.
        as_asked: All clips, with each stream taken away in turn.
        by_group: The clips by group of speakers, or else by speaker, by name; a clip that has
            neither is in none of them.
        calibration: Whether probabilities or predicted numbers mean what they say; None when
            predictions are not finite, or none of them is the model's own.
        latency: How long the model takes for a clip; None when nobody measured it.
    """

    evaluation_set: str
    count: int
    metrics: Mapping[str, float]
    better: Mapping[str, Better]
    replicates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    draws: str = ""
    leaks: tuple[str, ...] = ()
    unknown_starts: tuple[str, ...] = ()
    duplicates: tuple[str, ...] | None = None
    parity: bool | None = None
    reproducible: bool | None = None
    undefined: Mapping[str, str] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    confusion: Sequence[Any] = ()
    as_found: tuple[Part, ...] = ()
    as_asked: tuple[Part, ...] = ()
    by_group: tuple[Subgroup, ...] = ()
    calibration: Calibration | None = None
    latency: Latency | None = None

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
            "metrics": plain_by_name(self.metrics),
            "intervals": plain_ends(self.intervals),
            "better": dict(self.better),
            "replicates": {
                name: [plain(value) for value in values] for name, values in self.replicates.items()
            },
            "draws": self.draws,
            "leaks": list(self.leaks),
            "unknown_starts": list(self.unknown_starts),
            "duplicates": None if self.duplicates is None else list(self.duplicates),
            "parity": self.parity,
            "reproducible": self.reproducible,
            "undefined": dict(self.undefined),
            "by_class": {name: plain_by_name(values) for name, values in self.by_class.items()},
            "confusion": list(self.confusion),
            "as_found": [part.to_json() for part in self.as_found],
            "as_asked": [part.to_json() for part in self.as_asked],
            "by_group": [part.to_json() for part in self.by_group],
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "latency": None if self.latency is None else self.latency.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Scorecard":
        """The scorecard that `to_json` wrote, now or before there were reasons and parts in it."""
        by_class, duplicates = data.get("by_class", {}), data.get("duplicates")
        calibration, latency = data.get("calibration"), data.get("latency")
        return Scorecard(
            evaluation_set=data["evaluation_set"],
            count=data["count"],
            metrics=by_name(data["metrics"]),
            better=dict(data["better"]),
            replicates={
                name: tuple(number(value) for value in values)
                for name, values in data["replicates"].items()
            },
            draws=data.get("draws", ""),
            leaks=tuple(data["leaks"]),
            unknown_starts=tuple(data.get("unknown_starts", ())),
            duplicates=None if duplicates is None else tuple(duplicates),
            parity=data["parity"],
            reproducible=data.get("reproducible"),
            undefined=dict(data.get("undefined", {})),
            by_class={name: by_name(values) for name, values in by_class.items()},
            confusion=data.get("confusion", ()),
            as_found=tuple(Part.from_json(part) for part in data.get("as_found", ())),
            as_asked=tuple(Part.from_json(part) for part in data.get("as_asked", ())),
            by_group=tuple(Subgroup.from_json(part) for part in data.get("by_group", ())),
            calibration=None if calibration is None else Calibration.from_json(calibration),
            latency=None if latency is None else Latency.from_json(latency),
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
