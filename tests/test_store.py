"""The promises of a store, kept by a local folder and by an object store alike."""

import errno
import os
import stat
import threading
from pathlib import Path

import fsspec
import pytest
import s3fs

from featurizers import store as stores
from featurizers import transient
from featurizers.store import LocalStore, ObjectStore, StorageError, sha256, store_at
from featurizers.transient import passes, patiently
from tests.object_store import BUCKET, s3_server


@pytest.fixture(scope="module")
def server():
    with s3_server() as environment:
        yield environment


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "local":
        return store_at(tmp_path / "dataset")
    request.getfixturevalue("server")
    return store_at(f"s3://{BUCKET}/{tmp_path.name}/dataset")


def test_a_url_is_an_object_store_and_all_else_a_folder(server, tmp_path):
    assert isinstance(store_at("s3://bucket/x"), ObjectStore)
    assert isinstance(store_at(str(tmp_path)), LocalStore)
    assert store_at("s3://bucket/x/").where("a/b") == "s3://bucket/x/a/b"


def test_what_was_written_is_read(store):
    store.replace("a/b.json", b"one")
    store.replace("a/b.json", b"three")
    assert store.read("a/b.json") == b"three"
    opened = store.open("a/b.json")
    assert (opened.read_at(1, 2), opened.read_at(3, 9)) == (b"hr", b"ee")
    opened.close()


def test_what_is_not_there_is_not_found(store):
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    with pytest.raises(FileNotFoundError):
        store.open("nothing").read_at(0, 1)
    assert store.sizes("nothing") == {}
    store.delete("nothing")


def test_sizes_tell_all_files_below_a_folder_by_their_whole_names(store):
    for name in ("a/one", "a/b/two", "ab/three", "four"):
        store.replace(name, name.encode())
    assert store.sizes("a") == {"a/one": 5, "a/b/two": 7}
    assert set(store.sizes()) == {"a/one", "a/b/two", "ab/three", "four"}
    store.delete("a/one")
    assert store.sizes("a") == {"a/b/two": 7}


def test_only_the_first_creates_and_the_others_are_told(store):
    assert store.create("record.json", b"first")
    assert not store.create("record.json", b"second")
    assert store.read("record.json") == b"first"
    store.delete("record.json")
    assert store.create("record.json", b"third")


