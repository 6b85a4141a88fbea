"""How a job ended: by what its node wrote, by Ray's word, and what the entrypoint writes."""

import json
from dataclasses import replace

import pytest

from pipelines.jobs import entrypoint, records
from pipelines.jobs.records import Record, settle
from pipelines.jobs.server import JobInfo


def info(status, **changes):
    return JobInfo(**{"name": "run-abc-1", "status": status, "node": "n", **changes})


ENDED = Record(name="run-abc-1", host="h", began=1.0, ended=2.0, exit_code=0)
BEGUN = Record(name="run-abc-1", host="h", began=1.0)
FAILED = Record(name="run-abc-1", host="h", began=1.0, ended=2.0, exit_code=3)
STOPPED = Record(name="run-abc-1", host="h", began=1.0, ended=2.0, exit_code=143, stopped=True)


@pytest.mark.parametrize(
    ("ray", "record", "state", "code"),
    [
        (info("PENDING"), None, "waiting", None),
        (info("RUNNING"), None, "running", None),
        (info("RUNNING"), BEGUN, "running", None),
        (info("RUNNING", node="gone"), BEGUN, "lost", None),
        (info("RUNNING", node="gone"), ENDED, "succeeded", 0),
        (info("SUCCEEDED", exit_code=0), None, "succeeded", 0),
        (info("SUCCEEDED", exit_code=0), ENDED, "succeeded", 0),
        (info("SUCCEEDED", exit_code=0), FAILED, "failed", 3),
        (info("FAILED", message="supervisor died"), ENDED, "succeeded", 0),
        (info("FAILED", message="supervisor died"), BEGUN, "failed", 1),
        (info("FAILED", exit_code=3), FAILED, "failed", 3),
        (info("FAILED", exit_code=137), BEGUN, "failed", 137),
        (info("STOPPED"), STOPPED, "stopped", 143),
        (info("STOPPED"), ENDED, "succeeded", 0),
        (info("STOPPED"), None, "stopped", 143),
        (info("STOPPED"), BEGUN, "failed", None),
        (info("STOPPED"), replace(BEGUN, stopped=True), "failed", None),
        (info("STOPPED"), replace(STOPPED, exit_code=1), "failed", 1),
        (info("RUNNING"), replace(BEGUN, stopped=True), "stopping", None),
        (info("RUNNING", node="gone"), replace(BEGUN, stopped=True), "lost", None),
        (info("RUNNING", to_end=True), BEGUN, "stopping", None),
        (info("PENDING", to_end=True), None, "stopping", None),
        (None, ENDED, "succeeded", 0),
        (None, STOPPED, "stopped", 143),
        (None, BEGUN, "lost", None),
    ],
)
def test_what_the_node_wrote_comes_before_what_ray_says(ray, record, state, code):
    settled = settle(ray, record, frozenset({"n"}))
    assert (settled.state, settled.exit_code) == (state, code)


def test_whether_a_stopped_job_has_saved_is_told():
    killed = settle(info("STOPPED"), replace(BEGUN, stopped=True), frozenset())
    assert "may have been killed before it saved" in killed.why
    assert settle(info("STOPPED"), STOPPED, frozenset()).why == ""


def test_an_end_that_a_network_disk_does_not_show_yet_is_waited_for():
    ray, record = info("STOPPED", ended_ms=10_000), replace(BEGUN, stopped=True)
    soon, late = (settle(ray, record, frozenset(), at_s=10 + s) for s in (59, 61))
    assert (soon.state, soon.live) == ("stopping", True)
    assert (late.state, late.live) == ("failed", False)
    assert settle(ray, STOPPED, frozenset(), at_s=11).state == "stopped"


def test_an_end_of_a_later_version_is_read():
    assert Record.from_json({**ENDED.to_json(), "format": 2, "cores": 4}) == ENDED


def test_an_end_is_read_where_there_is_one_else_the_beginning(tmp_path):
    address = f"{tmp_path}/jobs/run-abc-1.n"
    assert records.read(address) is None
    assert records.read("") is None
    records.write(address, BEGUN)
    assert records.read(address) == BEGUN
    records.write(address, ENDED)
    assert records.read(address) == ENDED


