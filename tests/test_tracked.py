"""What the tracking server is told of runs, by whom, and after how many tries."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipelines import run as flow
from pipelines import tracked, trials
from pipelines.experiment import InputError
from pipelines.experiment import load as load_experiment
from pipelines.family import Family, at_work, keep, parent_of
from pipelines.limits import Care, TrainingFailedError
from pipelines.plans import FINISHED, Plan
from pipelines.ranks import gauges
from pipelines.ranks import tracked as tracked_run
from pipelines.resume import Resumed
from pipelines.resume import _keep as keep_resumed
from pipelines.show import Show
from pipelines.sweep import _kept
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
from tests.test_sweep import given
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


def family_of(root, uri, *, seeds=2):
    plans = [plan(root, f"seed-{seed}") for seed in range(seeds)]
    return plans, parent_of(plans, uri, "toys", "two runs")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    return load_experiment(given(folder), [])


@pytest.mark.parametrize(
    "ending",
    [(TrainingFailedError("three times"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_the_parent_of_runs_that_fail_or_are_stopped_is_settled(
    tmp_path, uri, experiment, monkeypatch, ending
):
    error, wanted = ending
    recipes = [replace(RECIPE, seed=seed) for seed in range(2)]
    plans, family = family_of(tmp_path, uri)
    seen = []

    def fails(*_, **__):
        seen.append(status(family.run))
        raise error

    made = iter(plans)
    monkeypatch.setattr(flow, "check_usable", lambda *_: None)
    monkeypatch.setattr(flow, "planned", lambda *_: next(made))
    monkeypatch.setattr(flow, "_family", lambda *_: family)
    monkeypatch.setattr(flow, "train", fails)
    family.run.finish("KILLED")  # of an earlier start
    with pytest.raises(type(error)):
        flow.train_all(experiment, recipes, {}, [], Show(quiet=True))
    assert (seen, status(family.run)) == (["RUNNING"], wanted)
    assert not (family.folder / DRIVER).exists()


def test_the_parent_of_a_killed_command_is_settled_by_the_next(tmp_path, uri):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    _, family = family_of(tmp_path, uri)
    (family.folder / DRIVER).write_text(driver_of(gone.pid))
    bury([plan(tmp_path, "another")], uri)
    assert status(family.run) == "KILLED"


def test_families_of_two_copies_of_a_dataset_have_parents_of_their_own(tmp_path, uri):
    plans, ours = family_of(tmp_path / "ours", uri)
    _, theirs = family_of(tmp_path / "theirs", uri)
    assert ours.run != theirs.run
    assert parent_of(plans, uri, "toys", "two runs") == ours


class Weather(MemoryRun):
    """A run whose server is away for some calls, and then comes back."""

    def __init__(self, away):
        super().__init__()
        self.away = away

    def finish(self, status="FINISHED"):
        self.away -= 1
        if self.away >= 0:
            raise AwayError("nobody listens")
        super().finish(status)


def test_a_server_that_is_away_when_a_family_ends_is_waited_for(tmp_path, monkeypatch):
    slept, said, run = [], [], Weather(away=2)
    monkeypatch.setattr(tracked.time, "sleep", slept.append)
    (tmp_path / DRIVER).touch()
    keep(Family(folder=tmp_path, run=run), [{"run": "a", "valid loss": 0.5}], said.append)
    assert (run.status, run.files, len(slept)) == ("FINISHED", ["runs.json"] * 3, 2)
    assert said == ["waiting for the tracking server: nobody listens"]
    assert not (tmp_path / DRIVER).exists()


def swept(plans, family, uri, say=print):
    return trials.sweep(
        [{"train.learning_rate": number} for number in range(len(plans))],
        plans,
        [],
        experiment=SimpleNamespace(name="toys"),
        uri=uri,
        metric="valid_loss",
        parent=family.run,
        care=Care(),
        told=lambda *_: None,
        say=say,
    )


def test_a_sweep_that_is_stopped_settles_its_trials_and_its_parent(tmp_path, uri, monkeypatch):
    plans, family = family_of(tmp_path, uri, seeds=3)
    (plans[0].folder / FINISHED).write_text('{"history": []}')

    def stopped(plans, runs, **_):
        assert [status(run) for run in [family.run, *runs]] == ["RUNNING"] * 4
        (plans[1].folder / FINISHED).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "_tuned", stopped)
    runs = [mlflow_run(each, uri, "toys") for each in plans]
    family.run.finish("FAILED")
    runs[2].finish("KILLED")  # a second sweep shows them as running
    with pytest.raises(KeyboardInterrupt), at_work(family):
        swept(plans, family, uri)
    assert [status(run) for run in runs] == ["FINISHED", "FINISHED", "KILLED"]
    assert status(family.run) == "KILLED"
    assert not list(tmp_path.glob(f"training/*/{DRIVER}"))


def test_a_server_that_is_away_when_a_sweep_ends_is_waited_for(tmp_path, uri, monkeypatch):
    slept, said, calls = [], [], []
    plans, family = family_of(tmp_path, uri)
    finish = mlflow_store.MlflowRun.finish

    def away_at_first(run, status="FINISHED"):
        calls.append(status)
        if len(calls) == 1:
            raise AwayError("nobody listens")
        finish(run, status)

    monkeypatch.setattr(trials, "_tuned", lambda *_, **__: ["it broke", ""])
    monkeypatch.setattr(mlflow_store.MlflowRun, "finish", away_at_first)
    monkeypatch.setattr(tracked.time, "sleep", slept.append)
    found = swept(plans, family, uri, said.append)
    assert [each.state for each in found] == ["failed", "stopped"]
    assert [status(mlflow_run(each, uri, "toys")) for each in plans] == ["FAILED", "KILLED"]
    assert (slept, said) == ([1.0], ["waiting for the tracking server: nobody listens"])


def test_what_a_sweep_came_to_waits_for_the_server_too(tmp_path, monkeypatch):
    run = Weather(away=1)
    monkeypatch.setattr(tracked.time, "sleep", lambda _: None)
    family = Family(folder=tmp_path, run=run)
    _kept(tmp_path, {"metric": "valid_loss", "trials": [], "best": []}, family, Show(quiet=True))
    assert (run.status, run.files) == ("FINISHED", ["sweep.json"] * 2)


def threads(name):
    return [each for each in threading.enumerate() if each.name == name and each.is_alive()]


def test_who_watches_a_node_leaves_no_thread_behind(tmp_path, uri):
    one = plan(tmp_path, "a")
    run = mlflow_run(one, uri, "toys")
    before = len(threads("fuseline-journal"))
    with gauges(one, uri, run.run_id):
        assert len(threads("fuseline-journal")) == before + 1
    until = time.monotonic() + 20
    while len(threads("fuseline-journal")) > before and time.monotonic() < until:
        time.sleep(0.01)
    assert len(threads("fuseline-journal")) == before
    assert any(name.startswith("system/") for name in metrics(run))


def metrics(run):
    return mlflow_store.client_of(run.uri).get_run(run.run_id).data.metrics


def test_a_check_of_resuming_leaves_a_run_to_the_command_that_trains_it(tmp_path, uri):
    one = plan(tmp_path, "a")
    run = mlflow_run(one, uri, "toys")
    digest = "0" * 64
    found = Resumed(run="a", steps=4, killed_at=2, ranks=1, undisturbed=digest, resumed=digest)
    (one.folder / DRIVER).write_text(driver_of(os.getpid()))
    keep_resumed(found, one, uri, "toys")
    assert status(run) == "RUNNING"
    (one.folder / DRIVER).unlink()
    keep_resumed(found, one, uri, "toys")
    assert status(run) == "KILLED"
