"""A server that wants to be left alone for a while is: for so many seconds, or until a date."""

import http.server
import time
from email.utils import formatdate

import pytest

from featurizers import transient
from featurizers.store import StorageError
from featurizers.transient import LONGEST_PAUSE_S
from pipelines.fetch import BusyError, opened
from pipelines.staging import Stage
from tests.web_server import Silent, serving

CONTENT = b"media" * 100
BUSY = (429, 503)


@pytest.fixture
def waits(monkeypatch):
    """How long was waited; nobody really waits."""
    slept = []
    monkeypatch.setattr(transient.time, "sleep", slept.append)
    return slept


class Served:
    """A server's address, and what it answers before it serves: status and headers, in turn."""

    def __init__(self):
        self.address, self.refusals, self.asked, self.busy_for = "", [], [], ("HEAD", "GET")

    def refusal(self, method):
        self.asked.append(method)
        return self.refusals.pop(0) if self.refusals and method in self.busy_for else None


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Served()

    class Handler(Silent, http.server.BaseHTTPRequestHandler):
        def send_response(self, code, message=None):
            self.send_response_only(code, message)  # without a date of its own

        def do_HEAD(self):
            status, headers = found.refusal(self.command) or (200, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            content = CONTENT if status == 200 else b""
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            self.do_HEAD()

    with serving(Handler) as found.address:
        yield found


def stage(folder):
    return Stage(folder=folder / "cache", limit_bytes=10_000)


@pytest.mark.parametrize(("status", "methods"), [(429, ["GET"]), (503, ["HEAD", "GET"])])
def test_media_of_a_busy_server_are_waited_for_and_the_pause_is_told(
    served, tmp_path, waits, caplog, *, status, methods
):
    """Asked for its size it is asked twice, by HEAD and by GET: both are one try."""
    served.busy_for = methods
    served.refusals = [(status, {"Retry-After": "20"})] * len(methods)
    path = stage(tmp_path).local(f"{served.address}/a.mp4?token=secret")
    assert path.read_bytes() == CONTENT
    assert len(waits) == 1
    assert 20 < waits[0] < 21
    (line,) = caplog.messages
    assert line.startswith(f"waiting for 127.0.0.1: {status} ")
    assert line.endswith("it wants to be asked again in 20 s")
    assert "secret" not in line


@pytest.mark.parametrize("status", BUSY)
def test_a_server_that_stays_busy_is_no_missing_clip(served, tmp_path, waits, status):
    served.refusals = [(status, {"Retry-After": "3"})] * 100
    with pytest.raises(StorageError, match=rf"cannot be fetched: {status} .* again in 3 s") as told:
        stage(tmp_path).local(f"{served.address}/a.mp4?token=secret")
    assert "secret" not in str(told.value)
    assert told.value.transient
    assert len(waits) == transient.TRIES - 1
    served.busy_for, served.asked[:] = ["GET"], []
    with pytest.raises(StorageError, match=rf"could not be copied to .*: {status} "):
        stage(tmp_path).local(f"{served.address}/a.mp4")
    assert served.asked.count("GET") == transient.TRIES


def test_what_is_not_there_is_not_waited_for(served, tmp_path, waits):
    for status in (404, 410, 403):
        served.refusals = [(status, {"Retry-After": "20"})] * 2
        assert stage(tmp_path).local(f"{served.address}/a.mp4") is None
    served.refusals, served.busy_for = [(403, {})], ["GET"]
    with pytest.raises(StorageError, match=r"could not be copied to .*: 403 Forbidden"):
        stage(tmp_path).local(f"{served.address}/a.mp4")
    assert waits == []


def test_a_server_that_nobody_reaches_is_no_missing_clip(tmp_path, waits):
    with pytest.raises(StorageError, match="cannot be fetched: Cannot connect to host"):
        stage(tmp_path).local("http://127.0.0.1:9/a.mp4")
    assert len(waits) == transient.TRIES - 1


@pytest.mark.parametrize("status", BUSY)
def test_files_of_the_web_wait_too(served, waits, caplog, status):
    date = formatdate(time.time() + 40, usegmt=True)
    served.refusals = [(status, {"Retry-After": "7"}), (status, {"Retry-After": date})]
    with opened(f"{served.address}/a.zip") as answer:
        assert answer.read(1000) == CONTENT
    assert 7 < waits[0] < 8
    assert 37 < waits[1] < 42
    assert len(caplog.messages) == 2


def test_a_date_is_read_by_the_clock_of_whoever_gives_it(served, waits):
    """Ours may be an hour off."""
    hour = time.time() - 3600
    dates = {"Retry-After": formatdate(hour + 30, usegmt=True), "Date": formatdate(hour)}
    served.refusals = [(503, dates)]
    with opened(f"{served.address}/a.zip"):
        assert 30 <= waits[0] < 31


def test_a_pause_that_is_too_long_is_told_and_not_waited_for(served, tmp_path, waits):
    long_s = int(LONGEST_PAUSE_S) + 1
    served.refusals = [(429, {"Retry-After": str(long_s)})] * 3
    with pytest.raises(BusyError, match=r"429 Too Many .* again in 301 s\. Run .* in 6 minutes"):
        opened(f"{served.address}/a.zip").__enter__()
    assert len(served.asked) == 1
    with pytest.raises(StorageError, match="again in 301 s"):
        stage(tmp_path).local(f"{served.address}/a.mp4")
    assert waits == []


@pytest.mark.parametrize("said", ["", "soon", "-5", "Thu, 99 Nov 2026 00:00:00 GMT", "0"])
def test_what_says_nothing_is_waited_for_as_usual(served, waits, said):
    served.refusals = [(503, {"Retry-After": said} if said else {})]
    with opened(f"{served.address}/a.zip"):
        pass
    assert len(waits) == 1
    assert waits[0] < 1


def test_a_busy_server_is_not_asked_ever_again(served, waits):
    served.refusals = [(503, {})] * 100
    with pytest.raises(BusyError, match=r"503 .* Run the same command again later, or name"):
        opened(f"{served.address}/a.zip").__enter__()
    assert len(served.asked) == transient.TRIES
