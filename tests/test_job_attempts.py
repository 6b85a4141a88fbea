"""Attempts that are asked to end, that outlive their head, or whose records are out of reach."""

import asyncio
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace

import pytest

from pipelines.commands import jobs as commands
from pipelines.executors import Need
from pipelines.experiment import InputError
from pipelines.jobs import entrypoint, records, sealing
from pipelines.jobs import watch as watches
from pipelines.jobs.needs import Node
from pipelines.jobs.prepare import Prepared
from pipelines.jobs.records import Record
from pipelines.jobs.server import JobInfo, JobServer, ServerError
from pipelines.jobs.submission import Origin, Submission, request
from pipelines.jobs.submit import retry, submit
from pipelines.jobs.tokens import Token
from pipelines.jobs.watch import all_jobs, stop, wait
from pipelines.stopping import listen

TOKEN = Token("a" * 64, "a test")
BEGUN = Record(name="x", host="h", began=1.0)
ENDED = replace(BEGUN, ended=2.0, exit_code=0)


class Server:
    """A job server in memory; each look at a job may change it."""

    token = TOKEN

    def __init__(self):
        self.found, self.text, self.sent, self.away = {}, "", "", 0
        self.there = [Node("n", {"CPU": 4.0, "memory": 8e9})]
        self.at_look = lambda: None

    def add(self, name, status="RUNNING", **metadata):
        self.found[name] = JobInfo(
            name=name, status=status, node="n", metadata={"nonce": "n", **metadata}
        )

    def jobs(self):
        return list(self.found.values())

    def info(self, name):
        self.at_look()
        if self.away:
            raise ServerError("does not answer")
        return self.found.get(name)

    def nodes(self):
        return self.there

    def may_grow(self):
        return False

    def has(self, name):
        return True

    def put(self, package):
        return False

    def submit(self, asked):
        self.add(asked["submission_id"], **asked["metadata"])
        return True

    def stop(self, name):
        return True

    def remember_stop(self, info):
        pass

    def follow(self, name):
        yield self.text[:6]

    def logs(self, name):
        return self.text

    def sealed(self, name):
        return self.sent


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(watches, "LOOK_S", 0.0)
    return Server()


def submission(place, **changes):
    settings = {
        "command": ("run", "experiment.yaml"),
        "wheel": "w",
        "folder": "f",
        "inputs": "",
        "need": Need(),
        "variables": {},
        "secrets": (),
        "record": str(place),
    }
    return Submission(**{**settings, **changes})


def prepared(place, **changes):
    return Prepared(submission=submission(place, **changes), packages=(), source=place)


def changed(server, name, status):
    server.found[name] = replace(server.found[name], status=status)


