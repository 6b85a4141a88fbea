"""`init`: a commented experiment file from a table or a folder of media."""

import csv
import io
import json
import os
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from featurizers.clip import BadClipError
from featurizers.spec import Scalar
from featurizers.store import publish
from featurizers.streams import fitting
from featurizers.transcript import FORMATS, read_transcript
from pipelines import feature_sets
from pipelines.experiment import InputError
from pipelines.sources import KNOWN, RowDict, read_rows
from pipelines.tasks import guess, label_of, task_for
from training.recipe import Task, TaskKind
from training.recipes import NAMES

if TYPE_CHECKING:
    from pipelines.corpora.formats import Format

MEDIA = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m4v", ".wav", ".m4a", ".mp3")

_LANGUAGE = re.compile(r"\.[a-z]{2,3}(-[A-Za-z0-9]+)*")

_FILE = """\
# Written by `fuseline init`. Next: fuseline run {name}
dataset: {dataset}              # where features, records and runs go
source:
{source}
  label: {label}                # {found}{task}
{more}
{features}
{recipes}
model: {{recipe: {recipe}}}
# epochs, global_batch, learning_rate and so on are the recipe's own where nothing is said here
train: {{seeds: 1}}
# featurize: speed only, 0 goes without Ray; train: also the dropout, so numbers differ a little
workers: {{featurize: 2, train: 2}}
max_dropped: 0.05               # more quarantined clips than this share: no manifest
register: {{name: {model}}}
promote:
  rules:                        # what a model must pass to become champion
    - {rule}
"""
_OF_TABLE = """\
  media_root: [.]               # besides the table's own folder: folders and URLs of media
  # segment: {}                 # the media are long: cut them into clips by voice first
  # transcribe: {model: FOLDER} # and hear what is said, with a Whisper checkpoint"""
_MODALITIES = ("text", "audio", "video")
_RULES: Mapping[TaskKind, str] = {
    "regression": "{metric: mae, better: lower, not_worse_by: 0.0}",
    "classes": "{metric: uar, not_worse_by: 0.0}",
    "labels": "{metric: f1_macro, not_worse_by: 0.0}",
}


