"""Copies of remote shards: fetched once a node, verified, never removed while they are read."""

import hashlib
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from featurizers.manifest import CorruptShardError, open_column
from featurizers.node_cache import NodeCache, SpoiltCopyError
from featurizers.store import LocalStore, StorageError
from tests.object_store import BUCKET, s3_server
from tests.test_manifest import SAMPLES, SPEC, write_column

FORK = multiprocessing.get_context("fork")


class Counting(LocalStore):
    """A store that writes down in a file what is fetched, slowly."""

    def open(self, name):
        with (self.folder / "fetched").open("a") as file:
            file.write(name + "\n")
        time.sleep(0.05)
        return super().open(name)

    @property
    def fetched(self):
        file = self.folder / "fetched"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
def store(tmp_path):
    (tmp_path / "far").mkdir()
    return Counting(tmp_path / "far")


def put(store, name, size=1000):
    content = hashlib.sha256(name.encode()).digest() * (size // 32) + b"x" * (size % 32)
    (store.folder / name).write_bytes(content)
    return store, name, size, hashlib.sha256(content).hexdigest()


def copies(cache):
    return sorted(path.name for path in cache.folder.iterdir() if not path.name.startswith("."))


def test_a_file_is_fetched_once_and_read_from_its_copy(tmp_path, store):
    cache, file = NodeCache(tmp_path / "near", 1500), put(store, "a")
    for _ in range(3):
        opened = cache.open(*file)
        assert opened.read_at(990, 100) == (store.folder / "a").read_bytes()[990:]
        opened.close()
    assert store.fetched == ["a"]
    assert copies(cache) == [file[3]]


def test_the_least_recently_opened_copies_make_room_and_open_ones_stay(tmp_path, store):
    cache = NodeCache(tmp_path / "near", 2500)
    a, b, c, d = (put(store, name) for name in "abcd")
    held = cache.open(*a)
    for file in (b, a, c):  # the oldest but one is a, which is open
        cache.open(*file).close()
    assert copies(cache) == sorted([a[3], c[3]])
    also = cache.open(*c)
    with pytest.raises(
        StorageError, match=r"takes 2500, and 2000 of them are in use; give the cache more"
    ):
        cache.open(*d)
    held.close()
    cache.open(*d).close()
    assert copies(cache) == sorted([c[3], d[3]])
    assert also.read_at(0, 1000) == (store.folder / "c").read_bytes()
    assert [path.name for path in cache.folder.glob(".fetching*")] == []


def test_a_file_larger_than_the_cache_is_an_error_that_says_so(tmp_path, store):
    with pytest.raises(StorageError, match=r"a has 1000 bytes; the cache .* takes 999"):
        NodeCache(tmp_path / "near", 999).open(*put(store, "a"))


def test_what_is_fetched_must_be_what_was_recorded(tmp_path, store):
    cache, file = NodeCache(tmp_path / "near", 5000), put(store, "a")
    (store.folder / "a").write_bytes(b"y" * 1000)
    with pytest.raises(SpoiltCopyError, match="a is not what was written"):
        cache.open(*file)
    assert copies(cache) == []
    with pytest.raises(FileNotFoundError):
        cache.open(store, "none", 10, "0" * 64)


def opens(folder, files):
    cache = NodeCache(folder, 1 << 20)
    for file in files:
        cache.open(*file).close()


def test_processes_of_a_node_that_want_a_file_at_once_fetch_it_once(tmp_path, store):
    files = [put(store, name) for name in "abc"]
    workers = [FORK.Process(target=opens, args=(tmp_path / "near", files)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(store.fetched) == ["a", "b", "c"]


class Hanging(LocalStore):
    def open(self, name):
        os.kill(os.getpid(), signal.SIGKILL)
        return super().open(name)


def test_a_process_that_dies_fetching_leaves_the_way_free(tmp_path, store):
    near, file = tmp_path / "near", put(store, "a")
    dying = FORK.Process(target=opens, args=(near, [(Hanging(store.folder), *file[1:])]))
    dying.start()
    dying.join()
    assert dying.exitcode == -signal.SIGKILL
    assert [path.name for path in near.glob(".fetching*")] != []
    cache = NodeCache(near, 1500)
    cache.open(*put(store, "b")).close()
    assert [path.name for path in near.glob(".fetching*")] == []
    cache.open(*file).close()


@pytest.fixture
def column(tmp_path):
    """A committed column's root, and a cache."""
    from featurizers.manifest import commit

    commit(tmp_path / "data", SPEC, "plan-digest", write_column(tmp_path / "data"))
    return tmp_path / "data", NodeCache(tmp_path / "near", 1 << 20)


def test_a_column_read_through_a_cache_is_the_column(column):
    root, cache = column
    plain, cached = open_column(root, SPEC.fingerprint), open_column(root, SPEC.fingerprint, cache)
    for key in SAMPLES:
        assert np.array_equal(plain.read(key).values, cached.read(key).values)
    assert copies(cache) == sorted(record.tar.sha256 for record in plain.records)
    assert cached.read("a1") is None


def test_a_copy_that_rots_is_made_anew_and_a_shard_that_rots_is_named(column):
    root, cache = column
    first = open_column(root, SPEC.fingerprint, cache)
    good = first.read("a0").values.copy()
    first.close()
    record = first.records[0]
    copy = cache.folder / record.tar.sha256
    copy.write_bytes(b"\0" * record.tar.size)
    again = open_column(root, SPEC.fingerprint, cache)
    assert np.array_equal(again.read("a0").values, good)
    again.close()
    copy.write_bytes(b"\0" * record.tar.size)
    shard = root / first.folder / record.tar.file
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    with pytest.raises(CorruptShardError, match=f"{record.tar.file} is not what was written"):
        open_column(root, SPEC.fingerprint, cache).read("a0")
    shard.unlink()
    damaged = f"{record.tar.file}: values of clip a0 are damaged"
    with pytest.raises(CorruptShardError, match=damaged):
        again.read("a0")


def test_shards_of_an_object_store_are_kept_on_this_machine(tmp_path, column):
    from featurizers.store import store_at

    root, cache = column
    plain = open_column(root, SPEC.fingerprint)
    with s3_server():
        place = f"s3://{BUCKET}/{tmp_path.name}"
        far = store_at(place)
        for name in LocalStore(root).sizes():
            far.replace(name, (root / name).read_bytes())
        open_column(place, SPEC.fingerprint, cache).read("b0")
        far.delete(f"{plain.folder}/{plain.records[0].tar.file}")
        kept = open_column(root, SPEC.fingerprint, cache)
        assert np.array_equal(kept.read("b0").values, plain.read("b0").values)
    assert copies(cache) == [plain.records[1].tar.sha256]
