"""The whole pipeline as jobs of a cluster that has a GPU on one of its nodes.

A head without cores and GPU that serves MLflow, a node with cores alone and one with the GPU, each
a `ray start` of its own, with token authentication. Encoders read on the GPU, MMLatch trains there
in bfloat16, and a champion is promoted. Run by `make gpu`; FUSELINE_TEST_DEVICE=cpu runs it without
a GPU, to try the tests themselves. With `-s` it tells how long things took.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featurizers.pretrained import FOLDERS
from pipelines import HOME
from pipelines.demo import make_corpus
from pipelines.jobs.server import JobServer
from pipelines.jobs.tokens import Token
from pipelines.logbook import read_logs
from tests import checkpoints, undisturbed
from tests.job_cluster import end, environment_of, head, mlflow_server, node
from tests.machines import until
from tests.test_job_soak import asked

DEVICE = os.environ.get("FUSELINE_TEST_DEVICE", "cuda")
GPUS = int(DEVICE == "cuda")

pytestmark = [
    *(pytest.mark.gpu, pytest.mark.ray, pytest.mark.media, pytest.mark.slow),
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"
    ),
]

CLIPS = 48
EPOCHS = 60 if GPUS else 5
WAIT_S = 600
EXPERIMENT = """\
dataset: data
source: {{table: {home}/corpus/clips.csv, label: sentiment}}
features:
  text:  {{featurizer: text-encoder, model: {home}/weights/text}}
  audio: {{featurizer: speech-encoder, model: {home}/weights/speech}}
  video: {{featurizer: face-motion, fps: 5}}
model: {{recipe: mmlatch, hidden: 16}}
train:
  epochs: {epochs}
  patience: {epochs}
  global_batch: 8
  precision: bf16
  checkpoint_every: 1
  max_failures: 5
workers: {{featurize: 2, train: 1, gpus: {share}}}
shards: {{clips: 4}}
max_dropped: 0.2
register: {{name: {name}}}
promote: {{rules: [{{metric: mae, better: lower, floor: 10}}]}}
"""


@dataclass
class Cluster:
    """What was started, and where the corpus and the encoders' weights are."""

    home: Path
    mlflow: str
    head: object
    held: contextlib.ExitStack
    nodes: dict = field(default_factory=dict)

    def add(self, name, cpus, gpus=0):
        log, told = self.home / f"{name}.log", {"MLFLOW_TRACKING_URI": self.mlflow}
        started = node(self.head, name, cpus=cpus, gpus=gpus, log=log, **told)
        self.nodes[name] = self.held.enter_context(started)
        server = JobServer(self.head.url, "the test", Token(self.head.token, "the test"))
        until(lambda: any(name in each.resources for each in server.nodes()))

    def fuseline(self, *words, cwd=None):
        """A command as a process of its own: its exit code, what it said, and its seconds."""
        told = {
            "RAY_ADDRESS": self.head.url,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "PYTHONPATH": str(HOME),
            FOLDERS: f"{self.home}/weights/text{os.pathsep}{self.home}/weights/speech",
        }
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pipelines", *map(str, words)],
            cwd=cwd or self.home,
            env=environment_of(self.head.token_file, **told),
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )
        return done, time.monotonic() - began


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    home = tmp_path_factory.mktemp("gpu")
    make_corpus(home / "corpus", clips=CLIPS)
    checkpoints.text(home / "weights" / "text", "bert")
    checkpoints.speech(home / "weights" / "speech", "wav2vec2-layer")
    with contextlib.ExitStack() as held:
        mlflow = held.enter_context(mlflow_server(home))
        started = held.enter_context(head(home, cpus=0, MLFLOW_TRACKING_URI=mlflow))
        whole = Cluster(home, mlflow, started, held)
        whole.add("cores", cpus=2)
        whole.add("card", cpus=3, gpus=GPUS)
        yield whole


@dataclass
class Case:
    """An experiment of its own, submitted as a job."""

    cluster: Cluster
    name: str

    def __post_init__(self):
        self.folder.mkdir()
        told = {"home": self.cluster.home, "name": self.name}
        text = EXPERIMENT.format(**told, share=0.5 * GPUS, epochs=EPOCHS)
        (self.folder / "experiment.yaml").write_text(text)

    @property
    def folder(self):
        return self.cluster.home / self.name

    @property
    def data(self):
        return self.folder / "data"

    def submit(self, *options):
        # Nodes of several machines would not find MLflow at its address of this one.
        options = ("--shared", "--no-validate", *options)
        words = ("job", "submit", *options, "--", "run", "experiment.yaml")
        return self.cluster.fuseline(*words, cwd=self.folder)

    def training(self):
        """Wait until it has saved while it trains."""
        until(lambda: list(self.data.glob("training/*/checkpoints/step-*")), WAIT_S)
        assert not list(self.data.glob("training/*/predictor*"))

    def state(self, job):
        done, _ = self.cluster.fuseline("job", "status", job, "--json")
        return json.loads(done.stdout)["state"]

    def ended(self, job):
        until(lambda: self.state(job) not in {"waiting", "running"}, WAIT_S)
        return self.state(job)

    def version(self):
        query = f"registered-models/alias?name={self.name}&alias=champion"
        return asked(self.cluster.mlflow, query)["model_version"]

    def trained(self):
        """The run of the champion, as MLflow has it."""
        return asked(self.cluster.mlflow, f"runs/get?run_id={self.version()['run_id']}")["run"]

    def params(self):
        return {each["key"]: each["value"] for each in self.trained()["data"]["params"]}

    def weights(self):
        (file,) = self.data.glob("training/*/predictor/weights.safetensors")
        return load_file(file)

    def log(self, job):
        done, _ = self.cluster.fuseline("job", "logs", job)
        return done.stdout[-3000:]