def init(
    source: Path,
    label: str,
    to: Path,
    asked: TaskKind | None = None,
    features: str = feature_sets.DEFAULT,
    *,
    format_: str = "",
) -> list[str]:
    """Write an experiment file; returns lines that say what was found, and what is missing.

    Args:
        source: A table of clips, or a folder of media.
        label: The column that is to be predicted.
        to: The file to write.
        asked: The kind of task; where not given it follows from what the column holds.
        features: The name of a set.
        format_: Of which published corpus the folder is; the label may then be left out.

    Raises:
        InputError: No such table or folder, no such label, no such set, a label that is not of the
            task, or the file is there already.
    """
    _check_set(features)
    if to.exists():
        raise InputError(f"{to} is there already; remove it, or give another file with --to")
    if format_:
        found, given = _of_corpus(source, to, format_)
        usual = next(iter(found.labels))
        return [*given.told, *_write(given, label or usual, to, asked, features)]
    if not label:
        raise InputError("--label: name the column that is to be predicted")
    if source.is_dir():
        return _from_folder(source, label, to, asked, features)
    rows = read_rows(source)
    columns = {name for row in rows for name in row}
    streams = _streams_in(columns)
    given = _Given(
        name=source,
        lines=f"  table: {_scalar(_relative(source, to))}",
        more=_OF_TABLE,
        rows=rows,
        streams={stream: _numbers(source, rows, stream) for stream in streams},
        without=() if {"transcript", "transcript_file"} & columns else ("text",),
    )
    return _write(given, label, to, asked, features)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A source of clips, and what the file says of it.

    Attributes:
        lines: Of the section `source`, before the label; `more` comes after it.
        streams: The line of `features` for each stream of numbers.
        without: Modalities that the clips do not have, or of which there is nothing to learn.
        told: What is said of it to people.
    """

    name: Path
    lines: str
    more: str
    rows: Sequence[RowDict]
    streams: Mapping[str, str]
    without: Sequence[str]
    told: Sequence[str] = ()


def _streams_in(columns: Collection[str]) -> list[str]:
    """The names of the columns stream:NAME."""
    named = [column.removeprefix("stream:") for column in columns if column.startswith("stream:")]
    return sorted(name for name in named if ":" not in name)


def _write(given: _Given, label: str, to: Path, asked: TaskKind | None, features: str) -> list[str]:
    rows, source = given.rows, given.name
    columns = sorted({name for row in rows for name in row})
    if label not in columns:
        raise InputError(
            f"{source}: there is no column {label!r} to predict, or all of it is empty; "
            f"there are {', '.join(columns)}"
        )
    values = [row[label] for row in rows if label in row]
    task = _task(source, label, values, asked)
    kind = f"{len(task.classes)} {task.kind}" if task.classes else task.kind
    chosen, missing = _of_set(features, to.resolve().parent, given.without)
    tables = [column for column in columns if column.startswith("stream:")]
    alone = len(given.streams) + len(_MODALITIES) - len(given.without) == 1
    text = _FILE.format(
        name=to,
        dataset=_scalar(f"runs/{source.stem}"),
        source=given.lines,
        more=given.more,
        label=_scalar(label),
        found=f"{len(values)} of {len(rows)} rows have it: {kind}",
        features="\n".join([*chosen, *given.streams.values()]),
        recipes=textwrap.fill("# recipes: " + ", ".join(NAMES), 99, subsequent_indent="#   "),
        recipe="unimodal" if alone else "mmlatch",
        model=_scalar(re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{source.stem}-{label}")),
        task=f"\n  task: {asked}" if asked else "",
        rule=_RULES[task.kind],
    )
    publish(to, text.encode())
    others = [name for name in columns if name not in {*KNOWN, label, *tables}]
    return [
        f"{source}: {len(rows)} rows, {label} is {kind}",
        *([f"columns that are not used: {', '.join(others)}"] if others else []),
        *missing,
        f"wrote {to}; next: {'fill in what is missing, then ' if missing else ''}fuseline run {to}",
    ]


def _of_corpus(folder: Path, to: Path, name: str) -> tuple["Format", _Given]:
    """A published corpus, which is read once to see what is there."""
    from pipelines.corpora import formats
    from pipelines.corpora.reading import findings

    found = formats.find(name)
    options = formats.options_of(name, {}, to.resolve().parent, folder)
    made = formats.read(name, folder, options)
    streams = _streams_in({column for row in made.rows for column in row})
    settings = _flow(formats.settings(options))
    return found, _Given(
        name=folder.resolve(),
        lines=f"  folder: {_scalar(_relative(folder, to))}\n  format: {name}",
        more=f"  # options: {settings}",
        rows=made.rows,
        streams={each: f"  {each}: {_flow(found.streams[each])}" for each in streams},
        without=_without(found, made.rows),
        told=[str(each) for each in findings(made.notes)],
    )


def _without(found: "Format", rows: Sequence[RowDict]) -> list[str]:
    """What a corpus tells nothing of; where none of its media are there, only sensors are left."""
    has_media = any(Path(str(row["media"])).exists() for row in rows)
    return [each for each in _MODALITIES if each not in found.modalities or not has_media]


def _check_set(name: str) -> None:
    try:
        feature_sets.members(name)
    except ValueError as error:
        raise InputError(f"--features: {error}") from None


def _of_set(name: str, folder: Path, without: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines of `features`, and sentences that say what a set still wants.

    Args:
        name: Of the set.
        folder: Of the experiment file.
        without: Modalities that are not there.
    """
    members = {
        stream: member
        for stream, member in feature_sets.members(name).items()
        if stream not in without
    }
    if name == feature_sets.DEFAULT:
        written = {stream: member.section for stream, member in members.items()}
        lines = [f"  {stream + ':':6} {_flow(section)}" for stream, section in written.items()]
        return [
            "features:                       # or a set by name: light, classic, strong",
            *lines,
        ], []
    lines = [f"features:\n  set: {name}"]
    missing: list[str] = []
    for stream in without:
        why = "there are no transcripts" if stream == "text" else f"nothing to learn of {stream}"
        lines.append(f"{f'  {stream}: null':32}# {why}")
    for stream, member in members.items():
        if not member.wants:
            lines.append(f"  # {stream}: {member.featurizer}")
        elif path := feature_sets.fetched(member, folder):
            lines.append(f"  # {stream}: {member.featurizer}, with {path}")
        else:
            lines.append(f"  # {member.featurizer} wants {member.what}")
            lines.append(f'  {stream}: {{{member.wants}: ""}}')
            missing.append(f"missing: features.{stream}.{member.wants}, {member.what}")
    return lines, missing


def _flow(section: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in section.items()) + "}"


