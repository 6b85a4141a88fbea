"""MLflow's own pages, on the store that the commands write to."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.experiment import FailedError, InputError
from tracking.mlflow_store import connect, public

HOST = "127.0.0.1"
START_S, STOP_S, POLL_S = 300.0, 10.0, 0.2
LAST_LINES = 3


def ui(uri: str, folder: Path, *, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Show MLflow's pages: those of the server where the store is one, else of one started here.

    It serves this machine alone, until it is interrupted; that is how it ends, and no failure.

    Args:
        uri: The tracking store.
        folder: Of the files of a store without a server.
        port: Where to listen; 0 for any that is free.
        browser: Whether to open a browser.
        say: Told the address.

    Raises:
        NoStoreError: The store does not exist yet.
        InputError: The port is taken.
        FailedError: The server does not start.
    """
    if uri.startswith(("http://", "https://")):
        say(f"MLflow is at {public(uri)}")
        if browser:
            webbrowser.open(public(uri))
        return
    connect(uri)
    port = _free(port)
    address = f"http://{HOST}:{port}"
    log = folder / "mlflow-ui.log"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as written:
        # In a session of its own: a terminal sends Ctrl-C to us alone, and we end it.
        server = subprocess.Popen(  # noqa: S603 - our own interpreter
            command(port),
            env={**os.environ, **settings(uri, folder, port)},
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(address, server, log)
        say(f"MLflow is at {address}; Ctrl-C ends it")
        if browser:
            webbrowser.open(address)
        _ended(server, log)
    except KeyboardInterrupt:
        say("ended")
    finally:
        _end(server)


def command(port: int) -> list[str]:
    """How the server is started."""
    listen = ["--host", HOST, "--port", str(port), "--workers", "1"]
    # Files are read by the pages where they lie; nobody sends any.
    return [sys.executable, "-m", "mlflow", "server", *listen, "--no-serve-artifacts"]


def settings(uri: str, folder: Path, port: int) -> Mapping[str, str]:
    """What the server is told besides; the address of a database may hold a password."""
    return {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(folder.resolve()),
        # Pages of other sites that a browser shows could else ask by a name of their own.
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{HOST}:{port},localhost:{port}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _free(port: int) -> int:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be had: {error.strerror}; give --port N, or --port 0 for a "
                "free one"
            ) from None
        return int(tried.getsockname()[1])


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{address}/health", timeout=5),  # noqa: S310 - of this machine
        ):
            return
        if server.poll() is not None:
            break
        time.sleep(POLL_S)
    raise FailedError(f"MLflow's server did not start: {_last(log)}")


def _ended(server: subprocess.Popen[bytes], log: Path) -> None:
    server.wait()
    raise FailedError(f"MLflow's server ended by itself: {_last(log)}")


def _last(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{public(' '.join(lines[-LAST_LINES:]) or 'it said nothing')} (all of it is in {log})"


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_S)
            return
