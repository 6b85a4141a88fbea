"""What featurizing would do, redo and keep, before anything is done."""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from featurizers.clip import Clip
from featurizers.dataset import has_clips, read_clips
from featurizers.shards import column_folder
from featurizers.spec import FeatureSpec
from featurizers.store import Root, store_at
from pipelines.executors import Executor
from pipelines.experiment import Experiment
from pipelines.featurize import jobs_of, specs_of
from pipelines.ingest import read_plan, survey
from pipelines.logbook import read_logs
from pipelines.plan import by_shard
from pipelines.worker import Job

SECONDS_PER_HOUR = 3600.0


@dataclass(slots=True)
class Share:
    """Some shards of a column."""

    shards: int = 0
    clips: int = 0
    hours: float = 0.0

    def add(self, clips: Sequence[Clip]) -> None:
        """Count a shard."""
        self.shards += 1
        self.clips += len(clips)
        self.hours += sum(clip.seconds for clip in clips) / SECONDS_PER_HOUR


@dataclass(slots=True, kw_only=True)
class ColumnForecast:
    """What would become of a column.

    Attributes:
        new: Shards that it never had.
        redo: Shards of which a clip, or what it reads, has changed since they were made.
        keep: Finished shards.
    """

    stream: str
    column: str
    new: Share = field(default_factory=Share)
    redo: Share = field(default_factory=Share)
    keep: Share = field(default_factory=Share)

    def shares(self) -> tuple[Share, Share, Share]:
        """New, redo, keep."""
        return self.new, self.redo, self.keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What an experiment's featurizing would do.

    Attributes:
        changes: Clips that are new, changed or gone since the last ingest; None when the table was
            not read.
        jobs: How many there are; one may write several columns.
        media_hours: What would be decoded.
        seconds: How long it would take with the experiment's workers; None when nothing like it was
            ever computed here.
        basis: Where the estimate comes from, in a sentence.
    """

    columns: Sequence[ColumnForecast]
    changes: Mapping[str, int] | None
    jobs: int
    media_hours: float
    seconds: float | None
    basis: str


def forecast(
    experiment: Experiment, executor: Executor, done: Callable[[int], None], *, read_table: bool
) -> Forecast:
    """Say what featurizing would do; nothing is written.

    Args:
        experiment: The settings.
        executor: Where media are digested and probed.
        done: Told how many rows are read, for a progress bar.
        read_table: Read the table and its media as an ingest would; else take what was ingested.

    Raises:
        InputError: The table is wrong.
        DatasetError: Nothing was ingested, and the table is not to be read.
    """
    root = experiment.root
    standing = read_clips(root) if has_clips(root) or not read_table else []
    clips, places = standing, read_plan(root)
    changes = None
    if read_table:
        found = survey(experiment, executor, done)
        clips, places = found.clips, found.places
        changes = _changes(standing, clips)
    specs = {stream: each.spec for stream, each in experiment.featurizers().items()}
    work = jobs_of(root, specs_of(experiment), clips, places)
    shards = by_shard(places, {clip.key: clip for clip in clips})
    columns = [_column(root, stream, spec, work.todo, shards) for stream, spec in specs.items()]
    workers = max(1, experiment.workers.featurize)
    seconds, basis = estimate(work.todo, read_logs(root), workers)
    return Forecast(
        columns=columns,
        changes=changes,
        jobs=len(work.todo),
        media_hours=sum(job.media_seconds for job in work.todo) / SECONDS_PER_HOUR,
        seconds=seconds,
        basis=basis,
    )


def _changes(standing: Sequence[Clip], clips: Sequence[Clip]) -> dict[str, int]:
    before = {clip.key: clip for clip in standing}
    after = {clip.key: clip for clip in clips}
    both = [(before[key], after[key]) for key in before.keys() & after.keys()]
    return {
        "new": len(after.keys() - before.keys()),
        "changed": sum(_input_of(one) != _input_of(other) for one, other in both),
        "gone": len(before.keys() - after.keys()),
        "as before": sum(_input_of(one) == _input_of(other) for one, other in both),
    }


def _input_of(clip: Clip) -> tuple[object, ...]:
    """All of a clip that some featurizer may read."""
    streams = (dict(clip.stream_digests), dict(clip.stream_rates))
    chosen = (clip.audio_stream, clip.video_stream)
    return (clip.media_digest, *chosen, clip.start, clip.end, clip.words, *streams)


def _column(
    root: Root,
    stream: str,
    spec: FeatureSpec,
    todo: Sequence[Job],
    shards: Mapping[int, Sequence[Clip]],
) -> ColumnForecast:
    folder = column_folder(spec.fingerprint)
    names = (name.removeprefix(f"{folder}/") for name in store_at(root).sizes(folder))
    known = {name.split("-")[0] for name in names if name.endswith(".json") and "-" in name}
    left = {job.shard for job in todo if any(p.spec.digest == spec.digest for p in job.parts)}
    column = ColumnForecast(stream=stream, column=spec.fingerprint)
    for shard, members in shards.items():
        if shard not in left:
            column.keep.add(members)
        elif f"{shard:05d}" in known:
            column.redo.add(members)
        else:
            column.new.add(members)
    return column


@dataclass(slots=True, kw_only=True)
class _Spent:
    """What jobs of the same featurizers took, with their encoders on one kind of device.

    Attributes:
        encoded: Whether any encoder worked on them.
    """

    on_gpus: bool
    encoded: bool = False
    seconds: float = 0.0
    media_seconds: float = 0.0
    clips: float = 0.0
    hosts: set[str] = field(default_factory=set)

    def seconds_of(self, job: Job) -> float | None:
        """What another one would take; None where nothing tells."""
        size, known = float(len(job.clips)), self.clips
        if self.media_seconds:
            size, known = job.media_seconds, self.media_seconds
        return self.seconds * size / known if known else None


_Measured: TypeAlias = dict[frozenset[str], dict[bool, _Spent]]
"""By the names of featurizers, and by whether encoders were on GPUs."""


def estimate(
    todo: Sequence[Job],
    lines: Iterable[Mapping[str, Any]],
    workers: int,
    *,
    on_gpus: bool | None = None,
) -> tuple[float | None, str]:
    """Seconds that some jobs would take, by what the logs say of jobs like them.

    A job is like another when the same featurizers worked on it, their settings apart, with their
    encoders on the same kind of device; where none of them was, the other kind tells, and that is
    said. It takes seconds in proportion to its media, or to its clips where nothing is decoded.
    Each worker takes the next job when it is done with one, so that no more of them help than there
    are jobs.

    Args:
        todo: The jobs.
        lines: Of the logs.
        workers: How many do them.
        on_gpus: Whether encoders are given GPUs; None for the kind of which more was measured.
    """
    if not todo:
        return 0.0, "nothing is left to do"
    measured: _Measured = {}
    for line in lines:
        if line.get("kind") == "job":
            _learn(measured, line)
    busy_until = [0.0] * min(workers, len(todo))  # a heap
    used: list[_Spent] = []
    for job in todo:
        spent = _like(measured, job, on_gpus)
        seconds = None if spent is None else spent.seconds_of(job)
        if spent is None or seconds is None:
            return None, "nothing like it was computed here yet, so there is no estimate"
        used.append(spent)
        heapq.heapreplace(busy_until, busy_until[0] + seconds)
    told = "" if on_gpus is None else _by(used, on_gpus)
    return max(busy_until), f"by the speed of earlier jobs here, on {workers} workers{told}"


def _like(measured: _Measured, job: Job, on_gpus: bool | None) -> _Spent | None:
    names = frozenset(part.spec.name for part in job.parts)
    found = measured.get(names, {}).values()
    return max(found, key=lambda spent: (spent.on_gpus == on_gpus, spent.clips), default=None)


def _by(used: Sequence[_Spent], on_gpus: bool) -> str:
    """Where it was measured, and that encoders were elsewhere than they are to be."""
    hosts = sorted({host for spent in used for host in spent.hosts})
    told = f", measured on {', '.join(hosts[:3])}" * bool(hosts)
    told += f" and {len(hosts) - 3} more" * (len(hosts) > 3)
    if any(spent.on_gpus != on_gpus for spent in used if spent.encoded):
        told += f"; encoders were measured on {'processors' if on_gpus else 'GPUs'} alone"
    return told


def _learn(measured: _Measured, line: Mapping[str, Any]) -> None:
    try:
        names = frozenset(str(name).rpartition("-")[0] for name in line["columns"])
        figures = [float(str(line[key])) for key in ("seconds", "media_seconds", "clips")]
        devices = {str(device) for device in line.get("devices", {}).values()}
    except (AttributeError, KeyError, TypeError, ValueError):  # a line of another version
        return
    if not all(map(math.isfinite, figures)):
        return
    on_gpus = bool(devices - {"cpu"})
    spent = measured.setdefault(names, {}).setdefault(on_gpus, _Spent(on_gpus=on_gpus))
    spent.encoded = spent.encoded or bool(devices)
    spent.seconds += figures[0]
    spent.media_seconds += figures[1]
    spent.clips += figures[2]
    spent.hosts |= {str(line["host"])} if line.get("host") else set()
