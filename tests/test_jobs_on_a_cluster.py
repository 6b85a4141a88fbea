"""Commands as jobs of a real head with token authentication; the long table is in the soak."""

import json
import os
import signal
import textwrap
import time
from threading import Barrier, Thread

import pytest

from pipelines.jobs.prepare import Wish, prepare
from pipelines.jobs.server import JobServer
from pipelines.jobs.submit import submit
from pipelines.jobs.tokens import Token
from pipelines.jobs.watch import how, stop
from tests.job_cluster import head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMANDS = ("run", "train")
HIDDEN = "a value that nobody is to see"

TELLS = """
import os, sys, training
print("ours is", training.__name__, "training" in os.listdir("."), hasattr(training, "WRONG"))
print("given", os.environ["GIVEN"], len(os.environ["HIDDEN"]), os.environ["HIDDEN"])
sys.exit(7)
"""
WAITS = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
# Its supervisor sees nothing any more; what becomes of the job is written down by the node alone.
BLINDS = """
import os, pathlib, psutil, signal, sys
supervisor = psutil.Process().parent().parent()
os.kill(supervisor.pid, signal.SIGSTOP)
pathlib.Path(sys.argv[1]).write_text(str(supervisor.pid))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with head(tmp_path_factory.mktemp("jobs"), cpus=2) as started:
        yield started


@pytest.fixture
def server(cluster):
    return JobServer(cluster.url, "a test", Token(cluster.token, "a test"))


@pytest.fixture
def told(cluster, monkeypatch):
    """The command line's environment."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.url)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token_file))


@pytest.fixture
def hidden(told, monkeypatch):
    monkeypatch.setenv("HIDDEN", HIDDEN)


@pytest.fixture
def folder(tmp_path):
    """A working directory in which somebody has a training/ of their own."""
    here = tmp_path / "work"
    (here / "training").mkdir(parents=True)
    (here / "training" / "__init__.py").write_text("WRONG = True\n")
    for name, program in (("tells", TELLS), ("waits", WAITS), ("blinds", BLINDS)):
        (here / f"{name}.py").write_text(textwrap.dedent(program))
    return here


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_job_has_our_code_its_folder_its_variables_and_its_exit_code(
    cluster, server, folder, called, hidden
):
    records = folder.parent / "records"
    given = ("--env", "GIVEN=plain", "--secret", "HIDDEN", "--records", records)
    options = ("--wait", "--working-dir", folder, *given)
    code, out, err = called("job", "submit", *options, "--", "python", "tells.py")
    assert code == 7, (out, err)
    assert "ours is training True False" in out
    assert f"given plain {len(HIDDEN)} ***" in out
    (name,) = [line.split()[0] for line in err.splitlines() if "is submitted" in line]

    _, shown, _ = called("job", "list", "--json")
    (job,) = [each for each in json.loads(shown) if each["id"] == name]
    assert (job["state"], job["exit_code"], job["secrets"]) == ("failed", 7, ["HIDDEN"])
    assert job["variables"] == {"GIVEN": "plain"}
    (end,) = records.glob("*.ended.json")
    logs = [path for path in cluster.folder.rglob("*") if path.suffix in {".log", ".out", ".err"}]
    assert len(logs) > 5
    for text in (shown, out, err, end.read_text(), *(path.read_text() for path in logs)):
        assert HIDDEN not in text
    raw = json.dumps(server._json("GET", f"/api/jobs/{name}"))
    assert "FUSELINE_SEALED" in raw
    assert HIDDEN not in raw


def test_two_clients_at_once_get_one_job_which_is_stopped_and_tried_again(
    server, folder, tmp_path, told, called
):
    begun = tmp_path / "begun"
    wish = Wish(command=("python", "waits.py", str(begun)), working_dir=folder)
    got, ready = [], Barrier(2)

    def client():
        prepared = prepare(wish, COMMANDS)
        ready.wait()
        got.append(submit(server, prepared, {}))

    threads = [Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.attached for each in got) == [False, True]
    (name,) = {each.name for each in got}
    assert name.endswith("-1")
    until(begun.exists)

    code, out, _ = called("job", "status", name, "--json")
    assert (code, json.loads(out)["state"]) == (0, "running")
    code, _, err = called("job", "retry", name)
    assert code == 2
    assert "is running" in err
    ended = stop(server, name, print)
    assert (ended.settled.state, ended.settled.exit_code) == ("stopped", 143)

    begun.unlink()
    code, out, _ = called("job", "retry", name.rpartition("-")[0])
    assert (code, out.strip()) == (0, name.removesuffix("1") + "2")
    until(begun.exists)
    assert submit(server, prepare(wish, COMMANDS), {}).name == out.strip()
    stop(server, out.strip(), print)


def test_the_end_that_the_node_wrote_settles_what_ray_gets_wrong(server, folder, tmp_path):
    blinded = tmp_path / "supervisor"
    wish = Wish(
        command=("python", "blinds.py", str(blinded)),
        working_dir=folder,
        shared=True,
        cpus=0,
    )
    name = submit(server, prepare(wish, COMMANDS), {}).name
    records = folder / ".fuseline" / "jobs"
    until(lambda: list(records.glob(f"{name}.*.ended.json")))
    os.kill(int(blinded.read_text()), signal.SIGKILL)
    until(lambda: server.info(name).status == "FAILED")
    settled = how(server, server.info(name)).settled
    assert (settled.state, settled.exit_code) == ("succeeded", 0)
    assert "Ray says" in settled.why


def test_what_can_never_run_and_who_may_not_ask_is_told_at_once(told, folder, called, monkeypatch):
    began = time.monotonic()
    given = ("--working-dir", folder)
    code, _, err = called("job", "submit", *given, "--cpus", 99, "--", "python", "tells.py")
    assert code == 2
    assert "asks for 99 CPU" in err
    assert "has 2 CPU" in err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    code, _, err = called("job", "list")
    assert code == 2
    assert "refuses the token of RAY_AUTH_TOKEN (403)" in err
    assert time.monotonic() - began < 10
