"""Training on Ray that is killed, stopped, or hangs: it goes on, and ends in the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipelines.executors import stop_ray
from pipelines.plans import CHECKPOINTS, FINISHED, PROGRESS, Plan
from pipelines.ranks import sent
from pipelines.resume import check_resume
from pipelines.train import Care
from tests.test_loop import RECIPE, STEPS, make_dataset
from tracking import mlflow_store

HOME = Path(__file__).resolve().parent.parent
EPOCHS = 24
LONG = replace(
    RECIPE, epochs=EPOCHS, patience=EPOCHS, checkpoint_every=2, learning_rate=1e-3, zero=1
)
RUN_S = 600

# The driver: trains one run on two ranks.
DRIVER = """
import json, sys
from pathlib import Path
from pipelines.executors import stop_ray
from pipelines.plans import Plan
from pipelines.ranks import received, train_each
from pipelines.stopping import stoppable
from pipelines.train import Care, Follow, fit

plain = json.loads(Path(sys.argv[1]).read_text())
plan = received(plain)

def work():
    care = Care(max_failures=2, hang_s=8.0)
    with Follow([plan], lambda *told: None, lambda said: print(said, flush=True)):
        fit(train_each, {"uri": "", "runs": [plain]}, group=plan.folder.parent / "ray" / "group",
            workers=2, care=care, say=lambda said: print(said, flush=True))
    return 0

sys.exit(stoppable(work, stop_ray))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    return root, make_dataset(root)


def plan_in(folder, made, recipe=LONG):
    root, columns = made
    folder.mkdir(parents=True)
    return Plan(name="run", recipe=recipe, root=str(root), folder=folder, columns=columns)


class Driver:
    """A process that trains a plan."""

    def __init__(self, plan):
        self.folder = plan.folder
        file = plan.folder.parent / f"{plan.folder.name}.json"
        file.write_text(json.dumps(sent(plan, "")))
        self.said = plan.folder.parent / f"{plan.folder.name}.out"
        with self.said.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", DRIVER, str(file)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"},
            )

    def epochs(self):
        with suppress(FileNotFoundError):
            return (self.folder / PROGRESS).read_text().count('"epoch"')
        return 0

    def wait_for(self, epochs):
        until = time.monotonic() + RUN_S
        while self.epochs() < epochs:
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < until, self.said.read_text()
            time.sleep(0.01)

    def ranks(self):
        """The processes that train now: each keeps a file for its stacks open."""
        found = {}
        for file in (self.folder / "stacks").glob("rank-*-sigterm-*.txt"):
            _, rank, _, pid = file.stem.split("-")
            if psutil.pid_exists(int(pid)):
                found[int(rank)] = psutil.Process(int(pid))
        return found

    def end(self):
        try:
            return self.process.wait(RUN_S)
        finally:
            self.process.kill()


def result(plan):
    weights = (plan.folder / "predictor" / "weights.safetensors").read_bytes()
    return (plan.folder / FINISHED).read_bytes(), weights


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    plan = plan_in(tmp_path_factory.mktemp("whole") / "run", made)
    assert Driver(plan).end() == 0
    return result(plan)


def killed_while_saving(driver):
    until = time.monotonic() + RUN_S
    draft = driver.folder / CHECKPOINTS / ".unfinished"
    while not draft.exists():
        assert time.monotonic() < until
        time.sleep(0.0002)
    driver.ranks()[0].kill()


DISTURBANCES = {
    "a rank is killed": lambda driver: driver.ranks()[1].kill(),
    "rank 0 is killed while it saves": killed_while_saving,
    "a rank gets SIGTERM": lambda driver: driver.ranks()[1].terminate(),
    "a rank is stopped": lambda driver: driver.ranks()[1].suspend(),
}


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.parametrize("what", DISTURBANCES)
def test_a_disturbed_rank_costs_nothing(made, undisturbed, tmp_path, what):
    plan = plan_in(tmp_path / "run", made)
    driver = Driver(plan)
    driver.wait_for(5)
    DISTURBANCES[what](driver)
    assert driver.end() == 0, driver.said.read_text()
    assert result(plan) == undisturbed
    said, stacks = driver.said.read_text(), sorted((plan.folder / "stacks").iterdir())
    if what == "a rank is stopped":
        assert "rank 0 has taken no step" in said
        assert any("rank-0-hang" in file.name for file in stacks)
    if what == "a rank gets SIGTERM":
        assert any("rank-1-sigterm" in file.name and file.stat().st_size for file in stacks)
        # No epoch was trained again: they saved first.
        assert driver.epochs() == EPOCHS


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_driver_that_is_ended_is_started_again(made, undisturbed, tmp_path, number, code):
    plan = plan_in(tmp_path / "run", made)
    driver = Driver(plan)
    driver.wait_for(5)
    ranks = driver.ranks().values()
    driver.process.send_signal(number)
    assert driver.end() == code, driver.said.read_text()
    psutil.wait_procs(ranks, timeout=60)
    again = Driver(plan)
    assert again.end() == 0, again.said.read_text()
    assert result(plan) == undisturbed
    if number == signal.SIGTERM:
        assert again.epochs() == EPOCHS


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_is_checked_by_a_kill_and_the_answer_is_kept_with_it(made, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.initialise(uri, tmp_path / "mlartifacts")
    plan = plan_in(tmp_path / "run", made, replace(RECIPE, zero=2))
    said = []
    try:
        found = check_resume(
            plan,
            steps=STEPS + 2,
            uri=uri,
            experiment="toys",
            workers=3,
            care=Care(max_failures=0),
            say=said.append,
        )
    finally:
        stop_ray()
    assert (found.steps, found.killed_at, found.ranks) == (8, 4, 2)
    assert found.identical
    assert "3 workers do not divide the global batch of 8 clips; 2 train" in said[0]
    run = mlflow_store.find_run(uri, "toys", "fuseline.plan", "run")
    found_again = json.loads(mlflow_store.read_file(uri, run.run_id, "resume.json"))
    assert found_again["identical"]
    assert not (plan.folder / "resume").exists()
