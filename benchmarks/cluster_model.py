"""A small discrete-event simulation of a cluster that featurizes.

What our own code costs was measured by `costs.py`; what the cluster, the object store and the media
are like is assumed, and each assumption is a field of `Setting`. It follows the code: the driver is
one server with a queue, hears answers in the order in which they come and hands over the next job
then; a worker has two jobs at most; a job fetches its clips one after the other; what was in flight
on a node that is lost is done again.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from typing import Any

from featurizers.clip import Clip
from pipelines.crew import IN_FLIGHT
from pipelines.featurize import BEHIND
from pipelines.plan import Room, deal

MEASURED_CLIPS = 128  # of a large job of `costs.py`
SPREAD = 1.0  # sigma of the logarithm of a clip's duration
SAMPLE = 500  # shards that are dealt; the others are like them
PARTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What our code costs: CPU seconds and bytes, as `costs.py` prints them.

    The figures: 2 cores of an AMD EPYC, 25 November 2026.

    Attributes:
        ingest_us, ingest_peak_bytes: For each clip of an ingest, but for reading its media: all of
            it, and the most memory meanwhile.
        deal_us, write_us: Of that: dealing it, writing the table.
        sources_us, sources_us_for_each_million: Dealing a clip when twenty are cut from a source;
            how much longer it takes for each million clips that there are.
        jobs_us, jobs_bytes, jobs_peak_bytes: For each clip: reading table and plan and finding the
            jobs of three columns; what stays in memory; the most that it takes meanwhile.
        plan_us, plan_peak_bytes: For each clip at the commit: reading the plan and its digest.
        each_us, list_bytes: For each clip of the table: making it; holding all that were made.
        rows_us, rows_bytes: For each shard of 128 clips of a column: reading its index.
        record_us, record_bytes: The same of its record.
        commit_us, manifest_us, manifest_bytes: For each shard: writing and reading the manifest.
        log_line_us, log_line_bytes: For each job.
        small_job_driver_ms, job_driver_ms: The driver's CPU for a job of one clip, of 128 clips.
        pack_ms_for_each_million: How much longer that takes for each million clips that there are.
        small_job_unpack_ms, job_unpack_ms: A worker's CPU until it has the job's clips.
        small_job_busy_ms, job_busy_ms: Its time for a job that computes next to nothing.
        small_job_clock_ms, job_clock_ms: Of such a job on two workers of one machine, by the clock.
        actor_driver_ms, actor_start_s: The driver's CPU for an actor; its start by the clock.
        media_per_cpu_s, media_per_cpu_s_1080p: Seconds of media a second, small and large pictures;
            shards written.
        clip_reads, column_reads, column_writes, open_reads: Requests to an object store.
    """

    ingest_us: float = 150.0
    ingest_peak_bytes: float = 9_840.0
    deal_us: float = 8.51
    write_us: float = 40.8
    sources_us: float = 2.47
    sources_us_for_each_million: float = 7.73
    jobs_us: float = 57.0
    jobs_bytes: float = 996.0
    jobs_peak_bytes: float = 2_260.0
    plan_us: float = 2.82
    plan_peak_bytes: float = 458.0
    each_us: float = 33.1
    list_bytes: float = 7_500.0
    rows_us: float = 1_830.0
    rows_bytes: float = 115_000.0
    record_us: float = 70.2
    record_bytes: float = 819.0
    commit_us: float = 30.6
    manifest_us: float = 22.5
    manifest_bytes: float = 637.0
    log_line_us: float = 28.0
    log_line_bytes: float = 962.0
    small_job_driver_ms: float = 1.27
    job_driver_ms: float = 2.52
    pack_ms_for_each_million: float = 0.046
    small_job_unpack_ms: float = 0.0961
    job_unpack_ms: float = 4.15
    small_job_busy_ms: float = 17.7
    small_job_clock_ms: float = 10.3
    job_busy_ms: float = 140.0
    job_clock_ms: float = 84.6
    actor_driver_ms: float = 2.75
    actor_start_s: float = 1.6
    media_per_cpu_s: float = 132.0
    media_per_cpu_s_1080p: float = 16.4
    clip_reads: float = 2.0
    column_reads: float = 1.0
    column_writes: float = 3.0
    open_reads: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is asked for, and what is assumed of the world.

    Attributes:
        clips, clip_s: How many, and their mean duration.
        media_columns, word_columns: Columns that share the decoding; columns that read words.
        media_per_s: Seconds of media that a worker takes in a second, shards written.
        spread: By how much jobs of equal media differ in time (standard deviation over mean).
        cores: Workers of a node.
        nodes_per_minute, boot_s: How a cluster grows: nodes a minute, after how long the first.
        reads_per_s, writes_per_s: What one prefix of the store admits (S3's documented 5,500 and
            3,500).
        latency_s, latency_spread: Of a request: median, and the sigma of its logarithm (0.7: one in
            a hundred takes five times the median).
        losses_per_hour: Of a node, as with spot nodes.
    """

    workers: int
    clips: int = 10_000_000
    clip_s: float = 7.0
    shard_clips: int = 128
    media_columns: int = 2
    word_columns: int = 1
    media_per_s: float = 60.0
    spread: float = 0.1
    cores: int = 16
    nodes_per_minute: float = 20.0
    boot_s: float = 120.0
    reads_per_s: float = 5_500.0
    writes_per_s: float = 3_500.0
    latency_s: float = 0.03
    latency_spread: float = 0.7
    losses_per_hour: float = 0.0
    seed: int = 0

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return math.ceil(self.clips / self.shard_clips)

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return self.media_columns + self.word_columns

    @property
    def mean_latency_s(self) -> float:
        """Of a request, in the mean."""
        return self.latency_s * math.exp(self.latency_spread**2 / 2)


@dataclass(frozen=True, slots=True)
class Work:
    """A job as the simulation knows it."""

    media_s: float
    clips: int
    columns: int


def service_s(costs: Costs, setting: Setting, job: Work) -> float:
    """The driver's time for a job: what every job costs, and what finding its clips costs."""
    found_ms = costs.pack_ms_for_each_million * setting.clips / 1e6
    return _by_clips(costs.small_job_driver_ms, costs.job_driver_ms + found_ms, job.clips)


