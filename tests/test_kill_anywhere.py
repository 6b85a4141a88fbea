"""Kill -9 of drivers, workers, decoders and nodes at random moments: the bytes are the same.

What happens at each single step on disk is told by `test_crash_points.py`. Here all of it runs at
once, and whoever is hit is hit from outside.
"""

import random
import shutil
from collections import Counter, deque
from contextlib import closing

import numpy as np
import pytest

from featurizers.media import encode
from pipelines.executors import InProcess, stop_ray
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from tests import undisturbed
from tests.killing import KINDS, Machine, Nodes, Round, marked
from tests.test_featurize import experiment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.media]

CLIPS, CLIPS_IN_SHARD, SECONDS, FPS = 20, 2, 5, 25
# When a decoding for two columns fails, each is tried alone: with one, all hangs on the second try.
TWO = {
    "text": {"featurizer": "hashed-words"},
    "video": {"featurizer": "face-motion", "fps": 10},
}
THREE = {**TWO, "audio": {"featurizer": "logmel", "hop_ms": 10}}
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

    def __init__(self, folder, rows, features):
        self.made = experiment(
            folder,
            rows,
            features=features,
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


def hit(place, scene, seed, counts):
    """Featurize again and again, until so many of each kind were killed; what that took."""
    chance = random.Random(seed)  # noqa: S311 - a schedule that can be repeated, no secret
    kinds = [kind for kind in KINDS for _ in range(counts[kind])]
    chance.shuffle(kinds)
    schedule, rounds = deque(kinds), []
    while schedule:
        assert len(rounds) < ROUNDS, f"never came: {schedule}"
        scene.clear()
        rounds.append(Round(place, scene.made, scene.wanted, scene.units, chance))
        rounds[-1].work(schedule)
    return {
        "kills": dict(sum((each.hits for each in rounds), start=Counter())),
        "rounds": len(rounds),
        "runs": sum(len(each.runs) for each in rounds),
        "jobs": sum(each.begun for each in rounds),
        "begun_again": sum(each.again for each in rounds),
    }


@pytest.fixture
def killed(tmp_path, rows, monkeypatch, record_property):
    """Kills so many of each kind in a place; none that was started there is left afterwards."""

    def kill(make_place, seed, counts, features):
        scene = Scene(tmp_path / "work", rows, features)
        stop_ray()
        with marked(monkeypatch, str(scene.made.root)), closing(make_place()) as place:
            found = hit(place, scene, seed, counts)
        for name, figure in found.items():
            record_property(name, figure)
        return found["kills"]

    return kill


@pytest.mark.soak
def test_eight_kills_on_a_cluster_change_no_byte(killed):
    counts = dict.fromkeys(KINDS, 2)
    assert killed(Nodes, 1, counts, TWO) == counts


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_fifty_kills_on_a_cluster_change_no_byte(killed):
    counts = {"driver": 12, "worker": 16, "decoder": 14, "raylet": 8}
    assert killed(Nodes, 11, counts, THREE) == counts


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_twelve_kills_on_one_machine_change_no_byte(killed):
    counts = dict.fromkeys(KINDS, 3)
    assert killed(Machine, 13, counts, TWO) == counts