@pytest.fixture(scope="module")
def smooth(cluster):
    """A job that nothing is done to, and its seconds."""
    case = Case(cluster, "smooth")
    done, took = case.submit("--wait")
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    return case, took


def encoders(case):
    """Where encoders computed, by the log of all jobs."""
    done = [line for line in read_logs(case.data) if line["kind"] == "job"]
    return {name: device for line in done for name, device in line["devices"].items()}


def hold(case, smooth):
    """One version, the champion; data of an undisturbed run, and batches in its order."""
    other, _ = smooth
    assert case.version()["version"] == "1"
    undisturbed.hold(undisturbed.files(case.data))
    mine, others = (undisturbed.digests(each.data) for each in (case, other))
    exact = {name for name in mine if "face-motion" in name}
    assert exact
    assert {name: mine[name] for name in exact} == {name: others[name] for name in exact}
    assert case.params()["order_digest"] == other.params()["order_digest"]
    apart = {
        name: float((one.float() - other.weights()[name].float()).abs().max())
        for name, one in case.weights().items()
    }
    sys.stdout.write(f"{case.name}: weights differ by {max(apart.values()):.1e} at most\n")
    assert all(map(math.isfinite, apart.values()))
    if DEVICE == "cpu":
        assert not any(apart.values())


def test_only_the_address_of_mlflow_is_found_fault_with_beforehand(cluster):
    case = Case(cluster, "asked")
    done, took = cluster.fuseline("validate", "experiment.yaml", "--json", cwd=case.folder)
    found = json.loads(done.stdout)
    sys.stdout.write(f"\nvalidated in {took:.1f} s\n")
    (fault,) = [each for each in found if each["state"] == "failed"]
    assert fault["what"] == "tracking"
    assert "is another machine on each node" in fault["found"]


def test_a_job_reads_and_trains_on_the_gpu_to_a_champion(cluster, smooth):
    case, took = smooth
    sys.stdout.write(f"\nundisturbed: {took:.1f} s from submission to champion\n")
    assert encoders(case) == dict.fromkeys(("text-encoder", "speech-encoder"), DEVICE)
    assert case.version()["version"] == "1"
    trained = case.trained()
    names = {each["key"].rpartition("/")[2] for each in trained["data"]["metrics"]}
    assert "cpu_percent" in names
    assert ("gpu_memory_gb" in names) == bool(GPUS)  # the rank's process sees the card
    assert case.params()["precision"] == "bf16"


def test_a_raw_clip_is_scored_by_the_champion(cluster, smooth):
    media = sorted((cluster.home / "corpus").rglob("*.mp4"))[0]
    words = ("score", "models:/smooth@champion", media, "--transcript", "good day", "--json")
    done, took = cluster.fuseline(*words)
    assert done.returncode == 0, done.stderr
    sys.stdout.write(f"\nscored in {took:.1f} s\n")
    (said,) = json.loads(done.stdout)
    assert said["state"] == "scored"
    assert math.isfinite(said["prediction"])


def test_it_is_stopped_while_it_trains_and_tried_again(cluster, smooth):
    case = Case(cluster, "stopped")
    done, _ = case.submit()
    job = done.stdout.strip()
    case.training()
    done, took = cluster.fuseline("job", "stop", job, "--json")
    told = json.loads(done.stdout)
    assert (told["state"], told["exit_code"]) == ("stopped", 143), case.log(job)
    sys.stdout.write(f"\nstopped in {took:.1f} s\n")
    done, took = cluster.fuseline("job", "retry", job, "--wait")
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    sys.stdout.write(f"\ntried again: {took:.1f} s\n")
    hold(case, smooth)


def test_the_node_with_the_gpu_is_killed_while_it_trains_and_another_one_added(cluster, smooth):
    case = Case(cluster, "lost")
    began = time.monotonic()
    done, _ = case.submit()
    job = done.stdout.strip()
    case.training()
    end(cluster.nodes.pop("card"), signal.SIGKILL)
    cluster.add("another", cpus=3, gpus=GPUS)
    # Its driver may have been on that node, too.
    if (state := case.ended(job)) != "succeeded":
        assert state in {"lost", "failed"}, case.log(job)
        done, _ = case.submit("--wait")
        assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    sys.stdout.write(f"\n{state}, then to a champion: {time.monotonic() - began:.1f} s\n")
    hold(case, smooth)