def reads_of(costs: Costs, job: Work) -> float:
    """Requests that read."""
    media = costs.clip_reads * job.clips if job.media_s else 0.0
    return media + costs.column_reads * job.columns


def writes_of(costs: Costs, job: Work) -> float:
    """Requests that write."""
    return costs.column_writes * job.columns


def takes(costs: Costs, setting: Setting, job: Work, chance: random.Random) -> dict[str, float]:
    """Seconds of a worker for a job, by what they go into, when nothing stands in its way."""
    even = max(0.2, chance.gauss(1.0, setting.spread))
    requests = reads_of(costs, job) + writes_of(costs, job)
    found = {
        "latency": _latency_s(setting, requests, chance),
        "unpack": _by_clips(costs.small_job_unpack_ms, costs.job_unpack_ms, job.clips),
    }
    if not job.media_s:
        words_s = _by_clips(costs.small_job_busy_ms, costs.job_busy_ms, job.clips)
        return found | {"words": words_s * even}
    return found | {"media": job.media_s / setting.media_per_s * even}


def _by_clips(small_ms: float, large_ms: float, clips: int) -> float:
    """Seconds for so many clips, on the line through what one and what 128 take."""
    return (small_ms + (large_ms - small_ms) * (clips - 1) / (MEASURED_CLIPS - 1)) / 1e3


def _latency_s(setting: Setting, requests: float, chance: random.Random) -> float:
    """Of some requests one after the other; many of them add up to a bell."""
    spread, mean = setting.latency_spread, setting.mean_latency_s
    deviation = mean * math.sqrt(math.expm1(spread**2) * requests)
    return max(0.0, chance.gauss(mean * requests, deviation))


@dataclass(slots=True)
class Gate:
    """Admits so many requests a second, in the order in which they are asked for.

    Attributes:
        free_at: When the last that was asked for is admitted.
        longest_s: The longest that anybody stood before it.
    """

    per_s: float
    free_at: float = 0.0
    longest_s: float = 0.0

    def admit(self, now: float, count: float, over_s: float = 0.0) -> float:
        """When the last of some requests is admitted, that are made one by one over some time."""
        self.free_at = max(self.free_at, now) + count / self.per_s
        self.longest_s = max(self.longest_s, self.free_at - now - over_s)
        return max(now + over_s, self.free_at)


