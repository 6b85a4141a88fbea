"""`export`: a dataset in the form of another tool."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featurizers.store import Root
from pipelines.exchange.chosen import choose
from pipelines.exchange.mmsa_pickle import write_mmsa
from pipelines.experiment import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an export is asked for.

    Attributes:
        to: The file or folder; its suffix says the form.
        streams: See `chosen.choose`.
        label: What is predicted; empty for the only label.
        aligned: MMSA's aligned form.
        most: Steps of a clip at most in MMSA's pickle; 0 for all.
    """

    to: Path
    streams: Sequence[str] = ()
    label: str = ""
    aligned: bool = False
    most: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and what is to be said of it."""

    clips: int
    streams: Sequence[str]
    files: Sequence[str]
    notes: Sequence[str]


def export(root: Root, asked: Asked) -> Exported:
    """Write a dataset in the form of another tool.

    Raises:
        InputError: No such form, column or label; or something is there already.
        DatasetError: There is no dataset.
        CorruptShardError: A feature is not what was written.
        StorageError: Something could not be written.
    """
    if asked.to.suffix not in (".pkl", ".pickle"):
        raise InputError(f"{asked.to}: wanted a file .pkl (MMSA)")
    chosen = choose(root, asked.streams, asked.label)
    notes = write_mmsa(chosen, asked.to, aligned=asked.aligned, most=asked.most)
    return Exported(
        clips=len(chosen.clips),
        streams=list(chosen.columns),
        files=[str(asked.to)],
        notes=notes,
    )
