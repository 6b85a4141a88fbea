"""The entrypoint of a job in a process of its own: what signals do to it and to its command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import HOME
from pipelines.jobs import entrypoint, records

pytestmark = pytest.mark.slow

# Tells its process by a file, and how often it was asked to end; ends at the first time, later.
COMMAND = """
import os, pathlib, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
while not heard:
    time.sleep(0.02)
time.sleep(0.5)
sys.exit(143 if len(heard) == 1 else 99)
"""


@pytest.fixture
def started(tmp_path):
    """The entrypoint at work on that command, its process and the command's."""
    (tmp_path / "command.py").write_text(COMMAND)
    told = tmp_path / "process"
    words = [sys.executable, "-P", "-m", "pipelines.jobs.entrypoint", "x-1", str(tmp_path)]
    process = subprocess.Popen(
        [*words, f"{tmp_path}/x-1.n", "python", "command.py", str(told)],
        env={**os.environ, "PYTHONPATH": str(HOME)},
        start_new_session=True,
    )
    until(lambda: told.exists() and told.read_text())
    yield process, int(told.read_text())
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_stop_reaches_the_command_once_and_its_end_is_recorded(started, tmp_path):
    process, _ = started
    os.killpg(process.pid, signal.SIGTERM)  # Ray sends it to each process of the job
    assert process.wait(60) == 143
    kept = records.read(f"{tmp_path}/x-1.n")
    assert (kept.exit_code, kept.stopped) == (143, True)


def test_a_command_that_cannot_begin_has_an_end_as_well(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(entrypoint.signal, "signal", lambda number, handler: None)
    command = ["python", "-c", "x" * (1 << 18)]  # no system takes such a word
    assert entrypoint.main("x-1", str(tmp_path), f"{tmp_path}/x-1.n", command) == 126
    assert "the command does not begin: " in capfd.readouterr().err
    assert records.read(f"{tmp_path}/x-1.n").exit_code == 126


def test_a_command_ends_with_the_entrypoint_so_that_no_attempt_begins_beside_it(started, tmp_path):
    process, command = started
    process.kill()
    process.wait()
    until(lambda: not Path(f"/proc/{command}").exists())
    assert records.read(f"{tmp_path}/x-1.n").exit_code is None
