"""`export`: a dataset in the form of another tool."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from featurizers.store import Root
from pipelines.exchange.chosen import Chosen, choose
from pipelines.exchange.csd_files import write_csd_files
from pipelines.exchange.joined import write_joined
from pipelines.exchange.mmsa_pickle import write_mmsa
from pipelines.experiment import InputError

Form: TypeAlias = Literal["mmsa", "csd", "webdataset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an export is asked for.

    Attributes:
        to: The file or folder.
        form: None for MMSA's where it is called .pkl, else that of the CMU SDK.
        streams: See `chosen.choose`.
        label: What is predicted; empty for the only label.
        aligned: MMSA's aligned form.
        most: Steps of a clip at most in MMSA's pickle; 0 for all.
    """

    to: Path
    form: Form | None = None
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
    form = asked.form or ("mmsa" if asked.to.suffix in (".pkl", ".pickle") else "csd")
    if form != "mmsa" and (asked.aligned or asked.most):
        raise InputError("--aligned and --most are of MMSA's pickle")
    chosen = choose(root, asked.streams, asked.label)
    files, notes = _written(chosen, asked, form)
    return Exported(clips=len(chosen.clips), streams=list(chosen.columns), files=files, notes=notes)


def _written(chosen: Chosen, asked: Asked, form: Form) -> tuple[list[str], list[str]]:
    """The files of a form, and what is to be said of them."""
    if form == "mmsa":
        notes = write_mmsa(chosen, asked.to, aligned=asked.aligned, most=asked.most)
        return [str(asked.to)], notes
    if form == "csd":
        names, notes = write_csd_files(chosen, asked.to)
    else:
        names, notes = write_joined(chosen, asked.to)
    return [str(asked.to / name) for name in names], notes
