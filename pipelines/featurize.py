"""Raw clips to committed columns. Read this first.

    clips.parquet --deal--> plan.parquet --> jobs --> shards (tar, index, record) --> manifest

A job is one shard and the featurizers that share its stream. A job whose records are there is
finished; running again does what is missing and nothing else. Only when every shard of a column is
finished is its manifest written.

`ingest.py` makes the clips and the plan, `worker.py` does a job, `upkeep.py` retries and forgets.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

from featurizers.clip import Clip
from featurizers.dataset import LOGS, Clips, DatasetError, read_clips
from featurizers.manifest import Column, commit, committed_digest, open_column
from featurizers.shards import Record, column_folder, job_id, read_record
from featurizers.spec import FeatureSpec
from featurizers.store import Root, store_at
from pipelines.executors import Executor
from pipelines.experiment import Experiment, FailedError
from pipelines.ingest import read_plan
from pipelines.logbook import Logbook, read_logs
from pipelines.plan import Place, by_shard, digest
from pipelines.sources import stage_of
from pipelines.worker import MEDIA, Done, Job, Part, ShardWorker, need_of

BEHIND = 32  # places; with a job of each kind a shard, 16 shards


class TooManyDroppedError(FailedError):
    """More clips are quarantined than max_dropped permits; records stay, no manifest is written."""


class Jobs(Sequence[Job]):
    """Jobs that are made when they are asked for: the clips of all of them are never held.

    Args:
        clips: All clips.
        shards: The places in `clips` of each shard's clips, in the plan's order.
        todo: A shard and the columns to be computed, for each job.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        shards: Mapping[int, Sequence[int]],
        todo: Sequence[tuple[int, tuple[Part, ...]]],
    ) -> None:
        self._clips, self._shards, self._todo = clips, shards, todo

    def __len__(self) -> int:
        return len(self._todo)

    @overload
    def __getitem__(self, at: int) -> Job: ...
    @overload
    def __getitem__(self, at: slice) -> "Jobs": ...
    def __getitem__(self, at: int | slice) -> "Job | Jobs":
        if isinstance(at, slice):
            return Jobs(self._clips, self._shards, self._todo[at])
        shard, parts = self._todo[at]
        return Job(shard=shard, clips=_some(self._clips, self._shards[shard]), parts=parts)


