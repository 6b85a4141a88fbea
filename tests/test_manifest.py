"""The contract with training: what is committed is whole, and every damaged byte is found."""

import hashlib
import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurizers import manifest
from featurizers.clip import Clip
from featurizers.dataset import COLUMNS, DatasetError
from featurizers.extract import Outcome
from featurizers.manifest import (
    CorruptShardError,
    array_of,
    commit,
    committed,
    committed_digest,
    open_column,
)
from featurizers.shards import job_id, write_shard
from featurizers.spec import Dim, Feature, FeatureSpec
from featurizers.store import LocalStore
from featurizers.verify import clean, verify

SPEC = FeatureSpec(
    name="level",
    version=1,
    modality="audio",
    reads=("audio",),
    dims=(Dim("a"), Dim("b")),
    rate_hz=2.0,
)
SHARDS = (("a0", "a1", "a2"), ("b0", "b1"))
ABSENT, QUARANTINED = "a1", "b1"
SAMPLES = ("a0", "a2", "b0")


def outcome_of(key):
    if key == ABSENT:
        return Outcome(state="absent")
    if key == QUARANTINED:
        return Outcome(state="quarantined", fault="corrupt", message="cut short")
    values = np.full((4, 2), SAMPLES.index(key), dtype=np.float32)
    return Outcome(state="sample", feature=Feature(values, np.arange(8.0).reshape(4, 2)))


def clip_of(key, take=0):
    return Clip(key=key, id=key, media=f"/{key}.mp4", media_digest=f"{key}-{take}", seconds=2.0)


def write_column(root, shards=SHARDS, take=0):
    """All shards of a column; gives their records."""
    records = []
    for shard, keys in enumerate(shards):
        clips, outcomes = [clip_of(key, take) for key in keys], [outcome_of(key) for key in keys]
        job = job_id(SPEC, clips)
        records.append(
            write_shard(LocalStore(root), shard, job, SPEC, clips=clips, outcomes=outcomes)
        )
    return records


def folder_of(root):
    return root / COLUMNS / SPEC.fingerprint


@pytest.fixture
def column(tmp_path):
    """A committed column's folder and its records."""
    records = write_column(tmp_path)
    commit(tmp_path, SPEC, "plan-digest", records)
    return folder_of(tmp_path), records


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x01
    path.write_bytes(content)


def test_a_column_gives_back_every_clip_as_it_was_written(tmp_path, column):
    opened = open_column(tmp_path, SPEC.fingerprint)
    assert opened.spec == SPEC
    assert opened.records == tuple(column[1])
    assert {key: row.state for key, row in opened.rows.items()} == {
        "a0": "sample",
        "a1": "absent",
        "a2": "sample",
        "b0": "sample",
        "b1": "quarantined",
    }
    for key in SAMPLES:
        expected = outcome_of(key).feature
        np.testing.assert_array_equal(opened.read(key).values, expected.values)
        np.testing.assert_array_equal(opened.read(key).times, expected.times)
    assert opened.read(ABSENT) is None
    assert opened.read(QUARANTINED) is None
    with pytest.raises(KeyError):
        opened.read("nobody")
    opened.close()


def test_the_ledger_balances(tmp_path, column):
    opened = open_column(tmp_path, SPEC.fingerprint)
    counted = {
        state: sum(record.counts[state] for record in opened.records)
        for state in ("sample", "absent", "quarantined")
    }
    assert sum(counted.values()) == len(opened.rows) == 5
    states = [row.state for row in opened.rows.values()]
    assert counted == {state: states.count(state) for state in counted}


