"""A shard of a column: the same bytes for the same input, whole or absent, read by anybody."""

import hashlib
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from featurizers import shards
from featurizers.clip import Clip, Word, key_of
from featurizers.extract import Outcome
from featurizers.shards import (
    Record,
    column_folder,
    job_id,
    read_index,
    read_record,
    write_shard,
)
from featurizers.spec import Dim, Feature, FeatureSpec
from featurizers.store import LocalStore, StorageError
from featurizers.transient import patiently

SPEC = FeatureSpec(
    name="tone-level",
    version=1,
    modality="audio",
    reads=("audio",),
    dims=(Dim("a"), Dim("b")),
    rate_hz=2.0,
)
IDS = ("a.b", "a.c", "__hidden", "é t é", "plain")


def clip(clip_id, **changes):
    made = Clip(
        key=key_of(clip_id),
        id=clip_id,
        media=f"/media/{clip_id}.mp4",
        media_digest=hashlib.sha256(clip_id.encode()).hexdigest(),
        seconds=2.0,
        words=(Word(text="so", start=0.0, end=0.5),),
        streams={"pose": "/media/pose.npy"},
        stream_digests={"pose": "77"},
        split="train",
        labels={"score": 1.0},
    )
    return replace(made, **changes)


def feature(seed, steps=3, width=2):
    values = np.random.default_rng(seed).normal(size=(steps, width)).astype(np.float32)
    edges = np.arange(steps + 1) * 0.5
    return Feature(values, np.stack([edges[:-1], edges[1:]], axis=1))


def shard_of(ids=IDS):
    clips = [clip(clip_id) for clip_id in ids]
    outcomes = [Outcome(state="sample", feature=feature(i)) for i in range(len(ids))]
    return clips, outcomes


PLACE = column_folder(SPEC.fingerprint)


def write(folder, clips, outcomes, spec=SPEC, shard=7, **how):
    job = job_id(spec, clips)
    return write_shard(LocalStore(folder), shard, job, spec, clips=clips, outcomes=outcomes, **how)


def read(folder, shard, job):
    store = LocalStore(folder)
    return read_record(store, PLACE, shard, job, store.sizes(PLACE))


def rows_of(folder, record):
    return read_index((folder / PLACE / record.index.file).read_bytes(), "index")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / PLACE).iterdir())}


def mixed():
    clips, outcomes = shard_of()
    outcomes[1] = Outcome(state="absent")
    outcomes[3] = Outcome(state="quarantined", fault="corrupt", message="half of it is damaged")
    outcomes[4] = replace(outcomes[4], message="2 of 90 packets are damaged and passed over")
    return clips, outcomes


def test_equal_jobs_give_equal_bytes_of_tar_index_and_record(tmp_path):
    one = write(tmp_path / "one", *mixed())
    other = write(tmp_path / "other", *mixed())
    assert one == other
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert set(contents(tmp_path / "one")) == {one.file, one.tar.file, one.index.file}


def test_how_an_array_lies_in_memory_does_not_show_in_its_bytes(tmp_path):
    clips, outcomes = shard_of()
    turned = [
        replace(each, feature=Feature(np.asfortranarray(each.feature.values), each.feature.times))
        for each in outcomes
    ]
    assert turned[0].feature.values.flags.f_contiguous
    assert write(tmp_path / "one", clips, outcomes) == write(tmp_path / "two", clips, turned)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_tar_and_index_are_named_by_job_and_content(tmp_path):
    record = write(tmp_path, *mixed())
    assert record.file == f"00007-{record.job[:12]}.json"
    for part, suffix in ((record.tar, ".tar"), (record.index, ".parquet")):
        assert part.file == f"{record.name}-{part.sha256[:8]}{suffix}"


