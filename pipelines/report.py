"""The ledger report of a dataset: what became of every clip, what was lost and why, how fast.

Everything is counted from the table of clips, not from the columns: a clip that a column does not
know is seen, and the report says that the ledger does not balance.

Reports are shown to others. They hold the ids, keys and messages of clips, and of media the file
names alone: the folders above them often name people, projects and servers. Hosts are only counted.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from featurizers.clip import Clip
from featurizers.clocks import Clocks
from featurizers.dataset import COLUMNS, DatasetError, read_clips
from featurizers.manifest import committed, index_rows, open_column
from featurizers.shards import Record, Row, column_folder, column_of
from featurizers.spec import FeatureSpec
from featurizers.store import Root, is_remote, store_at
from pipelines.accounts import Counted, Line, left_of, lines_of, problems_of
from pipelines.clocks import Apart, apart, measured
from pipelines.experiment import RESOLVED, InputError, parse
from pipelines.featurize import jobs
from pipelines.logbook import read_logs
from pipelines.parts import NONE, parts_of
from pipelines.spreads import Durations, Steps, durations_of, steps_of
from pipelines.throughput import Entry, Throughput, of_run, runs_of, throughput

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A quarantined clip; media is a file name without its folders."""

    stream: str
    column: str
    key: str
    id: str
    fault: str
    message: str
    media: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A sample of which some damage was passed over; media is a file name without its folders."""

    stream: str
    column: str
    key: str
    id: str
    message: str
    media: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A clip that took long: seconds of work, and of media."""

    key: str
    id: str
    seconds: float
    media_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A dataset's ledger and speeds; plain data.

    Attributes:
        dataset: Its name.
        clips: In the table.
        columns: Committed ones.
        complete: Clips that are samples in every column, also of those that are not committed.
        values: The values of each part in the order in which they are shown.
        lines: The ledger: of each part, by value, of each column.
        quarantined: Sorted by fault, key and column.
        damaged: Samples with a message, sorted by key and column.
        measured: Clips of whose sound and pictures the clocks were measured.
        apart: Those of them whose clocks lie apart, sorted by key.
        last_run, all_runs: None when there are no log lines.
        slowest: Over all logs, slowest first.
        problems: Why the ledger does not balance; empty when it does.
        unfinished: A sentence about each column that has no manifest.
    """

    dataset: str
    clips: int
    columns: int
    complete: int
    values: Mapping[str, tuple[str, ...]]
    lines: tuple[Line, ...]
    quarantined: tuple[Lost, ...]
    damaged: tuple[Damaged, ...]
    measured: int
    apart: tuple[Apart, ...]
    durations: Durations
    steps: tuple[Steps, ...]
    last_run: Throughput | None
    all_runs: Throughput | None
    slowest: tuple[Slow, ...]
    problems: tuple[str, ...]
    unfinished: tuple[str, ...]

    @property
    def balanced(self) -> bool:
        """Whether clips = sample + absent + quarantined everywhere."""
        return not self.problems

    def of(self, part: str) -> list[Line]:
        """The lines of a part."""
        return [line for line in self.lines if line.part == part]

    def to_json(self) -> dict[str, Any]:
        """Plain data for machines."""
        plain = asdict(self)
        for line, told in zip(self.lines, plain["lines"], strict=True):
            told.update(unknown=line.unknown, lost=line.lost)
        for name in ("last_run", "all_runs"):
            run: Throughput | None = getattr(self, name)
            plain[name] = None if run is None else run.to_json()
        return {"format": FORMAT, "balanced": self.balanced, **plain}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """The finished shards of a column that has no manifest."""

    spec: FeatureSpec
    records: tuple[Record, ...]
    rows: Mapping[str, Row]


def report(root: Root) -> Report:
    """The report of a dataset as it lies there, with all its columns.

    Of a column that is not committed, the finished shards are counted where the dataset's resolved
    settings ask for it; so it can be seen what was lost when too much was. A column goes by its
    featurizer's name, or by its fingerprint where several share that name.

    Raises:
        DatasetError: There is no dataset, or a record is damaged.
        CorruptShardError: A manifest, record or index is not what was written.
    """
    store = store_at(root)
    clips = read_clips(root)
    columns: dict[str, Counted] = {name: open_column(root, name) for name in committed(root)}
    started = {column_of(name) for name in store.sizes(COLUMNS)} - {""}
    left = sorted(started.difference(columns))
    asked = asked_for(root) if left else {}
    columns |= {name: _unfinished(root, asked[name]) for name in left if name in asked}
    count = Counter(column.spec.name for column in columns.values())
    names = {
        name: column.spec.name if count[column.spec.name] == 1 else name
        for name, column in columns.items()
    }
    return build_report(
        file_name(str(root)) if is_remote(root) else Path(root).resolve().name,
        clips,
        {names[name]: column for name, column in columns.items()},
        read_logs(root),
        unfinished=[names.get(name, name) for name in left],
    )


def asked_but_not_there(root: Root) -> list[str]:
    """Columns of the dataset's resolved settings of which nothing lies there."""
    started = {column_of(name) for name in store_at(root).sizes(COLUMNS)}
    return sorted(asked_for(root).keys() - started)


