"""Training on Ray that loses ranks, driver, machines, server or disk ends in the same weights.

Every job goes through `pipelines.train.train`, with two ranks. It is held against one that nobody
disturbed, to the last bit, and so are the points that the tracking server has of it.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

import psutil
import pytest

from pipelines.plans import CHECKPOINTS, FINISHED
from tests.jobs import Job, hold_points, plan_in, result
from tests.killing import Nodes
from tests.test_loop import RECIPE, make_dataset
from tracking import mlflow_store
from training import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

EPOCHS = 24
LONG = replace(
    RECIPE, epochs=EPOCHS, patience=EPOCHS, checkpoint_every=2, learning_rate=1e-3, zero=1
)
CARE = {"max_failures": 6, "hang_s": 60.0}
SEED = 7
DISK = "size=4m"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    return root, make_dataset(root)


def kill_later(job, rank, chance):
    """Kill a rank at some moment, most likely in the midst of an epoch."""
    job.wait_for(chance.randint(2, 4))
    time.sleep(chance.uniform(0, 0.1))
    job.ranks()[rank].kill()


def kill_while_saving(job, rank, chance):
    """Kill a rank while a checkpoint is being written."""
    job.wait_for(chance.randint(1, 2))
    job.wait_until_it_saves()
    job.ranks()[rank].kill()


@pytest.mark.soak
def test_ranks_and_driver_are_killed_and_nothing_is_lost(made, tmp_path):
    """A rank in an epoch, then the driver and rank 0 while it saves; the run before it is calm."""
    chance = random.Random(SEED)  # noqa: S311 - a schedule that can be repeated, no secret
    calm, hurt = (plan_in(tmp_path / name, made, LONG) for name in ("calm", "hurt"))
    with Job(calm, hurt, store=tmp_path, **CARE) as job:
        kill_later(job, 1, chance)
        job.wait_for(chance.randint(1, 3))
        left = job.ranks().values()
        job.process.send_signal(signal.SIGSTOP)  # so that it starts nobody between the two
        kill_while_saving(job, 0, chance)
        job.process.kill()
        assert job.end() == -signal.SIGKILL
        assert job.epochs() > 0
        assert not hurt.finished
    psutil.wait_procs(left, timeout=60)
    with Job(calm, hurt, store=tmp_path, **CARE) as again:
        assert again.end() == 0, again.said
    assert result(hurt) == result(calm)
    for plan in (calm, hurt):
        hold_points(again, plan)


# The long form.


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    plan = plan_in(tmp_path_factory.mktemp("whole") / "run", made, LONG)
    with Job(plan, store=plan.folder.parent, **CARE) as job:
        assert job.end() == 0, job.said
    hold_points(job, plan)
    return result(plan)


def hold(job, plan, undisturbed, code=0):
    """Wait for the end of a job, and hold what it leaves."""
    assert job.end() == code, job.said
    assert result(plan) == undisturbed
    hold_points(job, plan)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_ten_kills_of_ranks_between_and_during_checkpoints(made, undisturbed, tmp_path, seed):
    chance = random.Random(seed)  # noqa: S311 - a schedule that can be repeated, no secret
    plan = plan_in(tmp_path / "run", made, LONG)
    with Job(plan, store=tmp_path, max_failures=10, hang_s=60.0) as job:
        with suppress(AssertionError):  # it ends when no epoch is left to be killed in
            for _ in range(10):
                strike = chance.choice([kill_later, kill_while_saving])
                strike(job, chance.randint(0, 1), chance)
        hold(job, plan, undisturbed)
        attempts = (plan.folder / "attempts").stat().st_size
    assert attempts > 3


@pytest.mark.soak
def test_a_rank_that_gets_sigterm_lets_all_save_first(made, undisturbed, tmp_path):
    plan = plan_in(tmp_path / "run", made, LONG)
    with Job(plan, store=tmp_path, **CARE) as job:
        job.wait_for(5)
        job.ranks()[1].terminate()
        hold(job, plan, undisturbed)
        stacks = (plan.folder / "stacks").glob("rank-1-sigterm-*.txt")
        assert any(file.stat().st_size for file in stacks)
        assert job.epochs() == EPOCHS  # none was trained again


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_given_up_with_stacks_of_the_other(
    made, undisturbed, tmp_path, rank
):
    plan = plan_in(tmp_path / "run", made, LONG)
    with Job(plan, store=tmp_path, max_failures=6, hang_s=15.0) as job:
        job.wait_for(5)
        stopped = job.ranks()[rank]
        stopped.suspend()
        hold(job, plan, undisturbed)
        assert f"rank {1 - rank} has taken no step" in job.said
        assert list((plan.folder / "stacks").glob(f"rank-{1 - rank}-hang-*.txt"))
        assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE


@pytest.mark.soak
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_driver_that_is_ended_is_started_again(made, undisturbed, tmp_path, number, code):
    plan = plan_in(tmp_path / "run", made, LONG)
    with Job(plan, store=tmp_path, **CARE) as job:
        job.wait_for(5)
        left = job.ranks().values()
        job.process.send_signal(number)
        assert job.end() == code, job.said
    psutil.wait_procs(left, timeout=60)
    with Job(plan, store=tmp_path, **CARE) as again:
        hold(again, plan, undisturbed)
        if number == signal.SIGTERM:
            assert again.epochs() == EPOCHS


@pytest.mark.soak
def test_a_rank_that_a_killed_driver_left_behind_writes_nothing_more(made, undisturbed, tmp_path):
    """Stopped, it hears of nothing; when it goes on, the run is long finished by others."""
    plan = plan_in(tmp_path / "run", made, LONG)
    with Job(plan, store=tmp_path, **CARE) as job:
        job.wait_until_it_saves()
        orphan = job.ranks()[0]
        orphan.suspend()
        job.process.kill()
        assert job.end() == -signal.SIGKILL
    with Job(plan, store=tmp_path, **CARE) as again:
        again.wait_for(3)
        orphan.resume()
        hold(again, plan, undisturbed)
    psutil.wait_procs([orphan], timeout=60)
    assert result(plan) == undisturbed
    found = checkpoint.standing(plan.folder / CHECKPOINTS)
    assert [checkpoint.problem_of(each) for each in found] == ["", ""]


@pytest.mark.soak
def test_a_machine_that_is_lost_costs_nothing(made, undisturbed, tmp_path):
    """Two nodes with a rank each; the raylet of one is killed, and later another comes."""
    plan = plan_in(tmp_path / "run", made, LONG)
    with (
        closing(Nodes()) as place,
        Job(plan, store=tmp_path, address=place.address, **CARE) as job,
    ):
        for rank in (1, 0):
            job.wait_for(3)
            raylets = {each.pid: each for each in place.raylets(job.process.pid)}
            victim = raylets[job.ranks()[rank].ppid()]
            victim.kill()
            place.mend(victim)
        hold(job, plan, undisturbed)


@contextmanager
def server(folder, port):
    """A real tracking server."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.txt").open("ab") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        while not answers(port):
            assert process.poll() is None, (folder / "server.txt").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port):
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
        return True
    return False