def test_the_manifest_is_named_by_its_own_bytes_and_lists_the_records(tmp_path, column):
    folder, records = column
    digest = committed_digest(tmp_path, SPEC.fingerprint)
    content = (folder / "manifests" / f"{digest}.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    plain = json.loads(content)
    assert plain["plan"] == "plan-digest"
    assert FeatureSpec.from_json(plain["spec"]) == SPEC
    assert [entry["name"] for entry in plain["records"]] == [record.name for record in records]


def test_the_order_in_which_shards_were_finished_does_not_show(tmp_path, column):
    records = column[1]
    assert commit(tmp_path, SPEC, "plan-digest", records[::-1]) == committed_digest(
        tmp_path, SPEC.fingerprint
    )
    assert len(list((column[0] / "manifests").iterdir())) == 1


def test_the_pointer_names_the_newest_manifest_and_the_older_stays(tmp_path, column):
    older = committed_digest(tmp_path, SPEC.fingerprint)
    newer = commit(tmp_path, SPEC, "plan-digest", write_column(tmp_path, take=1))
    assert newer != older
    assert open_column(tmp_path, SPEC.fingerprint).digest == newer
    assert (column[0] / "manifests" / f"{older}.json").exists()


def test_shards_that_were_replaced_are_no_strays(tmp_path, column):
    commit(tmp_path, SPEC, "plan-digest", write_column(tmp_path, take=1))
    assert verify(tmp_path) == []


def test_many_open_shards_share_a_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "OPEN_FILES", 2)
    spread = (("a0",), ("a2",), ("b0",))
    commit(tmp_path, SPEC, "plan", write_column(tmp_path, spread))
    opened = open_column(tmp_path, SPEC.fingerprint)
    for key in [*SAMPLES, *SAMPLES[::-1], *SAMPLES]:
        assert opened.read(key).values[0, 0] == SAMPLES.index(key)
        assert len(opened._files) <= 2
    opened.close()
    assert not opened._files


def test_nothing_committed_is_an_error_that_says_what_to_do(tmp_path):
    write_column(tmp_path)
    assert committed_digest(tmp_path, SPEC.fingerprint) is None
    with pytest.raises(DatasetError, match=r"has no manifest.*featurize first"):
        open_column(tmp_path, SPEC.fingerprint)
    assert verify(tmp_path) == []


def test_a_pointer_of_a_newer_format_is_refused(tmp_path, column):
    pointer = column[0] / "manifest.json"
    pointer.write_bytes(pointer.read_bytes().replace(b'"format":2', b'"format":3'))
    with pytest.raises(DatasetError, match="format 3, this code reads 2"):
        committed_digest(tmp_path, SPEC.fingerprint)


@pytest.mark.parametrize("part", ["both", "manifest"])
def test_a_manifest_of_a_newer_format_is_refused(tmp_path, monkeypatch, part):
    monkeypatch.setattr(manifest, "FORMAT", 3)
    commit(tmp_path, SPEC, "plan", write_column(tmp_path))
    monkeypatch.undo()
    if part == "manifest":
        pointer = folder_of(tmp_path) / "manifest.json"
        pointer.write_bytes(pointer.read_bytes().replace(b'"format":3', b'"format":2'))
    with pytest.raises(DatasetError, match="format 3, this code reads 2"):
        open_column(tmp_path, SPEC.fingerprint)