def asked_for(root: Root) -> dict[str, FeatureSpec]:
    """The columns of a dataset's resolved settings by fingerprint; none where they are not read."""
    try:
        plain = yaml.safe_load(store_at(root).read(RESOLVED))
        featurizers = parse(plain, Path()).featurizers().values()
    except (FileNotFoundError, InputError, DatasetError, yaml.YAMLError, TypeError):
        return {}
    return {each.spec.fingerprint: each.spec for each in featurizers}


def _unfinished(root: Root, spec: FeatureSpec) -> Unfinished:
    store, folder = store_at(root), column_folder(spec.fingerprint)
    records = jobs(root, [spec]).finished
    rows = [row for record in records for row in index_rows(store, folder, record)]
    return Unfinished(spec=spec, records=tuple(records), rows={row.key: row for row in rows})


def build_report(
    dataset: str,
    clips: Sequence[Clip],
    columns: Mapping[str, Counted],
    log: Iterable[Entry],
    *,
    unfinished: Sequence[str] = (),
) -> Report:
    """The report of some clips and columns; pure.

    Args:
        dataset: Its name.
        clips: All of them.
        columns: By the names that they go by.
        log: Log lines of all kinds.
        unfinished: Names of columns that have no manifest, of these or others.
    """
    by_key = {clip.key: clip for clip in clips}
    parts = parts_of(clips)
    entries = list(log)
    runs = runs_of(entries)
    everything = throughput(entries) if runs else None
    clocks = {key: found for key, found in measured(entries).items() if key in by_key}
    return Report(
        dataset=dataset,
        clips=len(by_key),
        columns=sum(name not in unfinished for name in columns),
        complete=sum(_complete(key, columns) for key in by_key) if columns else 0,
        values={part: tuple(values) for part, values in parts.items()},
        lines=tuple(
            line
            for part, values in parts.items()
            for stream, column in columns.items()
            for line in lines_of(stream, column, part, values)
        ),
        quarantined=_quarantined(by_key, columns),
        damaged=_damaged(by_key, columns),
        measured=len(clocks),
        apart=_apart(by_key, clocks),
        durations=durations_of(clips),
        steps=tuple(steps_of(stream, column) for stream, column in columns.items()),
        last_run=throughput(of_run(entries, runs[-1])) if runs else None,
        all_runs=everything,
        slowest=_slowest(by_key, () if everything is None else everything.slowest),
        problems=tuple(
            problem
            for stream, column in columns.items()
            for problem in problems_of(stream, column, by_key, done=stream not in unfinished)
        ),
        unfinished=tuple(left_of(name, columns.get(name), by_key) for name in unfinished),
    )


def _complete(key: str, columns: Mapping[str, Counted]) -> bool:
    rows = [column.rows.get(key) for column in columns.values()]
    return all(row is not None and row.state == "sample" for row in rows)


def _quarantined(clips: Mapping[str, Clip], columns: Mapping[str, Counted]) -> tuple[Lost, ...]:
    found = [
        Lost(fault=row.fault or NONE, **_about(stream, column, row, clips.get(key)))
        for stream, column in columns.items()
        for key, row in column.rows.items()
        if row.state == "quarantined"
    ]
    return tuple(sorted(found, key=lambda each: (each.fault, each.key, each.stream)))


def _damaged(clips: Mapping[str, Clip], columns: Mapping[str, Counted]) -> tuple[Damaged, ...]:
    found = [
        Damaged(**_about(stream, column, row, clips.get(key)))
        for stream, column in columns.items()
        for key, row in column.rows.items()
        if row.state == "sample" and row.message
    ]
    return tuple(sorted(found, key=lambda each: (each.key, each.stream)))


def _apart(clips: Mapping[str, Clip], clocks: Mapping[str, Clocks]) -> tuple[Apart, ...]:
    found = (apart(clips[key], file_name(clips[key].media), clocks[key]) for key in sorted(clocks))
    return tuple(each for each in found if each is not None)


def _about(stream: str, column: Counted, row: Row, clip: Clip | None) -> dict[str, str]:
    """Who a clip is; a message that names its media says the file name alone, too."""
    media, message = "", row.message
    if clip is not None:
        media = file_name(clip.media)
        message = message.replace(clip.media, media) if clip.media else message
    return {
        "stream": stream,
        "column": column.spec.fingerprint,
        "key": row.key,
        "id": row.key if clip is None else clip.id,
        "message": message,
        "media": media,
    }


def file_name(media: str) -> str:
    """The last part of a path or URL, without what may follow in a URL (signatures, tokens)."""
    path = urlsplit(media).path if "://" in media else media
    return PurePosixPath(path).name


def _slowest(clips: Mapping[str, Clip], slowest: Sequence[tuple[str, float]]) -> tuple[Slow, ...]:
    return tuple(
        Slow(
            key=key,
            id=clips[key].id if key in clips else key,
            seconds=seconds,
            media_seconds=clips[key].seconds if key in clips else 0.0,
        )
        for key, seconds in slowest
    )