def test_the_record_tells_size_and_digest_of_both_files_and_counts_every_clip(tmp_path):
    record = write(tmp_path, *mixed())
    for part in (record.tar, record.index):
        content = (tmp_path / PLACE / part.file).read_bytes()
        assert (part.size, part.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert record.counts == {"sample": 3, "absent": 1, "quarantined": 1}
    assert record.faults == {"corrupt": 1}
    assert (record.shard, record.spec) == (7, SPEC.digest)


def test_the_record_is_read_back_as_it_was_written(tmp_path):
    record = write(tmp_path, *mixed())
    assert read(tmp_path, 7, record.job) == record
    assert read(tmp_path, 8, record.job) is None
    assert read(tmp_path, 7, "0" * 64) is None


def test_a_record_of_another_job_or_format_is_refused(tmp_path):
    record = write(tmp_path, *mixed())
    twin = record.job[:12] + "0" * 52
    with pytest.raises(ValueError, match="belongs to job"):
        read(tmp_path, 7, twin)
    with pytest.raises(ValueError, match="format 3, this code reads 2"):
        Record.from_json({**record.to_json(), "format": 3})


def test_the_index_holds_every_clip_in_the_plans_order(tmp_path):
    clips, outcomes = mixed()
    record = write(tmp_path, clips, outcomes)
    rows = rows_of(tmp_path, record)
    assert [row.key for row in rows] == [each.key for each in clips]
    assert [(row.state, row.fault, row.message, row.steps) for row in rows] == [
        ("sample", None, "", 3),
        ("absent", None, "", 0),
        ("sample", None, "", 3),
        ("quarantined", "corrupt", "half of it is damaged", 0),
        ("sample", None, "2 of 90 packets are damaged and passed over", 3),
    ]
    assert [sorted(row.members) for row in rows if row.state == "sample"] == [
        ["meta", "times", "values"]
    ] * 3
    assert all(row.members == {} for row in rows if row.state != "sample")


def test_plain_webdataset_reads_the_features_and_merges_no_keys(tmp_path):
    import webdataset

    clips, outcomes = shard_of()
    record = write(tmp_path, clips, outcomes)
    url = str(tmp_path / PLACE / record.tar.file)
    found = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode())
    assert [sample["__key__"] for sample in found] == [each.key for each in clips]
    for sample, made, outcome in zip(found, clips, outcomes, strict=True):
        np.testing.assert_array_equal(sample["tone-level.npy"], outcome.feature.values)
        np.testing.assert_array_equal(sample["times.npy"], outcome.feature.times)
        assert sample["tone-level.npy"].dtype == np.float32
        assert sample["json"] == {"feature": SPEC.fingerprint, "id": made.id, "steps": 3}


def test_a_feature_without_steps_is_kept_too(tmp_path):
    outcome = Outcome(state="sample", feature=feature(0, steps=0))
    record = write(tmp_path, [clip("a")], [outcome])
    (row,) = rows_of(tmp_path, record)
    assert (row.state, row.steps, sorted(row.members)) == ("sample", 0, ["meta", "times", "values"])


def test_nothing_of_time_host_or_path_is_in_the_files(tmp_path):
    import tarfile

    record = write(tmp_path / "secret-place", *mixed())
    with tarfile.open(tmp_path / "secret-place" / PLACE / record.tar.file) as tar:
        for member in tar:
            assert member.mtime == 0
    for content in contents(tmp_path / "secret-place").values():
        assert b"secret-place" not in content
        assert b"/media/" not in content


class Stop(BaseException):
    """As a Ctrl-C: not an exception that anybody may handle."""


class Dying(list):
    """Outcomes of which the reading breaks off."""

    def __init__(self, outcomes, error):
        super().__init__(outcomes)
        self.error = error

    def __iter__(self):
        yield from self[:2]
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("bug"), Stop(), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_nothing_under_a_final_name(tmp_path, error):
    clips, outcomes = shard_of()
    with pytest.raises(type(error)):
        write(tmp_path, clips, Dying(outcomes, error))
    assert [name for name in contents(tmp_path) if not name.startswith(".")] == []
    write(tmp_path / "after", clips, outcomes)
    record = write(tmp_path, clips, outcomes)
    whole = contents(tmp_path / "after")
    assert contents(tmp_path) == whole
    assert read(tmp_path, 7, record.job) == record


def test_without_its_record_a_shard_is_not_finished(tmp_path):
    clips, outcomes = shard_of()
    record = write(tmp_path, clips, outcomes)
    (tmp_path / PLACE / record.file).unlink()
    assert read(tmp_path, 7, record.job) is None
    assert write(tmp_path, clips, outcomes) == record


SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests import test_shards
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
clips, outcomes = test_shards.shard_of()
from featurizers import store
import webdataset, pyarrow.parquet
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    test_shards.write(folder, clips, outcomes)
except store.StorageError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limit", "file"), [(1000, ".tar"), (4000, ".tar")], ids=["header", "within"]
)
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, limit, file):
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(tmp_path / "column"), str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=__file__.removesuffix("/tests/test_shards.py"),
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "column") in done.stdout
    told = rf"{file}: a shard of 5 clips \(\d+ bytes so far\) could not be written \("
    assert re.search(told, done.stdout)
    assert "run the same command again" in done.stdout
    assert contents(tmp_path / "column") == {}


