"""A run's folder belongs to the newest start of a command, and of it to the newest rank 0."""

from dataclasses import replace

import pytest

from pipelines.claim import claim, taken_over
from tests.test_loop import RECIPE, make_dataset, same
from tracking.run import MemoryRun
from training import checkpoint
from training.checkpoint import CheckpointError
from training.data import load
from training.loop import fit
from training.session import LocalSession, SupersededError, Wish


def test_a_later_start_takes_over_and_the_earlier_cannot_take_it_back(tmp_path):
    first = taken_over(tmp_path)
    hold = claim(tmp_path, first)
    hold()
    second = taken_over(tmp_path)
    with pytest.raises(SupersededError, match="another start of the command trains this run now"):
        hold()
    with pytest.raises(SupersededError):
        claim(tmp_path, first)
    claim(tmp_path, second)()


def test_of_one_start_the_newest_rank_0_writes(tmp_path):
    start = taken_over(tmp_path)
    lost = claim(tmp_path, start)
    again = claim(tmp_path, start)
    again()
    with pytest.raises(SupersededError):
        lost()


def test_a_folder_that_nobody_took_over_is_anybodys(tmp_path):
    claim(tmp_path, "")()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    return load(root, make_dataset(root), RECIPE)


class LeftBehind(LocalSession):
    """Loses its run after some steps to somebody who has begun to write a checkpoint."""

    def __init__(self, folder, step):
        super().__init__(folder / "checkpoints", hold=claim(folder, taken_over(folder)))
        self._run, self._step = folder, step

    def wish(self, position):
        if position == self._step:
            taken_over(self._run)
            (self.folder / f"{checkpoint.UNFINISHED}-other").mkdir()
        return Wish.GO_ON


def test_who_lost_a_run_ends_and_leaves_what_others_write_alone(data, tmp_path):
    recipe = replace(RECIPE, checkpoint_every=1)
    whole = fit(recipe, data, LocalSession(tmp_path / "whole"), MemoryRun())
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(CheckpointError, match=f"{run}: another start of the command"):
        fit(recipe, data, LeftBehind(run, 8), MemoryRun())
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == [f"{checkpoint.UNFINISHED}-other", "step-000000006"]
    same(fit(recipe, data, LocalSession(run / "checkpoints"), MemoryRun()), whole)


def test_a_run_that_is_lost_while_a_checkpoint_is_written_gives_it_no_name(tmp_path):
    hold = claim(tmp_path, taken_over(tmp_path))

    def write():
        with checkpoint.draft(tmp_path, 1, hold) as unfinished:
            checkpoint.seal(unfinished, {})
            taken_over(tmp_path)

    with pytest.raises(SupersededError):
        write()
    assert checkpoint.standing(tmp_path) == []
