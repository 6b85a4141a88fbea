"""A dataset on an object store: the same bytes, the same promises."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurizers.dataset import COLUMNS, DatasetError, read_clips
from featurizers.manifest import CorruptShardError, open_column
from featurizers.store import store_at
from featurizers.verify import clean, verify
from pipelines.executors import InProcess
from pipelines.featurize import featurize, finished
from pipelines.ingest import ingest
from pipelines.logbook import read_logs
from pipelines.upkeep import forget
from tests.object_store import BUCKET, s3_server
from tests.test_featurize import Dies, again, digests, experiment, make, rows_of_words

FEATURES = {
    "text": {"featurizer": "hashed-words"},
    "audio": {"featurizer": "logmel", "hop_ms": 20},
}

# Featurizes and dies by kill -9 just before the given request that changes the store.
DIES = """
import os, signal, sys
from pathlib import Path
import s3fs
from pipelines.executors import InProcess
from pipelines.experiment import load
from pipelines.featurize import featurize

left = int(sys.argv[2])
real = s3fs.S3FileSystem._call_s3

async def counted(self, method, *arguments, **named):
    global left
    if method in {"put_object", "delete_object", "copy_object"}:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return await real(self, method, *arguments, **named)

s3fs.S3FileSystem._call_s3 = counted
featurize(load(Path(sys.argv[1])), InProcess(), lambda done: None)
"""


@pytest.fixture(scope="module")
def server():
    with s3_server() as environment:
        yield environment


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Five films of one second, with words."""
    return rows_of_words(tmp_path_factory.mktemp("media"), 5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, rows):
    """The bytes of a local run."""
    made, _ = make(tmp_path_factory.mktemp("local"), rows, features=FEATURES)
    return digests(made.root)


@pytest.fixture
def place(server, tmp_path):
    return f"s3://{BUCKET}/{tmp_path.name}"


def objects(root, below=COLUMNS):
    store = store_at(root)
    return {name: hashlib.sha256(store.read(name)).hexdigest() for name in store.sizes(below)}


def test_an_object_store_holds_the_bytes_that_a_folder_would(tmp_path, rows, place, undisturbed):
    made, columns = make(tmp_path, rows, features=FEATURES, dataset=place)
    assert objects(made.root) == undisturbed
    assert verify(made.root) == []
    assert columns["audio"].read("who1").values.shape[1] == columns["audio"].spec.width
    assert [clip.key for clip in read_clips(made.root)] == [row["id"] for row in rows]
    assert {line["kind"] for line in read_logs(made.root)} >= {"run", "job", "manifest"}
    _, log = again(tmp_path, rows, features=FEATURES, dataset=place)
    assert log == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.jsonl", "experiment.yaml"]


def test_a_dataset_that_is_not_there_is_an_error_that_says_what_to_do(place):
    with pytest.raises(DatasetError, match=f"{place}: there is no clips.parquet; ingest"):
        read_clips(place)


def test_a_worker_that_failed_leaves_nothing_that_the_next_run_does_not_use(
    tmp_path, rows, place, undisturbed
):
    made = experiment(tmp_path, rows, features=FEATURES, dataset=place)
    ingest(made, InProcess(), lambda count: None)
    with pytest.raises(RuntimeError):
        featurize(made, Dies(2), lambda done: None)
    with pytest.raises(DatasetError, match="featurize first"):
        finished(made)
    featurize(made, InProcess(), lambda done: None)
    assert objects(made.root) == undisturbed


