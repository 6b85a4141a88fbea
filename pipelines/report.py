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
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import yaml

from featurizers.clip import Clip
from featurizers.clocks import Clocks
from featurizers.dataset import COLUMNS, DatasetError, read_clips
from featurizers.manifest import committed, index_rows, open_column
from featurizers.shards import Record, Row, column_folder, column_of
from featurizers.spec import FeatureSpec
from featurizers.store import Root, is_remote, store_at
from pipelines.clocks import Apart, apart, measured
from pipelines.experiment import RESOLVED, InputError, parse
from pipelines.featurize import jobs
from pipelines.logbook import read_logs
from pipelines.parts import NONE, SPLITS, Values, parts_of
from pipelines.throughput import Entry, Throughput, of_run, runs_of, throughput

FORMAT = 1
STATES = ("sample", "absent", "quarantined")

_BINS = 30
_LONG_TAIL = 20  # the longest clip over the median: beyond it, a histogram is logarithmic
_NAMED = 5  # keys in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the ledger: some clips of the dataset in one column.

    Attributes:
        stream: The name under which the column was asked for.
        column: Its fingerprint.
        part: "all", "split", or "label " and the label's name.
        value: Which clips of that part, such as "train".
        clips: Of the table of clips.
        faults: Quarantined clips by fault.
    """

    stream: str
    column: str
    part: str
    value: str
    clips: int
    sample: int
    absent: int
    quarantined: int
    faults: Mapping[str, int]

    @property
    def unknown(self) -> int:
        """Clips that the column knows nothing of: not 0 means that the line does not balance."""
        return self.clips - self.sample - self.absent - self.quarantined

    @property
    def lost(self) -> float:
        """The share of its clips that is quarantined."""
        return self.quarantined / self.clips if self.clips else 0.0


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
class Spread:
    """How some numbers are spread."""

    count: int
    minimum: float
    median: float
    p95: float
    maximum: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Seconds of the clips.

    Attributes:
        unknown: Clips whose media could not be read; they have no duration.
        hours: Media hours by split.
        edges: Seconds, between which `counts` clips lie; one more than counts.
        log: Whether the edges are equally far apart on a logarithmic scale.
    """

    spread: Spread | None
    unknown: int
    hours: Mapping[str, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    log: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The steps of a column's samples."""

    stream: str
    column: str
    rate_hz: float | None
    spread: Spread | None


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


class Counted(Protocol):
    """What is counted of a column; a committed one is a `Column`."""

    @property
    def spec(self) -> FeatureSpec:
        """What it computes."""

    @property
    def records(self) -> Sequence[Record]:
        """Its finished shards."""

    @property
    def rows(self) -> Mapping[str, Row]:
        """What became of each clip, by key."""


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
            for line in _lines(stream, column, part, values)
        ),
        quarantined=_quarantined(by_key, columns),
        damaged=_damaged(by_key, columns),
        measured=len(clocks),
        apart=_apart(by_key, clocks),
        durations=_durations(clips),
        steps=tuple(_steps(stream, column) for stream, column in columns.items()),
        last_run=throughput(of_run(entries, runs[-1])) if runs else None,
        all_runs=everything,
        slowest=_slowest(by_key, () if everything is None else everything.slowest),
        problems=tuple(
            problem
            for stream, column in columns.items()
            for problem in _problems(stream, column, by_key, done=stream not in unfinished)
        ),
        unfinished=tuple(_left(name, columns.get(name), by_key) for name in unfinished),
    )


def _lines(stream: str, column: Counted, part: str, values: Values) -> list[Line]:
    found: list[Line] = []
    for value, keys in values.items():
        rows = [column.rows[key] for key in keys if key in column.rows]
        states = Counter(row.state for row in rows)
        found.append(
            Line(
                stream=stream,
                column=column.spec.fingerprint,
                part=part,
                value=value,
                clips=len(keys),
                sample=states["sample"],
                absent=states["absent"],
                quarantined=states["quarantined"],
                faults=_by_count(row.fault or NONE for row in rows if row.state == "quarantined"),
            )
        )
    return found