def test_a_folder_that_cannot_be_is_one_clear_error(tmp_path):
    (tmp_path / "columns").write_text("a file is in the way")
    with pytest.raises(StorageError, match=r"/00007-[0-9a-f]{12}\.tar: .*choose another place"):
        write(tmp_path, *shard_of())


class Forgetful(LocalStore):
    """A folder of which the disk errs without a word: it keeps another byte than it was given.

    Args:
        place: Of the byte in a draft.
        times: In how many drafts.
    """

    def __init__(self, folder, place, times=99):
        super().__init__(folder)
        self.place, self.left = place, times

    @contextmanager
    def draft(self, name, what):
        with super().draft(name, what) as draft:
            if self.left:
                self.left -= 1
                draft.file = Flipping(draft.file, self.place)
            yield draft


class Flipping:
    def __init__(self, file, place):
        self._file, self._place = file, place

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        at = self._place - self._file.tell()
        kept = bytearray(content)
        if 0 <= at < len(kept):
            kept[at] ^= 1
        return self._file.write(kept)


def written_to(store, clips, outcomes):
    job = job_id(SPEC, clips)
    return write_shard(store, 7, job, SPEC, clips=clips, outcomes=outcomes)


def test_a_byte_that_is_not_read_back_as_it_was_written_is_found_before_the_tar_has_its_name(
    tmp_path,
):
    clips, outcomes = mixed()
    whole = rows_of(tmp_path / "whole", write(tmp_path / "whole", clips, outcomes))
    suffixes = {"values": "tone-level.npy", "times": "times.npy", "meta": "json"}
    for row in whole:
        for name, member in row.members.items():
            for place in (member.offset, member.offset + member.size - 1):
                store = Forgetful(tmp_path / "bad", place)
                told = rf"{PLACE}/00007-[0-9a-f]{{12}}\.tar: .*clip '{row.key}': the member "
                told += rf"{suffixes[name]} has .*run the same command again"
                with pytest.raises(StorageError, match=told):
                    written_to(store, clips, outcomes)
                assert contents(tmp_path / "bad") == {}
    write(tmp_path / "bad", clips, outcomes)
    assert contents(tmp_path / "bad") == contents(tmp_path / "whole")


def test_a_header_that_is_not_read_back_as_it_was_written_is_found_too(tmp_path):
    clips, outcomes = shard_of()
    whole = rows_of(tmp_path / "whole", write(tmp_path / "whole", clips, outcomes))
    starts = sorted(member.offset - 512 for row in whole for member in row.members.values())
    for start in starts:
        for place in (start, start + 130, start + 148):  # the name, the size, the header's own sum
            with pytest.raises(StorageError, match=r"what was written is not what is read back"):
                written_to(Forgetful(tmp_path / "bad", place), clips, outcomes)
    assert contents(tmp_path / "bad") == {}


def test_a_byte_between_members_that_is_not_read_back_as_it_was_written_is_found_too(tmp_path):
    clips, outcomes = shard_of()
    record = write(tmp_path / "whole", clips, outcomes)
    member = rows_of(tmp_path / "whole", record)[0].members["meta"]
    for place in (member.offset + member.size, record.tar.size - 1):
        with pytest.raises(StorageError, match=r"not what is read back: .* outside of all members"):
            written_to(Forgetful(tmp_path / "bad", place), clips, outcomes)
    assert contents(tmp_path / "bad") == {}


def test_a_byte_that_is_kept_at_the_next_try_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    clips, outcomes = shard_of()
    record = write(tmp_path / "whole", clips, outcomes)
    store = Forgetful(tmp_path / "bad", 520, times=2)
    assert patiently(lambda: written_to(store, clips, outcomes)) == record
    assert contents(tmp_path / "bad") == contents(tmp_path / "whole")


def test_a_member_of_many_pieces_is_read_back_whole(tmp_path, monkeypatch):
    clips, outcomes = shard_of()
    record = write(tmp_path / "whole", clips, outcomes)
    monkeypatch.setattr(shards, "PIECE", 7)
    assert write(tmp_path / "pieces", clips, outcomes) == record


def test_an_index_that_cannot_be_written_leaves_no_record(tmp_path):
    clips, outcomes = shard_of()
    record = write(tmp_path / "elsewhere", clips, outcomes)
    (tmp_path / PLACE / record.index.file).mkdir(parents=True)
    with pytest.raises(StorageError, match=rf"{record.index.file}: \d+ bytes could not be"):
        write(tmp_path, clips, outcomes)
    assert read(tmp_path, 7, record.job) is None
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def names(folder):
    return [path.name for path in (folder / PLACE).iterdir()]


# Two workers at the same job