def test_how_a_job_of_a_cluster_that_is_gone_ended_is_told_by_its_records(tmp_path, called):
    records.write(f"{tmp_path}/run-abc-1.n", BEGUN)
    records.write(f"{tmp_path}/run-abc-2.m", replace(FAILED, name="run-abc-2", began=5.0))
    code, out, _ = called("job", "status", "run-abc", "--records", tmp_path)
    assert (code, out) == (0, "run-abc-2: failed, exit code 3\n")
    code, out, _ = called("job", "status", "run-abc-1", "--records", tmp_path, "--json")
    assert (code, json.loads(out)["state"]) == (0, "begun")  # it may well be at work
    records.write(f"{tmp_path}/run-abc-12.n", replace(ENDED, name="run-abc-12", began=0.5))
    code, out, _ = called("job", "status", "run-abc", "--records", tmp_path)
    assert (code, out) == (0, "run-abc-12: succeeded, exit code 0\n")  # its node's clock is late
    assert called("job", "status", "run-abc-1", "--records", tmp_path)[1].startswith("run-abc-1:")
    records.write(f"{tmp_path}/run-abd-1.n", BEGUN)
    code, _, err = called("job", "status", "run-ab", "--records", tmp_path)
    assert (code, "run-ab begins run-abc, run-abd" in err) == (2, True)
    code, _, err = called("job", "status", "run-xyz", "--records", tmp_path)
    assert code == 2
    assert "nothing is recorded there of a job run-xyz" in err


@pytest.mark.parametrize(
    ("program", "code"),
    [("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("", 0)],
)
def test_the_entrypoint_ends_as_its_command_does_and_writes_it_down(
    tmp_path, program, code, monkeypatch
):
    monkeypatch.setattr(entrypoint.signal, "signal", lambda number, handler: None)
    assert (
        entrypoint.main("x-1", str(tmp_path), f"{tmp_path}/x-1.n", ["python", "-c", program])
        == code
    )
    kept = records.read(f"{tmp_path}/x-1.n")
    assert (kept.exit_code, kept.stopped, kept.name) == (code, False, "x-1")


def test_bytes_that_are_no_text_do_not_hide_the_log(tmp_path, capfdbinary, monkeypatch):
    monkeypatch.setattr(entrypoint.signal, "signal", lambda number, handler: None)
    program = (
        "import os, time; os.write(1, b'caf\\xe9 f\\xc3'); time.sleep(0.3)\n"
        "os.write(2, b'\\xbc\\xc3')"  # a letter in two pieces, half a letter at the end
    )
    assert entrypoint.main("x-1", str(tmp_path), "-", ["python", "-c", program]) == 0
    assert capfdbinary.readouterr().out == "caf\\xe9 fü\\xc3".encode()


def test_a_full_disk_under_the_log_ends_no_job(tmp_path, monkeypatch):
    monkeypatch.setattr(entrypoint.signal, "signal", lambda number, handler: None)
    program = "import sys\nfor _ in range(9999): print('x' * 99)\nsys.exit(5)"
    with open("/dev/full", "w") as full:  # noqa: PTH123 - which always is
        monkeypatch.setattr(entrypoint.sys, "stdout", full)
        ended = entrypoint.main("x", str(tmp_path), f"{tmp_path}/x", ["python", "-c", program])
    assert (ended, records.read(f"{tmp_path}/x").exit_code) == (5, 5)


def test_a_storage_that_fails_is_told_and_the_command_done(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(entrypoint.signal, "signal", lambda number, handler: None)
    (tmp_path / "file").touch()
    assert (
        entrypoint.main(
            "x-1", str(tmp_path), f"{tmp_path}/file/x-1.n", ["python", "-c", "print(1)"]
        )
        == 0
    )
    assert "is not recorded at" in capfd.readouterr().err


def test_a_program_finds_what_lies_beside_it_behind_our_own(tmp_path):
    path = entrypoint.path_of(["python", "deep/x.py"], "/ours", tmp_path)
    assert path == f"/ours:{tmp_path}/deep:{tmp_path}"
    assert entrypoint.path_of(["run", "x.yaml"], "/ours", tmp_path) == "/ours"


def test_a_node_that_does_not_reach_the_folder_says_so(capfd, monkeypatch):
    monkeypatch.setattr(entrypoint.signal, "signal", lambda number, handler: None)
    assert entrypoint.main("x-1", "/not/there", "-", ["python", "-c", ""]) == 2
    assert "/not/there is not on" in capfd.readouterr().err
