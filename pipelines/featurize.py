"""Raw clips to committed columns. Read this first.

    clips.parquet --deal--> plan.parquet --> jobs --> shards (tar, index, record) --> manifest

A job is one shard and the featurizers that share its stream. A job whose records are there is
finished; running again does what is missing and nothing else. Only when every shard of a column is
finished is its manifest written.
"""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featurizers import catalog
from featurizers.clip import Clip
from featurizers.dataset import (
    CLIPS,
    COLUMNS,
    LOGS,
    PLAN,
    DatasetError,
    StorageError,
    publish,
    read_clips,
    sweep,
    write_clips,
)
from featurizers.decoder import Decoder
from featurizers.extract import Outcome, extract
from featurizers.intake import digest as file_digest
from featurizers.manifest import Column, commit, committed_digest, open_column
from featurizers.shards import Record, job_id, read_record, write_shard
from featurizers.spec import FeatureSpec
from pipelines.executors import Executor
from pipelines.experiment import Experiment, FailedError, save
from pipelines.plan import Place, Room, by_shard, deal, digest
from pipelines.sources import Asked, ask, describe, read_rows, split, stage_of, take_all
from pipelines.staging import Stage
from training.recipe import Task


class TooManyDroppedError(FailedError):
    """More clips are quarantined than max_dropped permits; records stay, no manifest is written."""


class ChangedInputError(FailedError):
    """An input is not, or no longer, what was ingested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What an ingest made."""

    clips: list[Clip]
    task: Task
    how_split: str
    counts: Mapping[str, int]


def ingest(experiment: Experiment, executor: Executor, done: Callable[[int], None]) -> Ingested:
    """Table to clips.parquet and plan.parquet.

    Args:
        experiment: The settings.
        executor: Where media are digested and probed.
        done: Told how many rows are finished, for a progress bar.

    Raises:
        InputError: The table, a row or all of its media are wrong.
        StorageError: The dataset could not be written.
    """
    asked: list[Asked]
    asked, task = ask(experiment, read_rows(experiment.table))
    root = experiment.root
    standing = read_clips(root) if (root / CLIPS).is_file() else []
    taken = take_all(experiment, asked, executor, done)
    clips, how = split(taken, task, experiment.source.split_seed, standing=standing)
    room = Room(clips=experiment.shards.clips, seconds=experiment.shards.minutes * 60)
    places = deal(read_plan(root), clips, room)
    # The plan first: places without a clip do no harm, a clip without a place would be lost.
    write_plan(root, places)
    write_clips(root, clips)
    save(experiment, root / "experiment.resolved.yaml")
    return Ingested(clips=clips, task=task, how_split=how, counts=describe(clips, task))


def read_plan(root: Path) -> list[Place]:
    """The plan of a dataset; empty when there is none yet."""
    import pyarrow.parquet as pq

    if not (root / PLAN).is_file():
        return []
    return [Place(**row) for row in pq.read_table(root / PLAN).to_pylist()]


