"""Around the workers: names, and what becomes of runs that do not end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import devices, train
from pipelines.executors import start_ray, stop_ray
from pipelines.experiment import InputError
from pipelines.limits import PRESENT, Care, Limits
from pipelines.notice import Notice
from pipelines.plans import CHECKPOINTS, FINISHED, PROGRESS, Plan
from pipelines.ranks import RaySession, note
from pipelines.stopping import GO_ON
from pipelines.tracked import mlflow_run, settled
from pipelines.train import (
    Follow,
    TrainingFailedError,
    fit,
    group_name,
    last_words,
)
from pipelines.watch import _Watch, watched
from tests.test_stopping import Script
from tracking import mlflow_store
from tracking.run import MemoryRun
from training.recipe import ModelSettings, Recipe, Task
from training.session import Wish

# Trains with ranks that only wait; tells when they are there.
WAITING = """
import sys, time
from pathlib import Path
from pipelines import train
from pipelines.limits import Care
from pipelines.executors import stop_ray
from pipelines.stopping import stoppable

def rank(config):
    Path("FOLDER/begun").touch()
    while not Path(config["stop"]).exists():
        time.sleep(0.05)
    Path("FOLDER/saved").touch()

def work():
    train.fit(
        rank, {}, group=Path("FOLDER/group"), workers=1, care=Care(max_failures=0), say=print
    )
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


def test_a_group_is_named_by_its_runs_and_resumes_on_any_number_of_workers(tmp_path):
    runs = [plan(tmp_path), plan(tmp_path, "b", zero=3)]
    assert group_name(runs) == group_name(list(runs))
    assert group_name(runs) != group_name(runs[:1])


def test_what_ranks_say_is_passed_on_beside_the_epochs(tmp_path):
    one, told, said = plan(tmp_path), [], []
    note(one.folder, {"say": "of a run before"})
    with Follow([one], lambda *each: told.append(each), said.append):
        note(one.folder, {"name": "a", "epoch": 0, "metrics": {"x": 1.0}})
        note(one.folder, {"say": "a checkpoint is damaged"})
    assert (told, said) == ([("a", 0, {"x": 1.0})], ["a checkpoint is damaged"])


class Still:
    """A watch that saw no signal."""

    def __init__(self):
        self.signal = False

    def beat(self, *, stepping=True):
        pass

    def warned(self):
        return self.signal


def test_a_rank_ends_at_a_signal_or_when_the_driver_says_so(tmp_path):
    watch = Still()
    stop = tmp_path / "stop"
    notice = Notice(lambda: None)
    ties = {"keep": 3, "watch": watch, "stop": stop, "notice": notice, "save_s": 600}
    session, other = RaySession(tmp_path, 0, 2, **ties), RaySession(tmp_path, 1, 2, **ties)
    assert (session.folder, session.keep) == (tmp_path / CHECKPOINTS, 3)
    assert session.wish(1) == other.wish(1) == Wish.GO_ON
    stop.touch()
    # The file lies on a disk that is asked only now and then, and by one rank.
    until = time.monotonic() + 5
    while session.wish(2) == Wish.GO_ON and time.monotonic() < until:
        time.sleep(0.01)
    assert (session.wish(3), other.wish(3)) == (Wish.GO_ON, Wish.GO_ON)
    watch.signal = True
    assert other.wish(4) == Wish.END
    notice.end()


def test_ranks_save_at_once_before_a_machine_goes_and_again_now_and_then(tmp_path):
    clock, going, asked = Clock(), [None], threading.Semaphore(0)

    def ask():
        asked.release()
        return going[0]

    notice = Notice(ask, every_s=0.01, clock=clock)
    session = RaySession(
        tmp_path, 0, 2, keep=3, watch=Still(), stop=tmp_path / "stop", notice=notice, save_s=600
    )
    try:
        assert session.wish(1) == Wish.GO_ON
        going[0] = "the machine of rank 1"
        for _ in range(3):
            assert asked.acquire(timeout=10)
        until = time.monotonic() + 10
        while (wish := session.wish(2)) == Wish.GO_ON and time.monotonic() < until:
            time.sleep(0.01)
        assert (wish, session.wish(3)) == (Wish.SAVE, Wish.GO_ON)
        clock.now += 31
        assert (session.wish(4), session.wish(5)) == (Wish.SAVE, Wish.GO_ON)
    finally:
        notice.end()