def test_of_many_that_create_at_once_one_wins(store):
    won, start = [], threading.Barrier(8)

    def create(number):
        start.wait()
        if store.create("race.json", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("race.json") == b"%d" % won[0]


def test_a_draft_has_no_name_until_it_is_published(store):
    with store.draft("a/x.tar", "a shard") as draft:
        draft.file.write(b"12345")
        assert store.sizes("a") == {}
        draft.publish("a/x-digest.tar")
    assert store.sizes("a") == {"a/x-digest.tar": 5}
    assert sha256(store, "a/x-digest.tar", 5, piece=2) == (
        "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    )


def test_a_draft_that_breaks_off_leaves_nothing(store):
    def breaks_off():
        with store.draft("a/x.tar", "a shard") as draft:
            draft.file.write(b"12345")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks_off()
    assert store.sizes("a") == {}
    assert store.unfinished("a") == []


def test_logs_grow_or_become_parts(store):
    store.append("logs/run.jsonl", 0, b"one\n")
    store.append("logs/run.jsonl", 1, b"two\n")
    names = sorted(store.sizes("logs"))
    assert b"".join(store.read(name) for name in names) == b"one\ntwo\n"


# Local folders


def test_what_a_killed_writer_left_is_told_from_what_is_being_written(tmp_path):
    store = LocalStore(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".x.tar.k2j4h6a1").write_bytes(b"half")
    (tmp_path / "a" / ".notes.txt").write_bytes(b"not ours")
    with store.draft("a/y.tar", "a shard") as draft:
        draft.file.write(b"123")
        assert store.unfinished("a") == ["a/.x.tar.k2j4h6a1"]
        assert store.sweep("a") == ["a/.x.tar.k2j4h6a1"]
        draft.publish("a/y.tar")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"y.tar", ".notes.txt"}


def test_a_draft_that_was_swept_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    """A sweep may come between its making and its locking."""
    real, swept = stores.tempfile.mkstemp, []

    def mkstemp(**how):
        handle, made = real(**how)
        if not swept:
            swept.append(Path(made))
            swept[0].unlink()
        return handle, made

    monkeypatch.setattr(stores.tempfile, "mkstemp", mkstemp)
    store = LocalStore(tmp_path)
    store.replace("a", b"123")
    assert swept
    assert store.read("a") == b"123"


def test_a_write_that_fails_names_path_bytes_and_reason(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores.os, "fsync", full)
    with pytest.raises(StorageError, match=r"a/b: 3 bytes could not be written \(No space") as told:
        LocalStore(tmp_path).replace("a/b", b"123")
    assert not told.value.transient
    assert list((tmp_path / "a").iterdir()) == []


def test_a_write_that_may_succeed_at_the_next_try_says_so(tmp_path, monkeypatch):
    def unwell(handle):
        raise OSError(errno.EIO, "I/O")

    monkeypatch.setattr(stores.os, "fsync", unwell)
    with pytest.raises(StorageError) as told:
        LocalStore(tmp_path).replace("a/b", b"123")
    assert told.value.transient
    assert passes(told.value)


def test_what_went_away_while_the_folder_was_read_has_no_size(tmp_path):
    store = LocalStore(tmp_path)
    store.replace("a", b"123")
    (tmp_path / "gone").symlink_to("nowhere")  # listed, but not there
    assert store.sizes() == {"a": 3}


def test_a_log_that_cannot_grow_names_path_and_bytes(tmp_path):
    (tmp_path / "logs").write_bytes(b"in the way")
    with pytest.raises(StorageError, match=r"logs/run.jsonl: 4 bytes could not be written"):
        LocalStore(tmp_path).append("logs/run.jsonl", 0, b"one\n")


def test_a_file_that_nobody_reads_any_more_is_closed(tmp_path):
    store = LocalStore(tmp_path)
    store.replace("a", b"123")
    before = sorted(Path("/proc/self/fd").iterdir())
    opened = store.open("a")
    assert opened.read_at(0, 3) == b"123"
    del opened
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_every_byte_is_synced_before_it_gets_its_name_and_the_name_after(tmp_path, monkeypatch):
    steps = []
    real_sync, real_link = os.fsync, os.link

    def sync(handle):
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_sync(handle)

    def link(source, target):
        steps.append("name")
        real_link(source, target)

    monkeypatch.setattr(stores.os, "fsync", sync)
    monkeypatch.setattr(stores.os, "link", link)
    assert LocalStore(tmp_path).create("record.json", b"{}")
    assert steps == ["file", "name", "folder"]


# Faults that pass


@pytest.fixture
def waits(monkeypatch):
    slept = []
    monkeypatch.setattr(transient.time, "sleep", slept.append)
    return slept


class ThrottledError(Exception):
    def __init__(self, status):
        super().__init__(status)
        self.status = status


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "I/O"),
        OSError(errno.EBUSY, "SlowDown"),
        TimeoutError(),
        ThrottledError(429),
        ThrottledError(503),
    ],
    ids=repr,
)
def test_a_fault_that_passes_is_tried_again_with_growing_waits(waits, error):
    left = [error, error, error]

    def call():
        if left:
            raise left.pop()
        return "done"

    assert patiently(call) == "done"
    assert len(waits) == 3
    assert waits[0] < waits[2]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        PermissionError(errno.EACCES, "no"),
        FileNotFoundError(),
        ValueError(),
        ThrottledError(404),
    ],
    ids=repr,
)
def test_a_fault_that_stays_is_raised_at_once(waits, error):
    with pytest.raises(type(error)):
        patiently(lambda: (_ for _ in ()).throw(error))
    assert waits == []
    assert not passes(error)


def test_those_that_were_throttled_together_do_not_come_back_together(waits):
    def throttled():
        raise ThrottledError(503)

    for _ in range(50):
        with pytest.raises(ThrottledError):
            patiently(throttled, tries=2, first_wait=1.0)
    assert 0.5 <= min(waits) < 0.8
    assert 1.2 < max(waits) <= 1.5


def test_reading_waits_for_a_fault_that_passes(tmp_path, waits, monkeypatch):
    store = LocalStore(tmp_path)
    store.replace("a", b"123")

    def flaky(real):
        faults = [OSError(errno.EIO, "I/O"), OSError(errno.ESTALE, "stale")]

        def call(*arguments):
            if faults:
                raise faults.pop()
            return real(*arguments)

        return call

    monkeypatch.setattr(stores.os, "pread", flaky(os.pread))
    assert store.open("a").read_at(1, 2) == b"23"
    monkeypatch.setattr(stores.Path, "read_bytes", flaky(stores.Path.read_bytes))
    assert store.read("a") == b"123"
    assert len(waits) == 4


