"""What the tracking server is told of runs, by whom, and after how many tries."""

import json
import os
import subprocess
import sys

import pytest

from pipelines import tracked
from pipelines.experiment import InputError
from pipelines.plans import Plan
from pipelines.ranks import tracked as tracked_run
from pipelines.tracked import (
    ATTEMPTS,
    DRIVER,
    JOURNAL,
    RUN,
    WORD,
    bury,
    mlflow_run,
    settled,
    when_back,
)
from tests.test_train import RECIPE
from tracking import mlflow_store
from tracking.journal import JournaledRun
from tracking.run import AwayError, MemoryRun


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    address = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow_store.initialise(address, folder / "mlartifacts")
    return address


def plan(root, name):
    folder = root / "training" / name
    folder.mkdir(parents=True)
    return Plan(name=name, recipe=RECIPE, root=root, folder=folder, columns={})


def status(run):
    return mlflow_store.client_of(run.uri).get_run(run.run_id).info.status


def test_every_attempt_has_a_number_and_its_points_carry_it(tmp_path, uri):
    one = plan(tmp_path, "a")
    run = mlflow_run(one, uri, "toys")
    for loss, world in ((0.5, 4), (0.25, 2)):
        with tracked_run(one, uri, run.run_id, world) as told:
            told.log_metrics({"loss": loss}, step=4)
    client = mlflow_store.client_of(uri)
    found = client.get_run(run.run_id).data
    assert (found.tags["fuseline.attempts"], (one.folder / ATTEMPTS).stat().st_size) == ("2", 2)
    assert found.tags["fuseline.world"] == "2"
    assert (found.metrics["loss"], found.metrics["attempt"]) == (0.25, 2.0)  # the last one holds
    points = {name: client.get_metric_history(run.run_id, name) for name in ("loss", "attempt")}
    by_time = {each.timestamp: each.value for each in points["attempt"]}
    assert {by_time[each.timestamp]: each.value for each in points["loss"]} == {1: 0.5, 2: 0.25}


def test_a_run_belongs_to_its_folder_and_not_to_all_of_that_name(tmp_path, uri):
    ours, theirs = plan(tmp_path / "ours", "a-1"), plan(tmp_path / "theirs", "a-1")
    run = mlflow_run(ours, uri, "shared")
    assert mlflow_run(theirs, uri, "shared") != run
    (ours.folder / RUN).unlink()
    assert mlflow_run(ours, uri, "shared") == run


def test_the_word_of_a_folder_is_there_before_its_run_is(tmp_path, uri, monkeypatch):
    one, found = plan(tmp_path, "a"), []

    def killed(*_):
        found.append((one.folder / WORD).read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(tracked, "start_run", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            mlflow_run(one, uri, "toys")
    assert len(set(found)) == 1


def test_a_password_of_the_server_is_neither_kept_nor_told(tmp_path, monkeypatch):
    one = plan(tmp_path, "a")
    runs = []

    def made(uri, *_):
        runs.append(mlflow_store.MlflowRun(uri=uri, run_id="r1"))
        return runs[-1]

    monkeypatch.setattr(tracked, "find_run", lambda *_: None)
    monkeypatch.setattr(tracked, "start_run", made)
    run = mlflow_run(one, "http://ann:swordfish@host:5000", "toys")
    assert run.uri == "http://ann:swordfish@host:5000"
    for file in one.folder.iterdir():
        assert b"swordfish" not in file.read_bytes()
    with_another = "http://bob:trout@host:5000"
    assert mlflow_run(one, with_another, "toys") == mlflow_store.MlflowRun(
        uri=with_another, run_id="r1"
    )
    (one.folder / RUN).write_text('{"run_id": "r1", "uri": "http://ann:swordfish@host:5000"}')
    with pytest.raises(InputError, match="at http://host:5000, not at http://other") as raised:
        mlflow_run(one, "http://ann:trout@other", "toys")
    assert not any(word in str(raised.value) for word in ("swordfish", "trout", "ann"))


def test_who_settles_a_killed_run_takes_the_password_that_is_given_now(tmp_path, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    killed, settled_at = plan(tmp_path, "killed"), []
    (killed.folder / RUN).write_text('{"run_id": "r1", "uri": "http://host"}')
    (killed.folder / DRIVER).write_text(driver_of(gone.pid))
    monkeypatch.setattr(
        tracked.MlflowRun, "finish", lambda run, status: settled_at.append((run.uri, status))
    )
    bury([plan(tmp_path, "mine")], "http://ann:swordfish@host")
    assert settled_at == [("http://ann:swordfish@host", "KILLED")]


def test_a_rank_that_is_told_of_no_run_logs_in_memory(tmp_path):
    one = plan(tmp_path, "a")
    with tracked_run(one, "sqlite:///nowhere", "", 1) as told:
        assert isinstance(told, MemoryRun)
    assert not (one.folder / ATTEMPTS).exists()


def driver_of(pid, **changes):
    return json.dumps({**tracked._this_process(), "pid": pid, **changes})


def test_runs_of_a_killed_driver_are_settled_by_the_next_and_those_of_others_are_not(tmp_path, uri):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    names = ("mine", "killed", "elsewhere", "alive")
    mine, killed, elsewhere, alive = (plan(tmp_path, name) for name in names)
    runs = {each.name: mlflow_run(each, uri, "toys") for each in (mine, killed, elsewhere, alive)}
    for each in (mine, killed):
        (each.folder / DRIVER).write_text(driver_of(gone.pid))
    (elsewhere.folder / DRIVER).write_text(driver_of(gone.pid, host="another"))
    (alive.folder / DRIVER).write_text(driver_of(os.getpid()))
    left = JournaledRun(Away(), killed.folder / JOURNAL)
    left.log_metrics({"loss": 1.0}, 0)
    left.close()
    bury([mine], uri)
    assert {name: status(run) for name, run in runs.items()} == {
        "mine": "RUNNING",
        "killed": "KILLED",
        "elsewhere": "RUNNING",
        "alive": "RUNNING",
    }
    assert not (killed.folder / DRIVER).exists()
    client = mlflow_store.client_of(uri)
    assert client.get_run(runs["killed"].run_id).data.metrics["loss"] == 1.0


class Away(MemoryRun):
    """Nobody listens."""

    def log_metrics(self, metrics, step, at_ms=None):
        raise AwayError("nobody listens")


def test_who_trains_a_run_is_written_down_while_it_trains(tmp_path):
    one, run = plan(tmp_path, "a"), MemoryRun()
    seen = []

    def stopped():
        seen.append(json.loads((one.folder / DRIVER).read_text()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), settled([(one, run)]):
        stopped()
    assert seen == [tracked._this_process()]
    assert (run.status, (one.folder / DRIVER).exists()) == ("KILLED", False)


def test_a_server_that_comes_back_is_waited_for_and_one_that_does_not_is_told(monkeypatch):
    slept, said = [], []
    monkeypatch.setattr(tracked.time, "sleep", slept.append)

    def answers_at(third):
        if len(slept) < third:
            raise AwayError("nobody listens")

    when_back(lambda: answers_at(3), said.append)
    assert slept == [1, 2, 4]
    assert said == ["waiting for the tracking server: nobody listens"]
    monkeypatch.setattr(tracked, "BACK_S", 0.5)
    with pytest.raises(AwayError):
        when_back(lambda: answers_at(9), said.append)