def test_a_sound_dataset_has_no_problems_and_an_empty_folder_neither(tmp_path, column):
    assert verify(tmp_path) == []
    assert verify(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("member", ["values", "times", "meta"])
@pytest.mark.parametrize("key", SAMPLES)
def test_verify_names_the_clip_whose_byte_was_flipped(tmp_path, column, key, member):
    folder = column[0]
    opened = open_column(tmp_path, SPEC.fingerprint)
    name = next(r.tar.file for r in opened.records if r.shard == opened.shards[key])
    place = opened.rows[key].members[member]
    flip(folder / name, place.offset + place.size - 1)
    (problem,) = verify(tmp_path)
    assert str(problem) == f"{folder / name} is not what was written: clips {key}"
    assert problem.clips == (key,)


def test_verify_finds_a_flipped_byte_between_the_clips(tmp_path, column):
    folder, records = column
    flip(folder / records[0].tar.file, 20)  # in the first member's header
    (problem,) = verify(tmp_path)
    assert str(problem).endswith("between the clips")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_verify_finds_any_flipped_byte_in_any_file(tmp_path, column, data):
    files = sorted(path for path in column[0].rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    kept = path.read_bytes()
    try:
        flip(path, data.draw(st.integers(0, len(kept) - 1)))
        assert verify(tmp_path)
    finally:
        path.write_bytes(kept)
    assert verify(tmp_path) == []


def file_of(record, kind):
    return {"tar": record.tar.file, "index": record.index.file, "record": record.file}[kind]


KINDS = ["tar", "index", "record"]


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_a_missing_file(tmp_path, column, kind):
    folder, records = column
    name = file_of(records[1], kind)
    (folder / name).unlink()
    (problem,) = verify(tmp_path)
    assert str(problem).startswith(f"{folder / name} is missing")
    if kind == "tar":
        assert problem.clips == ("b0", "b1")


def test_verify_finds_a_missing_manifest(tmp_path, column):
    digest = committed_digest(tmp_path, SPEC.fingerprint)
    (column[0] / "manifests" / f"{digest}.json").unlink()
    (problem,) = verify(tmp_path)
    assert f"{digest}.json is missing" in str(problem)


def test_verify_finds_a_missing_pointer(tmp_path, column):
    (column[0] / "manifest.json").unlink()
    (problem,) = verify(tmp_path)
    assert "manifest.json is missing" in str(problem)


@pytest.mark.parametrize("stray", ["00001-0123456789ab.tar", "notes.txt", ".00000-x.tar.k2j4h6a1"])
def test_verify_finds_a_stray_file(tmp_path, column, stray):
    (column[0] / stray).write_bytes(b"x")
    (problem,) = verify(tmp_path)
    assert str(problem).startswith(f"{column[0] / stray} ")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 1}', b'{"format": 9}'])
def test_verify_finds_a_stray_file_with_a_records_suffix(tmp_path, column, content):
    (column[0] / "00001-0123456789ab.json").write_bytes(content)
    (problem,) = verify(tmp_path)
    assert "00001-0123456789ab.json " in str(problem)


def test_verify_finds_a_record_under_a_wrong_name(tmp_path, column):
    folder, records = column
    content = (folder / records[0].file).read_bytes()
    (folder / "00009-0123456789ab.json").write_bytes(content)
    (problem,) = verify(tmp_path)
    assert "00009-0123456789ab.json " in str(problem)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_verify_finds_a_truncated_file(tmp_path, column, kind, share):
    path = column[0] / file_of(column[1][0], kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    (problem,) = verify(tmp_path)
    assert path.name in str(problem)


def test_a_tar_cut_between_two_members_is_found_when_it_is_opened(tmp_path, column):
    folder, records = column
    second = open_column(tmp_path, SPEC.fingerprint).rows["a2"].members["meta"]
    path = folder / records[0].tar.file
    path.write_bytes(path.read_bytes()[: second.offset - 512])
    with pytest.raises(CorruptShardError, match=rf"{path.name} has \d+ bytes, \d+ were written"):
        open_column(tmp_path, SPEC.fingerprint)
    (problem,) = verify(tmp_path)
    assert "were written: clips a2" in str(problem)


def test_a_column_with_a_changed_index_is_opened_but_gives_no_rows(tmp_path, column):
    path = column[0] / column[1][0].index.file
    flip(path, path.stat().st_size // 2)
    opened = open_column(tmp_path, SPEC.fingerprint)
    with pytest.raises(CorruptShardError, match="is not what was written"):
        opened.rows  # noqa: B018 - reading is what fails
    with pytest.raises(CorruptShardError, match="is not what was written"):
        opened.read("a0")


@pytest.mark.parametrize("part", ["tar", "index"])
def test_a_column_with_a_cut_file_is_not_opened(tmp_path, column, part):
    path = column[0] / getattr(column[1][0], part).file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptShardError, match=r"bytes, \d+ were written"):
        open_column(tmp_path, SPEC.fingerprint)


def test_verify_tells_of_a_tar_whose_index_is_damaged_too(tmp_path, column):
    for part in (column[1][0].index, column[1][0].tar):
        path = column[0] / part.file
        flip(path, path.stat().st_size // 2)
    found = {each.file.rsplit(".", 1)[1]: str(each) for each in verify(tmp_path)}
    assert set(found) == {"parquet", "tar"}
    assert "between the clips" not in found["tar"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{'digest'", b"\xff\xfe"])
def test_a_pointer_that_cannot_be_read_is_damage_and_not_a_crash(tmp_path, column, content):
    (column[0] / "manifest.json").write_bytes(content)
    with pytest.raises(CorruptShardError, match=r"manifest\.json is not what was written"):
        committed_digest(tmp_path, SPEC.fingerprint)
    assert len(verify(tmp_path)) == 1


def test_reading_checks_the_checksum_and_names_shard_and_clip(tmp_path, column):
    folder, records = column
    opened = open_column(tmp_path, SPEC.fingerprint)
    flip(folder / records[0].tar.file, opened.rows["a2"].members["times"].offset)
    assert opened.read("a0") is not None
    with pytest.raises(CorruptShardError, match=rf"{records[0].tar.file}: times of clip a2"):
        opened.read("a2")


def test_reading_past_a_tar_that_shrank_since_it_was_opened_is_damage(tmp_path, column):
    folder, records = column
    opened = open_column(tmp_path, SPEC.fingerprint)
    path = folder / records[0].tar.file
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(CorruptShardError, match="clip a2"):
        opened.read("a2")


def test_reading_of_a_tar_that_went_away_is_damage(tmp_path, column):
    folder, records = column
    opened = open_column(tmp_path, SPEC.fingerprint)
    (folder / records[0].tar.file).unlink()
    with pytest.raises(CorruptShardError, match="clip a2 are damaged"):
        opened.read("a2")
    assert opened.read("b0") is not None


def test_a_manifest_that_was_cut_is_written_anew_by_the_next_commit(tmp_path, column):
    folder, records = column
    path = folder / "manifests" / f"{committed_digest(tmp_path, SPEC.fingerprint)}.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    commit(tmp_path, SPEC, "plan-digest", records)
    assert path.read_bytes() == whole


def test_no_pickle_is_ever_loaded(tmp_path):
    values = np.array([[{"a": 1}]], dtype=object)
    outcome = Outcome(state="sample", feature=Feature(values, np.zeros((1, 2))))
    with pytest.raises(ValueError, match="allow_pickle"):
        write_shard(
            LocalStore(tmp_path), 0, "0" * 64, SPEC, clips=[clip_of("a0")], outcomes=[outcome]
        )


def test_no_pickle_is_loaded_that_somebody_else_wrote(tmp_path, monkeypatch):
    def pickled(array):
        buffer = io.BytesIO()
        np.save(buffer, array.astype(object), allow_pickle=True)
        return buffer.getvalue()

    monkeypatch.setattr("featurizers.shards._npy", pickled)
    commit(tmp_path, SPEC, "plan", write_column(tmp_path))
    with pytest.raises(ValueError, match="allow_pickle"):
        open_column(tmp_path, SPEC.fingerprint).read("a0")


def test_clean_removes_strays_leftovers_and_damage_and_nothing_else(tmp_path, column):
    folder, records = column
    whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (folder / "00001-0123456789ab-01234567.tar").write_bytes(b"x")
    (folder / ".00000-x.tar.k2j4h6a1").write_bytes(b"half")
    flip(folder / records[1].tar.file, 600)
    removed = clean(tmp_path, verify(tmp_path))
    left = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert len(removed) == 3
    assert left == {name: whole[name] for name in whole if name != records[1].tar.file}
    assert write_column(tmp_path) == records
    assert verify(tmp_path) == []


def test_a_stray_file_beside_the_columns_is_found_and_cleared_and_is_no_column(tmp_path, column):
    for name in ("notes.txt", "manifest.json"):
        (tmp_path / "columns" / name).write_bytes(b"x")
    assert committed(tmp_path) == [SPEC.fingerprint]
    found = verify(tmp_path)
    assert [(each.what, each.file) for each in found] == [
        ("stray", "columns/manifest.json"),
        ("stray", "columns/notes.txt"),
    ]
    assert sorted(clean(tmp_path, found)) == [each.file for each in found]
    assert verify(tmp_path) == []


@pytest.mark.parametrize("kind", ["tar", "index"])
def test_a_damaged_shard_that_no_manifest_counts_any_more_is_cleared_as_a_whole(
    tmp_path, column, kind
):
    folder, records = column
    commit(tmp_path, SPEC, "a plan of fewer shards", records[:1])
    path = folder / file_of(records[1], kind)
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = verify(tmp_path)
    removed = clean(tmp_path, [problem])
    assert removed[0].endswith(records[1].file), "a record that is there means that its files are"
    assert {name.rsplit("/", 1)[1] for name in removed} == {
        file_of(records[1], each) for each in KINDS
    }
    assert verify(tmp_path) == []
    assert set(open_column(tmp_path, SPEC.fingerprint).rows) == set(SHARDS[0])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(4.0),
        np.float64(3.0),
        np.zeros((0, 2), np.uint8),
        np.arange(24, dtype="<i2").reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
)
def test_an_array_is_read_as_numpy_reads_it(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    found = array_of(memoryview(buffer.getvalue()))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_objects_are_no_array():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        array_of(memoryview(buffer.getvalue()))


def test_members_that_lie_far_apart_are_read_one_by_one(tmp_path, column, monkeypatch):
    near = open_column(tmp_path, SPEC.fingerprint).read("a0")
    monkeypatch.setattr(manifest, "APART", -1)
    apart = open_column(tmp_path, SPEC.fingerprint).read("a0")
    assert np.array_equal(near.values, apart.values)
    assert np.array_equal(near.times, apart.times)
