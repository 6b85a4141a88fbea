"""Training jobs in processes of their own, as the command line starts them, and whom to hit."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipelines.plans import CHECKPOINTS, FINISHED, PROGRESS, Plan
from pipelines.ranks import sent
from tracking import mlflow_store
from training.checkpoint import UNFINISHED

HOME = Path(__file__).resolve().parent.parent
RUN_S = 600

# Trains what the file tells on two ranks.
DRIVER = """
import json, sys
from pathlib import Path
from featurizers.dataset import read_clips
from pipelines.executors import stop_ray
from pipelines.experiment import FailedError
from pipelines.limits import Care
from pipelines.ranks import received
from pipelines.stopping import stoppable
from pipelines.train import train

job = json.loads(Path(sys.argv[1]).read_text())
plans = [received(each) for each in job["plans"]]

def say(sentence):
    print(sentence, flush=True)

def work():
    try:
        train(plans, read_clips(plans[0].root), uri=job["uri"], store=Path(job["store"]),
              experiment="toys", workers=2, care=Care(**job["care"]), told=lambda *told: None,
              say=say)
    except FailedError as error:
        say(f"fuseline: {error}")
        return 1
    return 0

sys.exit(stoppable(work, stop_ray))
"""


def plan_in(folder, made, recipe):
    """A run of a dataset, with a folder that is there."""
    root, columns = made
    folder.mkdir(parents=True)
    return Plan(name=folder.name, recipe=recipe, root=str(root), folder=folder, columns=columns)


def result(plan):
    """What a finished run leaves: its numbers, and the bytes of its weights."""
    weights = (plan.folder / "predictor" / "weights.safetensors").read_bytes()
    return (plan.folder / FINISHED).read_bytes(), weights


class Job:
    """A process that trains plans, in turn, on one group of ranks.

    Args:
        plans: Of which the last is spoken of below.
        store: Of the tracking server's files.
        uri: The tracking server; a database in `store` unless given.
        address: Of a cluster to be joined.
        care: See `pipelines.limits.Care`.
    """

    def __init__(self, *plans, store, uri=None, address=None, **care):
        self.folder, self.store = plans[-1].folder, store
        self.uri = uri or f"sqlite:///{store / 'mlflow.db'}"
        file = store / f"{self.folder.name}.json"
        job = {
            "plans": [sent(plan, "", "") for plan in plans],
            "uri": self.uri,
            "store": str(store),
            "care": care,
        }
        file.write_text(json.dumps(job))
        self._output = store / f"{self.folder.name}.out"
        environment = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        if address is not None:
            environment["RAY_ADDRESS"] = address
        with self._output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", DRIVER, str(file)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.process.kill()
        self.process.wait()

    @property
    def said(self):
        """What it told people."""
        return self._output.read_text()

    def epochs(self):
        """How many were finished, of all attempts together."""
        with suppress(FileNotFoundError):
            return (self.folder / PROGRESS).read_text().count('"epoch"')
        return 0

    def wait(self, is_so):
        """Look often until something is so; it must be before the job ends."""
        until = time.monotonic() + RUN_S
        while not is_so():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.0005)

    def wait_for(self, epochs):
        """Wait until so many more epochs are finished."""
        wanted = self.epochs() + epochs
        self.wait(lambda: self.epochs() >= wanted)

    def wait_until_it_saves(self):
        """Wait until a checkpoint is being written."""
        self.wait(lambda: any((self.folder / CHECKPOINTS).glob(f"{UNFINISHED}*")))

    def ranks(self):
        """The processes that train now, by rank: each keeps a file for its stacks open."""
        found = {}
        files = (self.folder / "stacks").glob("rank-*-sigterm-*.txt")
        for file in sorted(files, key=lambda each: each.stat().st_mtime):
            _, rank, _, pid = file.stem.split("-")
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(pid))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[int(rank)] = process
        return found

    def end(self):
        """Wait for its end; the exit code."""
        return self.process.wait(RUN_S)


def hold_points(job, plan):
    """Hold what the tracking server knows of a finished run against what the run says itself."""
    run = mlflow_store.find_run(job.uri, "toys", "fuseline.plan", plan.folder.name)
    client = mlflow_store.client_of(job.uri)
    assert client.get_run(run.run_id).info.status == "FINISHED"
    wanted = json.loads((plan.folder / FINISHED).read_bytes())["history"]
    for name in ("train_loss", "valid_loss"):
        points = sorted(
            client.get_metric_history(run.run_id, name), key=lambda each: each.timestamp
        )
        # Of several values for one step the latest holds.
        assert {each.step: each.value for each in points} == {
            step: epoch[name] for step, epoch in enumerate(wanted)
        }
