"""Law 2: equal inputs give equal bytes: workers, order of rows, time and host do not matter."""

import hashlib
import socket
import time

import numpy as np
import pytest

from featurizers.media import encode
from pipelines.executors import InProcess, OnRay, start_ray, stop_ray
from pipelines.experiment import parse
from pipelines.featurize import featurize
from pipelines.ingest import ingest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.media]


@pytest.fixture(scope="module")
def cluster():
    start_ray(2)
    yield
    stop_ray()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight films of one second, one that is broken, and their table."""
    folder = tmp_path_factory.mktemp("films")
    lines = ["id,media,transcript,mood"]
    for number in range(8):
        chance = np.random.default_rng(number)
        encode(
            folder / f"{number}.mp4",
            frames=[chance.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(5)],
            fps=5,
            samples=chance.integers(-9000, 9000, 16_000, dtype=np.int16),
            rate_hz=16_000,
        )
        lines.append(f"c{number},{number}.mp4,word number {number},{number - 3.5}")
    (folder / "broken.mp4").write_bytes(b"no film")
    lines.append("broken,broken.mp4,so what,1")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    order = np.random.default_rng(5).permutation(len(lines) - 1)
    shuffled = [lines[0], *(lines[1 + number] for number in order)]
    (folder / "shuffled.csv").write_text("\n".join(shuffled) + "\n")
    return folder


@pytest.fixture(scope="module")
def here(folder):
    """The bytes that are made in this process."""
    return made_by(InProcess(), folder, "here")


def made_by(executor, folder, name, *, taken_in_by=None, table="clips.csv"):
    """sha256 of every file of a dataset that is made anew, the logs apart."""
    experiment = parse(
        {
            "dataset": name,
            "source": {"table": table, "label": "mood"},
            "features": {
                "text": {"featurizer": "hashed-words"},
                "audio": {"featurizer": "logmel"},
                "video": {"featurizer": "face-motion"},
            },
            "shards": {"clips": 2},
            "max_dropped": 0.2,
        },
        folder,
    )
    ingest(experiment, taken_in_by or executor, lambda count: None)
    featurize(experiment, executor, lambda done: None)
    root = experiment.root
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "logs" not in path.parts and path.suffix != ".yaml"
    }


def test_the_bytes_are_the_same_in_process_and_on_one_or_two_workers(cluster, folder, here):
    assert len([name for name in here if name.endswith(".tar")]) == 3 * 5
    assert {"clips.parquet", "plan.parquet"} <= set(here)
    assert made_by(OnRay(1), folder, "one", taken_in_by=InProcess()) == here
    assert made_by(OnRay(2), folder, "two") == here


def test_the_bytes_are_the_same_on_eight_workers_and_with_shuffled_rows(cluster, folder, here):
    assert made_by(OnRay(8), folder, "eight", table="shuffled.csv") == here


def test_the_bytes_are_the_same_at_another_time_on_a_host_of_another_name(
    folder, here, monkeypatch
):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 400_000_000)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    assert made_by(InProcess(), folder, "later", table="shuffled.csv") == here
