"""Kill -9 of drivers, workers, decoders and nodes at random moments: the bytes are the same.

What happens at each single step on disk is told by `test_crash_points.py`. Here all of it runs at
once, and whoever is hit is hit from outside.
"""

import random
import shutil
from collections import Counter, deque

import numpy as np
import pytest

from featurizers.media import encode
from pipelines.executors import InProcess, stop_ray
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from tests import undisturbed
from tests.killing import KINDS, Alone, Nodes, Round, marked
from tests.test_featurize import experiment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.media]

CLIPS, CLIPS_IN_SHARD, SECONDS, FPS = 20, 2, 5, 25
FEATURES = {
    "text": {"featurizer": "hashed-words"},
    "audio": {"featurizer": "logmel", "hop_ms": 10},
    "video": {"featurizer": "face-motion", "fps": 10},
}
ROUNDS = 30  # of featurizing from nothing: in each of them somebody can be hit


def film(path, seed):
    """A noisy picture that scrolls, and noise."""
    chance = np.random.default_rng(seed)
    noise = chance.integers(0, 255, (240 + 2 * FPS * SECONDS, 320, 3), dtype=np.uint8)
    encode(
        path,
        frames=(np.ascontiguousarray(noise[2 * n : 2 * n + 240]) for n in range(FPS * SECONDS)),
        fps=FPS,
        samples=chance.integers(-9000, 9000, 16_000 * SECONDS, dtype=np.int16),
        rate_hz=16_000,
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder, table = tmp_path_factory.mktemp("films"), []
    for number in range(CLIPS):
        film(folder / f"{number}.mp4", number)
        words = f"word number {number}"
        table.append({"media": str(folder / f"{number}.mp4"), "transcript": words})
    return [{"id": f"c{n}", "mood": n % 4 - 1.5, **row} for n, row in enumerate(table)]


class Scene:
    """An experiment that was ingested, and what featurizing it gives when nothing happens."""

    def __init__(self, folder, rows):
        self.made = experiment(
            folder,
            rows,
            features=FEATURES,
            shards={"clips": CLIPS_IN_SHARD},
            workers={"featurize": 2},
        )
        ingest(self.made, InProcess(), lambda count: None)
        featurize(self.made, InProcess(), lambda done: None)
        self.wanted = undisturbed.digests(self.made.root)
        self.units = undisturbed.hold_standing(undisturbed.files(self.made.root))

    def clear(self):
        for folder in ("columns", "logs"):
            shutil.rmtree(self.made.root / folder)


@pytest.fixture
def scene(tmp_path, rows):
    return Scene(tmp_path / "work", rows)


def kill(place, scene, seed, counts, record):
    """Featurize again and again, until so many of each kind were killed."""
    chance = random.Random(seed)  # noqa: S311 - a schedule that can be repeated, no secret
    kinds = [kind for kind in KINDS for _ in range(counts.get(kind, 0))]
    chance.shuffle(kinds)
    schedule, rounds = deque(kinds), []
    while schedule:
        assert len(rounds) < ROUNDS, f"never came: {schedule}"
        scene.clear()
        rounds.append(Round(place, scene.made, scene.wanted, scene.units, chance))
        rounds[-1].work(schedule)
    hits = sum((each.hits for each in rounds), start=Counter())
    record("kills", dict(hits))
    record("rounds", len(rounds))
    record("runs", sum(len(each.runs) for each in rounds))
    record("jobs", sum(each.begun for each in rounds))
    record("begun_again", sum(each.again for each in rounds))
    assert hits == counts


def nodes(patch, scene, seed, counts, record):
    stop_ray()
    with marked(patch, f"{seed}-{scene.made.root}"):
        place = Nodes(2)
        try:
            kill(place, scene, seed, counts, record)
        finally:
            place.close()


def alone(patch, scene, seed, counts, record):
    stop_ray()
    with marked(patch, f"{seed}-{scene.made.root}"):
        kill(Alone(), scene, seed, counts, record)


def test_eight_kills_on_a_cluster_change_no_byte(scene, monkeypatch, record_property):
    nodes(monkeypatch, scene, 1, dict.fromkeys(KINDS, 2), record_property)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [11, 12])
def test_fifty_kills_on_a_cluster_change_no_byte(scene, monkeypatch, record_property, seed):
    counts = {"driver": 12, "worker": 16, "decoder": 14, "raylet": 8}
    nodes(monkeypatch, scene, seed, counts, record_property)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_twelve_kills_on_one_machine_change_no_byte(scene, monkeypatch, record_property):
    alone(monkeypatch, scene, 13, dict.fromkeys(KINDS, 3), record_property)
