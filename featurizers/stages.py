"""Where the seconds of a job went: small histograms by stage that can be added up.

The stages of a job are "fetch" (getting media onto this machine, and digesting them), "decode" (the
decoding child's busy time), "wait" (our side waiting for decoded chunks), one for each featurizer
under its name, and "write" (tar, index and record).
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STEP = 1.1  # a bucket's end over its start; its middle is at most 5 % away from what lies in it
SHORTEST_S = 1e-6


@dataclass(slots=True)
class _Stage:
    items: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    spread: Counter[int] = field(default_factory=Counter)


class Stages:
    """Seconds by stage of one job or of many.

    Threads may share one as long as each stage is added to by one of them.
    """

    def __init__(self) -> None:
        self._stages: dict[str, _Stage] = {}

    @property
    def names(self) -> list[str]:
        """The stages that have items, in the order of their first."""
        return list(self._stages)

    def add(self, name: str, seconds: float, cpu_seconds: float = 0.0) -> None:
        """Count one item: a clip, or for "write" a shard.

        Args:
            name: The stage.
            seconds: What it took by the clock on the wall.
            cpu_seconds: Processor time of it.
        """
        stage = self._stages.setdefault(name, _Stage())
        stage.items += 1
        stage.seconds += seconds
        stage.cpu_seconds += cpu_seconds
        stage.spread[_bucket(seconds)] += 1

    def merge(self, other: "Stages") -> None:
        """Add all that another has."""
        for name in other.names:
            mine, theirs = self._stages.setdefault(name, _Stage()), other._of(name)  # noqa: SLF001 - one of its own kind
            mine.items += theirs.items
            mine.seconds += theirs.seconds
            mine.cpu_seconds += theirs.cpu_seconds
            mine.spread.update(theirs.spread)

    def items(self, name: str) -> int:
        """How many items a stage has; 0 for one that has none."""
        return self._of(name).items

    def seconds(self, name: str) -> float:
        """All seconds of a stage."""
        return self._of(name).seconds

    def cpu_seconds(self, name: str) -> float:
        """All processor seconds of a stage."""
        return self._of(name).cpu_seconds

    def quantile(self, name: str, share: float) -> float:
        """Seconds that this share of a stage's items do not exceed, within 5 %.

        Args:
            name: The stage; NaN comes of one that has no items.
            share: Between 0 and 1, for example 0.99.
        """
        stage = self._of(name)
        if not stage.items:
            return math.nan
        rank, passed = max(1, math.ceil(share * stage.items)), 0
        for bucket, count in sorted(stage.spread.items()):
            passed += count
            if passed >= rank:
                return float(STEP ** (bucket + 0.5))
        raise ValueError(f"share is {share}; wanted 0 to 1")

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Plain data; `from_json` gives it back, with seconds rounded to 1e-6."""
        return {
            name: {
                "items": stage.items,
                "seconds": round(stage.seconds, 6),
                "cpu_seconds": round(stage.cpu_seconds, 6),
                "spread": {str(bucket): count for bucket, count in sorted(stage.spread.items())},
            }
            for name, stage in self._stages.items()
        }

    @staticmethod
    def from_json(data: Mapping[str, Mapping[str, Any]]) -> "Stages":
        """What `to_json` wrote."""
        stages = Stages()
        for name, plain in data.items():
            stages._stages[name] = _Stage(
                items=int(plain["items"]),
                seconds=float(plain["seconds"]),
                cpu_seconds=float(plain["cpu_seconds"]),
                spread=Counter({int(bucket): int(n) for bucket, n in plain["spread"].items()}),
            )
        return stages

    def _of(self, name: str) -> _Stage:
        return self._stages.get(name) or _Stage()


def _bucket(seconds: float) -> int:
    """The number of the bucket that begins at STEP ** number seconds."""
    return math.floor(math.log(max(seconds, SHORTEST_S)) / math.log(STEP))