@dataclass(slots=True)
class Driver:
    """One server with a queue."""

    free_at: float = 0.0
    busy_s: float = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When something that is asked for now is done."""
        self.free_at = max(self.free_at, now) + seconds
        self.busy_s += seconds
        return self.free_at


@dataclass(slots=True, eq=False)
class Worker:
    """An actor.

    Attributes:
        flights: What was handed to it, in order; it works on the first.
        here: How many of them have come.
        began: When it began on the first; None while it waits.
    """

    node: int
    up_at: float
    flights: deque[Work] = field(default_factory=deque)
    here: int = 0
    began: float | None = None
    alive: bool = True


@dataclass(slots=True)
class Run:
    """What came of it.

    Attributes:
        seconds: From the first actor that was asked for to the last answer.
        there_s: Workers' time, from when each was up to its end.
        spent_s: Of that: "media", "words", "latency" of the store, "refused" by its limit,
            "unpack" of jobs, "lost" with a node. The rest is "idle".
        spans, shifts: (from, to) of each job, and of each worker.
        empty_at: When nothing was left to be handed out.
        driver_s: The driver's busy time.
        refused_s: The longest that a job stood before the store's limit.
        losses: Nodes that were lost.
        again: Jobs that were begun more than once.
    """

    jobs: int
    seconds: float = 0.0
    there_s: float = 0.0
    spent_s: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[float, float]] = field(default_factory=list)
    shifts: list[tuple[float, float]] = field(default_factory=list)
    empty_at: float = 0.0
    driver_s: float = 0.0
    refused_s: float = 0.0
    losses: int = 0
    again: int = 0

    def shares(self) -> dict[str, float]:
        """What the workers' time went into."""
        found = {name: seconds / self.there_s for name, seconds in self.spent_s.items()}
        return found | {"idle": 1.0 - sum(found.values())}

    def busy(self) -> list[float]:
        """Busy time over the time that workers were there, for each tenth of the run."""
        edges = [self.seconds * part / PARTS for part in range(PARTS + 1)]
        busy, there = _binned(self.spans, edges), _binned(self.shifts, edges)
        return [b / t if t else 0.0 for b, t in zip(busy, there, strict=True)]


def _binned(spans: Sequence[tuple[float, float]], edges: Sequence[float]) -> list[float]:
    """How much of some spans lies between each two edges."""
    below = [sum(min(edge, end) - begin for begin, end in spans if begin < edge) for edge in edges]
    return [high - low for low, high in pairwise(below)]