@pytest.fixture
def port():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.soak
@pytest.mark.parametrize("way", ["stopped", "killed"])
def test_a_tracking_server_that_is_away_stops_nothing_and_loses_nothing(
    made, undisturbed, tmp_path, port, way
):
    plan, uri = plan_in(tmp_path / "run", made, LONG), f"http://127.0.0.1:{port}"
    with server(tmp_path, port) as first:
        job = Job(plan, store=tmp_path, uri=uri, **CARE)
        with job:
            job.wait_for(3)
            os.killpg(first.pid, signal.SIGSTOP if way == "stopped" else signal.SIGKILL)
            # Training goes on to its end meanwhile.
            until = time.monotonic() + 300
            while not plan.finished:
                assert job.process.poll() is None, job.said
                assert time.monotonic() < until, job.said
                time.sleep(0.1)
            if way == "stopped":
                os.killpg(first.pid, signal.SIGCONT)
                hold(job, plan, undisturbed)
                return
            with server(tmp_path, port):
                hold(job, plan, undisturbed)


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_is_a_clear_error_and_with_room_the_run_goes_on(made, undisturbed, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", DISK, "none", small]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        plan = plan_in(small / "run", made, LONG)
        filler = small / "filler"
        with Job(plan, store=tmp_path, max_failures=0, hang_s=60.0) as job:
            job.wait_for(5)
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            assert job.end() == 1, job.said
        last = job.said.strip().splitlines()[-1]
        assert last.startswith("fuseline: training failed")
        assert "No space left on device" in last
        assert not (plan.folder / FINISHED).exists()
        found = checkpoint.standing(plan.folder / CHECKPOINTS)
        assert checkpoint.problem_of(found[0]) == ""
        epochs = json.loads((found[0] / checkpoint.MARKER).read_bytes())["body"]["about"]["state"]
        assert len(epochs["history"]) >= 4
        filler.unlink()
        with Job(plan, store=tmp_path, **CARE) as again:
            hold(again, plan, undisturbed)
            assert mlflow_store.find_run(again.uri, "toys", "fuseline.plan", "run") is not None
    finally:
        subprocess.run(["/bin/umount", small], check=True)
