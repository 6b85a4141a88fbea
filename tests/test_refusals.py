"""What is slipped into a dataset is refused: names that lead elsewhere, names that are commands."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from featurizers import catalog
from featurizers.clip import Clip, Word
from featurizers.extract import Outcome
from featurizers.manifest import CorruptShardError, commit, open_column
from featurizers.shards import job_id, write_shard
from featurizers.spec import Feature
from featurizers.store import LocalStore
from training.stream import read

SPEC = catalog.build("hashed-words", dims=16).spec


@pytest.fixture
def column(tmp_path):
    """A column of one shard of one clip, and its record."""
    clip = Clip(
        key="a",
        id="a",
        media="a.mp4",
        media_digest="",
        start=0.0,
        end=None,
        seconds=1.0,
        words=(Word(text="so", start=0.0, end=1.0),),
    )
    feature = Feature(np.ones((1, 16), np.float32), np.array([[0.0, 1.0]]))
    outcomes = [Outcome(state="sample", feature=feature)]
    store = LocalStore(tmp_path)
    record = write_shard(store, 0, job_id(SPEC, [clip]), SPEC, clips=[clip], outcomes=outcomes)
    commit(tmp_path, SPEC, "plan", [record])
    return record


@pytest.mark.parametrize(
    "name", ["pipe:touch ran", "../../secret.tar", "/etc/passwd", "a b.tar", "https://x.y/a.tar"]
)
def test_a_manifest_that_names_a_command_or_another_folder_is_refused(column, tmp_path, name):
    """Also when all its digests fit, as whoever writes it can make them."""
    commit(tmp_path, SPEC, "plan", [replace(column, tar=replace(column.tar, file=name))])
    with pytest.raises(CorruptShardError, match="is no name of a shard's file"):
        open_column(tmp_path, SPEC.fingerprint)


@pytest.mark.parametrize("name", ["pipe:touch ran", "pipe:touch ran; cat"])
def test_the_streaming_loader_runs_no_command(column, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    standing = open_column(tmp_path, SPEC.fingerprint)
    forged = replace(column, tar=replace(column.tar, file=name))
    with pytest.raises((CorruptShardError, OSError)):
        list(read({"text": replace(standing, records=(forged,))}, 0, ["a"]))
    assert not list(tmp_path.rglob("ran"))


def test_a_member_of_a_tar_that_leads_elsewhere_is_written_nowhere(column, tmp_path):
    outside = tmp_path.parent / "escaped.npy"
    standing = open_column(tmp_path, SPEC.fingerprint)
    (whole,) = tmp_path.rglob("*.tar")
    (before,) = read({"text": standing}, 0, ["a"])
    with tarfile.open(whole) as tar:
        kept = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    with tarfile.open(whole, "w") as tar:
        for name in ("../escaped.npy", str(outside)):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        for member, content in kept:
            tar.addfile(member, io.BytesIO(content))
    there = {file for file in tmp_path.rglob("*") if file.is_file()}
    (after,) = read({"text": open_column(tmp_path, SPEC.fingerprint)}, 0, ["a"])
    assert after == before
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == there
    assert not outside.exists()