def _some(clips: Sequence[Clip], numbers: Sequence[int]) -> Sequence[Clip]:
    if isinstance(clips, Clips):
        return clips.some(numbers)
    return tuple(clips[number] for number in numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is left to do for some columns, and the records of what is finished."""

    todo: Jobs
    finished: list[Record]


def jobs(root: Root, specs: Sequence[FeatureSpec]) -> Work:
    """What is left to do for some columns of a dataset.

    Raises:
        DatasetError: Nothing was ingested, or a record is damaged.
    """
    return jobs_of(root, specs, read_clips(root), read_plan(root))


def jobs_of(
    root: Root, specs: Sequence[FeatureSpec], clips: Sequence[Clip], places: Sequence[Place]
) -> Work:
    """The same for clips and a plan that may not be written yet."""
    keys = clips.keys() if isinstance(clips, Clips) else [clip.key for clip in clips]
    shards = by_shard(places, {key: number for number, key in enumerate(keys)})
    store = store_at(root)
    if sum(map(len, shards.values())) != len(clips) or not clips:
        raise DatasetError(
            f"{store.where()}: the plan has not all of {len(clips)} clips; ingest again"
        )
    sizes = {spec.digest: store.sizes(column_folder(spec.fingerprint)) for spec in specs}
    todo: list[tuple[int, tuple[Part, ...]]] = []
    finished: list[Record] = []
    for shard, numbers in sorted(shards.items()):
        members = _some(clips, numbers)
        missing: list[Part] = []
        for spec in specs:
            job = job_id(spec, members)
            folder = column_folder(spec.fingerprint)
            record = read_record(store, folder, shard, job, sizes[spec.digest])
            if record is None:
                missing.append(Part(spec=spec, job=job))
            else:
                finished.append(record)
        todo += [(shard, tuple(group)) for group in by_stream(missing)]
    return Work(todo=Jobs(clips, shards, _in_order(todo)), finished=finished)


def _in_order(
    todo: Sequence[tuple[int, tuple[Part, ...]]],
) -> list[tuple[int, tuple[Part, ...]]]:
    """Short jobs some places behind the long ones that they came with.

    The last of them keep all workers busy until the end comes. All of them at the end would be more
    than a driver can feed to many workers.
    """
    late = [0 if any(map(_decodes, parts)) else BEHIND for _, parts in todo]
    order = sorted(range(len(todo)), key=lambda number: number + late[number])
    return [todo[number] for number in order]


def by_stream(parts: Sequence[Part]) -> list[list[Part]]:
    """Columns that read the media share one decoding; others need none and stand alone."""
    media = [part for part in parts if _decodes(part)]
    others = [[part] for part in parts if part not in media]
    return [group for group in (media, *others) if group]


def _decodes(part: Part) -> bool:
    return bool(MEDIA & set(part.spec.reads))


def featurize(
    experiment: Experiment,
    executor: Executor,
    done: Callable[[Done], None],
    told: Callable[[str], None] = lambda sentence: None,
    *,
    work: Work | None = None,
) -> dict[str, Column]:
    """Compute every column of an experiment that is not finished, and commit it.

    Args:
        experiment: The settings.
        executor: Where jobs run.
        done: Told of each finished job, for a progress bar.
        told: Told in sentences how fast it was, and which stage held it up.
        work: What `jobs` found just now for the experiment's specs; None to look.

    Returns:
        The committed columns by stream.

    Raises:
        ChangedInputError: Media or streams are not what was ingested.
        TooManyDroppedError: A column lost more than `max_dropped` of its clips; the others are
            committed.
        DatasetError: Nothing was ingested.
        StorageError: Something could not be written; run again to go on.
    """
    specs = {stream: each.spec for stream, each in experiment.featurizers().items()}
    unique = specs_of(experiment)
    work = work or jobs(experiment.root, unique)
    records = [*work.finished, *run_jobs(experiment, executor, work.todo, done, told)]
    commit_all(experiment.root, unique, records, experiment.max_dropped)
    return {
        stream: open_column(experiment.root, spec.fingerprint) for stream, spec in specs.items()
    }


def specs_of(experiment: Experiment) -> list[FeatureSpec]:
    """The specs of an experiment's columns, each once."""
    specs = [each.spec for each in experiment.featurizers().values()]
    return list({spec.digest: spec for spec in specs}.values())


def run_jobs(
    experiment: Experiment,
    executor: Executor,
    todo: Sequence[Job],
    done: Callable[[Done], None],
    told: Callable[[str], None],
) -> list[Record]:
    """Do jobs, and log what they took. Raises as `featurize`."""
    if not todo:
        return []
    root = experiment.root
    records: list[Record] = []
    memory = int(experiment.workers.memory_gb * (1 << 30))
    need = partial(need_of, memory_bytes=memory, gpus=experiment.workers.gpus)
    make = partial(ShardWorker, root, stage_of(experiment))
    with Logbook(root) as log:
        log.add("run", event="start", jobs=len(todo), workers=experiment.workers.featurize)
        ended = "stopped"
        try:
            for answer in executor.run(make, todo, need):
                records += answer.result.records
                log.add(
                    "job",
                    attempts=answer.attempts,
                    queued_seconds=round(answer.queued_seconds, 4),
                    **answer.result.to_json(),
                )
                done(answer.result)
            ended = "end"
        finally:
            # What stopped it is told, not what went wrong with the log after that.
            with contextlib.suppress(*([] if ended == "end" else [Exception])):
                log.add("run", event=ended)
                log.flush()
                _sum_up(root, log.run, told)
    return records


def _sum_up(root: Root, run: str, told: Callable[[str], None]) -> None:
    """Write how fast the jobs of a run were that were finished, and tell it."""
    from pipelines.throughput import throughput

    speed = throughput(read_logs(root, run))
    if not speed.jobs:
        return
    content = json.dumps(speed.to_json(), indent=1, sort_keys=True)
    store_at(root).replace(f"{LOGS}/throughput-{run}.json", content.encode())
    for sentence in speed.sentences():
        told(sentence)


def commit_all(
    root: Root, specs: Sequence[FeatureSpec], records: Sequence[Record], permitted: float
) -> None:
    """Commit each column that lost no more than a share of its clips.

    Raises:
        TooManyDroppedError: Some lost more; the others are committed all the same.
    """
    plan = digest(read_plan(root))
    wrong: list[str] = []
    for spec in specs:
        mine = [record for record in records if record.spec == spec.digest]
        try:
            _check_dropped(spec, mine, permitted)
        except TooManyDroppedError as error:
            wrong.append(str(error))
            continue
        _commit(root, spec, plan, mine)
    store_at(root).sweep("")
    if wrong:
        raise TooManyDroppedError("; ".join(wrong))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far the columns of an experiment are.

    Attributes:
        columns: Those that are committed, by stream.
        stale: Streams whose column is not committed, or not as clips and settings are now.
        left: Jobs that are to be done.
    """

    columns: dict[str, Column]
    stale: list[str]
    left: int


def standing(experiment: Experiment) -> Standing:
    """How far the columns of an experiment are.

    Raises:
        DatasetError: Nothing was ingested.
        CorruptShardError: A manifest or an index is not what was written.
    """
    root = experiment.root
    specs = {stream: each.spec for stream, each in experiment.featurizers().items()}
    work = jobs(root, list(specs.values()))
    columns = {
        stream: open_column(root, spec.fingerprint)
        for stream, spec in specs.items()
        if committed_digest(root, spec.fingerprint)
    }
    wanted = {record.to_bytes() for record in work.finished}
    stale = [
        stream
        for stream, spec in specs.items()
        if any(part.spec.digest == spec.digest for job in work.todo for part in job.parts)
        or stream not in columns
        or not _counts(columns[stream], wanted, work.finished)
    ]
    return Standing(columns=columns, stale=stale, left=len(work.todo))


def finished(experiment: Experiment) -> dict[str, Column]:
    """The committed columns of an experiment, by stream.

    Raises:
        DatasetError: A column is not finished, or clips or settings changed since it was.
    """
    found = standing(experiment)
    if found.left or found.stale:
        raise DatasetError(
            f"{store_at(experiment.root).where()}: {found.left} jobs are left to do and "
            f"{len(found.stale)} columns are out of date; featurize first"
        )
    return found.columns


def _counts(column: Column, wanted: set[bytes], finished: Iterable[Record]) -> bool:
    """Whether a column is made of exactly the shards that its clips ask for now."""
    mine = sum(record.spec == column.spec.digest for record in finished)
    return mine == len(column.records) and all(r.to_bytes() in wanted for r in column.records)


def _commit(root: Root, spec: FeatureSpec, plan: str, records: Sequence[Record]) -> None:
    before = committed_digest(root, spec.fingerprint)
    after = commit(root, spec, plan, records)
    if before != after:
        with Logbook(root) as log:
            log.add("manifest", column=spec.fingerprint, digest=after, before=before)


def _check_dropped(spec: FeatureSpec, records: Sequence[Record], permitted: float) -> None:
    states, faults = _counted(records)
    dropped, total = faults.total(), states.total()
    if dropped > permitted * total:
        raise TooManyDroppedError(
            f"{spec.fingerprint}: {dropped} of {total} clips are quarantined {dict(faults)}, "
            f"at most {permitted:.0%} may be; mend the media, or raise max_dropped, and run again"
        )


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
    """The ledger of some columns, by their records."""
    lines: list[Balance] = []
    for stream, column in columns.items():
        states, faults = _counted(column.records)
        lines.append(
            Balance(
                stream=stream,
                column=column.spec.fingerprint,
                clips=states.total(),
                sample=states["sample"],
                absent=states["absent"],
                quarantined=states["quarantined"],
                # Not a Counter: `dataclasses.asdict` makes tuples of its keys, which are no JSON.
                faults=dict(faults),
            )
        )
    return lines


def _counted(records: Iterable[Record]) -> tuple[Counter[str], Counter[str]]:
    """Clips by state, and the quarantined ones by fault."""
    states: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for record in records:
        states.update(record.counts)
        faults.update(record.faults)
    return states, faults