def _by_count(names: Iterable[str]) -> dict[str, int]:
    """How often each name comes, the most frequent first."""
    counts = Counter(names)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _complete(key: str, columns: Mapping[str, Counted]) -> bool:
    rows = [column.rows.get(key) for column in columns.values()]
    return all(row is not None and row.state == "sample" for row in rows)


def _problems(stream: str, column: Counted, clips: Mapping[str, Clip], *, done: bool) -> list[str]:
    """Why a column's ledger does not balance, or does not agree with its own records.

    Args:
        stream: The column's name.
        column: Its rows and records.
        clips: All clips by key.
        done: Whether it should know all of them.
    """
    found: list[str] = []
    rows = column.rows
    missing, strange = sorted(clips.keys() - rows.keys()), sorted(rows.keys() - clips.keys())
    if missing and done:
        found.append(
            f"{stream}: {len(missing)} of {len(clips)} clips are not in the column: "
            f"{_few(missing)}; featurize again"
        )
    if strange:
        found.append(
            f"{stream}: {len(strange)} clips of the column are not in the table: {_few(strange)}; "
            f"ingest and featurize again"
        )
    odd = sorted(row.key for row in rows.values() if row.state not in STATES)
    if odd:
        found.append(f"{stream}: {len(odd)} clips have an unknown state: {_few(odd)}")
    told, counted = _told(column), Counter[str](row.state for row in rows.values())
    if any(told[state] != counted[state] for state in STATES):
        counts = ", ".join(f"{counted[state]} {state} (told {told[state]})" for state in STATES)
        found.append(f"{stream}: the indexes and the records differ: {counts}; verify the dataset")
    return found


def _left(name: str, column: Counted | None, clips: Mapping[str, Clip]) -> str:
    """A sentence about a column that has no manifest."""
    known = [] if column is None else [row for key, row in column.rows.items() if key in clips]
    lost = sum(row.state == "quarantined" for row in known)
    if known and len(known) == len(clips):
        return (
            f"{name}: all {len(clips)} clips are done, but nothing is committed; {lost} are "
            f"quarantined: mend their media or raise max_dropped, and featurize again"
        )
    done = f": {len(known)} of {len(clips)} clips are done, {lost} quarantined" if known else ""
    return f"{name}: not finished{done}; featurize"


def _told(column: Counted) -> Counter[str]:
    told: Counter[str] = Counter()
    for record in column.records:
        told.update(record.counts)
    return told


def _few(keys: Sequence[str]) -> str:
    more = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {more} more" if more > 0 else "")


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


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    low, middle, most, high = (float(q) for q in np.quantile(values, (0, 0.5, 0.95, 1)))
    return Spread(
        count=len(values), minimum=low, median=middle, p95=most, maximum=high, total=sum(values)
    )


def _durations(clips: Sequence[Clip]) -> Durations:
    known = [clip for clip in clips if np.isfinite(clip.seconds) and clip.seconds > 0]
    seconds = [clip.seconds for clip in known]
    spread = _spread(seconds)
    log = spread is not None and spread.maximum > _LONG_TAIL * spread.median
    counts, edges = np.array([], dtype=np.int64), np.array([], dtype=np.float64)
    if spread is not None:
        places = np.log(seconds) if log else np.asarray(seconds)
        ends = (float(places.min()) if log else 0.0, float(places.max()))
        counts, edges = np.histogram(places, bins=_BINS, range=ends)
        edges = np.exp(edges) if log else edges
    hours: dict[str, float] = {}
    for clip in sorted(known, key=lambda each: _rank(each.split)):
        split = clip.split or NONE
        hours[split] = hours.get(split, 0.0) + clip.seconds / 3600
    return Durations(
        spread=spread,
        unknown=len(clips) - len(known),
        hours=hours,
        edges=tuple(float(edge) for edge in edges),
        counts=tuple(int(count) for count in counts),
        log=log,
    )


def _rank(split: str | None) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split or "")


def _steps(stream: str, column: Counted) -> Steps:
    return Steps(
        stream=stream,
        column=column.spec.fingerprint,
        rate_hz=column.spec.rate_hz,
        spread=_spread([row.steps for row in column.rows.values() if row.state == "sample"]),
    )


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