class Cluster:
    """Workers, a driver and a store, from the first actor to the last answer.

    Args:
        costs: Measured.
        setting: Assumed.
        backlog: The jobs, in order.
    """

    def __init__(self, costs: Costs, setting: Setting, backlog: Iterable[Work]) -> None:
        self._costs, self._setting, self._backlog = costs, setting, deque(backlog)
        self._left = len(self._backlog)
        if not self._left:
            raise ValueError("a simulation of no jobs would never end; give one clip at least")
        self._chance = random.Random(setting.seed)  # noqa: S311 - a simulation, no secrets
        self._events: list[tuple[float, int, Any]] = []
        self._count = 0
        self._driver = Driver()
        self._reads, self._writes = Gate(setting.reads_per_s), Gate(setting.writes_per_s)
        self._nodes: dict[int, list[Worker]] = {}
        self._told = Run(jobs=self._left)

    def run(self) -> Run:
        """Let it happen."""
        setting, told = self._setting, self._told
        self._driver.serve(0.0, setting.workers * self._costs.actor_driver_ms / 1e3)
        for node in range(math.ceil(setting.workers / setting.cores)):
            self._at(setting.boot_s + 60 * node / setting.nodes_per_minute, self._come, node)
        while self._left:
            told.seconds, _, happens = heapq.heappop(self._events)
            happens(told.seconds)
        for worker in [each for workers in self._nodes.values() for each in workers]:
            self._leave(worker, told.seconds)
        told.driver_s = self._driver.busy_s
        told.refused_s = max(self._reads.longest_s, self._writes.longest_s)
        return told

    def _at(self, at: float, happens: Callable[..., None], *who: object) -> None:
        self._count += 1
        heapq.heappush(self._events, (at, self._count, partial(happens, *who)))

    def _come(self, node: int, now: float) -> None:
        """A node is there, and starts its actors."""
        setting = self._setting
        up_at = now + self._costs.actor_start_s
        count = min(setting.cores, setting.workers - node * setting.cores)
        self._nodes[node] = [Worker(node, up_at) for _ in range(count)]
        for worker in self._nodes[node]:
            self._at(up_at, self._feed, worker)
        if setting.losses_per_hour:
            life_s = self._chance.expovariate(setting.losses_per_hour / 3600)
            self._at(now + life_s, self._lose, node)

    def _lose(self, node: int, now: float) -> None:
        """A node is gone, and another is asked for; what was in flight is begun again."""
        self._told.losses += 1
        workers = self._nodes.pop(node)
        for worker in workers:
            worker.alive = False
            self._leave(worker, now)
            if worker.began is not None:
                self._told.again += 1
                self._spend("lost", worker.began, now - worker.began, now)
            self._backlog.extendleft(reversed(worker.flights))
            self._driver.serve(now, self._costs.actor_driver_ms / 1e3)
        self._at(now + self._setting.boot_s, self._come, node)
        idle = [w for each in self._nodes.values() for w in each if not w.flights]
        for worker in idle[: len(workers)]:
            self._at(max(now, worker.up_at) + self._costs.actor_start_s, self._feed, worker)

    def _leave(self, worker: Worker, now: float) -> None:
        if worker.up_at < now:
            self._told.shifts.append((worker.up_at, now))
            self._told.there_s += now - worker.up_at

    def _feed(self, worker: Worker, now: float) -> None:
        """The driver hands over what a worker may have in flight."""
        while worker.alive and self._backlog and len(worker.flights) < IN_FLIGHT:
            job = self._backlog.popleft()
            worker.flights.append(job)
            took_s = service_s(self._costs, self._setting, job)
            self._at(self._driver.serve(now, took_s), self._arrive, worker)
            if not self._backlog:
                self._told.empty_at = now

    def _arrive(self, worker: Worker, now: float) -> None:
        worker.here += 1
        self._begin(worker, now)

    def _begin(self, worker: Worker, now: float) -> None:
        """A worker goes on to what lies at it."""
        if worker.alive and worker.began is None and worker.here:
            worker.began = now
            took = self._took(worker.flights[0], now)
            self._at(now + sum(took.values()), self._end, worker, took)

    def _took(self, job: Work, now: float) -> dict[str, float]:
        took = takes(self._costs, self._setting, job, self._chance)
        over_s = sum(took.values())
        admitted = self._reads.admit(now, reads_of(self._costs, job), over_s)
        admitted = max(admitted, self._writes.admit(now, writes_of(self._costs, job), over_s))
        return took | {"refused": max(0.0, admitted - now - over_s)}

    def _end(self, worker: Worker, took: Mapping[str, float], now: float) -> None:
        """A job is finished: the driver hears of it and hands over another."""
        if not worker.alive or worker.began is None:
            return
        self._told.spans.append((worker.began, now))
        for name, seconds in took.items():
            self._told.spent_s[name] = self._told.spent_s.get(name, 0.0) + seconds
        worker.flights.popleft()
        worker.here, worker.began = worker.here - 1, None
        self._left -= 1
        self._begin(worker, now)
        self._feed(worker, now)

    def _spend(self, name: str, began: float, seconds: float, now: float) -> None:
        self._told.spans.append((began, now))
        self._told.spent_s[name] = self._told.spent_s.get(name, 0.0) + seconds


def backlog(setting: Setting) -> Iterator[Work]:
    """The jobs in order: for each shard one of its media, and one for each column of words.

    Those of words come some places late, as `pipelines.featurize` has them.
    """
    sample = min(setting.clips, SAMPLE * setting.shard_clips)
    shards = dealt(sample, setting.clip_s, setting.shard_clips, setting.seed)
    jobs: list[Work] = []
    for number in range(setting.shards):
        media_s, count = shards[number % len(shards)]
        if setting.media_columns:
            jobs.append(Work(media_s, count, setting.media_columns))
        jobs += [Work(0.0, count, 1)] * setting.word_columns
    late = [0 if job.media_s else BEHIND for job in jobs]
    for number in sorted(range(len(jobs)), key=lambda number: number + late[number]):
        yield jobs[number]


@cache
def dealt(clips: int, clip_s: float, shard_clips: int, seed: int) -> list[tuple[float, int]]:
    """Seconds and clips of shards as `pipelines.plan` deals them, one source a clip.

    One clip in a hundred is more than ten times as long as half of them.
    """
    chance = random.Random(seed)  # noqa: S311 - durations, no secrets
    middle = math.log(clip_s) - SPREAD**2 / 2
    seconds = {f"clip{n:08d}": chance.lognormvariate(middle, SPREAD) for n in range(clips)}
    made = [
        Clip(key=key, id=key, media="", media_digest=key, seconds=each)
        for key, each in seconds.items()
    ]
    shards: dict[int, list[float]] = {}
    for place in deal([], made, Room(clips=shard_clips)):
        shards.setdefault(place.shard, []).append(seconds[place.key])
    return [(sum(members), len(members)) for members in shards.values()]
