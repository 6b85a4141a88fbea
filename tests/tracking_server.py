"""A tracking server as teams run it, for tests: PostgreSQL, artifacts on S3, and passwords."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

ADMIN, ADMIN_PASSWORD = "admin", "nobody-guesses-this-1"
FASTER = "pbkdf2:sha256:1000"  # of passwords, which the server holds against a hash in every call


@contextlib.contextmanager
def tracking_server(database, auth_database, bucket, folder, environment):
    """Yields the address; the log is FOLDER/server.log.

    Args:
        database: The address of an empty database.
        auth_database: The address of another one, for users.
        bucket: Where artifacts go, s3://...
        folder: For settings and the log.
        environment: What leads to the object store.
    """
    pytest.importorskip("flask_wtf", reason="mlflow's basic-auth app needs Flask-WTF")
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = {auth_database.replace('%', '%%')}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
                *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
                *("--backend-store-uri", database, "--artifacts-destination", bucket),
            ],
            env={
                **os.environ,
                **environment,
                "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
                "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
                "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-tests-alone",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{address}/health", server, folder / "server.log")
        yield address
    finally:
        os.killpg(server.pid, 15)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def _wait(address, server, log):
    until = time.monotonic() + 120
    while True:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(address, timeout=5),  # noqa: S310 - of this machine
        ):
            return
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)
