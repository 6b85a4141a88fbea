"""Workers that fill a machine take a core each, and give it back however they end."""

import fcntl
import os
import subprocess
import sys
import time

import pytest

from pipelines import cores
from pipelines.executors import OnRay

HERE = sorted(os.sched_getaffinity(0))
TAKER = """
import os, subprocess, sys
from pathlib import Path
from pipelines import cores
print(cores.take(Path(sys.argv[1])))
shown = "import os; print(sorted(os.sched_getaffinity(0)))"
print(subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True).stdout.strip())
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.fixture
def taker(tmp_path):
    """Starts a process that takes a core, and tells what it says of itself and of its child."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", TAKER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip(), process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_each_takes_another_core_until_all_are_taken(taker):
    found = [taker() for _ in HERE]
    assert [core for _, core, _ in found] == [str(core) for core in HERE]
    assert taker()[1:] == ("None", str(HERE))
    found[0][0].kill()
    found[0][0].wait()
    assert taker()[1] == str(HERE[0])


def test_what_a_worker_starts_runs_on_its_core(taker):
    _, core, of_child = taker()
    assert of_child == f"[{core}]"


@pytest.mark.skipif(len(HERE) < 2, reason="one core alone is never taken")
def test_only_workers_that_fill_a_machine_without_a_quota_take_cores(monkeypatch, tmp_path):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(cores, "QUOTA", quota)
    assert cores.filled_by(len(HERE))  # where there is no such file there is no quota
    quota.write_text("max 100000\n")
    assert cores.filled_by(len(HERE))
    assert not cores.filled_by(len(HERE) - 1)
    quota.write_text("150000 100000\n")
    assert not cores.filled_by(len(HERE))


def free(core):
    try:
        with (cores.place() / str(core)).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def where(_item):
    time.sleep(0.2)
    return os.getpid(), sorted(os.sched_getaffinity(0))


@pytest.mark.ray
@pytest.mark.skipif(len(HERE) < 2, reason="one core alone is never taken")
def test_workers_on_ray_that_fill_the_machine_are_bound_to_a_core_each(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    until = time.monotonic() + 10
    while not all(free(core) for core in HERE):  # those of the tests before end in a moment
        if time.monotonic() > until:
            pytest.skip("another run on this machine has taken cores")
        time.sleep(0.1)
    monkeypatch.setattr(cores, "QUOTA", cores.QUOTA / "is not there")
    answers = OnRay(len(HERE)).run(lambda: where, range(4 * len(HERE)))
    found = dict(answer.result for answer in answers)
    assert sorted(found.values()) == [[core] for core in HERE]
