"""How fast featurizing went, from the log lines of its jobs: by stage, and what to speed up.

Log lines are told by several versions, and cut short by kills. Each piece that cannot be read is
passed over and counted; nothing in a log can stop a report.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from featurizers.stages import Stages
from pipelines.pages.units import amount, share, size, span

WAIT = "wait"
SLOWEST = 20

MEANINGS: Mapping[str, str] = {
    "fetch": "getting media onto the machine, and holding them against their digests",
    "decode": "decoding sound and pictures in a child beside the worker",
    WAIT: "the worker waiting for decoded media",
    "write": "packing and writing shards",
}
FEATURIZER = "computing this feature"

_CURES: Mapping[str, str] = {
    "fetch": "a faster store, media on local disks or more workers would help",
    "decode": "more workers on more cores, or smaller media, would help",
    "write": "faster disks for the dataset or larger shards would help",
}
_CURE_OF_FEATURIZERS = "more workers or cheaper settings of this featurizer would help"
_CLOSE = 0.7  # of the bottleneck's seconds: speeding that up alone would gain little
_MOSTLY_WAITING = 0.5  # less CPU than this share of its time: a stage waits rather than works

Entry: TypeAlias = Mapping[str, Any]
"""A log line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpeed:
    """One stage over all jobs.

    Attributes:
        items: Clips; shards for "write".
        seconds: How long it was busy, over all workers.
        cpu_seconds: CPU time of it.
        items_per_second: Of one worker that does nothing else.
        media_per_second: Seconds of media that it takes in a second; None where it takes none.
        p50_seconds, p99_seconds: Of one item, within 5 %.
        share: Of the jobs' time; stages run beside each other, so shares may add up to more than 1.
    """

    name: str
    items: int
    seconds: float
    cpu_seconds: float
    items_per_second: float | None
    media_per_second: float | None
    p50_seconds: float
    p99_seconds: float
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The jobs of one run, or of several.

    Attributes:
        runs: Their names in order of time; "" is a run without a name.
        clips: Clips worked on; those of a shard count once a run, in however many of its jobs.
        media_seconds: Decoded, or read otherwise; twice where two jobs did.
        elapsed_seconds: From the start to the end of each run, added up.
        busy_seconds: The jobs' own seconds, over all workers.
        busy_share: How much of the workers' time had a job; None where it is not known.
        queued_seconds: How long jobs waited for a worker, added up.
        longest_queue_seconds: The longest wait of one job.
        retries: Tries beyond the first.
        peak_bytes, decoder_peak_bytes: The most memory of one worker, and of one decoding child.
        stages: The stage that was busiest first.
        bottleneck: The busiest stage but waiting; None where no stage is known.
        why: A sentence about it.
        slowest: (key, seconds) of the clips that took longest, at most SLOWEST.
        unread: Stages that could not be read.
    """

    runs: tuple[str, ...]
    jobs: int
    clips: int
    media_seconds: float
    elapsed_seconds: float
    busy_seconds: float
    busy_share: float | None
    workers: int
    hosts: int
    queued_seconds: float
    longest_queue_seconds: float
    retries: int
    bytes_read: int
    bytes_written: int
    peak_bytes: int
    decoder_peak_bytes: int
    stages: tuple[StageSpeed, ...]
    bottleneck: str | None
    why: str
    slowest: tuple[tuple[str, float], ...]
    faults: Mapping[str, int]
    unread: int

    @property
    def clips_per_second(self) -> float | None:
        """Clips in a second of the run, all workers together."""
        return _ratio(self.clips, self.elapsed_seconds)

    @property
    def media_per_second(self) -> float | None:
        """Seconds of media in a second of the run; also hours of media in an hour."""
        return _ratio(self.media_seconds, self.elapsed_seconds) or None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        speeds = {name: getattr(self, name) for name in ("clips_per_second", "media_per_second")}
        return {**asdict(self), **speeds}

    def sentences(self) -> list[str]:
        """What happened and what was slow, for people; empty when there was no job."""
        if not self.jobs:
            return []
        lines = [self._pace(), self.why, self._queue(), self._bytes()]
        if self.slowest:
            key, seconds = self.slowest[0]
            lines.append(f"slowest clip: {key}, {span(seconds)}")
        return [line for line in lines if line]

    def _pace(self) -> str:
        speeds = [f"{amount(self.clips_per_second)} clips/s"] * bool(self.clips_per_second)
        if self.media_per_second:
            speeds.append(f"{amount(self.media_per_second)} seconds of media a second")
        where = f"{_many(self.workers, 'worker')} on {_many(self.hosts, 'host')}"
        return (
            f"{_many(self.clips, 'clip')} in {_many(self.jobs, 'job')}, "
            f"{span(self.media_seconds)} of media in {span(self.elapsed_seconds)}"
            f"{': ' * bool(speeds)}{', '.join(speeds)} ({where})"
        )

    def _queue(self) -> str:
        mean = self.queued_seconds / self.jobs
        longest = span(self.longest_queue_seconds)
        told = f"a job waited {span(mean)} for a worker, the longest {longest}"
        busy = f"workers had jobs for {share(self.busy_share)} of the time"
        again = f"{_many(self.retries, 'try', 'tries')} beyond the first"
        parts = [told] * bool(self.queued_seconds) + [busy] * (self.busy_share is not None)
        return "; ".join(parts + [again] * bool(self.retries))

    def _bytes(self) -> str:
        told = {
            "read": self.bytes_read,
            "wrote": self.bytes_written,
            "peak memory of a worker": self.peak_bytes,
            "of a decoder": self.decoder_peak_bytes,
        }
        return ", ".join(f"{name} {size(count)}" for name, count in told.items() if count)


def runs_of(lines: Iterable[Entry]) -> list[str]:
    """The names of all runs that did a job, in order of their last job."""
    last: dict[str, float] = {}
    for line in filter(is_job, lines):
        last[_run(line)] = max(last.get(_run(line), 0.0), number(line, "time"))
    return sorted(last, key=lambda run: (last[run], run))


def of_run(lines: Iterable[Entry], run: str) -> list[Entry]:
    """The lines of one run."""
    return [line for line in lines if _run(line) == run]


def is_job(line: Entry) -> bool:
    """Whether a line tells of a finished job; the first versions wrote no kind."""
    return line.get("kind", "job") == "job" and "clips" in line and "seconds" in line


def throughput(lines: Iterable[Entry]) -> Throughput:
    """What the log lines of one run, or of several, add up to.

    Args:
        lines: Log lines of all kinds; kinds that are not known are passed over.
    """
    known = list(lines)
    jobs = [line for line in known if is_job(line)]
    stages, media, unread = _stages(jobs)
    busy = sum(number(job, "seconds") for job in jobs)
    elapsed = sum(_elapsed(of_run(known, run)) for run in runs_of(jobs))
    workers, exact = _workers(known, jobs)
    speeds = _speeds(stages, media, busy)
    first = next((stage for stage in speeds if stage.name != WAIT and stage.seconds), None)
    queued = [number(job, "queued_seconds") for job in jobs]
    return Throughput(
        runs=tuple(runs_of(jobs)),
        jobs=len(jobs),
        clips=_clips(jobs),
        media_seconds=sum(number(job, "media_seconds") for job in jobs),
        elapsed_seconds=elapsed,
        busy_seconds=busy,
        busy_share=_ratio(busy, elapsed * workers) if exact else None,
        workers=workers,
        hosts=len({str(job.get("host", "")) for job in jobs}),
        queued_seconds=sum(queued),
        longest_queue_seconds=max(queued, default=0.0),
        retries=sum(max(0, int(number(job, "attempts")) - 1) for job in jobs),
        bytes_read=_count(jobs, "bytes_read"),
        bytes_written=_count(jobs, "bytes_written"),
        peak_bytes=int(max((number(job, "peak_bytes") for job in jobs), default=0)),
        decoder_peak_bytes=int(max((number(job, "decoder_peak_bytes") for job in jobs), default=0)),
        stages=speeds,
        bottleneck=None if first is None else first.name,
        why="" if first is None else _why(first, speeds, busy),
        slowest=_slowest(jobs),
        faults=_faults(jobs),
        unread=unread,
    )


def number(line: Entry, name: str) -> float:
    """A number of a log line that is not below 0; 0 when there is none."""
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return max(0.0, float(value)) if math.isfinite(value) else 0.0


def _count(lines: Sequence[Entry], name: str) -> int:
    return int(sum(number(line, name) for line in lines))


def _clips(jobs: Sequence[Entry]) -> int:
    shards: dict[tuple[str, str], float] = {}
    for place, job in enumerate(jobs):
        shard = (_run(job), str(job.get("shard", f"job {place}")))
        shards[shard] = max(shards.get(shard, 0.0), number(job, "clips"))
    return int(sum(shards.values()))


def _run(line: Entry) -> str:
    return str(line.get("run", ""))


def _elapsed(lines: Sequence[Entry]) -> float:
    """Seconds from a run's first sign of life to its last.

    A run that goes on after a stop under the same name has several stretches; the time between
    them is not the run's.
    """
    stretches: list[list[float]] = [[]]
    for line in sorted(lines, key=lambda line: number(line, "time")):
        time = number(line, "time")
        if not time:
            continue
        if line.get("kind") == "run" and line.get("event") == "start":
            stretches.append([])
        stretches[-1].append(time)
        if is_job(line):
            stretches[-1].append(time - number(line, "seconds"))
    return sum(max(stretch) - min(stretch) for stretch in stretches if stretch)


def _workers(lines: Sequence[Entry], jobs: Sequence[Entry]) -> tuple[int, bool]:
    """How many workers there were, and whether the run said so."""
    told = [int(number(line, "workers")) for line in lines if "workers" in line]
    seen = {(str(job.get("host", "")), str(job.get("pid", ""))) for job in jobs}
    # 0 workers is this process itself.
    return (max(1, *told), True) if told else (len(seen), False)


def _stages(jobs: Sequence[Entry]) -> tuple[Stages, Mapping[str, float], int]:
    """All stages together, the media seconds of the jobs with each, and how many were unread."""
    together = Stages()
    media: defaultdict[str, float] = defaultdict(float)
    unread = 0
    for job in jobs:
        told = job.get("stages", {})
        if not isinstance(told, Mapping):
            unread += 1
            continue
        for name, plain in told.items():
            stage = _read_stage(name, plain)
            if stage is None:
                unread += 1
                continue
            together.merge(stage)
            media[name] += number(job, "media_seconds")
    return together, media, unread


def _read_stage(name: str, plain: object) -> Stages | None:
    """One stage of one job; None where it is not what `Stages.to_json` writes."""
    try:
        stage = Stages.from_json({name: plain})  # type: ignore[dict-item] # whatever a log holds
        ends = [stage.quantile(name, share) for share in (0.0, 1.0)]
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None
    numbers = (stage.seconds(name), stage.cpu_seconds(name), *ends)
    return stage if all(math.isfinite(each) and each >= 0 for each in numbers) else None


def _speeds(
    stages: Stages, media: Mapping[str, float], busy_seconds: float
) -> tuple[StageSpeed, ...]:
    found: list[StageSpeed] = []
    for name in stages.names:
        items, seconds = stages.items(name), stages.seconds(name)
        found.append(
            StageSpeed(
                name=name,
                items=items,
                seconds=seconds,
                cpu_seconds=stages.cpu_seconds(name),
                items_per_second=_ratio(items, seconds),
                media_per_second=_ratio(media[name], seconds) or None,
                p50_seconds=stages.quantile(name, 0.5),
                p99_seconds=stages.quantile(name, 0.99),
                share=_ratio(seconds, busy_seconds),
            )
        )
    return tuple(sorted(found, key=lambda stage: (-stage.seconds, stage.name)))


def _why(first: StageSpeed, stages: Sequence[StageSpeed], busy_seconds: float) -> str:
    of = f" ({share(first.share)} of the jobs' time)" if busy_seconds else ""
    what = MEANINGS.get(first.name, FEATURIZER)
    parts = [f"{first.name} is the bottleneck: {what} took {span(first.seconds)}{of}"]
    waited = next((stage for stage in stages if stage.name == WAIT and stage.seconds), None)
    if first.name == "decode" and waited is not None:
        parts.append(f"the workers waited {span(waited.seconds)} for it")
    second = next((stage for stage in stages if stage.name not in {WAIT, first.name}), None)
    if second is not None and second.seconds > _CLOSE * first.seconds:
        parts.append(f"{second.name} comes close to it with {span(second.seconds)}")
    cpu = _ratio(first.cpu_seconds, first.seconds)
    if first.name != "fetch" and cpu and cpu < _MOSTLY_WAITING:
        parts.append(f"only {share(cpu)} of it was CPU time, the rest waiting for cores or disks")
    return "; ".join([*parts, _CURES.get(first.name, _CURE_OF_FEATURIZERS)])


def _slowest(jobs: Sequence[Entry]) -> tuple[tuple[str, float], ...]:
    """The longest time of each clip that a job named, longest first."""
    longest: dict[str, float] = {}
    for job in jobs:
        told = job.get("slowest", ())
        for each in told if isinstance(told, list | tuple) else ():
            if isinstance(each, Mapping) and isinstance(each.get("key"), str):
                key = each["key"]
                longest[key] = max(longest.get(key, 0.0), number(each, "seconds"))
    ordered = sorted(longest.items(), key=lambda each: (-each[1], each[0]))
    return tuple(ordered[:SLOWEST])


def _faults(jobs: Sequence[Entry]) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for job in jobs:
        told = job.get("faults", {})
        if isinstance(told, Mapping):
            found.update({str(name): int(number(told, name)) for name in told})
    return dict(sorted(found.items()))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _many(count: int, one: str, several: str = "") -> str:
    return f"{amount(count)} {one if count == 1 else several or one + 's'}"
