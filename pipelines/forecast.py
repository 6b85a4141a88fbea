"""What featurizing would do, redo and keep, before anything is done."""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
    seconds, basis = estimate(work.todo, read_logs(root), max(1, experiment.workers.featurize))
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


def estimate(
    todo: Sequence[Job], lines: Iterable[Mapping[str, object]], workers: int
) -> tuple[float | None, str]:
    """Seconds that some jobs would take, by what the logs say of jobs like them.

    A job is like another when the same featurizers worked on it, their settings apart. It takes
    seconds in proportion to its media, or to its clips where nothing is decoded. Each worker takes
    the next job when it is done with one, so that no more of them help than there are jobs.
    """
    if not todo:
        return 0.0, "nothing is left to do"
    spent: dict[frozenset[str], list[float]] = {}
    for line in lines:
        if line.get("kind") == "job":
            _learn(spent, line)
    busy_until = [0.0] * min(workers, len(todo))  # a heap
    for job in todo:
        seconds, media, clips = spent.get(
            frozenset(part.spec.name for part in job.parts), (0.0, 0.0, 0.0)
        )
        size, known = (job.media_seconds, media) if media else (float(len(job.clips)), clips)
        if not known:
            return None, "nothing like it was computed here yet, so there is no estimate"
        heapq.heapreplace(busy_until, busy_until[0] + seconds * size / known)
    return max(busy_until), f"by the speed of earlier jobs here, on {workers} workers"


def _learn(spent: dict[frozenset[str], list[float]], line: Mapping[str, object]) -> None:
    try:
        names = frozenset(str(name).rpartition("-")[0] for name in line["columns"])  # type: ignore[attr-defined] # else TypeError
        figures = [float(str(line[key])) for key in ("seconds", "media_seconds", "clips")]
    except (KeyError, TypeError, ValueError):  # a line of another version
        return
    before = spent.setdefault(names, [0.0, 0.0, 0.0])
    spent[names] = [a + b for a, b in zip(before, figures, strict=True)]
