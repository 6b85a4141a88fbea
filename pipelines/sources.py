"""Tables of clips to a dataset: rows checked, media digested and probed, splits dealt."""

import csv
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from featurizers.clip import BadClipError, Clip, Fault, Label, key_of
from featurizers.decoder import Decoder
from featurizers.intake import CHOSEN, RawClip, take_in
from featurizers.store import store_at
from featurizers.transcript import file_and_tier
from pipelines.executors import Executor
from pipelines.experiment import Experiment, InputError
from pipelines.staging import Stage, inside
from pipelines.tasks import float_of, guess, label_of, task_for, task_of_labels
from training.recipe import Task

SPLITS = ("train", "valid", "test")
SHARES = {"train": 0.70, "valid": 0.15, "test": 0.15}
FEW_GROUPS = 3
KNOWN = (
    "id",
    "media",
    "start",
    "end",
    *CHOSEN,
    "transcript",
    "transcript_file",
    "speaker",
    "group",
    "split",
    "fold",
)
READ = ("id", "media", "start", "end", *CHOSEN, "transcript", "transcript_file")
"""Columns that are read of a clip; the others say what is known of it."""
CHUNK = 16

STREAM = "stream:"

WRITERS = {
    "corpus.csv": "ingest",
    "clips.csv": "segment",
    "spoken.csv": "transcribe",
    "aligned.csv": "ingest --align",
}
"""What writes the tables in `Experiment.raw`."""

RowDict = dict[str, Any]
Wrong: TypeAlias = Callable[[str, str], InputError]
"""Makes the error of a column, from its name and a text."""


def read_rows(table: Path) -> list[RowDict]:
    """The rows of a CSV, JSONL or Parquet table as dictionaries; empty cells are left out.

    Raises:
        InputError: No such file, another format, or a row that cannot be read.
    """
    if not table.is_file():
        raise InputError(f"{table}: there is no such table")
    match table.suffix.lower():
        case ".csv":
            rows = _csv(table)
        case ".jsonl":
            rows = _jsonl(table)
        case ".parquet":
            rows = _parquet(table)
        case other:
            raise InputError(f"{table}: wanted a .csv, .jsonl or .parquet table, found {other!r}")
    if not rows:
        raise InputError(f"{table}: the table has no rows")
    return [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]


def rows_of(experiment: Experiment) -> list[RowDict]:
    """The rows of an experiment's table of clips. Raises InputError as `rows_in`."""
    return rows_in(experiment, experiment.table)


def rows_in(experiment: Experiment, table: Path) -> list[RowDict]:
    """The rows of a table that was given, or that is written on the way.

    Raises:
        InputError: As `read_rows`; what writes it is told.
    """
    if experiment.source.imported:
        raise InputError(
            f"{store_at(experiment.root).where()} was imported: there is no table of its clips "
            f"and there are no media; `fuseline import` makes it anew"
        )
    if table != experiment.given and not table.is_file():
        raise InputError(
            f"{table}: there is no such table yet; `fuseline {WRITERS[table.name]}`, or `run`, "
            f"writes it"
        )
    return read_rows(table)


def _csv(table: Path) -> list[RowDict]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or ()
            rows = [dict(row) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{table}: {error}") from None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{table}: two columns are called {twice[0]!r}; names must differ")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise InputError(f"{table}: row {number} has another number of cells than the header")
    return rows


def _jsonl(table: Path) -> list[RowDict]:
    rows: list[RowDict] = []
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{table}: {error}") from None
    # Not splitlines: JSON strings may hold other characters that end a line for Python.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{table}: line {number}: {error.msg}") from None
            if not isinstance(row, dict):
                raise InputError(f"{table}: line {number}: wanted an object")
            rows.append(row)
    return rows


