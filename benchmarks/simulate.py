"""How long ten million clips take on a thousand workers, what saturates first, and when.

The simulation itself is `cluster_model.py`: a job goes its way through driver, workers and object
store. Here stands what comes before and after the jobs, and what is printed.

    python benchmarks/simulate.py [--costs FILE] [--quick]

FILE holds what `costs.py` printed; without it those of `cluster_model.Costs` are taken.
"""

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from cluster_model import (
    MEASURED_CLIPS,
    SAMPLE,
    Cluster,
    Costs,
    Run,
    Setting,
    backlog,
    reads_of,
    service_s,
    takes,
    writes_of,
)

from pipelines.logbook import FLUSH_LINES
from tracking.provenance import git_commit

HOME = Path(__file__).resolve().parent.parent
COUNTS = (10, 100, 1_000, 5_000, 10_000)
LISTED = 1_000  # objects that a store names in one answer
SHARES = ("media", "latency", "refused", "words", "unpack", "lost", "idle")
HALF_A_DAY, HALF_AN_HOUR = math.log(2) / 24, math.log(2)


# Before and after the jobs, and memory: one driver, one thing after the other


def alone(costs: Costs, setting: Setting) -> dict[str, float]:
    """Seconds of the driver while no worker has anything to do, by step."""
    clips, shards = setting.clips / 1e6, setting.shards * setting.columns
    lines = setting.shards * (bool(setting.media_columns) + setting.word_columns)
    return {
        "read clips, find jobs": costs.jobs_us * clips,
        "sum up the log": costs.log_line_us / 1e6 * lines
        + lines / FLUSH_LINES * costs.open_reads * setting.mean_latency_s,
        # All objects are listed twice: to see what is unfinished, and that nothing is cut.
        "commit": costs.plan_us * clips
        + (costs.commit_us + costs.manifest_us) / 1e6 * shards
        + 2 * _listing_s(costs, setting),
    }


def later(costs: Costs, setting: Setting) -> dict[str, float]:
    """Seconds of one process for what comes after a featurizing, or after one that stopped."""
    shards, asking_s = setting.shards * setting.columns, costs.open_reads * setting.mean_latency_s
    return {
        "read the records": (costs.record_us / 1e6 + asking_s) * shards
        + _listing_s(costs, setting),
        "read the indexes": (costs.rows_us / 1e6 + asking_s) * shards,
        "go through the clips": costs.each_us * setting.clips / 1e6,
    }


def _listing_s(costs: Costs, setting: Setting) -> float:
    """Of the names of all objects."""
    objects = costs.column_writes * setting.shards * setting.columns
    return objects / LISTED * setting.mean_latency_s


def at_ingest(costs: Costs, setting: Setting) -> dict[str, float]:
    """Seconds of the driver alone at ingest, when no media are probed, by step."""
    clips = setting.clips / 1e6
    longer = costs.sources_us_for_each_million * clips
    return {
        "ingest clips that are files": costs.ingest_us * clips,
        "deal clips that are files": costs.deal_us * clips,
        "deal clips cut from files": (costs.sources_us + longer) * clips,
        "write the table": costs.write_us * clips,
    }


def memory(costs: Costs, setting: Setting) -> dict[str, float]:
    """Bytes of one process, by moment: the driver's, and then a rank's that trains."""
    shards = setting.shards * setting.columns
    held = costs.jobs_bytes * setting.clips + costs.record_bytes * shards
    return {
        "ingest": costs.ingest_peak_bytes * setting.clips,
        "jobs found": costs.jobs_peak_bytes * setting.clips,
        "commit": held + costs.plan_peak_bytes * setting.clips,
        "clips and indexes in a rank": costs.list_bytes * setting.clips + costs.rows_bytes * shards,
    }


def saturated_at(costs: Costs, setting: Setting) -> dict[str, float]:
    """The number of workers that keep a part busy all the time: more of them gain nothing."""
    chance = random.Random(setting.seed)  # noqa: S311 - a simulation, no secrets
    jobs = list(backlog(replace(setting, clips=setting.shard_clips * SAMPLE)))
    busy_s = sum(sum(takes(costs, setting, job, chance).values()) for job in jobs)
    asked_s = {
        "driver": sum(service_s(costs, setting, job) for job in jobs),
        "reads": sum(reads_of(costs, job) for job in jobs) / setting.reads_per_s,
        "writes": sum(writes_of(costs, job) for job in jobs) / setting.writes_per_s,
    }
    return {name: busy_s / seconds for name, seconds in asked_s.items() if seconds}


def simulated(costs: Costs, setting: Setting) -> Run:
    """Run all jobs of a setting."""
    return Cluster(costs, setting, backlog(setting)).run()


def job_ms(costs: Costs, *, clips: int) -> float:
    """What the simulation says of the setting that `costs.py` measured: two workers, no media."""
    setting = Setting(
        workers=2,
        clips=2_000 * clips,
        shard_clips=clips,
        media_columns=0,
        cores=2,
        boot_s=0.0,
        latency_s=0.0,
    )
    told = simulated(costs, setting)
    return 1e3 * (told.spans[-1][1] - told.spans[0][0]) / told.jobs


# What is printed


