"""A dataset as `.csd` files; the layout is told in `csd.py`."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featurizers.align import word_times
from featurizers.clip import Clip
from featurizers.dataset import DatasetError
from featurizers.store import publish
from pipelines.exchange.chosen import Chosen
from pipelines.exchange.csd import Entry, write_csd
from pipelines.exchange.sequences import ENTRIES
from pipelines.experiment import InputError
from pipelines.sources import SPLITS

LABELS, WORDS = "labels", "words"
FOLDS = "folds.json"


def write_csd_files(chosen: Chosen, to: Path) -> tuple[list[str], list[str]]:
    """Write a file for each stream, one of labels, one of words, and the folds.

    Args:
        chosen: What is written; an entry is a clip, on the clip's own clock.
        to: The folder, which is not there yet.

    Returns:
        The names of the files, and what is to be said.

    Raises:
        InputError: The folder is there already, or a stream is called as a file of ours.
        StorageError: Something could not be written.
    """
    if to.exists():
        raise InputError(f"{to} is there already; remove it, or give another folder with --to")
    if taken := {LABELS, WORDS} & set(chosen.columns):
        raise InputError(f"a stream is called {taken.pop()!r}; rename it by --stream NAME=COLUMN")
    names = {clip.key: _entry_name(clip) for clip in chosen.clips}
    told = {"dataset name": Path(chosen.name).name, "creator": "fuseline export", ENTRIES: "clips"}
    numbers, notes = _number_labels(chosen)
    for stream, column in chosen.columns.items():
        spec = column.spec
        with_it = [c for c in chosen.clips if c.key in column.rows]
        some = [c for c in with_it if column.rows[c.key].state == "sample"]
        about = {
            "computational sequence description": spec.fingerprint,
            "computational sequence version": str(spec.version),
            "dimension names": [dim.name for dim in spec.dims],
        }
        entries = ((names[clip.key], partial(_feature, chosen, stream, clip)) for clip in some)
        write_csd(to / f"{stream}.csd", stream, entries, {**told, **about})
    made = _entries(names, chosen.clips, partial(_labels, numbers))
    write_csd(to / f"{LABELS}.csd", LABELS, made, {**told, "dimension names": numbers})
    spoken = [clip for clip in chosen.clips if clip.words]
    if spoken:
        write_csd(to / f"{WORDS}.csd", WORDS, _entries(names, spoken, _words), told)
    folds = {s: sorted(names[c.key] for c in chosen.clips if c.split == s) for s in SPLITS}
    publish(to / FOLDS, json.dumps(folds, indent=1).encode())
    files = [*chosen.columns, LABELS, *([WORDS] if spoken else [])]
    return [*(f"{name}.csd" for name in files), FOLDS], notes


def _entries(
    names: Mapping[str, str], clips: Sequence[Clip], read: Callable[[Clip], Entry]
) -> list[tuple[str, Callable[[], Entry]]]:
    return [(names[clip.key], partial(read, clip)) for clip in clips]


def _entry_name(clip: Clip) -> str:
    """A clip's id where HDF5 takes it: there, a slash leads into a group."""
    return clip.key if "/" in clip.id or "\0" in clip.id or clip.id in {"", ".", ".."} else clip.id


def _number_labels(chosen: Chosen) -> tuple[list[str], list[str]]:
    """The labels that are numbers, the main one first; and which others are left out."""
    found: dict[str, set[type]] = {}
    for clip in chosen.clips:
        for name, label in clip.labels.items():
            found.setdefault(name, set()).add(type(label))
    numbers = sorted(name for name, kinds in found.items() if kinds == {float})
    if not numbers:
        raise InputError(f"{chosen.name}: no label is a number, and .csd files hold numbers alone")
    left = sorted(found.keys() - set(numbers))
    said = f"labels that are no numbers are left out: {', '.join(left)}"
    numbers.sort(key=lambda name: name != chosen.label)
    return numbers, [said] if left else []


def _feature(chosen: Chosen, stream: str, clip: Clip) -> Entry:
    feature = chosen.read(stream, clip)
    if feature is None:
        raise DatasetError(f"{chosen.name}: clip {clip.id!r} has no {stream}; it changed meanwhile")
    return feature.values, feature.times


def _labels(names: Sequence[str], clip: Clip) -> Entry:
    numbers: list[Any] = [clip.labels.get(name, np.nan) for name in names]
    return np.array([numbers], dtype=np.float64), np.array([[0.0, clip.seconds]])


def _words(clip: Clip) -> Entry:
    return np.array([word.text for word in clip.words or ()], dtype=np.str_), word_times(clip)