def other_outcomes():
    """What a worker on another machine may find: one clip timed out there."""
    clips, outcomes = shard_of()
    outcomes[2] = Outcome(state="quarantined", fault="timed_out", message="twice")
    return clips, outcomes


def test_a_slow_worker_that_was_given_up_does_not_publish_over_its_successor(tmp_path):
    clips, outcomes = shard_of()
    successor = write(tmp_path, clips, outcomes)
    before = contents(tmp_path)
    late = write(tmp_path, *other_outcomes())
    assert late == successor
    assert {name: contents(tmp_path)[name] for name in before} == before
    assert [row.state for row in rows_of(tmp_path, late)] == ["sample"] * 5


def test_a_record_whose_files_are_gone_does_not_win(tmp_path):
    clips, outcomes = shard_of()
    first = write(tmp_path, clips, outcomes)
    (tmp_path / PLACE / first.tar.file).unlink()
    second = write(tmp_path, *other_outcomes())
    assert second != first
    assert read(tmp_path, 7, first.job) == second


def test_a_record_that_was_damaged_does_not_win(tmp_path):
    first = write(tmp_path, *shard_of())
    place = tmp_path / PLACE / first.file
    place.write_bytes(place.read_bytes()[:-20])
    second = write(tmp_path, *other_outcomes())
    assert second != first
    assert read(tmp_path, 7, first.job) == second


def test_a_job_that_is_done_anew_on_purpose_takes_the_place_of_the_record(tmp_path):
    first = write(tmp_path, *other_outcomes())
    second = write(tmp_path, *shard_of(), instead=True)
    assert read(tmp_path, 7, first.job) == second
    assert second.faults == {}
    assert (tmp_path / PLACE / first.tar.file).exists()


READS = {
    "audio": {"media_digest": "ff"},
    "video": {"media_digest": "ff"},
    "words": {"words": (Word(text="oh", start=0.0, end=0.5),)},
    "stream:pose": {"stream_digests": {"pose": "ff"}},
}
EVERYBODY = ({"start": 0.5}, {"end": 1.5}, {"key": "other"})
NOBODY = (
    {"split": "test"},
    {"labels": {"score": -1.0}},
    {"fold": 3},
    {"media": "s3://elsewhere/b.mp4"},
    {"source": "elsewhere"},
    {"speaker": "ann"},
    {"group": "g"},
    {"seconds": 1.0},
)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("changed", READS)
def test_a_job_changes_with_what_its_spec_reads_and_with_nothing_else_read(reads, changed):
    spec = replace(SPEC, reads=(reads,))
    same = READS[reads] == READS[changed]
    before, after = job_id(spec, [clip("a")]), job_id(spec, [clip("a", **READS[changed])])
    assert (before != after) == same


@pytest.mark.parametrize("change", EVERYBODY, ids=lambda change: next(iter(change)))
def test_a_job_changes_with_key_and_span(change):
    assert job_id(SPEC, [clip("a")]) != job_id(SPEC, [clip("a", **change)])


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("change", NOBODY, ids=lambda change: next(iter(change)))
def test_mending_labels_splits_or_places_redoes_nothing(reads, change):
    spec = replace(SPEC, reads=(reads,))
    assert job_id(spec, [clip("a")]) == job_id(spec, [clip("a", **change)])


def test_a_job_changes_with_a_words_times_and_with_having_no_words():
    spec = replace(SPEC, reads=("words",))
    moved = clip("a", words=(Word(text="so", start=0.0, end=0.6),))
    jobs = {job_id(spec, [each]) for each in (clip("a"), moved, clip("a", words=None))}
    assert len(jobs) == 3


def test_a_job_changes_with_the_rate_of_the_stream_that_it_reads():
    faster = clip("a", stream_rates={"pose": 30.0})
    pose = replace(SPEC, reads=("stream:pose",))
    assert job_id(pose, [clip("a")]) != job_id(pose, [faster])
    assert job_id(SPEC, [clip("a")]) == job_id(SPEC, [faster])


def test_a_job_changes_with_the_format_of_its_files(monkeypatch):
    before = job_id(SPEC, [clip("a")])
    monkeypatch.setattr("featurizers.shards.FORMAT", 99)
    assert job_id(SPEC, [clip("a")]) != before


def test_a_job_changes_with_the_spec_and_the_order_of_clips():
    pair = [clip("a"), clip("b")]
    jobs = {
        job_id(SPEC, pair),
        job_id(SPEC, pair[::-1]),
        job_id(SPEC, pair[:1]),
        job_id(replace(SPEC, version=2), pair),
        job_id(replace(SPEC, parameters={"level": 2}), pair),
    }
    assert len(jobs) == 5
