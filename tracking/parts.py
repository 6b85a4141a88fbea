"""What a scorecard says of parts of an evaluation set, of probabilities, and of time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tracking.strict_json import by_name, ends_by_name, number, plain, plain_by_name, plain_ends

TaskKind: TypeAlias = Literal["regression", "classes", "labels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Metrics of the clips that lack the same streams, or of all clips when streams are taken away.

    Attributes:
        streams: What is missing, sorted; empty where nothing is.
        count: Clips.
        metrics: As in `Scorecard`.
        intervals: As there.
        clips: sha256 in hex of the clips' keys: parts of two scorecards are compared where it is
            the same. Empty in scorecards of before.
    """

    streams: tuple[str, ...]
    count: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    clips: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for strict JSON, as in `Scorecard`."""
        return {"streams": list(self.streams), **_measured(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Part":
        """The part that `to_json` wrote."""
        return Part(streams=tuple(data["streams"]), **_measured_back(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subgroup:
    """Metrics of the clips of one group of speakers, or of one speaker.

    Attributes:
        kind: "group" where the table of clips has groups, else "speaker".
        name: Of the group or speaker.
        count: Clips.
        metrics: As in `Scorecard`.
        intervals: As there.
        clips: As in `Part`.
    """

    kind: Literal["group", "speaker"]
    name: str
    count: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    clips: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for strict JSON, as in `Scorecard`."""
        return {"kind": self.kind, "name": self.name, **_measured(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Subgroup":
        """The subgroup that `to_json` wrote."""
        return Subgroup(kind=data["kind"], name=data["name"], **_measured_back(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Clips (or answers, of several labels) whose predictions lie near each other.

    Attributes:
        low: Of classes and labels the bin's lower end, outside of it but for 0; of a regression the
            least prediction in it.
        high: Likewise the upper end, inside of it.
        count: How many there are; bins without any are left out.
        predicted: Of classes the mean probability of what was said; of labels the mean probability
            of "yes"; of a regression the mean prediction.
        observed: Of classes the share that was right; of labels the share of "yes" in the truth; of
            a regression the mean truth. A calibrated model has it equal to `predicted`.
        error: Of classes and labels the distance of the two; of a regression the mean absolute
            error.
    """

    low: float
    high: float
    count: int
    predicted: float
    observed: float
    error: float

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON; all numbers are finite."""
        return {name: getattr(self, name) for name in Bin.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Whether a model's numbers mean what they say; see `training.calibration`.

    Attributes:
        kind: The task's kind.
        count: Clips that the model itself spoke of: of a clip of which nothing can be read it has
            no probability.
        bins: Reliability: ten of equal width in the probability, or for a regression ten of equal
            count in the prediction; ascending.
        numbers: Of classes and labels "ece" (expected calibration error), "mce" (the largest of a
            bin), "brier" (0 is best), "confidence" and "accuracy" (means; of labels the mean
            probability of "yes" and its share). Of a regression "bias" (mean of said - true),
            "slope" and "intercept" of the line of the truth over the prediction (1 and 0 are best),
            and quantiles of said - true: "q05", "q25", "q50", "q75", "q95". NaN where undefined.
    """

    kind: TaskKind
    count: int
    bins: tuple[Bin, ...]
    numbers: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data for strict JSON, as in `Scorecard`."""
        return {
            "kind": self.kind,
            "count": self.count,
            "bins": [each.to_json() for each in self.bins],
            "numbers": plain_by_name(self.numbers),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Calibration":
        """The calibration that `to_json` wrote."""
        return Calibration(
            kind=data["kind"],
            count=data["count"],
            bins=tuple(Bin(**each) for each in data["bins"]),
            numbers=by_name(data["numbers"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long the model alone takes for one clip: features to prediction, one clip at a time.

    It was measured, so it is other each time; nothing that must be reproducible depends on it.

    Attributes:
        median_s: Seconds of the middle clip.
        p95_s: Seconds that 95 % of the clips stay below.
        clips: How many were timed.
        machine: What ran it: processor, threads.
    """

    median_s: float
    p95_s: float
    clips: int
    machine: str

    def to_json(self) -> dict[str, Any]:
        """Plain data for strict JSON, as in `Scorecard`."""
        times = {"median_s": plain(self.median_s), "p95_s": plain(self.p95_s)}
        return {**times, "clips": self.clips, "machine": self.machine}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Latency":
        """The latency that `to_json` wrote."""
        return Latency(
            median_s=number(data["median_s"]),
            p95_s=number(data["p95_s"]),
            clips=data["clips"],
            machine=data["machine"],
        )


def _measured(part: Part | Subgroup) -> dict[str, Any]:
    return {
        "count": part.count,
        "metrics": plain_by_name(part.metrics),
        "intervals": plain_ends(part.intervals),
        "clips": part.clips,
    }


def _measured_back(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "count": data["count"],
        "metrics": by_name(data["metrics"]),
        "intervals": ends_by_name(data["intervals"]),
        "clips": data.get("clips", ""),
    }
