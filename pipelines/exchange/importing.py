"""`import`: files of published features to a dataset, and the experiment file that trains on it."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import yaml

from featurizers.store import Root, is_remote, publish
from pipelines.corpora.cmu_folds import read_folds
from pipelines.exchange.arrays import read_arrays
from pipelines.exchange.mmsa import read_mmsa
from pipelines.exchange.published import Imported, Published, take
from pipelines.exchange.sequences import Ways, read_sequences
from pipelines.experiment import InputError
from pipelines.plan import Room
from pipelines.tasks import float_of

Format: TypeAlias = Literal["csd", "mmsa", "arrays"]
FORMATS: tuple[Format, ...] = get_args(Format)

_SUFFIXES: Mapping[str, Format] = {".csd": "csd", ".pkl": "mmsa", ".pickle": "mmsa"}
USUAL_LABELS = ("regression_labels", "labels", "sentiment", "label")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an import is asked for.

    Attributes:
        files: Of one format.
        to: Where the dataset goes.
        label: What is to be predicted; empty for the usual one.
        kind: The format; None for that which the suffixes say.
        labels, align: Of `.csd` files, see `sequences.Ways`.
        folds: A file with the split of each recording, for `.csd` files, which do not tell it.
        rates: Steps a second of streams of arrays that have no times.
        room: The size of a shard.
    """

    files: Sequence[Path]
    to: Root
    label: str = ""
    kind: Format | None = None
    labels: str = ""
    align: str = ""
    folds: Path | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    room: Room = field(default_factory=Room)


def import_files(wanted: Wanted, done: Callable[[int], None] = lambda count: None) -> Imported:
    """Make a dataset of published files.

    Raises:
        InputError: The files are not what their format says, or do not fit each other.
        StorageError: Something could not be written; call again to go on.
    """
    with ExitStack() as held:
        published = read(wanted, held)
        label = wanted.label or usual_label(published)
        return take(wanted.to, published, label=label, room=wanted.room, done=done)


def read(wanted: Wanted, held: ExitStack) -> Published:
    """What the files hold; some stay open while `held` is. Raises InputError as `import_files`."""
    kind = wanted.kind or _format_of(wanted.files)
    if kind != "csd" and (wanted.labels or wanted.align or wanted.folds):
        raise InputError("--labels, --align and --folds are of .csd files")
    if kind != "arrays" and wanted.rates:
        raise InputError("--rate is of folders of arrays; other formats tell their times")
    match kind:
        case "csd":
            folds = None if wanted.folds is None else read_folds(wanted.folds)
            ways = Ways(labels=wanted.labels, align=wanted.align, folds=folds)
            return read_sequences(_below(wanted.files, ".csd"), ways, held)
        case "mmsa":
            return read_mmsa(_one(wanted.files, "pickles"))
        case "arrays":
            return read_arrays(_one(wanted.files, "folders"), wanted.rates, held)


def _one(files: Sequence[Path], what: str) -> Path:
    if len(files) != 1:
        raise InputError(f"{len(files)} {what} are given; each is a dataset by itself")
    return files[0]


def usual_label(published: Published) -> str:
    """What is predicted where nobody says: a usual name, else the only label.

    Raises:
        InputError: There are several, or none.
    """
    known = sorted({name for clip in published.clips for name in clip.labels})
    usual = [name for name in USUAL_LABELS if name in known] or known
    if len(usual) == 1 or (usual and usual[0] in USUAL_LABELS):
        return usual[0]
    raise InputError(f"say which label is predicted by --label; there are {', '.join(known)}")


def _format_of(files: Sequence[Path]) -> Format:
    found = {
        "arrays" if path.is_dir() else _SUFFIXES.get(path.suffix.lower())
        for path in _below(files, ".csd")
    }
    kind = found.pop() if len(found) == 1 else None
    if kind is None:
        names = ", ".join(path.name for path in files[:3])
        raise InputError(
            f"{names}: wanted files of one format ({', '.join(_SUFFIXES)}) or a folder of arrays; "
            f"or say which it is by --format, one of {', '.join(FORMATS)}"
        )
    return kind


def _below(paths: Sequence[Path], suffix: str) -> list[Path]:
    """Files as they are, and those of folders with this suffix where there are any."""
    found = []
    for path in paths:
        below = sorted(path.glob(f"*{suffix}")) if path.is_dir() else []
        found += below or [path]
    return found


def experiment_text(imported: Imported, to: Root, file: Path) -> str:
    """An experiment file that trains on what was imported."""
    dataset = str(to) if is_remote(to) else os.path.relpath(Path(to).resolve(), _folder(file))
    own = imported.pooling.get("kind") == "own"
    several = len(imported.columns) > 1
    recipe = ("mult" if own else "mmlatch") if several else "unimodal"
    pooling = {"kind": "steps", "steps": 50} if own and not several else dict(imported.pooling)
    plain = {
        "dataset": dataset,
        "source": {"imported": True, "label": imported.label},
        "features": {
            stream: {"featurizer": "imported", "column": column.spec.fingerprint}
            for stream, column in imported.columns.items()
        },
        "model": {"recipe": recipe},
        "train": {"seeds": 1, "pooling": pooling},
        "workers": {"featurize": 0, "train": 1},
    }
    told = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return f"# Written by `fuseline import`. Next: fuseline run {file.name}\n{told}"


def write_experiment(imported: Imported, to: Root, file: Path) -> None:
    """Write that file. Raises InputError where it is there already."""
    if file.exists():
        raise InputError(f"{file} is there already; remove it, or give another with --experiment")
    publish(file, experiment_text(imported, to, file).encode())


def _folder(file: Path) -> Path:
    return file.resolve().parent


def rates_of(asked: Sequence[str]) -> dict[str, float]:
    """Rates by stream. Raises InputError where one is no STREAM=HZ."""
    rates: dict[str, float] = {}
    for each in asked:
        name, _, told = each.partition("=")
        rate = float_of(told)
        if not name or rate is None or not 0 < rate < math.inf:
            raise InputError(f"--rate {each}: wanted STREAM=HZ, such as audio=100")
        rates[name] = rate
    return rates
