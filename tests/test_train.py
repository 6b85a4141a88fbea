"""Around the workers: names, and what becomes of runs that do not end."""

import signal
from dataclasses import replace

import pytest

from pipelines import train
from pipelines.executors import stop_ray
from pipelines.experiment import InputError
from pipelines.stopping import GO_ON
from pipelines.train import (
    FINISHED,
    Plan,
    TrainingFailedError,
    _mlflow_run,
    _settled,
    group_name,
    last_words,
)
from tests.test_stopping import Script
from tracking import mlflow_store
from tracking.run import MemoryRun
from training.recipe import ModelSettings, Recipe, Task

# Trains with ranks that only wait; tells when they are there.
WAITING = """
import sys, time
from pathlib import Path
from pipelines import train
from pipelines.executors import stop_ray
from pipelines.stopping import stoppable

def rank(config):
    Path("FOLDER/begun").touch()
    time.sleep(600)

def work():
    train._rank = rank
    train._fit([], Path("FOLDER/group"), uri="", workers=1, max_failures=0)
    return 0

sys.exit(stoppable(work, stop_ray))
"""

RECIPE = Recipe(
    name="late_fusion",
    model=ModelSettings(kind="late_fusion", streams=("text",), settings={"hidden": 8}),
    task=Task(kind="regression", label="score"),
)


def plan(root, name="late_fusion-0", **changes):
    folder = root / "training" / name
    folder.mkdir(parents=True, exist_ok=True)
    recipe = replace(RECIPE, **changes)
    return Plan(name=name, recipe=recipe, root=root, folder=folder, columns={})


def test_a_split_checkpoint_is_never_offered_to_another_number_of_workers(tmp_path):
    whole = [plan(tmp_path, zero=0), plan(tmp_path, "b", zero=0)]
    assert group_name(whole, 2) == group_name(whole, 4)
    split = [plan(tmp_path, zero=0), plan(tmp_path, "b", zero=1)]
    assert group_name(split, 2) != group_name(split, 4)
    assert group_name(split, 2) == group_name(list(split), 2)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (RuntimeError("no workers"), "KILLED"),
        (TrainingFailedError("three times"), "FAILED"),
    ],
)
def test_runs_that_did_not_end_are_settled_when_training_stops(tmp_path, error, status):
    runs = [MemoryRun(), MemoryRun()]
    todo = list(zip([plan(tmp_path, "a"), plan(tmp_path, "b")], runs, strict=True))
    (todo[0][0].folder / FINISHED).touch()
    with pytest.raises(type(error)), _settled(todo):
        raise error
    assert [run.status for run in runs] == ["RUNNING", status]


def test_a_store_that_fails_too_does_not_hide_why_training_stopped(tmp_path):
    class Gone(MemoryRun):
        def finish(self, status="FINISHED"):
            raise mlflow_store.StoreError(f"nobody to tell {status}")

    with pytest.raises(KeyboardInterrupt), _settled([(plan(tmp_path), Gone())]):
        raise KeyboardInterrupt


def test_what_ended_the_workers_is_one_line():
    class WorkersError(Exception):
        def __init__(self, failures):
            super().__init__("Training failed due to worker errors:\nTraceback\n ...")
            self.worker_failures = failures

    trace = ValueError('Traceback (most recent call last):\n  File "a.py"\nValueError: bad rank\n')
    assert last_words(WorkersError({1: trace, 0: ValueError("other")})) == "ValueError: bad rank"
    assert last_words(RuntimeError("controller:\nOSError: disk")) == "OSError: disk"
    assert last_words(RuntimeError()) == "RuntimeError"


def test_a_run_that_no_file_names_is_found_again(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.initialise(uri, tmp_path / "mlartifacts")
    one, group = plan(tmp_path), tmp_path / "training" / "ray" / "0123"
    first = _mlflow_run(one, uri, "toys", group)
    assert _mlflow_run(one, uri, "toys", group) == first
    (one.folder / "run.json").unlink()
    assert _mlflow_run(one, uri, "toys", group) == first
    with pytest.raises(InputError, match="to train it anew") as raised:
        _mlflow_run(one, "http://elsewhere", "toys", group)
    assert str(one.folder) in str(raised.value)
    assert str(group) in str(raised.value)


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    """Runs a function of a folder on a rank, as training does."""

    def run(rank):
        monkeypatch.setattr(train, "_rank", lambda config: rank(tmp_path))
        train._fit([], tmp_path / "group", uri="", workers=1, max_failures=0)
        return tmp_path

    yield run
    stop_ray()


def tells_its_patience(folder):
    import torch
    from torch.distributed import distributed_c10d

    group = distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    (folder / "patience").write_text(str(group.options._timeout))


@pytest.mark.ray
@pytest.mark.slow
def test_ranks_that_wait_for_each_other_give_up_after_ten_minutes(fitted):
    assert (fitted(tells_its_patience) / "patience").read_text() == "0:10:00"


@pytest.mark.ray
@pytest.mark.slow
def test_after_training_ctrl_c_is_answered_as_before(fitted):
    before = signal.getsignal(signal.SIGINT)
    fitted(lambda folder: None)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_while_ranks_train_is_no_success(tmp_path):
    script = Script(WAITING, tmp_path)
    script.wait_for("begun")
    script.process.send_signal(signal.SIGINT)
    code, _, err = script.end()
    assert (code, err.splitlines()[-1]) == (130, GO_ON)