def test_what_is_too_long_is_refused_before_anything_is_sent(server, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(server, "put", sent.append)
    wanted = replace(prepared(tmp_path, variables={"A": "x" * 60_000}), packages=("folder.zip",))
    with pytest.raises(InputError, match="a job can be told"):
        submit(server, wanted, {})
    assert not sent
    submit(server, replace(wanted, submission=submission(tmp_path)), {})
    assert sent == ["folder.zip"]


# --- a head that was made anew


@pytest.mark.parametrize("answers", [True, False])
def test_waiting_ends_by_the_record_where_the_head_has_forgotten(server, tmp_path, answers):
    record = f"{tmp_path}/run-a-1.n"
    server.add("run-a-1", record=record)
    looks = []

    def forget():
        looks.append(1)
        if len(looks) == 3:
            server.found.clear()
            server.away = not answers
            records.write(record, ENDED)

    server.at_look = forget
    job = wait(server, "run-a-1", lambda text: None, lambda line: None)
    assert (job.settled.state, job.settled.exit_code) == ("succeeded", 0)


def test_a_job_of_the_same_number_on_a_new_head_is_not_ours(server, tmp_path):
    server.add("run-a-1", record=f"{tmp_path}/run-a-1.n")
    last = server.found["run-a-1"]
    server.add("run-a-1", record=f"{tmp_path}/run-a-1.m", nonce="m")
    assert watches.now(server, last).settled.state == "lost"


def test_attempts_are_counted_on_from_what_was_recorded(server, tmp_path):
    wanted = prepared(tmp_path)
    assert submit(server, wanted, {}).name.endswith("-1")
    server.found.clear()
    records.write(f"{tmp_path}/{wanted.submission.attempt(11)}.abc", BEGUN)
    records.write(f"{tmp_path}/{wanted.submission.attempt(2)}.abc", ENDED)
    records.write(f"{tmp_path}/{submission(tmp_path, folder='g').attempt(40)}.abc", ENDED)
    assert submit(server, wanted, {}).name == wanted.submission.attempt(12)
    assert records.attempts("/dev/null/none", "x") == records.attempts("", "x") == 0


# --- the end of a log


def test_what_came_after_the_connection_closed_is_written_once(server):
    server.text, written = "first\nlast words\n", []
    server.add("run-a-1")

    def follow(name):
        yield server.text[:6]
        changed(server, "run-a-1", "SUCCEEDED")

    server.follow = follow
    wait(server, "run-a-1", written.append, written.append)
    assert "".join(written) == server.text


def test_a_job_that_has_ended_is_not_followed(server):
    """The head would wait for the node of the log, which may be gone."""
    server.text, written = "all\n", []
    server.add("run-a-1", "FAILED")
    server.follow = None
    wait(server, "run-a-1", written.append, written.append)
    assert written == ["all\n"]


def test_a_node_that_is_gone_without_a_word_ends_the_waiting(server):
    """The head keeps its connection to such a node for ever, and says nothing."""
    server.add("run-a-1")

    def follow(name):
        yield "first\n"
        yield ""
        server.there = []
        yield ""
        raise AssertionError

    def logs(name):
        raise ServerError("has no log")

    server.follow, server.logs, written, said = follow, logs, [], []
    job = wait(server, "run-a-1", written.append, said.append)
    assert (job.settled.state, written) == ("lost", ["first\n"])
    assert said == ["the end of the log of run-a-1 cannot be had: has no log"]


def test_a_server_may_be_away_also_after_a_long_wait_for_a_node(server, monkeypatch):
    monkeypatch.setattr(watches, "LOST_S", 0.2)
    monkeypatch.setattr(watches.time, "sleep", lambda seconds: None)
    server.add("run-a-1", "PENDING")
    until, looks = time.monotonic() + 0.3, []

    def look():
        server.away = False
        if time.monotonic() > until:
            looks.append(1)
            server.away = len(looks) == 1
            changed(server, "run-a-1", "SUCCEEDED")

    server.at_look = look
    job = wait(server, "run-a-1", lambda text: None, lambda line: None)
    assert job.settled.state == "succeeded"


def test_ctrl_c_while_following_leaves_the_job_and_says_so(monkeypatch, capsys):
    server = JobServer("http://127.0.0.1:1", "a test", TOKEN)
    ended = []

    async def follow(name):
        try:
            yield "first\n"
            await asyncio.sleep(30)
        finally:
            ended.append(name)

    monkeypatch.setattr(server, "_follow", follow)

    def interrupted():
        for _ in server.follow("run-a-1"):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    with listen(), pytest.raises(KeyboardInterrupt), commands._goes_on("run-a-1"):
        interrupted()
    assert ended == ["run-a-1"]
    said = capsys.readouterr().err
    assert "run-a-1 goes on without" in said
    assert "`fuseline job stop run-a-1` ends it" in said


# --- an attempt that is to end


def test_nobody_attaches_to_an_attempt_that_is_to_end(server, tmp_path):
    wanted, said, looks = prepared(tmp_path), [], []
    first = submit(server, wanted, {}).name
    record = server.found[first].metadata["record"]
    records.write(record, BEGUN)
    assert submit(server, wanted, {}).attached
    records.write(record, replace(BEGUN, stopped=True))

    def end():
        looks.append(1)
        if len(looks) == 3:
            records.write(record, replace(ENDED, exit_code=143, stopped=True))
            changed(server, first, "STOPPED")

    server.at_look = end
    second = submit(server, wanted, {}, say=said.append)
    assert (second.name, second.attached) == (wanted.submission.attempt(2), False)
    assert said == [f"{first} was asked to end, and saves; the next attempt begins after it"]
    looks.clear()
    record = server.found[second.name].metadata["record"]
    records.write(record, replace(BEGUN, stopped=True))
    first = second.name
    assert retry(server, first).name == wanted.submission.attempt(3)


def test_stopping_bears_a_server_that_is_away_for_a_moment(server, monkeypatch):
    monkeypatch.setattr(watches.time, "sleep", lambda seconds: None)
    server.add("run-a-1")
    looks = []

    def come_back():
        looks.append(1)
        server.away = len(looks) < 3
        if len(looks) == 4:
            changed(server, "run-a-1", "STOPPED")

    server.at_look = come_back
    assert stop(server, "run-a-1", lambda line: None).settled.state == "stopped"


@pytest.fixture
def heard(monkeypatch):
    """The entrypoint's handlers of signals, by number."""
    found = {}
    monkeypatch.setattr(signal, "signal", found.__setitem__)
    return found


def test_a_stop_before_the_command_begins_is_an_end(tmp_path, heard, monkeypatch):
    kept = []

    def write(address, record):
        kept.append(record)
        heard[signal.SIGTERM](signal.SIGTERM, None)

    monkeypatch.setattr(entrypoint, "write", write)
    program = f"open({str(tmp_path / 'begun')!r}, 'w')"
    assert entrypoint.main("x", str(tmp_path), f"{tmp_path}/x", ["python", "-c", program]) == 143
    assert (kept[-1].exit_code, kept[-1].stopped) == (143, True)
    assert not (tmp_path / "begun").exists()


def test_a_stop_while_the_command_begins_reaches_it(tmp_path, heard, monkeypatch):
    begin = subprocess.Popen

    def begun(*words, **settings):
        child = begin(*words, **settings)
        heard[signal.SIGTERM](signal.SIGTERM, None)
        return child

    monkeypatch.setattr(subprocess, "Popen", begun)
    began = time.monotonic()
    program = "import time; time.sleep(20)"
    assert entrypoint.main("x", str(tmp_path), f"{tmp_path}/x", ["python", "-c", program]) == 143
    assert time.monotonic() - began < 10
    assert records.read(f"{tmp_path}/x").stopped


def test_the_wish_to_end_is_recorded_while_the_command_saves(tmp_path, heard):
    address = f"{tmp_path}/x"
    program = (
        f"import pathlib, time; place = pathlib.Path({str(tmp_path)!r})\n"
        "(place / 'begun').touch()\n"
        "while not (place / 'x.stopping.json').exists(): time.sleep(0.02)\n"
    )

    def stop_later():
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        heard[signal.SIGTERM](signal.SIGTERM, None)

    threading.Thread(target=stop_later).start()
    assert entrypoint.main("x", str(tmp_path), address, ["python", "-c", program]) == 0
    assert records.read(address).exit_code == 0


# --- storage that fails


class Broken:
    """A store whose library finds no credentials."""

    asked = 0

    def read(self, *asked):
        Broken.asked += 1
        raise RuntimeError("Unable to locate credentials")

    replace = sizes = read


def test_a_store_that_fails_is_asked_once_and_no_job_fails_of_it(
    server, tmp_path, heard, monkeypatch, capfd
):
    monkeypatch.setattr(records, "store_at", lambda folder: Broken())
    for number in range(5):
        server.add(f"run-a-{number}", record=f"s3://bucket/jobs/run-a-{number}.n")
    assert [job.settled.state for job in all_jobs(server)] == ["running"] * 5
    assert Broken.asked == 1
    assert records.attempts("s3://bucket/jobs", "run-a-") == 0
    assert entrypoint.main("x", str(tmp_path), "s3://bucket/x", ["python", "-c", ""]) == 0
    assert "is not recorded at s3://bucket/x: Unable to locate" in capfd.readouterr().err


# --- secrets of an earlier attempt


def test_an_attempt_never_begins_without_its_secrets(server, tmp_path):
    wanted = submission(tmp_path, secrets=("A",))
    server.submit(request(wanted, 1, Origin(source=str(tmp_path), commit=""), "n"))
    changed(server, wanted.attempt(1), "FAILED")
    for lacking in ("", sealing.seal({"A": "x"}, Token("b" * 64, "another"))):
        server.sent = lacking
        with pytest.raises(InputError, match=r"the secrets of run-\w+-1 \(A\) cannot be had"):
            retry(server, wanted.attempt(1))
    server.sent = sealing.seal({"A": "x"}, TOKEN)
    assert retry(server, wanted.attempt(1)).name == wanted.attempt(2)
