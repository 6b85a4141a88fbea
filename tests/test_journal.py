"""What is logged while the server is away arrives later, in order, once."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tracking import journal, mlflow_store
from tracking.journal import JournaledRun, deliver
from tracking.run import AwayError, MemoryRun


class Server(MemoryRun):
    """Is away when told to be."""

    def __init__(self):
        super().__init__()
        self.away, self.calls, self.tries = False, [], 0

    def _answer(self, call):
        self.tries += 1
        if self.away:
            raise AwayError("nobody listens")
        self.calls.append(call)

    def log_metrics(self, metrics, step, at_ms=None):
        self._answer(("metrics", step, dict(metrics), at_ms))

    def set_tags(self, tags):
        self._answer(("tags", dict(tags)))

    def log_file(self, path, folder=""):
        self._answer(("file", path.name, path.read_text(), folder))

    def finish(self, status="FINISHED"):
        self._answer(("finish", status))


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(journal, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(journal, "LONGEST_PAUSE_S", 0.05)


def test_with_a_server_at_hand_a_call_returns_when_it_is_there(tmp_path):
    server = Server()
    run = JournaledRun(server, tmp_path / "journal", attempt=2, patience_s=20)
    run.log_metrics({"loss": 0.5}, step=3, at_ms=7)
    assert server.calls == [("metrics", 3, {"loss": 0.5, "attempt": 2.0}, 7)]
    assert run.waiting == 0
    assert run.close() == 0


def test_an_outage_stops_nothing_and_loses_nothing(tmp_path):
    server = Server()
    run = JournaledRun(server, tmp_path / "journal", patience_s=20)
    server.away = True
    begun = time.monotonic()
    note = tmp_path / "note.txt"
    note.write_text("kept")
    for step in range(5):
        run.log_metrics({"loss": float(step)}, step)
        run.flush()
    run.log_file(note, "data")
    note.unlink()
    run.set_tags({"end": "yes"})
    assert time.monotonic() - begun < 10  # the patience of a single call is 20 s
    assert (server.calls, run.waiting) == ([], 7)
    server.away = False
    assert run.close(wait_s=20) == 0
    assert [call[1] for call in server.calls[:5]] == [0, 1, 2, 3, 4]
    assert server.calls[5:] == [("file", "note.txt", "kept", "data"), ("tags", {"end": "yes"})]


def test_tries_at_a_server_that_is_away_get_rarer(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LONGEST_PAUSE_S", 10.0)
    server = Server()
    server.away = True
    run = JournaledRun(server, tmp_path / "journal")
    run.set_tags({"a": "b"})
    time.sleep(0.5)
    run.close()
    assert 1 < server.tries <= 6  # after 0.02, 0.04, 0.08, 0.16 and 0.32 s


def test_what_a_dead_process_left_is_sent_by_the_next(tmp_path):
    server = Server()
    server.away = True
    first = JournaledRun(server, tmp_path / "journal", attempt=1)
    first.log_metrics({"loss": 1.0}, 0)
    first.log_metrics({"loss": 2.0}, 1)
    assert first.close() == 2
    server.away = False
    second = JournaledRun(server, tmp_path / "journal", attempt=2, patience_s=20)
    second.log_metrics({"loss": 2.5}, 1)
    second.close()
    sent = [(step, points["loss"], points["attempt"]) for _, step, points, _ in server.calls]
    assert sent == [(0, 1.0, 1.0), (1, 2.0, 1.0), (1, 2.5, 2.0)]


def test_a_refusal_is_raised_and_is_not_in_the_way(tmp_path):
    server = Server()
    run = JournaledRun(server, tmp_path / "journal", patience_s=20)
    run.log_settings({"a": 1})
    with pytest.raises(ValueError, match="it cannot become 2"):
        run.log_settings({"a": 2})
    run.set_tags({"after": "it"})
    assert (server.calls, run.close(wait_s=20)) == ([("tags", {"after": "it"})], 0)


def test_two_that_send_the_same_journal_send_each_entry_once(tmp_path):
    server = Server()
    server.away = True
    run = JournaledRun(server, tmp_path / "journal")
    for step in range(20):
        run.log_metrics({"loss": 1.0}, step)
    run.close()
    server.away = False
    senders = [
        threading.Thread(target=deliver, args=(server, tmp_path / "journal")) for _ in range(3)
    ]
    for each in senders:
        each.start()
    for each in senders:
        each.join()
    assert sorted(step for _, step, _, _ in server.calls) == list(range(20))


def test_points_that_are_sent_twice_are_there_once(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.initialise(uri, tmp_path / "mlartifacts")
    run = mlflow_store.start_run(uri, "toys", "once", {})
    for _ in range(2):
        run.log_metrics({"loss": 0.5}, step=1, at_ms=1000)
    found = mlflow_store.client_of(uri).get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in found] == [(1, 0.5)]
    run.finish("KILLED")
    run.go_on()
    assert mlflow_store.client_of(uri).get_run(run.run_id).info.status == "RUNNING"


def test_a_server_that_nobody_reaches_is_away_and_one_that_says_no_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nowhere = mlflow_store.MlflowRun(uri="http://127.0.0.1:9", run_id="r")
    with pytest.raises(AwayError):
        nowhere.log_metrics({"a": 1.0}, 0)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.initialise(uri, tmp_path / "mlartifacts")
    with pytest.raises(mlflow_store.StoreError) as raised:
        mlflow_store.MlflowRun(uri=uri, run_id="0" * 32).log_metrics({"a": 1.0}, 0)
    assert not isinstance(raised.value, AwayError)


class Answers(BaseHTTPRequestHandler):
    """A tracking server that answers 503 until it is back."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.back:
            self.server.got.append(body)
        self.send_response(200 if self.server.back else 503)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args):
        pass


def test_over_http_an_outage_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = HTTPServer(("127.0.0.1", 0), Answers)
    server.back, server.got = False, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    uri = f"http://127.0.0.1:{server.server_port}"
    there = mlflow_store.MlflowRun(uri=uri, run_id="r")
    run = JournaledRun(there, tmp_path / "journal", attempt=1)
    try:
        for epoch in range(3):
            run.log_metrics({"loss": float(epoch)}, epoch)
        assert run.waiting == 3
        server.back = True
        assert run.close(wait_s=30) == 0
    finally:
        server.shutdown()
        server.server_close()
    points = [{each["key"]: each for each in body["metrics"]} for body in server.got]
    assert [point["loss"]["step"] for point in points] == [0, 1, 2]
    # The times are those at which they were found, and tell the points of one attempt.
    assert all(point["loss"]["timestamp"] == point["attempt"]["timestamp"] for point in points)


def test_what_is_written_down_is_on_the_disk_with_its_names(tmp_path, monkeypatch):
    synced, kept = [], tmp_path / "table.json"
    kept.write_text("[]")

    def sync(handle):
        path = Path(f"/proc/self/fd/{handle}").resolve()
        names = sorted(each.name for each in path.iterdir()) if path.is_dir() else None
        synced.append((path, names))

    monkeypatch.setattr(journal.os, "fsync", sync)
    server = Server()
    server.away = True
    run = JournaledRun(server, tmp_path / "journal", patience_s=0.0)
    run.log_file(kept)
    run.close()
    folder, [entry] = tmp_path / "journal", list((tmp_path / "journal").glob("*.json"))
    assert tmp_path in dict(synced)
    copied = [path for path, _ in synced].index(folder / entry.stem / "table.json")
    assert (folder / entry.stem, ["table.json"]) in synced[copied:]
    assert entry.name in dict(synced[copied:])[folder]