def main() -> None:
    """Simulate and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--costs", type=Path, help="what costs.py printed")
    arguments.add_argument("--quick", action="store_true", help="a hundredth of the clips")
    given = arguments.parse_args()
    costs = read_costs(given.costs) if given.costs else Costs()
    clips = 100_000 if given.quick else 10_000_000
    kinds = {"small": costs.media_per_cpu_s, "1080p": costs.media_per_cpu_s_1080p}
    settings = {
        kind: Setting(workers=1_000, clips=clips, media_per_s=speed)
        for kind, speed in kinds.items()
    }
    figures = _print_reality(costs) | _print_driver(costs, settings["small"])
    for kind, setting in settings.items():
        figures |= {f"{kind}_{name}": value for name, value in _print_kind(costs, setting, kind)}
    rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
    about = {"commit": git_commit(HOME)}
    print(json.dumps({"benchmark": "simulate", "figures": rounded, **about}))


def read_costs(file: Path) -> Costs:
    """The figures on the last line of what `costs.py` printed."""
    figures = json.loads(file.read_text().splitlines()[-1])["figures"]
    return Costs(**{each.name: figures[each.name] for each in fields(Costs)})


def _print_reality(costs: Costs) -> dict[str, float]:
    print("Two workers, jobs that compute next to nothing: milliseconds a job")
    print(f"{'':<22}{'simulated':>10}{'measured':>10}")
    found: dict[str, float] = {}
    for name, clips, measured in (
        ("1 clip", 1, costs.small_job_clock_ms),
        ("128 clips", MEASURED_CLIPS, costs.job_clock_ms),
    ):
        told = job_ms(costs, clips=clips)
        print(f"{name:<22}{told:>10.2f}{measured:>10.2f}")
        found[f"off_{clips}"] = told / measured - 1
    return found


def _print_driver(costs: Costs, setting: Setting) -> dict[str, float]:
    print("\nOne process alone, three columns: ingest, featurizing, what comes later; memory")
    sizes = [setting.clips // 100, setting.clips // 10, setting.clips]
    print(f"{'clips':<30}" + "".join(f"{size:>12,}" for size in sizes))
    settings = [replace(setting, clips=size) for size in sizes]
    seconds = [at_ingest(costs, s) | alone(costs, s) | later(costs, s) for s in settings]
    for name in seconds[0]:
        print(f"{name + ', s':<30}" + "".join(f"{each[name]:>12,.1f}" for each in seconds))
    held = [memory(costs, each) for each in settings]
    for name in held[0]:
        print(f"{name + ', GB':<30}" + "".join(f"{each[name] / 1e9:>12,.2f}" for each in held))
    file = costs.manifest_bytes * setting.shards / 1e6
    log = costs.log_line_bytes * setting.shards * 2 / 1e6
    print(f"a manifest {file:,.0f} MB, the log {log:,.0f} MB")
    parts = {"alone_h": alone(costs, setting), "later_h": later(costs, setting)}
    found = {name: sum(steps.values()) / 3600 for name, steps in parts.items()}
    return found | {f"{name}, GB": each / 1e9 for name, each in held[-1].items()}


def _print_kind(costs: Costs, setting: Setting, kind: str) -> Iterator[tuple[str, float]]:
    print(f"\n{kind}: {setting.media_per_s:.0f} seconds of media a second and worker")
    kinds = {"all jobs": setting, "words alone": replace(setting, media_columns=0)}
    for jobs, each in kinds.items():
        for name, workers in saturated_at(costs, each).items():
            print(f"  {jobs}: {name} saturated by {workers:,.0f} workers")
            yield f"{jobs.replace(' ', '_')}_{name}_saturated", workers
    heads = "".join(f"{name:>9}" for name in ("whole", "jobs", "tail s", "driver", *SHARES))
    print(f"  {'workers':<30}{heads}")
    for name, (with_costs, each) in _rows(costs, setting).items():
        told = simulated(with_costs, each)
        print(_row(name, told, sum(alone(with_costs, each).values())))
        if name == f"{setting.workers:,}":
            print(
                "  busy by tenths of its time: " + " ".join(f"{part:.0%}" for part in told.busy())
            )
        yield f"hours_{name}", told.seconds / 3600


def _rows(costs: Costs, setting: Setting) -> dict[str, tuple[Costs, Setting]]:
    """Other numbers of workers, and what would be if it were not for something."""
    fed = ("job_driver_ms", "small_job_driver_ms", "pack_ms_for_each_million", "actor_driver_ms")
    free = replace(costs, **dict.fromkeys(fed, 0.0))
    others = {
        "media alone": replace(setting, word_columns=0),
        "no limit of requests": replace(setting, reads_per_s=math.inf, writes_per_s=math.inf),
        "no latency": replace(setting, latency_s=0.0),
        "half of the nodes lost a day": replace(setting, losses_per_hour=HALF_A_DAY),
        "half of the nodes lost an hour": replace(setting, losses_per_hour=HALF_AN_HOUR),
    }
    counts = {f"{count:,}": (costs, replace(setting, workers=count)) for count in COUNTS}
    named = {name: (costs, each) for name, each in others.items()}
    return counts | named | {"a driver for nothing": (free, setting)}


def _row(name: str, told: Run, alone_s: float) -> str:
    shares = told.shares()
    hours = f"{(alone_s + told.seconds) / 3600:>9.2f}{told.seconds / 3600:>9.2f}"
    tail = f"{told.seconds - told.empty_at:>9.0f}{told.driver_s / told.seconds:>9.0%}"
    parts = "".join(f"{shares.get(share, 0.0):>9.1%}" for share in SHARES)
    lost = f"  {told.losses} nodes lost, {told.again} jobs again" if told.losses else ""
    refused = f"  a job waited {told.refused_s:.0f} s" if told.refused_s > 1 else ""
    return f"  {name:<30}{hours}{tail}{parts}{lost}{refused}"


if __name__ == "__main__":
    main()
