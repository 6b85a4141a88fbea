"""What a job costs beside its work: 1,000 to 10,000 jobs of one clip of one word on two workers.

Each job writes a real shard (tar, index, record) through the same path as any other. Start-up is
excluded: time runs from the first answer after all workers are up. The driver's memory is measured
before and after the jobs of each size.

    python benchmarks/scale.py [--quick]
"""

import argparse
import gc
import json
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from featurizers.clip import Clip, Word
from featurizers.dataset import write_clips
from featurizers.manifest import open_column
from pipelines.executors import OnRay, start_ray, stop_ray
from pipelines.experiment import Experiment, parse
from pipelines.featurize import commit_all, jobs, run_jobs
from pipelines.ingest import write_plan
from pipelines.plan import Place
from pipelines.worker import Done
from tracking.provenance import git_commit, versions

HOME = Path(__file__).resolve().parent.parent
WORKERS = 2
SIZES = (1_000, 3_000, 10_000)
QUICK = (200, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One size.

    Attributes:
        job_ms: Wall time of a job with all workers busy, over all jobs after start-up.
        first_ms, last_ms: The same over the first and the last tenth.
        busy_ms: What a worker was busy with one, in the mean.
        plan_ms, commit_ms: Before and after the jobs, for each of them.
        growth_mb: The driver's resident memory after the jobs, less that before.
    """

    jobs: int
    job_ms: float
    first_ms: float
    last_ms: float
    busy_ms: float
    plan_ms: float
    commit_ms: float
    growth_mb: float


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer jobs")
    sizes = QUICK if arguments.parse_args().quick else SIZES
    start_ray(WORKERS)
    found: list[Measured] = []
    for size in (sizes[0], *sizes):  # the first is a warm-up and not counted
        with tempfile.TemporaryDirectory() as scratch:
            found.append(measured(Path(scratch), size))
    stop_ray()
    del found[0]
    print(f"{WORKERS} workers; milliseconds a job; growth of the driver in MB")
    heads = ("jobs", "a job", "first", "last", "busy", "plan", "commit", "MB")
    print(" ".join(f"{head:>7}" for head in heads))
    for each in found:
        figures = (each.job_ms, each.first_ms, each.last_ms, each.busy_ms)
        after = (each.plan_ms, each.commit_ms, each.growth_mb)
        print(f"{each.jobs:>7}" + "".join(f" {value:>7.2f}" for value in (*figures, *after)))
    figures_by_name = {f"overhead_ms_{each.jobs}": round(each.job_ms, 3) for each in found}
    growth = round(found[-1].growth_mb - found[0].growth_mb, 2)
    about = {
        "commit": git_commit(HOME),
        "versions": {
            **versions(["ray", "pyarrow", "webdataset"]),
            "python": platform.python_version(),
        },
    }
    figures_by_name["driver_growth_mb"] = growth
    print(json.dumps({"benchmark": "scale", "figures": figures_by_name, **about}))


def measured(folder: Path, size: int) -> Measured:
    """Run so many jobs of a dataset that is made for it."""
    experiment = made(folder, size)
    specs = [each.spec for each in experiment.featurizers().values()]
    began = time.perf_counter()
    todo = jobs(experiment.root, specs).todo
    plan = time.perf_counter() - began
    answers: list[tuple[float, int, float]] = []

    def done(job: Done) -> None:
        answers.append((time.perf_counter(), job.pid, job.seconds))

    before = resident_mb()
    records = run_jobs(experiment, OnRay(WORKERS), todo, done, lambda sentence: None)
    growth = resident_mb() - before
    began = time.perf_counter()
    commit_all(experiment.root, specs, records, 0.0)
    open_column(experiment.root, specs[0].fingerprint).close()
    commit = time.perf_counter() - began
    first_of = {pid: at for at, pid, _ in reversed(answers)}
    up = max(first_of.values())
    times = [up, *(at for at, _, _ in answers if at > up)]
    tenth = max(1, len(times) // 10)
    return Measured(
        jobs=size,
        job_ms=1e3 * (times[-1] - times[0]) / (len(times) - 1),
        first_ms=1e3 * (times[tenth] - times[0]) / tenth,
        last_ms=1e3 * (times[-1] - times[-1 - tenth]) / tenth,
        busy_ms=1e3 * sum(seconds for _, _, seconds in answers) / len(answers),
        plan_ms=1e3 * plan / size,
        commit_ms=1e3 * commit / size,
        growth_mb=growth,
    )


def made(folder: Path, size: int) -> Experiment:
    """A dataset of so many shards of one clip of one word."""
    features = {"text": {"featurizer": "hashed-words", "dims": 8}}
    source = {"table": "clips.csv", "label": "mood"}
    experiment = parse({"dataset": "data", "source": source, "features": features}, folder)
    clips = [
        Clip(
            key=f"clip{number:06d}",
            id=f"clip{number:06d}",
            media="",
            media_digest="",
            seconds=1.0,
            words=(Word(text="word", start=0.0, end=1.0),),
            split="train",
            labels={"mood": 1.0},
        )
        for number in range(size)
    ]
    write_plan(experiment.root, [Place(n, 0, clip.key, 0) for n, clip in enumerate(clips)])
    write_clips(experiment.root, clips)
    return experiment


def resident_mb() -> float:
    """Resident memory of this process, garbage collected."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


if __name__ == "__main__":
    main()