def test_ranks_save_when_the_last_checkpoint_is_long_ago(tmp_path):
    clock, notice = Clock(), Notice(lambda: None)
    stop = tmp_path / "stop"
    ties = {"keep": 3, "watch": Still(), "stop": stop, "notice": notice, "save_s": 600}
    first, other = (RaySession(tmp_path, rank, 2, **ties, clock=clock) for rank in (0, 1))
    notice.end()
    clock.now += 599
    assert first.wish(1) == Wish.GO_ON
    clock.now += 1
    assert (first.wish(2), first.wish(3), other.wish(3)) == (Wish.SAVE, Wish.GO_ON, Wish.GO_ON)
    clock.now += 500
    first.hold()  # a checkpoint is written, as after an epoch
    clock.now += 599
    assert first.wish(4) == Wish.GO_ON
    clock.now += 1
    assert first.wish(5) == Wish.SAVE
    clock.now += 600
    stop.touch()
    assert first.wish(6) == Wish.END  # which saves, too


def test_sigterm_leaves_the_stacks_and_is_a_wish_and_no_death(tmp_path):
    """In a thread, as Ray Train runs it."""
    seen = []

    def rank():
        with watched(tmp_path, 1, hang_s=100, stall_s=100) as watch:
            seen.append(watch.warned())
            os.kill(os.getpid(), signal.SIGTERM)
            until = time.monotonic() + 5
            while not watch.warned() and time.monotonic() < until:
                time.sleep(0.01)
            seen.append(watch.warned())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=rank)
    thread.start()
    thread.join()
    assert seen == [False, True]
    [file] = (tmp_path / "stacks").iterdir()
    assert file.name.startswith("rank-1-sigterm-")
    assert "in rank" in file.read_text()
    assert signal.getsignal(signal.SIGTERM) is before


