"""A dataset as an MMSA pickle; the layout is told in `mmsa.py`."""

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip, Label
from featurizers.spec import Feature
from featurizers.store import LocalStore
from pipelines.exchange.chosen import Chosen
from pipelines.exchange.mmsa import SECONDS, STEPS, STREAMS, TIMES, is_label
from pipelines.experiment import InputError
from pipelines.sources import SPLITS


def write_mmsa(chosen: Chosen, to: Path, *, aligned: bool, most: int = 0) -> list[str]:
    """Write a dataset as an MMSA pickle; returns what is to be said of it.

    Args:
        chosen: What is written; streams called "video" become "vision", as MMSA calls them.
        to: The file.
        aligned: Whether all streams are written on the same steps, those of words.
        most: Steps of a stream at most; 0 for as many as the longest clip has.

    Raises:
        InputError: A clip has no aligned form, or the file is there already.
        StorageError: It could not be written.
    """
    if to.exists():
        raise InputError(f"{to} is there already; remove it, or give another file with --to")
    parts: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for name in SPLITS:
        clips = [clip for clip in chosen.clips if clip.split == name]
        features = [
            chosen.aligned(clip)
            if aligned
            else {stream: chosen.read(stream, clip) for stream in chosen.columns}
            for clip in clips
        ]
        parts[name] = _part(chosen, clips, features, aligned=aligned, most=most)
        longest = [max(map(_count, each.values()), default=0) for each in features]
        if most and (cut := sum(count > most for count in longest)):
            notes.append(f"{name}: {cut} clips have more than {most} steps, and are cut there")
    with LocalStore(to.parent).draft(to.name, "a pickle of features") as draft:
        pickle.dump(parts, draft.file, protocol=4)
        draft.publish(to.name)
    if missing := [name for name in STREAMS if name not in map(_their_name, chosen.columns)]:
        notes.append(
            f"there is no {' and no '.join(missing)}; MMSA's models want all three streams"
        )
    return notes


def _their_name(stream: str) -> str:
    return "vision" if stream == "video" else stream


def _count(feature: Feature | None) -> int:
    return 0 if feature is None else len(feature.values)


def _part(
    chosen: Chosen,
    clips: Sequence[Clip],
    features: Sequence[Mapping[str, Feature | None]],
    *,
    aligned: bool,
    most: int,
) -> dict[str, Any]:
    """The arrays of a split."""
    part: dict[str, Any] = {
        "id": np.array([clip.id for clip in clips], dtype=np.str_),
        "raw_text": np.array([_said(clip) for clip in clips], dtype=np.str_),
        SECONDS: np.array([clip.seconds for clip in clips], dtype=np.float64),
        TIMES: {},
        **_labels(chosen, clips),
    }
    limit = most or max((_count(f) for each in features for f in each.values()), default=1)
    for stream, column in chosen.columns.items():
        found = [each[stream] for each in features]
        lengths = np.array([min(_count(feature), limit) for feature in found], dtype=np.int64)
        room = limit if aligned else max(1, int(lengths.max(initial=1)))
        values = np.zeros((len(clips), room, column.spec.width), dtype=np.float32)
        times = np.zeros((len(clips), room, 2), dtype=np.float64)
        for number, feature in enumerate(found):
            if feature is not None:
                values[number, : lengths[number]] = feature.values[:limit]
                times[number, : lengths[number]] = feature.times[:limit]
        name = _their_name(stream)
        part[name], part[TIMES][name] = values, times
        if aligned:
            part[STEPS] = np.maximum(part.get(STEPS, 0), lengths)
        else:
            part[f"{name}_lengths"] = lengths
    return part


def _said(clip: Clip) -> str:
    return " ".join(word.text for word in clip.words or ()).strip()


def _labels(chosen: Chosen, clips: Sequence[Clip]) -> dict[str, NDArray[Any]]:
    """The labels that MMSA knows: those of the dataset that are called like them, and the chosen.

    Of a number the class follows from its sign, where the dataset has no class of its own.
    """
    known = {name for clip in clips for name in clip.labels if is_label(name)}
    found: dict[str, list[Label | None]] = {
        name: [clip.labels.get(name) for clip in clips] for name in sorted(known)
    }
    main = [clip.labels.get(chosen.label) for clip in clips]
    if all(isinstance(each, float) or each is None for each in main):
        numbers = [math.nan if each is None else float(str(each)) for each in main]
        found["regression_labels"] = list(numbers)
        signs = [None if math.isnan(each) else int(np.sign(each)) + 1 for each in numbers]
        found.setdefault("annotations", [None if s is None else _SIGNS[s] for s in signs])
        found.setdefault("classification_labels", [None if s is None else str(s) for s in signs])
    else:
        names = [None if each is None else _class_name(each) for each in main]
        order = sorted({each for each in names if each is not None})
        found["annotations"] = list(names)
        found["classification_labels"] = [
            None if each is None else str(order.index(each)) for each in names
        ]
    return {name: _column(values) for name, values in found.items()}


_SIGNS = ("Negative", "Neutral", "Positive")


def _class_name(label: Label) -> str:
    return ",".join(label) if isinstance(label, tuple) else str(label)


def _column(values: Sequence[Label | None]) -> NDArray[Any]:
    """Numbers, with NaN where there is none; names as texts."""
    try:
        numbers = [math.nan if each is None else float(each) for each in values]  # type: ignore[arg-type] # what float() refuses is the answer
        return np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(["" if each is None else _class_name(each) for each in values])
