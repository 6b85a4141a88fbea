"""MLflow's pages on the store at hand: its runs, for this machine alone, a clean end."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipelines import ui as pages
from pipelines.experiment import InputError
from tracking import mlflow_store
from tracking.mlflow_store import NoStoreError

HOME = Path(pages.__file__).parents[1]


def test_a_server_is_told_and_opened_without_its_password(monkeypatch, tmp_path):
    said, opened = [], []
    monkeypatch.setattr(pages.webbrowser, "open", opened.append)
    for browser in (True, False):
        pages.ui(
            "https://anna:secret@runs.example", tmp_path, port=0, browser=browser, say=said.append
        )
    assert said == ["MLflow is at https://runs.example"] * 2
    assert opened == ["https://runs.example"]


def test_without_a_store_or_a_free_port_nothing_is_started(tmp_path):
    with pytest.raises(NoStoreError, match="no tracking store"):
        pages.ui(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, port=0, browser=False, say=print)
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="give --port"):
            pages.ui(
                f"sqlite:///{tmp_path}/mlflow.db",
                tmp_path,
                port=taken.getsockname()[1],
                browser=False,
                say=print,
            )


def asked(address, host=None):
    request = urllib.request.Request(address, headers={"Host": host} if host else {})  # noqa: S310 - of this machine
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - of this machine
        return answer.read()


@pytest.mark.slow
def test_the_pages_show_the_runs_of_the_store_until_ctrl_c(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.initialise(uri, tmp_path / "mlartifacts")
    run = mlflow_store.start_run(uri, "toys", "shown", {})
    (tmp_path / "notes.txt").write_text("kept")
    run.log_file(tmp_path / "notes.txt")
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MLFLOW")}
    command = [sys.executable, "-m", "pipelines", "ui", "--port", "0", "--no-browser"]
    shown = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(HOME)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = shown.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, (line, shown.stderr.read())
        address = found[0]
        assert b"<html" in asked(address).lower()
        got = asked(f"{address}/api/2.0/mlflow/runs/get?run_id={run.run_id}")
        assert b'"shown"' in got
        kept = asked(f"{address}/get-artifact?path=notes.txt&run_uuid={run.run_id}")
        assert kept == b"kept"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            asked(f"{address}/api/2.0/mlflow/runs/get?run_id={run.run_id}", host="evil.example")
    finally:
        shown.send_signal(signal.SIGINT)
        said, failed = shown.communicate(timeout=60)
    assert (shown.returncode, said, failed) == (0, "ended\n", "")
    with pytest.raises(urllib.error.URLError):
        asked(f"{address}/health")
