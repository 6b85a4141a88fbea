"""Around the workers: names, and what becomes of runs that do not end."""

from dataclasses import replace

import pytest

from pipelines.experiment import InputError
from pipelines.train import (
    FINISHED,
    Plan,
    TrainingFailedError,
    _mlflow_run,
    _settled,
    group_name,
    last_words,
)
from tracking import mlflow_store
from tracking.run import MemoryRun
from training.recipe import ModelSettings, Recipe, Task

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
