"""Hosts of namespaces are as machines of their own, and leave nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import namespaces

pytestmark = pytest.mark.skipif(bool(namespaces.refused()), reason=namespaces.refused() or "-")
HELD = """
import pathlib, sys, time
from tests import namespaces
with namespaces.network(pathlib.Path(sys.argv[1])) as net:
    print(net.host("lone").pid, net.switch, flush=True)
    time.sleep(600)
"""


def reached(address, port=9000):
    # By address: names are of the disk, and the disk of a thread inside stays what it was.
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=0.5):
        return True
    return False


def until(true):
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_hosts_reach_each_other_until_one_is_cut_off_or_killed(tmp_path):
    with namespaces.network(tmp_path) as net:
        one, two = net.host("one"), net.host("two", own=[namespaces.RAYS])
        server = two.popen([sys.executable, "-m", "http.server", "9000"], cwd=tmp_path)
        with one.inside():
            assert not reached("127.0.0.1")
            until(lambda: reached(two.address))
            two.cut()
            assert not reached(two.address)
            two.join()
            until(lambda: reached(two.address))
        listed = one.run(["ps", "ax"], capture_output=True, text=True).stdout
        assert ("http.server" in listed, "sleep infinity" in listed) == (False, True)
        found = one.run(["getent", "hosts", "two"], capture_output=True, text=True).stdout
        assert found.split() == [two.address, "two"]
        two.run(["touch", f"{namespaces.RAYS}/mine"])
        assert (tmp_path / "two/tmp-ray/mine").exists()
        assert not Path(namespaces.RAYS, "mine").exists()
        one.run(["sh", "-c", "sleep 0.01 & "])  # loses its parent, and is reaped
        until(lambda: one.run(["ps", "ax"], capture_output=True).stdout.count(b"sleep") == 1)
        two.kill()
        assert server.wait(5) in {-signal.SIGKILL, 128 + signal.SIGKILL}
        again = net.host("two", address=two.address)
        assert again.run(["ls", namespaces.RAYS], capture_output=True).stdout == b"mine\n"


def test_what_is_killed_leaves_no_host(tmp_path):
    home = Path(__file__).resolve().parent.parent
    maker = subprocess.Popen(
        [sys.executable, "-c", HELD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(home)},
        stdout=subprocess.PIPE,
    )
    pids = maker.stdout.readline().split()
    maker.kill()
    maker.wait()
    until(lambda: not any(Path(f"/proc/{pid.decode()}").exists() for pid in pids))
