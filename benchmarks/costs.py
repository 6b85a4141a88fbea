"""What each step of featurizing costs: the figures that `simulate.py` takes.

Seconds are CPU seconds of the process that does the step, all its threads together, so that other
work on the machine does not count; only what is named a wait is time by the clock. Memory and
seconds of a clip are slopes between two sizes, each in a process of its own. All media, clips and
features are made for it. The last line is JSON, and `simulate.py --costs FILE` reads it.

    python benchmarks/costs.py [--quick]
"""

import argparse
import csv
import gc
import hashlib
import json
import logging
import math
import multiprocessing
import os
import pickle
import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import psutil

from featurizers import catalog, manifest
from featurizers.clip import Clip, Word
from featurizers.dataset import CLIPS, Clips, read_clips, table_bytes, write_clips
from featurizers.extract import Outcome
from featurizers.media import encode
from featurizers.shards import Part as FilePart
from featurizers.shards import Record, column_folder, job_id, read_record, write_shard
from featurizers.spec import Feature, FeatureSpec
from featurizers.store import LocalStore, Root
from pipelines.demo import make_corpus
from pipelines.executors import InProcess, Need, OnRay, start_ray, stop_ray
from pipelines.experiment import Experiment, parse
from pipelines.featurize import commit_all, jobs, run_jobs
from pipelines.ingest import ingest, read_plan, write_plan
from pipelines.logbook import read_logs
from pipelines.plan import Place, Room, deal, digest
from pipelines.staging import Stage
from pipelines.throughput import throughput
from pipelines.worker import Done, Job, ShardWorker
from tracking.provenance import git_commit, versions

