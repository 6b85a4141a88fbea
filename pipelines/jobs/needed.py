"""What a command needs of the working directory, and what it would leave there."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from featurizers.store import is_remote
from pipelines.experiment import Experiment, InputError, outline, read
from pipelines.jobs.folder import Survey
from pipelines.sources import STREAM, read_rows

EXPERIMENTS = (".yaml", ".yml")
OUTPUTS = ("--folder", "--output", "--page", "--to")
FILES = ("media", "transcript_file")
"""Columns of a table that name files."""
MEDIA = frozenset({"run", "segment", "transcribe", "ingest", "plan", "featurize", "retry"})
"""Commands that read what an experiment's table names."""

COLUMNS_ALONE = frozenset(
    {
        "check",
        "featurize",
        "forget",
        "ingest",
        "peek",
        "plan",
        "report",
        "retry",
        "status",
        "verify",
    }
)
"""Commands that write nothing beside a dataset in an object store."""


def named(command: Sequence[str], folder: Path) -> dict[str, str]:
    """Files and folders below a folder that a command names, itself or by its experiment file.

    What a table of media names is told by `media`.

    Returns:
        Who names each, by its path relative to the folder.

    Raises:
        InputError: An experiment file is not there, or cannot be read.
    """
    found: dict[str, str] = {}
    for word in command[1:]:
        value = word.partition("=")[2] if word.startswith("-") else word
        if name := _inside(folder, folder, value):
            found.setdefault(name, "the command names it")
    for file in experiments(command, folder):
        for place, value in _texts(read(file)):
            if place != "dataset" and (name := _inside(folder, file.parent, value)):
                found.setdefault(name, f"{file.name} names it as {place}")
    return found


def media(command: Sequence[str], folder: Path) -> dict[str, str]:
    """Files below a folder that the table of a command's experiment names, as by `named`."""
    found: dict[str, str] = {}
    for experiment in outlines(command, folder) if command[0] in MEDIA else ():
        if not (experiment.source.table and experiment.given.is_file()):
            continue
        for number, row in enumerate(read_rows(experiment.given), start=1):
            for column, value in row.items():
                if column in FILES or (column.startswith(STREAM) and column.count(":") == 1):
                    path = str(value).partition("#")[0]
                    if name := _inside(folder, experiment.given.parent, path):
                        who = f"row {number} of {experiment.given.name}, {column}"
                        found.setdefault(name, who)
    return found


def experiments(command: Sequence[str], folder: Path) -> list[Path]:
    """The experiment files that a command names, those of other programs left out."""
    if command[0] == "python":
        return []
    words = [word for word in command[1:] if word.endswith(EXPERIMENTS) and word[:1] != "-"]
    return [folder / word for word in words]


def outlines(command: Sequence[str], folder: Path) -> list[Experiment]:
    """The experiments that a command names, with its settings."""
    return [_outline(command, file) for file in experiments(command, folder)]


def check_along(command: Sequence[str], found: Survey) -> None:
    """Raise InputError where the command needs what stays behind, or leaves what would be lost."""
    folder = found.folder
    for word in command[1:]:
        path = Path(word)
        if path.is_absolute() and path.resolve().is_relative_to(folder.resolve()):
            relative = path.resolve().relative_to(folder.resolve())
            raise InputError(
                f"{word} lies in the working directory, which has another path on the nodes: write "
                f"{relative}, or give --shared where all nodes reach {folder} by this path"
            )
    for name, who in {**media(command, folder), **named(command, folder)}.items():
        if rule := found.why_not(name):
            raise InputError(
                f"{name} is needed ({who}) and would not go along, because of {rule}; mend that "
                f"line, or add the line '!{name}' after it"
            )
    _check_outputs(command, folder)


def _check_outputs(command: Sequence[str], folder: Path) -> None:
    lost = (
        "each node gets a copy of the working directory that goes with the job, so its results "
        "would be lost; write an absolute path on a disk that all nodes reach, or give --shared"
    )
    if command[0] == "python":
        return
    for file in experiments(command, folder):
        experiment = _outline(command, file)
        if is_remote(experiment.dataset) and command[0] in COLUMNS_ALONE:
            continue
        if experiment.work.resolve().is_relative_to(folder.resolve()):
            kept = "runs of training" if is_remote(experiment.dataset) else "its dataset"
            raise InputError(f"{file.name} keeps {kept} in {experiment.work}, and {lost}")
    for option, value in _options(command):
        if option in OUTPUTS and not Path(value).is_absolute() and "://" not in value:
            raise InputError(f"{option} {value} is relative, and {lost}")


def _options(command: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with their values; the demo's folder also where it is not given."""
    words = list(command)
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if equals:
            yield option, value
        elif word.startswith("--") and number + 1 < len(words):
            yield word, words[number + 1]
    if words[0] == "demo" and not any(word.split("=")[0] == "--folder" for word in words):
        yield "--folder", "runs/demo"


def digest_of(names: Iterable[str], films: Iterable[str], folder: Path) -> str:
    """sha256 in hex of what is named and stays where it is.

    Args:
        names: Of files that count by their bytes, and folders, by their names alone.
        films: Of media, which may be hundreds of gigabytes: by size and time of change.
        folder: In which all of them lie.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        path = folder / name
        digest.update(f"{name}\0".encode())
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    for name in sorted(films):
        about = (folder / name).stat()
        digest.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _outline(command: Sequence[str], file: Path) -> Experiment:
    settings = [value for option, value in _options(command) if option == "--set"]
    return outline(read(file, settings), file.parent.resolve(), file.name)


def _texts(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """All texts of plain data, with the keys that lead to them."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, place)


def _inside(folder: Path, beside: Path, value: str) -> str:
    """A path relative to the folder, of something that is there and below it; else nothing."""
    if not value or "://" in value or len(value) > 1024 or "\0" in value:
        return ""
    path, whole = (beside / value).resolve(), folder.resolve()
    if path == whole or not path.is_relative_to(whole) or not path.exists():
        return ""
    return path.relative_to(whole).as_posix()
