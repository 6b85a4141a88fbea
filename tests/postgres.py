"""A PostgreSQL server of this machine, for tests: the system's own, started and stopped by them."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

PASSWORD = "keep-it:to/yourself"  # noqa: S105 - of a server that lives as long as a test
# Nothing has to survive a power cut.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=60")


@contextlib.contextmanager
def postgres():
    """Yields a function from the name of a new database to its address, password included."""
    program, user = _program(), _user()
    folder = Path(tempfile.mkdtemp(prefix="fuseline-postgres-", dir="/tmp"))
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    try:
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "password") if user else ():
            os.chown(path, user.pw_uid, user.pw_gid)
        _made(program, folder, identity)
        with _running(program, folder, identity) as port:
            yield lambda name: _database(port, name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _program() -> Path:
    """The folder of the server's programs."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    pytest.skip("no PostgreSQL on this machine: initdb and postgres are not found")


def _user():
    """Whom the server runs as: it refuses root. None where we are nobody special ourselves."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("PostgreSQL does not run as root, and there is no other user")


def _made(program, folder, identity):
    made = subprocess.run(
        [
            str(program / "initdb"),
            *("--pgdata", str(folder / "data")),
            *("--username", "fuseline", "--pwfile", str(folder / "password")),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        **identity,
    )
    assert made.returncode == 0, made.stderr


@contextlib.contextmanager
def _running(program, folder, identity):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [each for setting in FAST for each in ("-c", setting)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                str(program / "postgres"),
                *("-D", str(folder / "data"), "-k", str(folder), "-h", "127.0.0.1"),
                *("-p", str(port)),
                *settings,
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
            **identity,
        )
    try:
        _wait(port, server, folder / "log")
        yield port
    finally:
        server.send_signal(signal.SIGINT)  # does not wait for clients, as SIGTERM does
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(port, server, log):
    until = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), _connect(port):
            return
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


def _connect(port):
    psycopg = pytest.importorskip("psycopg")
    try:
        return psycopg.connect(
            host="127.0.0.1",
            port=port,
            user="fuseline",
            password=PASSWORD,
            dbname="postgres",
            autocommit=True,
        )
    except psycopg.OperationalError as error:
        raise OSError(str(error)) from error


def _database(port, name):
    from urllib.parse import quote

    with _connect(port) as server:
        server.execute(f"CREATE DATABASE {name}")
    return f"postgresql+psycopg://fuseline:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/{name}"
