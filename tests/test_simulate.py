"""The simulation of large runs, and the figures that it takes."""

import importlib.util
import json
import math
import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from featurizers import catalog
from pipelines.featurize import jobs_of
from pipelines.plan import Room, deal
from pipelines.worker import MEDIA

ROOT = Path(__file__).parent.parent


def script(name):
    """A script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", ROOT / f"benchmarks/{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sys.path.append(str(ROOT / "benchmarks"))  # last: one of them has the name of a package
simulate = script("simulate")
cluster_model = sys.modules["cluster_model"]
costs = script("costs")

# Nothing costs anything but the media.
FREE = simulate.Costs(
    **{each.name: 0.0 for each in fields(simulate.Costs)} | {"media_per_cpu_s": 1.0}
)
# A quiet world: no latency, no limits, no losses, all nodes there at once.
QUIET = simulate.Setting(
    workers=8,
    clips=12_800,
    media_per_s=100.0,
    spread=0.0,
    word_columns=0,
    cores=8,
    nodes_per_minute=1e9,
    boot_s=0.0,
    reads_per_s=math.inf,
    writes_per_s=math.inf,
    latency_s=0.0,
)


def media_s(setting):
    return sum(job.media_s for job in simulate.backlog(setting))


def test_one_worker_takes_as_long_as_all_jobs_together():
    alone = replace(QUIET, workers=1)
    told = simulate.simulated(FREE, alone)
    assert told.seconds == pytest.approx(media_s(alone) / 100.0)
    assert told.shares()["media"] == pytest.approx(1.0)


def test_eight_workers_take_an_eighth_and_at_most_one_job_more():
    told = simulate.simulated(FREE, QUIET)
    longest = max(end - begin for begin, end in told.spans)
    assert 0 <= told.seconds - media_s(QUIET) / 100.0 / 8 <= longest


def test_a_driver_that_is_slower_than_its_workers_decides_how_long_it_takes():
    slow = replace(FREE, small_job_driver_ms=5_000.0, job_driver_ms=5_000.0)
    told = simulate.simulated(slow, QUIET)
    assert told.seconds == pytest.approx(5.0 * told.jobs, rel=0.1)
    assert told.driver_s / told.seconds > 0.9
    assert told.shares()["idle"] > 0.5


def test_workers_beyond_those_that_saturate_the_driver_gain_nothing():
    busy = replace(FREE, small_job_driver_ms=500.0, job_driver_ms=500.0)
    workers = round(simulate.saturated_at(busy, QUIET)["driver"])
    few, enough, many = (
        simulate.simulated(busy, replace(QUIET, workers=round(workers * times), cores=1_000))
        for times in (0.5, 1.2, 2.4)
    )
    assert few.seconds > 1.5 * enough.seconds
    assert many.seconds == pytest.approx(enough.seconds, rel=0.1)


def test_a_store_that_refuses_requests_decides_how_long_it_takes():
    reading = replace(FREE, clip_reads=2.0)
    told = simulate.simulated(reading, replace(QUIET, reads_per_s=50.0))
    assert told.seconds == pytest.approx(QUIET.clips * 2 / 50.0, rel=0.1)
    assert told.shares()["refused"] > 0.5
    assert told.refused_s > 1


def test_latency_counts_for_each_clip_of_a_job():
    reading = replace(FREE, clip_reads=2.0)
    told = simulate.simulated(reading, replace(QUIET, latency_s=0.03, latency_spread=0.0))
    assert told.spent_s["latency"] == pytest.approx(QUIET.clips * 2 * 0.03)


@pytest.mark.parametrize("seed", range(3))
def test_every_job_is_finished_once_whatever_nodes_are_lost(seed):
    setting = replace(QUIET, workers=16, cores=2, losses_per_hour=60.0, boot_s=30.0, seed=seed)
    undisturbed = simulate.simulated(FREE, replace(setting, losses_per_hour=0.0))
    told = simulate.simulated(FREE, setting)
    assert told.losses
    assert told.again
    assert len(told.spans) == told.jobs + told.again
    assert told.spent_s["media"] == pytest.approx(media_s(setting) / 100.0)
    assert told.seconds > undisturbed.seconds


def test_a_job_that_was_lost_at_the_end_is_done_by_a_worker_that_had_nothing_left():
    boot_s = 1_000.0
    setting = replace(QUIET, clips=256, workers=64, cores=1, losses_per_hour=200.0, boot_s=boot_s)
    runs = [simulate.simulated(FREE, replace(setting, seed=seed)) for seed in range(6)]
    assert any(told.again for told in runs)
    assert all(told.seconds < 2 * boot_s for told in runs)  # before a new node could be there


def test_workers_are_idle_while_the_cluster_grows_and_after_the_last_job_was_handed_out():
    growing = replace(QUIET, workers=64, cores=4, nodes_per_minute=20.0)
    told = simulate.simulated(FREE, growing)
    assert 0 < told.empty_at < told.seconds
    assert all(0 <= part <= 1 + 1e-9 for part in told.busy())
    assert told.busy()[-1] < max(told.busy())
    assert sum(told.shares().values()) == pytest.approx(1.0)


def test_equal_seeds_give_equal_runs_and_others_do_not():
    uneven = replace(QUIET, spread=0.2, losses_per_hour=20.0)
    assert simulate.simulated(FREE, uneven) == simulate.simulated(FREE, uneven)
    other = simulate.simulated(FREE, replace(uneven, seed=1))
    assert other.seconds != simulate.simulated(FREE, uneven).seconds


def test_a_simulation_of_no_jobs_is_refused():
    with pytest.raises(ValueError, match="one clip at least"):
        simulate.simulated(FREE, replace(QUIET, media_columns=0))


def test_jobs_are_of_all_clips_and_their_mean_is_the_one_asked_for():
    jobs = list(simulate.backlog(replace(QUIET, clips=64_000, word_columns=1)))
    media = [job for job in jobs if job.media_s]
    assert len(media) == len(jobs) / 2 == 500
    assert sum(job.clips for job in media) == 64_000
    assert media_s(replace(QUIET, clips=64_000)) == pytest.approx(64_000 * 7.0, rel=0.05)


def test_jobs_come_in_the_order_in_which_the_pipeline_hands_them_out(tmp_path):
    words = [catalog.build("hashed-words", dims=dims).spec for dims in (8, 16)]
    clips = costs.made(200)
    plan = deal([], clips, Room(clips=4))
    told = jobs_of(tmp_path, [catalog.build("logmel").spec, *words], clips, plan).todo
    setting = replace(QUIET, clips=200, shard_clips=4, word_columns=2)
    decoding = [bool(job.media_s) for job in simulate.backlog(setting)]
    assert decoding == [bool(MEDIA & job.reads) for job in told]
    assert decoding.count(False) == 2 * decoding.count(True) == 100


def test_a_job_takes_the_driver_longer_the_more_clips_there_are():
    found = replace(FREE, pack_ms_for_each_million=1.0)
    few, many = (replace(QUIET, clips=clips) for clips in (1_000_000, 10_000_000))
    job = cluster_model.Work(media_s=7.0 * 128, clips=128, columns=1)
    assert simulate.service_s(found, few, job) == pytest.approx(0.001)
    assert simulate.service_s(found, many, job) == pytest.approx(0.010)


def test_the_driver_alone_takes_ten_times_as_long_and_as_much_for_ten_times_the_clips():
    few, many = replace(QUIET, clips=1_280_000), replace(QUIET, clips=12_800_000)
    for of in (simulate.alone, simulate.later, simulate.memory):
        for name, value in of(simulate.Costs(), few).items():
            assert value > 0
            assert of(simulate.Costs(), many)[name] == pytest.approx(10 * value, rel=0.01)


def test_the_simulation_is_within_a_third_of_what_was_measured():
    kept = simulate.Costs()
    for clips, measured in ((1, kept.small_job_clock_ms), (128, kept.job_clock_ms)):
        assert simulate.job_ms(kept, clips=clips) == pytest.approx(measured, rel=1 / 3)


def test_figures_are_read_from_what_the_measuring_script_prints(tmp_path):
    figures = {each.name: number for number, each in enumerate(fields(simulate.Costs))}
    line = json.dumps({"benchmark": "costs", "figures": figures | {"not_used": 1.0}})
    (tmp_path / "printed").write_text(f"a table\n{line}\n")
    assert simulate.read_costs(tmp_path / "printed") == simulate.Costs(**figures)


def test_the_measuring_script_gives_every_figure_that_the_simulation_takes():
    source = (ROOT / "benchmarks/costs.py").read_text()
    parts = {"ingest", "deal", "write", "jobs", "plan", "each", "list", "rows", "record"}
    made = {f"{part}_{of}" for part in parts for of in ("us", "bytes", "peak_bytes")}
    fed = set(re.findall(r'^        "(\w+_ms)":', source, re.MULTILINE))
    made |= {f"{size}_{name}" for size in ("job", "small_job") for name in fed}
    made |= set(re.findall(r'"(\w+)":', source))
    assert {each.name for each in fields(simulate.Costs)} <= made


def test_the_page_holds_the_figures_that_the_simulation_takes():
    page = (ROOT / "docs/scaling.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| ([\d,.]+) \|", page, re.MULTILINE))
    kept = simulate.Costs()
    assert {name: float(value.replace(",", "")) for name, value in told.items()} == {
        each.name: getattr(kept, each.name) for each in fields(kept)
    }


def test_a_manifest_is_measured_by_writing_and_reading_one(tmp_path):
    found = costs.of_manifest(tmp_path / "dataset", 50)
    assert 300 < found["manifest_bytes"] < 3_000
    assert found["commit_us"] > 0


@pytest.mark.media
@pytest.mark.slow
def test_a_job_asks_the_store_twice_for_each_clip_and_writes_three_objects_a_column(tmp_path):
    kept = simulate.Costs()
    found = costs.of_requests(tmp_path)
    assert found["clip_reads"] == kept.clip_reads
    assert found["column_writes"] == kept.column_writes
    assert found["column_reads"] == kept.column_reads
    assert found["open_reads"] == kept.open_reads