HOME = Path(__file__).resolve().parent.parent
NAMES = ("hashed-words", "logmel", "face-motion")
SHARD = 128
WORDS = 20
MEAN_S, SPREAD = 7.0, 1.0
WORKERS = 2
BUCKET = "bucket"
WRITES = {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"}

Spent: TypeAlias = tuple[float, float, float]
"""CPU seconds, bytes of what came of it, and bytes at the most."""
Step: TypeAlias = Callable[[Path, int], Callable[[], object]]
"""Prepares for a dataset and a size; gives what is to be measured."""


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer of everything")
    quick = arguments.parse_args().quick
    sizes = (1_280, 5_120) if quick else (20_480, 102_400)
    shards = (10, 30) if quick else (200, 600)
    counts = (300, 60, 4) if quick else (4_000, 800, 24)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        steps: list[Callable[[], dict[str, float]]] = [
            lambda: of_clips(folder / "clips", sizes),
            lambda: of_sources((20_000, 50_000) if quick else (100_000, 400_000)),
            lambda: of_columns(folder / "columns", shards),
            lambda: of_manifest(folder / "manifest", SHARD * shards[1]),
            lambda: of_writing(folder / "writing"),
            lambda: of_decoding(folder / "decoding", 16 if quick else SHARD),
            lambda: of_requests(folder / "requests"),
            lambda: of_packing(folder / "packing", (2, 10) if quick else (8, 96)),
            lambda: of_jobs(folder / "jobs", *counts[:2]),
            lambda: of_actors(counts[2]),
        ]
        figures: dict[str, float] = {}
        for step in steps:
            found = {name: float(f"{value:.4g}") for name, value in step().items()}
            for name, value in found.items():
                print(f"{name:<24} {value:>14,.10g}", flush=True)
            figures |= found
    used = ["ray", "pyarrow", "av", "numpy", "webdataset", "s3fs"]
    about = {
        "commit": git_commit(HOME),
        "versions": {**versions(used), "python": platform.python_version()},
    }
    print(json.dumps({"benchmark": "costs", "figures": figures, **about}))


# Clips: what the driver holds and does for each


def made(count: int, *, sources: int = 0) -> list[Clip]:
    """Clips of 20 words; each a file of its own, or cut from so many sources."""
    chance = random.Random(count)  # noqa: S311 - durations, no secrets
    files = [f"{chance.getrandbits(256):064x}" for _ in range(sources or count)]
    words = tuple(
        Word(text=f"word{number}", start=number / 3, end=(number + 1) / 3)
        for number in range(WORDS)
    )
    clips: list[Clip] = []
    for number in range(count):
        file = chance.randrange(sources) if sources else number
        clips.append(
            Clip(
                key=f"corpus-clip-{number:08d}",
                id=f"corpus-clip-{number:08d}",
                media=f"s3://bucket/corpus/media/{file:08d}.mp4",
                media_digest=files[file],
                start=float(number) if sources else 0.0,
                end=number + 7.0 if sources else None,
                seconds=chance.lognormvariate(math.log(MEAN_S) - SPREAD**2 / 2, SPREAD),
                words=words,
                source=f"{file:08d}",
                speaker=f"speaker{number % 1000:04d}",
                split="train",
                labels={"mood": float(number % 7)},
            )
        )
    return clips


def of_clips(folder: Path, sizes: tuple[int, int]) -> dict[str, float]:
    """Seconds and bytes of the driver for each clip."""
    steps = {
        "ingest": _ingesting,
        "deal": _dealing,
        "write": _writing,
        "jobs": _listing_jobs,
        "plan": _planning,
        "each": _going_through,
        "list": _listing_clips,
    }
    spent: dict[str, list[Spent]] = {name: [] for name in steps}
    for size in sizes:
        root = folder / str(size)
        _apart(_laying, root, size)
        for name, step in steps.items():
            spent[name].append(_apart(step, root, size))
    files = [(folder / str(size) / CLIPS).stat().st_size for size in sizes]
    found = {"clip_file_bytes": _slope(sizes, files)}
    for name, both in spent.items():
        seconds, kept, peak = (_slope(sizes, each) for each in zip(*both, strict=True))
        found |= {f"{name}_us": 1e6 * seconds, f"{name}_bytes": kept, f"{name}_peak_bytes": peak}
    return found


def _slope(sizes: tuple[int, int], values: Sequence[float]) -> float:
    return (values[1] - values[0]) / (sizes[1] - sizes[0])


def _apart(step: Step, root: Path, size: int) -> Spent:
    """What a step takes, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_spent, (step, root, size))


def _spent(step: Step, root: Path, size: int) -> Spent:
    act = step(root, size)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the preparing
    before, began = psutil.Process().memory_info().rss, time.process_time()
    result = act()
    seconds = time.process_time() - began
    gc.collect()
    kept = psutil.Process().memory_info().rss - before
    del result
    return seconds, float(kept), float(_peak_bytes() - before)


def _peak_bytes() -> int:
    """The most memory of this process; `getrusage` would count what it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _laying(root: Path, size: int) -> Callable[[], object]:
    clips = made(size)
    write_clips(root, clips)
    return lambda: write_plan(root, deal([], clips, Room()))


def _ingesting(root: Path, size: int) -> Callable[[], object]:
    """Of a whole table with transcripts; but for media, of which digest and seconds are made up."""
    folder, clips = root / "ingest", made(size)
    folder.mkdir()
    seconds = {Path(clip.media).name: clip.seconds for clip in clips}
    with (folder / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("id", "media", "transcript", "speaker", "sentiment"))
        for clip in clips:
            text = " ".join(word.text for word in clip.words or ())
            table.writerow((clip.id, clip.media, text, clip.speaker, clip.labels["mood"]))
    experiment = _media_experiment(folder, "data")

    def act() -> object:
        with (
            mock.patch.object(Stage, "local", lambda self, media: Path(Path(media).name)),
            mock.patch("featurizers.intake._seconds", lambda path, decoder: seconds[path.name]),
            mock.patch("featurizers.intake._known_digest", _made_up),
        ):
            return ingest(experiment, InProcess(), lambda count: None)

    return act


def _writing(root: Path, size: int) -> Callable[[], object]:
    clips = made(size)
    return lambda: write_clips(root / "again", clips)


def _dealing(root: Path, size: int) -> Callable[[], object]:
    clips = made(size)
    return lambda: deal([], clips, Room())


def _listing_jobs(root: Path, size: int) -> Callable[[], object]:
    return lambda: jobs(root, _specs())


def _planning(root: Path, size: int) -> Callable[[], object]:
    """As the commit does, while what the jobs are made of is still held."""
    work = jobs(root, _specs())
    return lambda: (digest(read_plan(root)), work)


def _going_through(root: Path, size: int) -> Callable[[], object]:
    """Every clip of the table made, and let go."""
    return lambda: sum(1 for _ in read_clips(root))


def _listing_clips(root: Path, size: int) -> Callable[[], object]:
    """Every clip of the table made, and held, as a rank of training does."""
    return lambda: list(read_clips(root))


def _made_up(path: Path) -> str:
    return hashlib.sha256(path.name.encode()).hexdigest()


def _specs() -> list[FeatureSpec]:
    return [catalog.build(name).spec for name in NAMES]


def of_sources(sizes: tuple[int, int]) -> dict[str, float]:
    """Dealing clips that were cut from sources, twenty each: more than twice as long for twice."""
    seconds: list[float] = []
    for size in sizes:
        clips = made(size, sources=size // 20)
        began = time.process_time()
        deal([], clips, Room())
        seconds.append((time.process_time() - began) / size)
    growth = _slope(sizes, seconds)
    return {
        "sources_us": 1e6 * (seconds[0] - growth * sizes[0]),
        "sources_us_for_each_million": 1e12 * growth,
    }


# A column: what the driver holds and does for each shard


def of_columns(folder: Path, shards: tuple[int, int]) -> dict[str, float]:
    """What later steps read of a committed column, for each shard of 128 clips."""
    sizes = (shards[0], shards[1])
    for size in sizes:
        _apart(_committing, folder / str(size), size)
    found: dict[str, float] = {}
    for name, step in {"rows": _reading_rows, "record": _reading_records}.items():
        spent = [_apart(step, folder / str(size), size) for size in sizes]
        seconds, kept, peak = (_slope(sizes, each) for each in zip(*spent, strict=True))
        found |= {f"{name}_us": 1e6 * seconds, f"{name}_bytes": kept, f"{name}_peak_bytes": peak}
    return found


def _spec() -> FeatureSpec:
    return catalog.build("hashed-words", dims=8).spec


def _committing(root: Path, size: int) -> Callable[[], object]:
    """A committed column of tiny features."""
    feature = Feature(np.zeros((1, 8), np.float32), np.array([[0.0, 1.0]]))
    outcomes = [Outcome(state="sample", feature=feature)] * SHARD
    clips = made(size * SHARD)
    records: list[Record] = []
    with mock.patch("os.fsync"):
        for shard in range(size):
            members = clips[shard * SHARD : (shard + 1) * SHARD]
            job = job_id(_spec(), members)
            store = LocalStore(root)
            records.append(
                write_shard(store, shard, job, _spec(), clips=members, outcomes=outcomes)
            )
    return lambda: manifest.commit(root, _spec(), "", records)


def _reading_rows(root: Path, size: int) -> Callable[[], object]:
    """Open the column and read all of its indexes, as training and reports do."""
    return lambda: manifest.open_column(root, _spec().fingerprint).rows


def _reading_records(root: Path, size: int) -> Callable[[], object]:
    """As when going on after a stop, and to see whether a column is up to date."""
    store, folder = LocalStore(root), column_folder(_spec().fingerprint)
    names = [
        (each.shard, each.job) for each in manifest.open_column(root, _spec().fingerprint).records
    ]

    def act() -> object:
        sizes = store.sizes(folder)
        return [read_record(store, folder, shard, job, sizes) for shard, job in names]

    return act


def of_manifest(folder: Path, count: int) -> dict[str, float]:
    """Committing a column of many shards, and reading its manifest, for each shard."""
    records = [_record(number) for number in range(count)]
    folder.mkdir(parents=True)
    began = time.process_time()
    named = manifest.commit(folder, _spec(), "0" * 64, records)
    committed = time.process_time()
    where = f"columns/{_spec().fingerprint}"
    manifest.read_manifest(LocalStore(folder), where, named)
    read = time.process_time()
    size = (folder / where / manifest.MANIFESTS / f"{named}.json").stat().st_size
    return {
        "commit_us": 1e6 * (committed - began) / count,
        "manifest_us": 1e6 * (read - committed) / count,
        "manifest_bytes": size / count,
    }


def _record(number: int) -> Record:
    job = f"{number:064x}"
    name = f"{number:05d}-{job[-12:]}"
    return Record(
        name=name,
        shard=number,
        job=job,
        spec=_spec().digest,
        tar=FilePart(f"{name}-01234567.tar", 30_000_000 + number, job),
        index=FilePart(f"{name}-01234567.parquet", 15_000, job),
        counts={"sample": SHARD - 1, "absent": 0, "quarantined": 1},
        faults={"corrupt": 1},
    )


# A job: what the driver does for each, and what a worker does beside computing


def of_packing(folder: Path, times: tuple[int, int]) -> dict[str, float]:
    """How much longer packing a job of 128 clips takes for each million clips that there are.

    The table is that of 20,480 clips, so many times over. The lowest of five repeats: it is next to
    nothing, and less than what repeats differ by.
    """
    import pyarrow as pa

    write_clips(folder, made(20_480))
    table = read_clips(folder).rows(range(20_480))
    spent: list[float] = []
    for each in times:
        (folder / CLIPS).write_bytes(table_bytes(pa.concat_tables([table] * each)))
        clips = read_clips(folder)
        spent.append(min(_packing_ms(clips, jobs=400) for _ in range(5)))
    sizes = (20_480 * times[0], 20_480 * times[1])
    return {"pack_ms_for_each_million": 1e6 * _slope(sizes, spent)}


def _packing_ms(clips: Clips, jobs: int) -> float:
    chance = random.Random(0)  # noqa: S311 - which clips, no secrets
    chosen = [clips.some(chance.sample(range(len(clips)), SHARD)) for _ in range(jobs)]
    began = time.process_time()
    for each in chosen:
        pickle.dumps(each)
    return 1e3 * (time.process_time() - began) / jobs


def of_jobs(folder: Path, small: int, large: int) -> dict[str, float]:
    """Jobs that compute next to nothing, of one clip and of 128 clips, on two Ray workers."""
    start_ray(WORKERS)
    found: dict[str, float] = {}
    for name, count, clips in (("small_job", small, 1), ("job", large, SHARD)):
        fed = _fed(folder / name, count, clips)
        found |= {f"{name}_{figure}": value for figure, value in fed.items()}
    lines = list(read_logs(folder / "job" / "data"))
    size = sum(file.stat().st_size for file in (folder / "job" / "data" / "logs").glob("f*.jsonl"))
    began = time.process_time()
    throughput(lines * 20)
    spent = time.process_time() - began
    return found | {
        "log_line_bytes": size / len(lines),
        "log_line_us": 1e6 * spent / (20 * len(lines)),
    }


def _fed(folder: Path, count: int, clips: int) -> dict[str, float]:
    """CPU milliseconds of a job in the driver, its main thread, Ray's head and a worker."""
    features = {"text": {"featurizer": "hashed-words", "dims": 8}}
    source = {"table": "clips.csv", "label": "mood"}
    experiment = parse({"dataset": "data", "source": source, "features": features}, folder)
    _lay(experiment.root, count, clips)
    specs = [each.spec for each in experiment.featurizers().values()]
    todo = jobs(experiment.root, specs).todo
    clock: list[tuple[float, float, float, float]] = []
    busy: list[float] = []
    first, last = count // 4, count - 1  # both workers are up long before a quarter is done

    def done(job: Done) -> None:
        busy.append(job.seconds)
        if len(busy) in {first, last}:
            clock.append((time.process_time(), time.thread_time(), _head_s(), time.perf_counter()))

    records = run_jobs(experiment, OnRay(WORKERS), todo, done, lambda sentence: None)
    commit_all(experiment.root, specs, records, 0.0)
    driver, main, head, wall = (b - a for a, b in zip(*clock, strict=True))
    each = 1e3 / (last - first)
    return {
        "driver_ms": driver * each,
        "main_thread_ms": main * each,
        "head_ms": head * each,
        "clock_ms": wall * each,
        "busy_ms": 1e3 * sum(busy[first:]) / len(busy[first:]),
        "unpack_ms": _unpacking_ms(todo[:100]),
    }


def _lay(root: Root, count: int, clips: int) -> None:
    """A dataset of so many jobs; what it was made from is let go."""
    found = made(count * clips)
    write_plan(root, [Place(n // clips, n % clips, clip.key, 0) for n, clip in enumerate(found)])
    write_clips(root, found)


def _unpacking_ms(todo: Sequence[Job]) -> float:
    """Of a worker, for a job that has come, before its own clock begins."""
    packed = [pickle.dumps(job) for job in todo]
    began = time.process_time()
    for content in packed:
        pickle.loads(content)  # noqa: S301 - our own, from the line above
    return 1e3 * (time.process_time() - began) / len(packed)


def _head_s() -> float:
    """CPU seconds of Ray's control service so far."""
    for process in psutil.Process().children(recursive=True):
        if process.name() == "gcs_server":
            used = process.cpu_times()
            return float(used.user + used.system)
    raise SystemExit("Ray's gcs_server is not among the children of this process")


def of_actors(count: int) -> dict[str, float]:
    """Starting actors: CPU of driver and head for each; how long one takes by the clock."""
    start_ray(count)
    began = time.perf_counter()
    next(iter(OnRay(1).run(make_featurizing_worker, [0])))
    one = time.perf_counter() - began
    driver, head = time.process_time(), _head_s()
    answers = OnRay(count).run(make_idle_worker, range(count), _tiny)
    for _ in answers:
        pass
    driver, head = time.process_time() - driver, _head_s() - head
    stop_ray()
    return {
        "actor_driver_ms": 1e3 * driver / count,
        "actor_head_ms": 1e3 * head / count,
        "actor_start_s": one,
    }


def make_idle_worker() -> Callable[[Any], Any]:
    """A worker that answers what it is asked."""
    return lambda item: item


def make_featurizing_worker() -> Callable[[Any], Any]:
    """The same, after all that a worker of ours loads."""
    worker = ShardWorker(Path(), Stage(folder=Path(), limit_bytes=0))
    return lambda item: (item, worker is None)


def _tiny(item: object) -> Need:
    return Need(cpus=0.01)


def of_writing(folder: Path) -> dict[str, float]:
    """A shard of 128 clips of 7 s of 80 log-mel bands: tar, index and record."""
    spec = catalog.build("logmel").spec
    steps = round(MEAN_S * 100)
    values = np.random.default_rng(0).standard_normal((steps, 80)).astype(np.float32)
    times = np.stack([np.arange(steps), np.arange(steps) + 1.0], axis=1) / 100
    clips = made(SHARD)
    outcomes = [Outcome(state="sample", feature=Feature(values, times))] * SHARD
    store, rounds = LocalStore(folder), 5
    # The first one loads what a worker has loaded before its first job.
    record = write_shard(store, rounds, "0" * 64, spec, clips=clips, outcomes=outcomes)
    cpu, clock = time.process_time(), time.perf_counter()
    for shard in range(rounds):
        write_shard(store, shard, "0" * 64, spec, clips=clips, outcomes=outcomes)
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    return {
        "shard_write_s": cpu / rounds,
        "shard_write_clock_s": clock / rounds,
        "shard_bytes": record.tar.size,
        "index_bytes": record.index.size,
    }


def of_decoding(folder: Path, clips: int) -> dict[str, float]:
    """Seconds of media that a CPU second of worker and child takes in, shards written."""
    small, large = folder / "small", folder / "large"
    make_corpus(small, clips=clips)
    film(large / "film.mp4", (1080, 1920))
    rows = "".join(f"film{number},film.mp4,{number}\n" for number in range(8))
    (large / "clips.csv").write_text(f"id,media,sentiment\n{rows}")
    return {
        "media_per_cpu_s": _media_speed(small),
        "media_per_cpu_s_1080p": _media_speed(large),
    }


def film(path: Path, size: tuple[int, int], seconds: float = 8.0, fps: int = 25) -> None:
    """A box wanders over a grainy picture, and there is noise to hear."""
    path.parent.mkdir(parents=True)
    height, width = size
    chance = np.random.default_rng(0)
    grain = chance.integers(60, 180, (height, width, 3), np.uint8)

    def pictures() -> Iterator[Any]:
        for number in range(round(seconds * fps)):
            picture = np.roll(grain, number, axis=1)
            left = width // 4 + number
            picture[height // 4 : height // 2, left : left + height // 4] = number
            yield picture

    sound = chance.integers(-9000, 9000, round(seconds * 16_000), np.int16)
    encode(path, frames=pictures(), fps=fps, samples=sound, rate_hz=16_000)


def _media_speed(folder: Path) -> float:
    experiment = _media_experiment(folder, "data")
    ingest(experiment, InProcess(), lambda count: None)
    todo = jobs(experiment.root, _specs()[1:]).todo
    worker = ShardWorker(experiment.root, Stage(folder=folder / "cache", limit_bytes=0))
    worker(todo[0])  # its child is up then
    began = _cpu_s()
    for job in todo:
        worker(job)
    spent = _cpu_s() - began
    worker.close()
    return sum(job.media_seconds for job in todo) / spent


def _media_experiment(folder: Path, dataset: str) -> Experiment:
    features = {name: {"featurizer": name} for name in NAMES[1:]}
    source = {"table": "clips.csv", "label": "sentiment", "media_root": [".", f"s3://{BUCKET}"]}
    return parse({"dataset": dataset, "source": source, "features": features}, folder)


def _cpu_s() -> float:
    own = psutil.Process()
    used = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return float(sum(each.user + each.system for each in used))


# Requests to an object store


def of_requests(folder: Path) -> dict[str, float]:
    """Requests for each clip of a job, each column of it, and each shard that is opened."""
    few, many = _requests(folder / "few", 4), _requests(folder / "many", 8)
    media = {name: (many[0][name] - few[0][name]) / 4 for name in {*few[0], *many[0]}}
    columns = len(NAMES) - 1
    writes = sum(count for name, count in few[0].items() if name in WRITES) / columns
    reads = sum(count for name, count in few[0].items() if name not in WRITES)
    print(f"a job of 4 clips: {dict(few[0])}; of 8 clips: {dict(many[0])}; open: {dict(few[1])}")
    return {
        "clip_reads": sum(media.values()),
        "column_writes": writes,
        "column_reads": (reads - 4 * sum(media.values())) / columns,
        # Pointer, manifest and one index of each column.
        "open_reads": (few[1]["get_object"] + few[1]["head_object"]) / columns / 3,
    }


def _requests(folder: Path, clips: int) -> tuple[Counter[str], Counter[str]]:
    """Requests of one job with media in the store, and of opening its two columns."""
    with _bucket() as system, tempfile.TemporaryDirectory() as cache:
        film(folder / "film.mp4", (64, 64), seconds=1.0)
        rows = ["id,media,sentiment"]
        for number in range(clips):
            media = f"s3://{BUCKET}/{folder.name}/{number}.mp4"
            content = (folder / "film.mp4").read_bytes() + bytes(number + 1)
            system.pipe_file(media, content)
            rows.append(f"clip{number},{media},{number}")
        (folder / "clips.csv").write_text("\n".join(rows) + "\n")
        experiment = _media_experiment(folder, f"s3://{BUCKET}/{folder.name}/data")
        ingest(experiment, InProcess(), lambda count: None)
        specs = _specs()[1:]
        (job,) = jobs(experiment.root, specs).todo
        worker = ShardWorker(experiment.root, Stage(folder=Path(cache), limit_bytes=1 << 30))
        with _counted(system) as of_job:
            done = worker(job)
        worker.close()
        commit_all(experiment.root, specs, done.records, 0.0)
        with _counted(system) as of_opening:
            for spec in specs:
                len(manifest.open_column(experiment.root, spec.fingerprint).rows)
        return of_job, of_opening


@contextmanager
def _bucket() -> Iterator[Any]:
    """An S3 server of this machine with one bucket."""
    from fsspec import get_filesystem_class
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    try:
        with mock.patch.dict(os.environ, told):
            kind = get_filesystem_class("s3")
            kind.clear_instance_cache()
            system = kind()
            system.makedirs(BUCKET, exist_ok=True)
            yield system
            kind.clear_instance_cache()
    finally:
        server.stop()


@contextmanager
def _counted(system: Any) -> Iterator[Counter[str]]:  # noqa: ANN401 - fsspec is not typed
    """Counts requests by kind."""
    counts: Counter[str] = Counter()
    ask = type(system)._call_s3  # noqa: SLF001 - the one place that all of its requests pass

    async def counted(self: Any, method: str, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - fsspec is not typed
        counts[method] += 1
        return await ask(self, method, *args, **named)

    with mock.patch.object(type(system), "_call_s3", counted):
        yield counts


if __name__ == "__main__":
    main()