def test_patience_ends(waits):
    tries = []

    def call():
        tries.append(1)
        raise OSError(errno.EIO, "I/O")

    with pytest.raises(OSError, match="I/O"):
        patiently(call, tries=4)
    assert len(tries) == 4
    assert len(waits) == 3


class Flaky:
    """The first uploads fail: once before they arrive, once after."""

    def __init__(self, system):
        self._system, self.faults = system, ["before", "after"]

    def __getattr__(self, name):
        return getattr(self._system, name)

    def pipe_file(self, path, content, **how):
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise OSError(errno.EBUSY, "SlowDown")
        self._system.pipe_file(path, content, **how)
        if fault == "after":
            raise TimeoutError


def test_a_throttled_upload_is_repeated_and_one_whose_answer_was_lost_does_no_harm(server, waits):
    store = store_at(f"s3://{BUCKET}/flaky")
    store._system = Flaky(store._system)
    # It did arrive, but nobody may take that for a win: whoever is told False looks what is there.
    assert not store.create("record.json", b"mine")
    assert store.read("record.json") == b"mine"
    assert len(waits) == 2


class Cutting:
    """The first uploads of files arrive without their ends, and nobody says so."""

    def __init__(self, system, times):
        self._system, self.left = system, times

    def __getattr__(self, name):
        return getattr(self._system, name)

    def put_file(self, path, target):
        if self.left:
            self.left -= 1
            self._system.pipe_file(target, Path(path).read_bytes()[:-1])
        else:
            self._system.put_file(path, target)


def test_an_upload_that_arrives_cut_is_repeated_and_in_the_end_an_error(server, waits):
    store = store_at(f"s3://{BUCKET}/cutting")
    system = store._system
    store._system = Cutting(system, 2)
    with store.draft("shard.tar", "a shard of 3 clips") as draft:
        draft.file.write(bytes(1000))
        draft.publish("shard.tar")
    assert store.sizes() == {"shard.tar": 1000}
    assert len(waits) == 2
    store._system = Cutting(system, 99)
    told = r"cutting/other\.tar: a shard of 3 clips, 1000 bytes, .*the object there has 999 bytes"
    with store.draft("other.tar", "a shard of 3 clips") as draft:
        draft.file.write(bytes(1000))
        with pytest.raises(StorageError, match=told) as caught:
            draft.publish("other.tar")
    assert caught.value.transient


def test_a_store_that_cannot_be_reached_is_a_storage_error_in_one_line(server, waits, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = ObjectStore("s3://nowhere/x")
    with pytest.raises(StorageError, match=r"s3://nowhere/x/clips.parquet: .*run the same command"):
        store.read("clips.parquet")
    s3fs.S3FileSystem.clear_instance_cache()


class Remembering(fsspec.get_filesystem_class("memory")):
    """An object store whose client keeps what it has listed, as several do."""

    protocol = "remembering"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("remembering://", "memory://"))

    def find(self, path, **how):
        try:
            return self.dircache[path]
        except KeyError:
            found = self.dircache[path] = super().find(path, **how)
            return found

    def invalidate_cache(self, path=None):
        self.dircache.clear()


def test_what_others_wrote_since_the_last_listing_is_seen(tmp_path):
    fsspec.register_implementation("remembering", Remembering, clobber=True)
    store, others = (store_at(f"{kind}://{tmp_path.name}") for kind in ("remembering", "memory"))
    others.replace("one", b"1")
    assert store.sizes() == {"one": 1}
    others.replace("two", b"22")
    assert store.sizes() == {"one": 1, "two": 2}


def test_removing_what_is_gone_is_no_error_where_the_store_calls_it_one(tmp_path):
    store = store_at(f"memory://{tmp_path.name}")
    store.replace("a", b"1")
    for _ in range(2):
        store.delete("a")
    assert store.sizes() == {}


def test_a_bucket_that_is_not_there_is_a_storage_error(server):
    store = store_at("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x/a: .*does not exist"):
        store.replace("a", b"1")


def test_an_unknown_kind_of_store_is_an_error_that_says_so():
    with pytest.raises(StorageError, match="nosuch://a/b: "):
        store_at("nosuch://a/b")
