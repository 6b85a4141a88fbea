"""One contract for all executors: in process, and on Ray with one and two workers."""

import os
import signal
import time
from functools import partial

import pytest

from pipelines.executors import InProcess, OnRay, WorkerDiedError, executor, start_ray, stop_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class NoGoodError(Exception):
    """What a worker raises."""


def doubler():
    return lambda item: 2 * item


def picky():
    def work(item):
        if item == 3:
            raise NoGoodError("three is no good")
        return item

    return work


def process_of():
    return lambda item: (item, os.getpid())


def dies(folder, always):
    """A worker that kills its own process in the middle of item 2: once, or each time."""

    def work(item):
        with (folder / f"{item}").open("a") as tries:
            tries.write(".")
        if item == 2 and (always or len((folder / "2").read_text()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return 10 * item

    return work


def waits(folder):
    """A worker that says who it is, and works on item 2 until somebody kills it once."""

    def work(item):
        if item == 2:
            with (folder / "pids").open("a") as pids:
                pids.write(f"{os.getpid()}\n")
            while len((folder / "pids").read_text().split()) == 1:
                time.sleep(0.02)
        return 10 * item

    return work


@pytest.fixture(scope="module")
def cluster():
    start_ray(2)
    yield
    stop_ray()


@pytest.fixture(params=[InProcess(), OnRay(1), OnRay(2)], ids=["in process", "ray 1", "ray 2"])
def where(request, cluster):
    return request.param


def test_every_item_has_its_result_once(where):
    assert sorted(where.run(doubler, [5, 1, 4])) == [(0, 10), (1, 2), (2, 8)]
    assert sorted(where.run(doubler, list(range(20)))) == [(i, 2 * i) for i in range(20)]


def test_nothing_to_do_is_done(where):
    assert list(where.run(doubler, [])) == []


def test_an_exception_of_the_worker_arrives_as_itself(where):
    seen = []
    with pytest.raises(NoGoodError) as raised:
        seen.extend(number for number, _ in where.run(picky, [1, 2, 3, 4]))
    assert type(raised.value) is NoGoodError
    assert raised.value.args == ("three is no good",)
    assert set(seen) <= {0, 1, 3}
    assert sorted(where.run(doubler, [1])) == [(0, 2)]


def test_leaving_early_ends_the_run(where):
    running = where.run(doubler, list(range(100)))
    assert next(running)
    running.close()
    assert sorted(where.run(doubler, [1])) == [(0, 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_is_started_again_and_its_item_repeated(cluster, tmp_path, workers):
    results = OnRay(workers).run(partial(dies, tmp_path, always=False), [1, 2, 3, 4])
    assert sorted(results) == [(0, 10), (1, 20), (2, 30), (3, 40)]
    assert (tmp_path / "2").read_text() == ".."


@pytest.mark.soak
def test_a_worker_that_is_killed_from_outside_is_started_again(cluster, tmp_path):
    from threading import Thread

    def killer():
        pids = tmp_path / "pids"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (pids.exists() and pids.read_text()[-1:] == "\n"):
            time.sleep(0.02)
        os.kill(int(pids.read_text()), signal.SIGKILL)

    thread = Thread(target=killer)
    thread.start()
    results = sorted(OnRay(2).run(partial(waits, tmp_path), [1, 2, 3]))
    thread.join()
    assert results == [(0, 10), (1, 20), (2, 30)]
    first, second = (tmp_path / "pids").read_text().split()
    assert first != second


@pytest.mark.soak
def test_an_item_that_kills_every_worker_is_an_error_and_not_a_loop(cluster, tmp_path):
    with pytest.raises(WorkerDiedError, match="died 4 times"):
        list(OnRay(1).run(partial(dies, tmp_path, always=True), [2]))
    assert (tmp_path / "2").read_text() == "...."


def test_work_on_ray_is_done_in_as_many_processes_as_asked(cluster):
    pids = {pid for _, (_, pid) in OnRay(2).run(process_of, list(range(40)))}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_no_workers_means_in_this_process():
    assert isinstance(executor(0), InProcess)
    assert executor(2).workers == 2
