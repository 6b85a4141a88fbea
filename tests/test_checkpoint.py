"""A checkpoint is there whole or not at all: killed at any step of writing, and damaged later."""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from tests.test_loop import RECIPE, STEPS, StopsAt, make_dataset, same
from tracking.run import MemoryRun
from training import checkpoint
from training.data import load
from training.loop import fit
from training.session import LocalSession, PreemptedError

# Writes a checkpoint after each of two steps, once for each call that changes the disk, and dies
# at that call: what lies there then, the parent looks at.
DYING = """
import os, shutil, sys
from pathlib import Path
import safetensors.torch
import torch
from training import checkpoint

folder, calls = Path(sys.argv[1]), 0

def counted(real, last):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == last:
            os._exit(9)
        return real(*args, **kwargs)
    return call

def write(place, position):
    with checkpoint.draft(place, position) as unfinished:
        pieces = checkpoint.Pieces(unfinished)
        pieces.add("weight/a", torch.full((100,), float(position)))
        pieces.end()
        checkpoint.seal(unfinished, {"position": position})
    checkpoint.prune(place, 1, position)

for last in range(1, 1000):
    place = folder / f"{last:03d}"
    child = os.fork()
    if not child:
        write(place, 1)
        safetensors.torch.save_file = counted(safetensors.torch.save_file, last)
        checkpoint.shutil.rmtree = counted(shutil.rmtree, last)
        for name in ("mkdir", "rename", "write_bytes"):
            setattr(Path, name, counted(getattr(Path, name), last))
        checkpoint.os.fsync = counted(os.fsync, last)
        write(place, 2)
        write(place, 2)  # the same step again, as at the end of an epoch
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


def test_killed_at_any_step_of_writing_one_whole_checkpoint_is_there(tmp_path):
    subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=True, timeout=120)
    left = sorted(tmp_path.iterdir())
    assert len(left) > 8
    newest = []
    for place in left:
        found = checkpoint.standing(place)
        assert [checkpoint.problem_of(each) for each in found] == [""] * len(found)
        newest.append(checkpoint.read_marker(found[0])["about"]["position"])
        [(name, tensor)] = checkpoint.tensors(found[0])
        assert (name, tensor.unique().tolist()) == ("weight/a", [newest[-1]])
    assert newest == sorted(newest)
    assert set(newest) == {1, 2}
    # The next one clears away what lies about.
    for place in left:
        with checkpoint.draft(place, 3) as unfinished:
            checkpoint.seal(unfinished, {"position": 3})
        checkpoint.prune(place, 1, 3)
        assert [each.name for each in place.iterdir()] == ["step-000000003"]


def test_as_many_checkpoints_stay_as_are_kept(tmp_path):
    for position in range(1, 6):
        with checkpoint.draft(tmp_path, position) as unfinished:
            checkpoint.seal(unfinished, {})
        checkpoint.prune(tmp_path, 3, position)
    names = [each.name for each in checkpoint.standing(tmp_path)]
    assert names == ["step-000000005", "step-000000004", "step-000000003"]


def test_large_tensors_go_into_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 1000)
    wanted = {f"weight/{i}": torch.full((100,), float(i)) for i in range(7)}
    pieces = checkpoint.Pieces(tmp_path)
    for name, tensor in wanted.items():
        pieces.add(name, tensor)
    pieces.end()
    assert len(list(tmp_path.iterdir())) == 3
    found = dict(checkpoint.tensors(tmp_path))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    return load(root, make_dataset(root), RECIPE)


def test_what_lies_beyond_the_last_one_pushes_no_good_one_out(tmp_path):
    """The two newest are damaged, and the run began anew: what it writes must stay."""
    for position in (10, 30, 40):
        with checkpoint.draft(tmp_path, position) as unfinished:
            checkpoint.seal(unfinished, {})
    checkpoint.prune(tmp_path, 2, 10)
    assert [each.name for each in checkpoint.standing(tmp_path)] == ["step-000000010"]


def test_a_whole_checkpoint_is_not_replaced_and_a_damaged_one_is(tmp_path):
    for about in (1, 2):
        with checkpoint.draft(tmp_path, 5) as unfinished:
            checkpoint.seal(unfinished, {"is": about})
    (path,) = checkpoint.standing(tmp_path)
    assert checkpoint.read_marker(path)["about"] == {"is": 1}
    (path / checkpoint.MARKER).write_bytes(b"{}")
    with checkpoint.draft(tmp_path, 5) as unfinished:
        checkpoint.seal(unfinished, {"is": 3})
    assert checkpoint.read_marker(path)["about"] == {"is": 3}


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(data, tmp_path, caplog, damaged):
    """And with none left the run begins anew; the end is the same."""
    recipe = replace(RECIPE, epochs=3, checkpoint_every=1)
    whole = fit(recipe, data, LocalSession(tmp_path / "whole"), MemoryRun())
    cut = tmp_path / "cut"
    with pytest.raises(PreemptedError):
        fit(recipe, data, StopsAt(cut, 2 * STEPS + 3), MemoryRun())
    standing = checkpoint.standing(cut)
    assert [each.name[-2:] for each in standing] == ["15", "12"]
    for victim in standing[:damaged]:
        file = victim / "tensors-00000.safetensors"
        os.truncate(file, file.stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        same(fit(recipe, data, LocalSession(cut), MemoryRun()), whole)
    told = [each.getMessage() for each in caplog.records if "bytes" in each.getMessage()]
    assert len(told) == damaged
    assert str(standing[0] / "tensors-00000.safetensors") in told[0]


@pytest.fixture
def small(tmp_path):
    """A folder with little room."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=512k", "none", folder]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["/bin/umount", folder], check=True)


def test_a_run_on_a_disk_that_gets_full_is_told_and_with_room_goes_on(data, tmp_path, small):
    recipe = replace(RECIPE, epochs=4, checkpoint_every=1)
    whole = fit(recipe, data, LocalSession(tmp_path / "whole"), MemoryRun())
    filler, run = small / "filler", small / "run"

    def fill(epoch, metrics):
        if epoch == 2:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    said = rf"at step {3 * STEPS}: .*the last good one is .*step-0000000{2 * STEPS}.*make room"
    with pytest.raises(checkpoint.CheckpointError, match=said):
        fit(recipe, data, LocalSession(run), MemoryRun(), fill)
    found = checkpoint.standing(run)
    assert [each.name[-2:] for each in found] == ["12", "06"]
    assert [checkpoint.problem_of(each) for each in found] == ["", ""]
    filler.unlink()
    same(fit(recipe, data, LocalSession(run), MemoryRun()), whole)