def test_killed_before_any_request_that_writes_the_next_run_ends_in_the_same_bytes(
    tmp_path, rows, server, undisturbed
):
    writes = 4 * 3 + 2 * 2  # tar, index and record of four shards, two manifests and pointers
    for request in range(1, writes + 1, 3):
        place = f"s3://{BUCKET}/{tmp_path.name}/{request}"
        made = experiment(tmp_path / str(request), rows, features=FEATURES, dataset=place)
        ingest(made, InProcess(), lambda count: None)
        ended = subprocess.run(
            [sys.executable, "-c", DIES, tmp_path / str(request) / "experiment.yaml", str(request)],
            check=False,
            env={**os.environ, **server},
            timeout=120,
        )
        assert ended.returncode == -9
        featurize(made, InProcess(), lambda done: None)
        assert objects(place) == undisturbed


def test_verify_finds_flipped_missing_and_stray_objects_and_clean_makes_room_for_new_ones(
    tmp_path, rows, place, undisturbed
):
    made, columns = make(tmp_path, rows, features=FEATURES, dataset=place)
    store, column = store_at(place), columns["audio"]
    by_shard = {
        shard: sorted(k for k, s in column.shards.items() if s == shard) for shard in (0, 1)
    }
    hurt = by_shard[0][0]
    name = f"{column.folder}/{column.records[0].tar.file}"
    content = bytearray(store.read(name))
    content[column.rows[hurt].members["values"].offset + 200] ^= 1
    store.replace(name, bytes(content))
    lost = f"{column.folder}/{column.records[1].index.file}"
    store.delete(lost)
    store.replace(f"{column.folder}/00009-0123456789ab-01234567.tar", b"x")
    problems = verify(place)
    assert sorted((problem.what, problem.clips) for problem in problems) == [
        *sorted([("damaged", (hurt,)), ("damaged", tuple(by_shard[1]))]),
        ("stray", ()),
    ]
    with pytest.raises(CorruptShardError, match=f"clip {hurt}"):
        columns["audio"].read(hurt)
    with pytest.raises(CorruptShardError, match="is missing"):
        open_column(place, column.spec.fingerprint)
    assert len(clean(place, problems)) == 2
    featurize(made, InProcess(), lambda done: None)
    assert objects(place) == undisturbed


def test_clips_are_forgotten_there_too(tmp_path, rows, place):
    make(tmp_path, rows, features=FEATURES, dataset=place)
    assert forget(place, ["who2"], lambda sentence: None).shards == 2
    store = store_at(place)
    assert [name for name in store.sizes() if b"who2" in store.read(name)] == []
    assert verify(place) == []


def test_settings_and_speed_lie_beside_the_columns(tmp_path, rows, place):
    make(tmp_path, rows[:2], features=FEATURES, dataset=place)
    store = store_at(place)
    assert b"hashed-words" in store.read("experiment.resolved.yaml")
    (name,) = [each for each in store.sizes("logs") if "throughput" in each]
    assert json.loads(store.read(name))


def test_media_of_an_object_store_give_the_bytes_of_local_ones(tmp_path, rows, place, undisturbed):
    bucket = store_at(f"{place}/media")
    remote = []
    for row in rows:
        name = row["media"].rsplit("/", 1)[1]
        bucket.replace(name, Path(row["media"]).read_bytes())
        remote.append({**row, "media": f"{place}/media/{name}"})
    source = {"table": "clips.jsonl", "label": "mood", "media_root": [f"{place}/media"]}
    made, _ = make(tmp_path, remote, features=FEATURES, dataset=f"{place}/data", source=source)
    assert objects(made.root) == undisturbed


@pytest.mark.slow
def test_ranks_train_on_a_dataset_of_an_object_store(tmp_path, rows, place):
    from training.data import load
    from training.recipe import Task

    splits = ["train", "train", "train", "valid", "test"]
    mine = [{**row, "split": split} for row, split in zip(rows, splits, strict=True)]
    made, columns = make(tmp_path, mine, features=FEATURES, dataset=place)
    recipe = made.recipe(Task(kind="regression", label="mood"))
    prints = {stream: column.spec.fingerprint for stream, column in columns.items()}
    data = load(place, prints, recipe)
    assert len(data.train.keys) == 3
    assert data.train.sample("who1") is not None
