"""Clips in parts, all of them, by split and by each label, to see whether some lose more."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from featurizers.clip import Clip, Label

ALL, SPLIT, LABEL = "all", "split", "label "
NONE = "(none)"
SPLITS = ("train", "valid", "test")
_FEW = 6  # so many numbers are shown one by one

Values: TypeAlias = Mapping[str, Sequence[str]]
"""Keys of clips by value, in the order in which values are shown."""


def parts_of(clips: Sequence[Clip]) -> dict[str, Values]:
    """All clips, by split, and by each label; a clip with several labels counts for each."""
    parts: dict[str, Values] = {ALL: {ALL: [clip.key for clip in clips]}}
    splits = {clip.key: [clip.split or NONE] for clip in clips}
    known = [*SPLITS, *sorted({value for each in splits.values() for value in each})]
    parts[SPLIT] = _grouped(splits, [*dict.fromkeys(known)])
    for name in sorted({name for clip in clips for name in clip.labels}):
        told = {clip.key: clip.labels.get(name) for clip in clips}
        numbers = [value for value in told.values() if isinstance(value, int | float)]
        if numbers:
            bins = _bins(numbers)
            named = {key: [_bin(bins, value)] for key, value in told.items()}
            parts[LABEL + name] = _grouped(named, [label for label, _, _ in bins] + [NONE])
        else:
            classes = {key: _classes(value) for key, value in told.items()}
            known = sorted({value for each in classes.values() for value in each} - {NONE})
            parts[LABEL + name] = _grouped(classes, [*known, NONE])
    return parts


def _grouped(values: Mapping[str, Sequence[str]], order: Sequence[str]) -> Values:
    found: dict[str, list[str]] = {value: [] for value in order}
    for key, each in values.items():
        for value in each:
            found[value].append(key)
    return {value: keys for value, keys in found.items() if keys}


def _classes(label: Label | None) -> Sequence[str]:
    if label is None:
        return [NONE]
    return [label] if isinstance(label, str) else [str(each) for each in _several(label)] or [NONE]


def _several(label: Label) -> Sequence[object]:
    return label if isinstance(label, tuple) else (label,)


_Bin: TypeAlias = tuple[str, float, float]
"""Name, first value that belongs to it, first value that does not."""


def _bins(numbers: Sequence[float]) -> list[_Bin]:
    """Signs where there are both; else quarters of the clips, or the values where they are few."""
    finite = sorted(value for value in numbers if np.isfinite(value))
    if not finite:
        return []
    if finite[0] < 0 < finite[-1]:
        tiny = math.nextafter(0.0, 1.0)
        return [
            ("negative", -np.inf, 0.0),
            ("zero", 0.0, tiny),
            ("positive", tiny, np.inf),
        ]
    distinct = sorted(set(finite))
    if len(distinct) <= _FEW:
        return [(f"{value:g}", value, math.nextafter(value, math.inf)) for value in distinct]
    edges = sorted({float(edge) for edge in np.quantile(finite, (0, 0.25, 0.5, 0.75))})
    ends = [*edges[1:], float(np.inf)]
    shown = [*edges[1:], distinct[-1]]
    return [
        (f"{low:.4g} to {top:.4g}", low, high)
        for low, high, top in zip(edges, ends, shown, strict=True)
    ]


def _bin(bins: Sequence[_Bin], value: Label | None) -> str:
    if not isinstance(value, int | float):
        return NONE
    return next((name for name, low, high in bins if low <= value < high), NONE)