HANGING = """
import sys, time
from pathlib import Path
from pipelines import watch
watch.GRACE_S = 0.1
hang_s, stall_s, steps = map(float, sys.argv[2:])
with watch.watched(Path(sys.argv[1]), 0, hang_s, stall_s) as watching:
    if steps:
        watching.beat()
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("limits_s", "steps", "said"),
    [
        ((0.5, 500), 1, r"rank 0 has taken no step for \d+ s \(train\.hang_s\)"),
        (
            (0.1, 0.5),
            0,
            r"rank 0 has read, built or tested nothing for \d+ s \(train\.stall_minutes\)",
        ),
    ],
)
def test_a_rank_that_hangs_leaves_its_stacks_says_so_and_ends(tmp_path, limits_s, steps, said):
    """Also one that never gets to its first step."""
    command = [sys.executable, "-c", HANGING, str(tmp_path), *map(str, (*limits_s, steps))]
    assert subprocess.run(command, timeout=180, check=False).returncode == 1
    [file] = (tmp_path / "stacks").glob("rank-0-hang-*.txt")
    assert 'File "<string>", line 10' in file.read_text()
    entry = json.loads((tmp_path / PROGRESS).read_text())
    assert re.match(said, entry["say"])
    assert str(file) in entry["say"]


def test_reading_and_testing_may_take_longer_than_a_step(tmp_path, monkeypatch):
    given_up = threading.Event()
    monkeypatch.setattr(_Watch, "_give_up", lambda *_: given_up.set())
    with watched(tmp_path, 0, hang_s=0.05, stall_s=100) as watch:
        assert not given_up.wait(0.3)  # before the first step
        watch.beat()
        watch.beat(stepping=False)
        assert not given_up.wait(0.3)  # after the last
        watch.beat()
        assert given_up.wait(10)


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
    with pytest.raises(type(error)), settled(todo):
        raise error
    assert [run.status for run in runs] == ["FINISHED", status]  # of each what is true


def test_a_store_that_fails_too_does_not_hide_why_training_stopped(tmp_path):
    class Gone(MemoryRun):
        def finish(self, status="FINISHED"):
            raise mlflow_store.StoreError(f"nobody to tell {status}")

    with pytest.raises(KeyboardInterrupt), settled([(plan(tmp_path), Gone())]):
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
    one = plan(tmp_path)
    first = mlflow_run(one, uri, "toys")
    assert mlflow_run(one, uri, "toys") == first
    (one.folder / "run.json").unlink()
    assert mlflow_run(one, uri, "toys") == first
    with pytest.raises(InputError, match="to train it anew") as raised:
        mlflow_run(one, "http://elsewhere", "toys")
    assert str(one.folder) in str(raised.value)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def limits(folder, **care):
    clock, said = Clock(), []
    found = Limits(
        folder, "2 ranks", Care(**care), found=lambda: "1 CPU", say=said.append, clock=clock
    )
    return found, clock, said


def test_ranks_that_never_come_are_told_of_once_and_given_up(tmp_path):
    found, clock, said = limits(tmp_path, wait_minutes=2)
    clock.now += 29
    assert (found.over(), found.waiting, said) == ("", False, [])
    clock.now += 2
    assert (found.over(), found.over(), found.waiting) == ("", "", True)
    assert said == ["waiting for 2 ranks; the cluster has 1 CPU"]
    clock.now += 90
    over = found.over()
    assert "for 2 minutes (train.wait_minutes) no rank was at work" in over
    assert "wanted 2 ranks, the cluster has 1 CPU" in over


def test_ranks_at_work_are_never_waited_for(tmp_path):
    found, clock, said = limits(tmp_path, wait_minutes=2)
    for turn in range(10):
        clock.now += 25
        (tmp_path / PRESENT).touch()
        os.utime(tmp_path / PRESENT, ns=(turn, turn + 1))
        assert found.over() == ""
    assert said == []
    clock.now += 121
    assert "no rank was at work" in found.over()  # the sign of before counts no more


def test_ranks_that_were_told_to_end_may_save_for_as_long_as_a_step_may_take(tmp_path):
    found, clock, said = limits(tmp_path, hang_s=300)
    for turn in range(1, 13):
        (tmp_path / PRESENT).touch()
        os.utime(tmp_path / PRESENT, ns=(turn, turn))
        assert found.ending()
        clock.now += 25
    assert not found.ending()  # 300 s
    gone, clock, said = limits(tmp_path, hang_s=300)
    assert gone.ending()
    clock.now += 31
    assert not gone.ending()  # nobody is at it any more
    assert said == []


def test_training_has_a_deadline_where_one_is_set(tmp_path):
    found, clock, _ = limits(tmp_path, wait_minutes=1e9, deadline_minutes=5)
    clock.now += 299
    assert found.over() == ""
    clock.now += 2
    assert "ended after 5 minutes (train.deadline_minutes)" in found.over()


def test_at_the_deadline_the_ranks_are_told_to_end(tmp_path, monkeypatch):
    group, said = tmp_path / "group", []

    class Ranks:
        """Save and end when they are told to."""

        def fit(self):
            until = time.monotonic() + 20
            while not (group / "stop").exists() and time.monotonic() < until:
                time.sleep(0.01)
            (group / "saved").touch()

    monkeypatch.setattr(train, "start_ray", lambda cpus: None)
    monkeypatch.setattr(devices, "resources", dict)
    monkeypatch.setattr(train, "_trainer", lambda *each, **more: Ranks())
    soon = Care(max_failures=0, deadline_minutes=0.001)
    with pytest.raises(TrainingFailedError, match=r"train\.deadline_minutes"):
        fit(print, {}, group=group, workers=1, care=soon, say=said.append)
    assert (group / "saved").exists()
    assert said == ["stopping: the ranks finish their step and save"]


class Group:
    """Is lost in starting so often."""

    def __init__(self, losses):
        self.losses, self.started = losses, 0

    def fit(self):
        from ray.train.v2.api.exceptions import ControllerError

        self.started += 1
        if self.started <= self.losses:
            raise ControllerError(RuntimeError("The actor is dead"))


@pytest.mark.parametrize(("losses", "started"), [(2, 3), (3, 3)])
def test_a_group_that_is_lost_while_it_starts_is_started_again(
    tmp_path, monkeypatch, losses, started
):
    group, said = Group(losses), []
    monkeypatch.setattr(train, "start_ray", lambda cpus: None)
    monkeypatch.setattr(devices, "resources", dict)
    monkeypatch.setattr(train, "_trainer", lambda *each, **more: group)
    with nullcontext() if losses < started else pytest.raises(TrainingFailedError):
        fit(
            print,
            {},
            group=tmp_path / "group",
            workers=1,
            care=Care(max_failures=2),
            say=said.append,
        )
    assert group.started == started
    assert said == ["the ranks were lost, and are started again: The actor is dead"] * 2


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder of a group of one rank that was trained to its end, all that is looked at here."""
    folder = tmp_path_factory.mktemp("fitted")
    where = str(folder)
    (folder / "group").mkdir()
    (folder / "group" / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2')
    before = signal.getsignal(signal.SIGINT)
    try:
        fit(
            lambda config: tells_its_patience(Path(where)),
            {},
            group=folder / "group",
            workers=1,
            care=Care(max_failures=0),
            say=lambda sentence: None,
        )
        if signal.getsignal(signal.SIGINT) is before:
            (folder / "answered").touch()
    finally:
        stop_ray()
    return folder


def tells_its_patience(folder):
    import torch
    from torch.distributed import distributed_c10d

    group = distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    (folder / "patience").write_text(str(group.options._timeout))


@pytest.mark.ray
@pytest.mark.slow
def test_ranks_that_wait_for_each_other_give_up_after_ten_minutes(fitted):
    assert (fitted / "patience").read_text() == "0:10:00"


@pytest.mark.ray
@pytest.mark.slow
def test_after_training_ctrl_c_is_answered_as_before(fitted):
    assert (fitted / "answered").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_while_ranks_train_is_no_success(tmp_path):
    script = Script(WAITING, tmp_path)
    script.wait_for("begun")
    script.process.send_signal(signal.SIGINT)
    code, _, err = script.end()
    assert (code, err.splitlines()[-1]) == (130, GO_ON), err
    assert (tmp_path / "saved").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_what_ray_train_left_behind_is_not_in_the_way(fitted):
    """A file of its own, cut short, with which it would never start again under that name."""
    assert (fitted / "patience").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_group_that_finds_no_room_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "start_ray", lambda cpus: start_ray(1))
    waiting = Care(max_failures=0, wait_minutes=0.1)
    many = (os.cpu_count() or 1) + 1
    begun = time.monotonic()
    with pytest.raises(TrainingFailedError, match=f"wanted {many} rank.* with 1 CPU each"):
        fit(
            lambda config: None,
            {},
            group=tmp_path / "group",
            workers=many,
            care=waiting,
            say=lambda sentence: None,
        )
    assert time.monotonic() - begun < 90
    # Nothing is left that would train when room is found.
    assert not [thread for thread in threading.enumerate() if thread.name == "fuseline-train"]


