"""Law 2: equal inputs give equal bytes, in process and on one or two Ray workers."""

import hashlib

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
    (folder / "clips.csv").write_text("\n".join([*lines, "broken,broken.mp4,so what,1"]) + "\n")
    return folder


def made_by(executor, folder, name, *, taken_in_by=None):
    """sha256 of every file of a dataset that is made anew, the logs apart."""
    experiment = parse(
        {
            "dataset": name,
            "source": {"table": "clips.csv", "label": "mood"},
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


def test_the_bytes_are_the_same_in_process_and_on_one_or_two_workers(cluster, folder):
    here = made_by(InProcess(), folder, "here")
    assert len([name for name in here if name.endswith(".tar")]) == 3 * 5
    assert {"clips.parquet", "plan.parquet"} <= set(here)
    assert made_by(OnRay(1), folder, "one", taken_in_by=InProcess()) == here
    assert made_by(OnRay(2), folder, "two") == here