def _parquet(table: Path) -> list[RowDict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[RowDict] = pq.read_table(table).to_pylist()
    except pa.ArrowInvalid as error:
        raise InputError(f"{table}: {error}") from None
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A checked row: what to take in, and its number for messages."""

    number: int
    raw: RawClip


def ask(experiment: Experiment, rows: Sequence[RowDict]) -> tuple[list[Asked], Task]:
    """Check all rows of a table before anything is read from media.

    Raises:
        InputError: Names the row and the column.
    """
    table, label = experiment.table, experiment.source.label
    columns = {name for row in rows for name in row}
    for needed in ("id", "media", label):
        if needed not in columns and experiment.segment is not None:
            raise InputError(
                f"{table}: there are {len(rows)} clips, and none has {needed!r}: give all clips of "
                f"a media file one by that column of source.table, or add it to a copy of this "
                f"table and give that as source.table without source.segment"
            )
        if needed not in columns:
            raise InputError(
                f"{table}: there is no column {needed!r}, or all of it is empty; "
                f"there are {', '.join(sorted(columns))}"
            )
    task = _task(experiment, [row.get(label) for row in rows])
    roots = roots_of(experiment)
    asked = [_asked(experiment, roots, task, i, row) for i, row in enumerate(rows, start=1)]
    seen: dict[str, int] = {}
    for each in asked:
        before = seen.setdefault(each.raw.id, each.number)
        if before != each.number:
            raise InputError(
                f"{table}: rows {before} and {each.number}, column id: both are {each.raw.id!r}; "
                f"ids must differ"
            )
    return asked, task


def roots_of(experiment: Experiment) -> list[str]:
    """Folders and URLs below which media may lie: the table's own, what was given, media roots."""
    given = experiment.given
    own = [experiment.table.parent, given if experiment.source.folder else given.parent]
    roots = [
        root if "://" in root else str((experiment.folder / root).resolve())
        for root in experiment.source.media_root
    ]
    return list(dict.fromkeys([*(str(folder.resolve()) for folder in own), *roots]))


def _task(experiment: Experiment, values: Sequence[Any]) -> Task:
    known = [value for value in values if value is not None]
    label = experiment.source.label
    try:
        return task_for(experiment.source.task or guess(known), label, known)
    except ValueError as error:
        raise InputError(f"{experiment.table}: column {label!r}: {error}") from None


def _number(value: object) -> float | None:
    number = float_of(value)
    return None if number is None or not math.isfinite(number) else number


def ask_to_score(experiment: Experiment, rows: Sequence[RowDict]) -> list[Asked]:
    """Check the rows of a table of clips that are only to be scored.

    No label, split or fold is looked at, and a row without an id is called by its media.

    Raises:
        InputError: Names the row and the column.
    """
    roots = roots_of(experiment)
    asked = []
    for number, row in enumerate(rows, start=1):
        kept = {name: cell for name, cell in row.items() if name in READ or name.startswith(STREAM)}
        asked.append(_asked(experiment, roots, None, number, {"id": row.get("media"), **kept}))
    return asked


def _asked(
    experiment: Experiment, roots: Sequence[str], task: Task | None, number: int, row: RowDict
) -> Asked:
    def wrong(column: str, text: str) -> InputError:
        return InputError(f"{experiment.table}: row {number}, column {column}: {text}")

    for needed in ("id", "media"):
        if row.get(needed) is None:
            raise wrong(needed, "is empty")
    media = _media(experiment, roots, str(row["media"]), partial(wrong, "media"))
    labels: dict[str, Label] = {}
    if task is not None and task.label in row:
        labels[task.label] = _label(task, row[task.label], partial(wrong, task.label))
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise wrong("split", f"found {split!r}, wanted one of {', '.join(SPLITS)}")
    streams = _streams(row, lambda column: _file(experiment, roots, row, column, wrong))
    clip_id = str(row["id"])
    return Asked(
        number=number,
        raw=RawClip(
            key=key_of(clip_id),
            id=clip_id,
            media=media,
            path=None,
            transcript=None if "transcript" not in row else str(row["transcript"]),
            transcript_file=_file(experiment, roots, row, "transcript_file", wrong),
            start=_seconds(row.get("start"), partial(wrong, "start")) or 0.0,
            end=_seconds(row.get("end"), partial(wrong, "end")),
            streams=streams,
            stream_rates=_rates(row, streams, wrong),
            columns={
                **{name: stream_of(row.get(name)) for name in CHOSEN},
                "speaker": _text(row.get("speaker")),
                "group": _text(row.get("group")),
                "split": split,
                "fold": _fold(row.get("fold"), partial(wrong, "fold")),
                "labels": labels,
            },
        ),
    )


def _media(
    experiment: Experiment, roots: Sequence[str], media: str, wrong: Callable[[str], InputError]
) -> str:
    whole = media
    if "://" not in media:
        whole = str(_beside(experiment, media, wrong))
    if not inside(whole, roots):
        raise wrong(
            f"{media} lies outside every media root ({', '.join(roots)}); "
            f"add its folder to source.media_root"
        )
    return whole


def _file(
    experiment: Experiment, roots: Sequence[str], row: RowDict, column: str, wrong: Wrong
) -> Path | None:
    """The file that a cell names, which must be there; None for an empty cell.

    A transcript's may name a tier after a "#".
    """
    if column not in row:
        return None
    path, tier = _beside(experiment, str(row[column]), partial(wrong, column)), None
    if column == "transcript_file":
        path, tier = file_and_tier(path)
    file = _beside(experiment, str(path), partial(wrong, column))  # what it is a link to
    if not inside(str(file), roots):
        raise wrong(column, f"{file} lies outside every media root")
    if not file.is_file():
        raise wrong(column, f"there is no file {file}")
    return file if tier is None else Path(f"{file}#{tier}")


def _streams(row: RowDict, file_of: Callable[[str], Path | None]) -> dict[str, Path]:
    """The files of the columns stream:NAME."""
    columns = [column for column in row if column.startswith(STREAM) and column.count(":") == 1]
    found = {column.removeprefix(STREAM): file_of(column) for column in columns}
    return {name: file for name, file in found.items() if file is not None}


def _rates(row: RowDict, streams: Mapping[str, Path], wrong: Wrong) -> dict[str, float]:
    """The rates of the columns stream:NAME:hz."""
    rates: dict[str, float] = {}
    for name in streams:
        column = f"{STREAM}{name}:hz"
        if column in row:
            rate = _number(row[column])
            if rate is None or rate <= 0:
                raise wrong(column, f"found {row[column]!r}, wanted rows per second")
            rates[name] = rate
    return rates


def _beside(experiment: Experiment, name: str, wrong: Callable[[str], InputError]) -> Path:
    """A path as the table means it: relative to the table's folder, links followed."""
    try:
        path = (experiment.table.parent / name).resolve()
        path.exists()  # a name that is too long shows here
    except (ValueError, OSError, RuntimeError) as error:
        raise wrong(f"{name[:80]!r} is no path: {error}") from None
    return path


def _label(task: Task, value: object, wrong: Callable[[str], InputError]) -> Label:
    try:
        return label_of(task, value)
    except ValueError as error:
        raise wrong(str(error)) from None


def _seconds(value: object, wrong: Callable[[str], InputError]) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or number < 0:
        raise wrong(f"found {value!r}, wanted seconds")
    return number


def _fold(value: object, wrong: Callable[[str], InputError]) -> int | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or number < 1 or number != int(number):
        raise wrong(f"found {value!r}, wanted the number of a fold, from 1")
    return int(number)


def stream_of(value: object) -> str:
    """A number or a language; a column of numbers with empty cells may hold them as 1.0."""
    text = "" if value is None else str(value)
    return text.partition(".")[0] if re.fullmatch(r"\d+\.0+", text) else text


def _text(value: object) -> str | None:
    return None if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot become a clip, the column that is wrong, and why."""

    number: int
    column: str
    message: str


class Taker:
    """Takes in rows; holds one decoding child."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._decoder = stage, Decoder()

    def __call__(self, asked: Sequence[Asked]) -> list[Clip | Refused]:
        """A clip or a refusal for each row."""
        return [self._take(each) for each in asked]

    def _take(self, asked: Asked) -> Clip | Refused:
        try:
            path = self._stage.local(asked.raw.media)
            return take_in(replace(asked.raw, path=path), self._decoder)
        except BadClipError as bad:
            return Refused(asked.number, _column(asked.raw, bad.fault), str(bad))


def _column(raw: RawClip, fault: Fault) -> str:
    """The column that a fault of a row comes from."""
    match fault:
        case "bad_span":
            return "start" if raw.end is None else "end"
        case "bad_transcript":
            return "transcript" if raw.transcript_file is None else "transcript_file"
        case _:
            return "media"


def stage_of(experiment: Experiment) -> Stage:
    """The cache of remote media."""
    return Stage(
        folder=experiment.cache_folder, limit_bytes=int(experiment.cache.gigabytes * (1 << 30))
    )


def take_all(
    experiment: Experiment, asked: Sequence[Asked], executor: Executor, done: Callable[[int], None]
) -> list[Clip]:
    """Digest and probe the media of all rows.

    Raises:
        InputError: A transcript or span is wrong (names row and column), or no media file can be
            read at all.
    """
    chunks = [asked[i : i + CHUNK] for i in range(0, len(asked), CHUNK)]
    clips: list[Clip] = []
    for answer in executor.run(partial(Taker, stage_of(experiment)), chunks):
        for result in answer.result:
            if isinstance(result, Refused):
                raise InputError(
                    f"{experiment.table}: row {result.number}, column {result.column}: "
                    f"{result.message}"
                )
            clips.append(result)
        done(len(answer.result))
    if not any(clip.seconds > 0 for clip in clips):
        raise InputError(
            f"{experiment.table}: nothing is left: none of {len(clips)} media files can be read; "
            f"the first is {clips[0].media}"
        )
    return sorted(clips, key=lambda clip: clip.key)


def group_of(clip: Clip) -> str:
    """What must not be torn between splits: the group, else the speaker, else the source file."""
    return clip.group or clip.speaker or clip.source


def split(
    clips: Sequence[Clip], task: Task, seed: int, *, standing: Sequence[Clip] = ()
) -> tuple[list[Clip], str]:
    """Give each clip a split: the table's word, else where its group stands, else a deal.

    A split in the table holds, and the other clips of that group follow it. A group of which the
    table says nothing stays where it stands in the dataset, so that adding or mending a row moves
    no other clip. Only groups that are new are dealt into train, valid and test, so that all clips
    together come nearest to 70/15/15. With fewer than 3 groups, clips are dealt one by one.

    The deal is stratified by label and follows from names, the seed, and where other groups stand;
    not from the order of rows.

    Args:
        clips: Those of the table, with the splits that it gives.
        task: Names the label to stratify by.
        seed: Another seed deals new groups otherwise; it moves none that stand.
        standing: The clips of the dataset as it is now; none at a first ingest.

    Returns:
        The clips, and a sentence that says how it was done.
    """
    if all(clip.split for clip in clips):
        return list(clips), "splits as given"
    by_clip = len({group_of(clip) for clip in clips}) < FEW_GROUPS
    unit: Callable[[Clip], str] = (lambda clip: clip.key) if by_clip else group_of
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[unit(clip)].append(clip)
    splits = _settled(groups, standing, unit)
    kept = len(splits) - sum(clip.split is not None for clip in clips)
    splits |= _dealt(groups, splits, task, seed)
    result = [replace(clip, split=splits[clip.key]) for clip in clips]
    counts = Counter(clip.split for clip in result)
    name = "clips (warning: fewer than 3 groups, so speakers may leak)" if by_clip else "groups"
    how = f"split by {name}, 70/15/15, seed {seed}: { {each: counts[each] for each in SPLITS} }"
    torn = sum(len({splits[clip.key] for clip in members}) > 1 for members in groups.values())
    return result, "; ".join(
        [
            how,
            *([f"{kept} clips follow their group or stay where they stood"] if kept else []),
            *([f"warning: {torn} groups lie in several splits, so they may leak"] if torn else []),
        ]
    )


def _settled(
    groups: Mapping[str, Sequence[Clip]], standing: Sequence[Clip], unit: Callable[[Clip], str]
) -> dict[str, str]:
    """The split by key of each clip whose group the table or the dataset knows."""
    own = {clip.key: clip.split for clip in standing if clip.split}
    stands: dict[str, list[str]] = defaultdict(list)
    for clip in standing:
        if clip.split:
            stands[unit(clip)].append(clip.split)
    settled: dict[str, str] = {}
    for name, members in groups.items():
        # A group that was renamed is known by its clips.
        known = stands.get(name) or [own[clip.key] for clip in members if clip.key in own]
        among = Counter(clip.split for clip in members if clip.split) or Counter(known)
        for clip in members if among else ():
            # The clip's own place first: a group that was torn before is not moved.
            before = own.get(clip.key, "")
            commonest = max(sorted(among), key=among.__getitem__)
            settled[clip.key] = clip.split or (before if before in among else commonest)
    return settled


def _dealt(
    groups: Mapping[str, Sequence[Clip]], settled: Mapping[str, str], task: Task, seed: int
) -> dict[str, str]:
    """The split by key of each clip of a new group."""
    counts = Counter({**dict.fromkeys(SPLITS, 0), **Counter(settled.values())})
    order = sorted(
        (name for name, members in groups.items() if members[0].key not in settled),
        key=lambda name: (stratum(groups[name], task), hashed(seed, name)),
    )
    dealt: dict[str, str] = {}
    for left, name in zip(range(len(order), 0, -1), order, strict=True):
        size = counts.total() + len(groups[name])
        # The last groups go where there is none yet: three are enough for three splits.
        empty = [each for each in SPLITS if not counts[each]]
        among = empty if left <= len(empty) else SPLITS
        chosen = max(among, key=lambda each: SHARES[each] * size - counts[each])
        counts[chosen] += len(groups[name])
        dealt.update((clip.key, chosen) for clip in groups[name])
    return dealt


def stratum(clips: Sequence[Clip], task: Task) -> str:
    """What a group is dealt as: its commonest label, or its mean; empty where it has none."""
    labels = [clip.labels[task.label] for clip in clips if task.label in clip.labels]
    if not labels:
        return ""
    if task.kind != "regression":
        # Of several labels at once all of a clip's together stand for it, in their order by name.
        # Without any, a clip is of another stratum than one of which nothing is known.
        texts = [",".join(label) if isinstance(label, tuple) else str(label) for label in labels]
        commonest, _ = Counter(sorted(texts)).most_common(1)[0]
        return f"={commonest}"
    mean = math.fsum(float(str(label)) for label in labels) / len(labels)
    return f"{round(mean):+05d}"


def hashed(seed: int, name: str) -> str:
    """A place in an order that follows from a name and a seed."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def task_of(experiment: Experiment, clips: Sequence[Clip]) -> Task:
    """The task that the labels of a dataset define.

    Raises:
        InputError: No clip has that label, or the dataset was ingested for another task.
    """
    label, wanted = experiment.source.label, experiment.source.task
    task = task_of_labels(label, clips)
    if task is None:
        known = sorted({name for clip in clips for name in clip.labels})
        raise InputError(
            f"no clip of {experiment.root} has a label {label!r}; there are {', '.join(known)}; "
            f"ingest again after changing source.label"
        )
    if wanted is not None and task.kind != wanted:
        raise InputError(
            f"{experiment.root} was ingested with labels {label!r} for {task.kind}, and "
            f"source.task is {wanted}; ingest again after changing source.task"
        )
    return task


def describe(clips: Sequence[Clip], task: Task) -> Mapping[str, int]:
    """Counts for the summary of an ingest."""
    return {
        "clips": len(clips),
        "sources": len({clip.source for clip in clips}),
        "speakers": len({clip.speaker for clip in clips if clip.speaker}),
        "unreadable": sum(clip.seconds == 0 for clip in clips),
        "labelled": sum(task.label in clip.labels for clip in clips),
        **{name: sum(clip.split == name for clip in clips) for name in SPLITS},
    }