def hears(folder):
    """Rank 0 is told, as Ray's own watcher tells it; rank 1 hears of it, and leaves before."""
    import ray.train
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2.api.preemption import PreemptionInfo

    rank = ray.train.get_context().get_world_rank()
    notice = Notice(ray.train.get_preemption_info, every_s=0.1)
    time.sleep(1)
    assert not notice.due()
    if rank == 0:
        info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [1]})
        get_train_context().preemption_context.preemption_info = info
    until = time.monotonic() + 30
    while not notice.due() and time.monotonic() < until:
        time.sleep(0.05)
    (folder / f"heard-{rank}").write_text(str(time.monotonic() < until))
    if rank == 0:  # it asks on, alone, and that keeps nobody from ending
        time.sleep(1)
    notice.end()


@pytest.mark.ray
@pytest.mark.soak
def test_ranks_hear_that_a_machine_goes_without_waiting_for_each_other(tmp_path):
    where = str(tmp_path)
    try:
        fit(
            lambda config: hears(Path(where)),
            {},
            group=tmp_path / "group",
            workers=2,
            care=Care(max_failures=0),
            say=lambda sentence: None,
        )
    finally:
        stop_ray()
    assert [(tmp_path / f"heard-{rank}").read_text() for rank in range(2)] == ["True", "True"]


def test_ranks_are_waited_for_after_ctrl_c(tmp_path):
    saved, care = [], Care()
    limits = Limits(tmp_path, "1 rank", care, found=str, say=saved.append)

    def trains():
        while not (tmp_path / train.STOP).exists():
            time.sleep(0.01)
        time.sleep(0.3)  # a step, and a checkpoint
        saved.append("saved")

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR2, signal.default_int_handler)
    threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGUSR2)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            train.until_ended(trains, tmp_path, limits, None, saved.append)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert saved == ["stopping: the ranks finish their step and save", "saved"]