def write_plan(root: Path, places: Sequence[Place]) -> None:
    """Write the plan; equal plans give equal bytes."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("shard", "position", "key", "generation")
    rows = [{name: getattr(place, name) for name in names} for place in places]
    types = [pa.int64(), pa.int64(), pa.string(), pa.int64()]
    buffer = io.BytesIO()
    schema = pa.schema(list(zip(names, types, strict=True)))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    publish(root / PLAN, buffer.getvalue())


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A shard, and the columns to be computed from one decoding of it.

    Attributes:
        specs: With the identity of each column's part of the job.
    """

    shard: int
    clips: tuple[Clip, ...]
    specs: tuple[tuple[FeatureSpec, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a job: small, and nothing that a shard's bytes depend on."""

    shard: int
    records: tuple[Record, ...]
    clips: int
    media_seconds: float
    seconds: float
    host: str


def jobs(root: Path, specs: Sequence[FeatureSpec]) -> tuple[list[Job], list[Record]]:
    """What is left to do, and the records of what is finished.

    Raises:
        DatasetError: Nothing was ingested.
    """
    clips = {clip.key: clip for clip in read_clips(root)}
    shards = by_shard(read_plan(root), clips)
    if sum(map(len, shards.values())) != len(clips) or not clips:
        raise DatasetError(f"{root}: the plan has not all of {len(clips)} clips; ingest again")
    todo: list[Job] = []
    finished: list[Record] = []
    for shard, members in sorted(shards.items()):
        missing: list[tuple[FeatureSpec, str]] = []
        for spec in specs:
            job = job_id(spec, members)
            record = read_record(root / COLUMNS / spec.fingerprint, shard, job)
            if record is None:
                missing.append((spec, job))
            else:
                finished.append(record)
        todo += [
            Job(shard=shard, clips=tuple(members), specs=tuple(group))
            for group in _by_stream(missing)
        ]
    return todo, finished


def _by_stream(
    missing: Sequence[tuple[FeatureSpec, str]],
) -> list[list[tuple[FeatureSpec, str]]]:
    """Columns that read the media share one decoding; others need none and stand alone."""
    media = [each for each in missing if {"audio", "video"} & set(each[0].reads)]
    others = [[each] for each in missing if each not in media]
    return [group for group in (media, *others) if group]


class ShardWorker:
    """Does jobs; holds the featurizers and one decoding child."""

    def __init__(self, root: Path, stage: Stage) -> None:
        self._root, self._stage, self._decoder = root, stage, Decoder()

    def __call__(self, job: Job) -> Done:
        """Compute and write the shard's columns, each whole or absent by itself."""
        began = time.perf_counter()
        featurizers = [catalog.from_spec(spec) for spec, _ in job.specs]
        reads = {name for spec, _ in job.specs for name in spec.reads}
        media = bool({"audio", "video"} & reads)
        unchanged = Unchanged()
        outcomes: list[list[Outcome]] = []
        for clip in job.clips:
            path = self._stage.local(clip.media) if media else None
            unchanged.check(clip, path, reads)
            outcomes.append(extract(clip, path, featurizers, self._decoder))
        records = [
            write_shard(
                self._root / COLUMNS / spec.fingerprint,
                job.shard,
                identity,
                spec,
                clips=job.clips,
                outcomes=[each[number] for each in outcomes],
            )
            for number, (spec, identity) in enumerate(job.specs)
        ]
        return Done(
            shard=job.shard,
            records=tuple(records),
            clips=len(job.clips),
            media_seconds=sum(clip.seconds for clip in job.clips) if media else 0.0,
            seconds=time.perf_counter() - began,
            host=socket.gethostname(),
        )


class Unchanged:
    """Holds inputs against the digests that name their jobs; each file is read once.

    Without it, a file that changed after ingest would be committed under its old digest, and one
    that cannot be reached for a while would count as missing for good.
    """

    def __init__(self) -> None:
        self._digests: dict[Path, str] = {}

    def check(self, clip: Clip, media: Path | None, reads: Set[str]) -> None:
        """Raise ChangedInputError when an input that is read is not what was ingested."""
        if {"audio", "video"} & reads:
            self._hold(clip, clip.media, media, clip.media_digest)
        for name, path in clip.streams.items():
            if f"stream:{name}" in reads:
                self._hold(clip, path, Path(path), clip.stream_digests[name])

    def _hold(self, clip: Clip, name: str, path: Path | None, wanted: str) -> None:
        found = "" if path is None else self._digests.get(path) or file_digest(path)
        if path is not None:
            self._digests[path] = found
        if found != wanted:
            what = "cannot be reached" if not found else "changed since it was ingested"
            advice = "run again when it is there, or ingest" if not found else "ingest"
            raise ChangedInputError(f"clip {clip.id!r}: {name} {what}; {advice} again")


def featurize(
    experiment: Experiment, executor: Executor, done: Callable[[Done], None]
) -> dict[str, Column]:
    """Compute every column of an experiment that is not finished, and commit it.

    Args:
        experiment: The settings.
        executor: Where jobs run.
        done: Told of each finished job, for a progress bar.

    Returns:
        The committed columns by stream.

    Raises:
        ChangedInputError: Media or streams are not what was ingested.
        TooManyDroppedError: A column lost more than `max_dropped` of its clips.
        DatasetError: Nothing was ingested.
        StorageError: Something could not be written; run again to go on.
    """
    root = experiment.root
    specs = {stream: each.spec for stream, each in experiment.featurizers().items()}
    unique = list({spec.digest: spec for spec in specs.values()}.values())
    todo, records = jobs(root, unique)
    log = root / LOGS / "featurize.jsonl"
    for _, result in executor.run(partial(ShardWorker, root, stage_of(experiment)), todo):
        records += result.records
        _write_log(log, result)
        done(result)
    for spec in unique:
        mine = [record for record in records if record.spec == spec.digest]
        _check_dropped(spec, mine, experiment.max_dropped)
        _commit(root, spec, mine)
    return {stream: open_column(root, spec.fingerprint) for stream, spec in specs.items()}


def finished(experiment: Experiment) -> dict[str, Column]:
    """The committed columns of an experiment, by stream.

    Raises:
        DatasetError: A column is not finished, or clips or settings changed since it was.
    """
    root = experiment.root
    specs = {stream: each.spec for stream, each in experiment.featurizers().items()}
    todo, records = jobs(root, list(specs.values()))
    columns = {
        stream: open_column(root, spec.fingerprint) for stream, spec in specs.items() if not todo
    }
    wanted = {(record.spec, record.name) for record in records}
    stale = [
        stream
        for stream, column in columns.items()
        if {(r.spec, r.name) for r in column.records}
        != {each for each in wanted if each[0] == column.spec.digest}
    ]
    if todo or stale:
        raise DatasetError(
            f"{root}: {len(todo)} jobs are left to do and {len(stale)} columns are out of date; "
            f"featurize first"
        )
    return columns


def _commit(root: Path, spec: FeatureSpec, records: Sequence[Record]) -> None:
    before = committed_digest(root, spec.fingerprint)
    after = commit(root, spec, digest(read_plan(root)), records)
    sweep(root / COLUMNS / spec.fingerprint)
    if before is not None and before != after:
        _write_log(root / LOGS / "manifests.jsonl", {"column": spec.fingerprint, "from": before})


def _check_dropped(spec: FeatureSpec, records: Sequence[Record], permitted: float) -> None:
    faults: Counter[str] = Counter()
    total = 0
    for record in records:
        faults.update(record.faults)
        total += sum(record.counts.values())
    dropped = sum(faults.values())
    if dropped > permitted * total:
        raise TooManyDroppedError(
            f"{spec.fingerprint}: {dropped} of {total} clips are quarantined {dict(faults)}, "
            f"at most {permitted:.0%} may be; mend the media, or raise max_dropped, and run again"
        )


def _write_log(path: Path, entry: Done | Mapping[str, str]) -> None:
    """What may differ between runs goes here and nowhere else."""
    plain = dict(entry) if isinstance(entry, Mapping) else _plain(entry)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **plain}) + "\n")
    except OSError as error:
        raise StorageError(
            f"{path}: a line could not be written ({error.strerror}); make room, "
            f"then run the same command again"
        ) from None


def _plain(done: Done) -> dict[str, object]:
    return {
        "shard": done.shard,
        "records": [f"{record.name}" for record in done.records],
        "clips": done.clips,
        "media_seconds": round(done.media_seconds, 3),
        "seconds": round(done.seconds, 3),
        "host": done.host,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """One line of the ledger: clips = sample + absent + quarantined."""

    stream: str
    column: str
    clips: int
    sample: int
    absent: int
    quarantined: int
    faults: Mapping[str, int]


def ledger(columns: Mapping[str, Column]) -> list[Balance]:
    """The ledger of some columns."""
    lines: list[Balance] = []
    for stream, column in columns.items():
        states = Counter(row.state for row in column.rows.values())
        lines.append(
            Balance(
                stream=stream,
                column=column.spec.fingerprint,
                clips=len(column.rows),
                sample=states["sample"],
                absent=states["absent"],
                quarantined=states["quarantined"],
                faults=Counter(row.fault for row in column.rows.values() if row.fault),
            )
        )
    return lines