def _task(source: Path, label: str, values: Sequence[object], asked: TaskKind | None) -> Task:
    """The task of a column, of which every cell is looked at."""
    try:
        task = task_for(asked or guess(values), label, values)
        for value in values:
            label_of(task, value)
    except ValueError as error:
        raise InputError(f"{source}: column {label!r}: {error}") from None
    return task


def _from_folder(
    folder: Path, label: str, to: Path, asked: TaskKind | None, features: str
) -> list[str]:
    """Write a table of the media in a folder, whose label column is to be filled in."""
    rows = [{**row, label: ""} for row in media_rows(folder)]
    table = folder / "clips.csv"
    if table.exists():
        return init(table, label, to, asked, features)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    publish(table, buffer.getvalue().encode())
    chosen = "" if features == feature_sets.DEFAULT else f" --features {features}"
    return [
        (
            f"wrote {table} with {len(rows)} media files; fill in its column {label!r}, "
            f"then: fuseline init {table} --label {label}{chosen}"
        )
    ]


def media_rows(folder: Path) -> list[RowDict]:
    """A row for each media file below a folder, with the transcript that lies beside it.

    Raises:
        InputError: There are none.
    """
    media = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA)
    if not media:
        raise InputError(f"{folder}: there are no media files ({', '.join(MEDIA)})")
    names = [path.relative_to(folder) for path in media]
    beside = _transcripts(folder)
    return [
        {"id": id_, "media": str(name), "transcript_file": _best(folder, beside, name)}
        for name, id_ in zip(names, _ids(names), strict=True)
    ]


def _ids(names: Sequence[Path]) -> list[str]:
    """The names of files without their suffix, except where two would be the same."""
    ids = [str(name.with_suffix("")) for name in names]
    while twice := {each for each, count in Counter(ids).items() if count > 1}:
        ids = [str(name) if id_ in twice else id_ for name, id_ in zip(names, ids, strict=True)]
    return ids


def _transcripts(folder: Path) -> dict[Path, list[Path]]:
    """The files that may be transcripts, by the name of their media without suffix."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in FORMATS and path.is_file():
            name = path.relative_to(folder)
            stem = name.with_suffix("")
            # Downloaded captions are called after their language: talk.en.vtt, talk.pt-BR.vtt.
            named = stem.with_suffix("") if _LANGUAGE.fullmatch(stem.suffix) else stem
            for each in {stem, named}:
                found.setdefault(each, []).append(name)
    return found


def _best(folder: Path, beside: Mapping[Path, Sequence[Path]], media: Path) -> str:
    """The transcript of a media file that tells most of times; empty when there is none."""
    named = beside.get(media.with_suffix(""), ())
    own = [path for path in named if path.with_suffix("") == media.with_suffix("")]
    # Of captions in several languages nobody knows which one is spoken.
    some = own or (named if len(named) == 1 else ())
    ranked = sorted(some, key=lambda path: FORMATS.index(path.suffix.lower()))
    return next((str(path) for path in ranked if _is_transcript(folder / path)), "")


def _is_transcript(path: Path) -> bool:
    """Whether a file is what its suffix says, asked only of JSON, which may be anything."""
    try:
        return path.suffix.lower() != ".json" or bool(read_transcript(path))
    except BadClipError:
        return False


def _scalar(text: str) -> str:
    """A text as YAML reads it back: quoted where it would be a number, a date or syntax."""
    return yaml.safe_dump(text, allow_unicode=True, width=1 << 30).removesuffix("...\n").strip()


def _numbers(source: Path, rows: Sequence[RowDict], name: str) -> str:
    """The line of a stream of numbers, as fits the first file that there is."""
    featurizer, settings = "numbers", dict[str, Scalar](dims=1)
    for row in rows:
        if f"stream:{name}" in row:
            path = source.parent / str(row[f"stream:{name}"])
            try:
                featurizer, found = fitting(path)
            except BadClipError as error:
                raise InputError(f"{source}: column stream:{name}: {error}") from None
            settings = dict(found)
            break
    stream = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    plain = {"featurizer": featurizer, "stream": name, **settings}
    inside = ", ".join(f"{key}: {_inside(value)}" for key, value in plain.items())
    return f"  {stream}: {{{inside}}}"


def _inside(value: Scalar) -> str:
    """A value as YAML reads it back within braces, where a comma or a brace ends it."""
    text = _scalar(value) if isinstance(value, str) else str(value)
    return json.dumps(value) if isinstance(value, str) and set(text) & set(",[]{}") else text


def _relative(source: Path, to: Path) -> str:
    return os.path.relpath(source.resolve(), to.resolve().parent)
