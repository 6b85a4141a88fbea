"""Numbers as strict JSON has them: NaN is null, infinities are "inf" and "-inf"."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Plain: TypeAlias = float | str | None


def plain(value: float) -> Plain:
    """A number for strict JSON."""
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def number(value: Plain) -> float:
    """The number that `plain` was given."""
    return math.nan if value is None else float(value)


def plain_by_name(values: Mapping[str, float]) -> dict[str, Plain]:
    """Numbers by name for strict JSON."""
    return {name: plain(value) for name, value in values.items()}


def by_name(values: Mapping[str, Plain]) -> dict[str, float]:
    """What `plain_by_name` was given."""
    return {name: number(value) for name, value in values.items()}


def plain_ends(ends: Mapping[str, tuple[float, float]]) -> dict[str, list[Plain]]:
    """Intervals by name for strict JSON."""
    return {name: [plain(end) for end in each] for name, each in ends.items()}


def ends_by_name(ends: Mapping[str, Sequence[Plain]]) -> dict[str, tuple[float, float]]:
    """What `plain_ends` was given."""
    return {name: (number(low), number(high)) for name, (low, high) in ends.items()}
