"""The whole pipeline as a job of several nodes, and what is done to it: a table, by make soak.

A head without cores that serves MLflow, and nodes with resources of their own (`machines`), with
token authentication. The experiment goes to a champion in each case; its shards, global batches
and weights are those of a run on one machine.
"""

import hashlib
import json
import os
import time
import urllib.request
from dataclasses import dataclass, field
from threading import Barrier, Thread

import psutil
import pytest

from pipelines.demo import make_corpus
from pipelines.experiment import InputError
from pipelines.jobs.prepare import Wish, prepare
from pipelines.jobs.server import JobServer
from pipelines.jobs.submit import retry, submit
from pipelines.jobs.tokens import Token
from pipelines.jobs.watch import how, stop
from tests import job_table, machines, undisturbed
from tests.machines import until

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.media, pytest.mark.timeout(7200)]

CLIPS = int(os.environ.get("FUSELINE_JOB_CLIPS", "48"))
WAIT_S = 900
COMMANDS = ("run",)
EXPERIMENT = """\
dataset: data
source: {{table: {corpus}/clips.csv, label: sentiment}}
features:
  text:  {{featurizer: hashed-words}}
  audio: {{featurizer: logmel, hop_ms: 10}}
  video: {{featurizer: face-motion, fps: 5}}
model: {{recipe: late_fusion}}
train: {{epochs: 12, global_batch: 8, checkpoint_every: 1, max_failures: 5}}
workers: {{featurize: 2, train: 2}}
shards: {{clips: 4}}
max_dropped: 0.2
register: {{name: {name}}}
promote: {{rules: [{{metric: mae, better: lower, floor: 10}}]}}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    make_corpus(folder / "corpus", clips=CLIPS)
    with machines.cluster(folder) as made:
        made.add("first")
        made.add("second")
        yield made


@pytest.fixture(scope="module")
def rows(cluster):
    with job_table.rows(f"{cluster.where}; {CLIPS} clips") as found:
        yield found


@dataclass
class Case:
    """An experiment of its own, and the attempts at it."""

    cluster: machines.Cluster
    name: str
    began: float = field(default_factory=time.monotonic)
    attempts: list = field(default_factory=list)

    def __post_init__(self):
        self.folder.mkdir()
        text = EXPERIMENT.format(corpus=self.cluster.folder / "corpus", name=self.name)
        (self.folder / "experiment.yaml").write_text(text)

    @property
    def folder(self):
        return self.cluster.folder / self.name

    @property
    def data(self):
        return self.folder / "data"

    @property
    def wish(self):
        command = ("run", "experiment.yaml", "--json")
        return Wish(command=command, working_dir=self.folder, shared=True)

    def submit(self):
        attempt = submit(self.cluster.server, prepare(self.wish, COMMANDS), {})
        self.attempts.append(attempt.name)
        return attempt

    def job(self):
        return how(self.cluster.server, self.cluster.server.info(self.attempts[-1]))

    def ended(self):
        until(lambda: not self.job().settled.live, WAIT_S)
        return self.job().settled

    def log(self):
        return self.cluster.server.logs(self.attempts[-1])

    def featurizing(self):
        until(lambda: self.check_alive() and list(self.data.glob("columns/*/*.tar")), WAIT_S)
        assert not list(self.data.glob("training/*"))

    def training(self):
        until(lambda: self.check_alive() and list(self.data.glob("training/*/checkpoints/step-*")))
        assert not list(self.data.glob("training/*/predictor*"))

    def check_alive(self):
        assert self.job().settled.live, self.log()[-3000:]
        return True

    def drivers(self):
        """The processes of the command itself, known by their folder and words."""
        for process in psutil.process_iter(["cmdline", "cwd"]):
            words = process.info["cmdline"] or []
            at_home = process.info["cwd"] == str(self.folder)
            if at_home and words[-4:] == ["pipelines", *self.wish.command]:
                yield process

    def champion(self):
        query = f"registered-models/alias?name={self.name}&alias=champion"
        return asked(self.cluster.mlflow, query)["model_version"]

    def order(self):
        """The digest of the order of clips in all global batches, as the run logged it."""
        run = asked(self.cluster.mlflow, f"runs/get?run_id={self.champion()['run_id']}")
        params = {each["key"]: each["value"] for each in run["run"]["data"]["params"]}
        return params["order_digest"]

    def weights(self):
        (file,) = self.data.glob("training/*/predictor/weights.safetensors")
        return hashlib.sha256(file.read_bytes()).hexdigest()


def asked(mlflow, query):
    with urllib.request.urlopen(f"{mlflow}/api/2.0/mlflow/{query}", timeout=60) as answer:  # noqa: S310 - of this machine
        return json.load(answer)


@pytest.fixture(scope="module")
def alone(cluster):
    """The same on one machine, without a cluster: what the others are held against."""
    case = Case(cluster, "alone")
    done = cluster.alone([*machines.FUSELINE, "run", "experiment.yaml", "--json"], case.folder)
    assert done.returncode == 0, done.stderr
    return case, time.monotonic() - case.began


@pytest.fixture(scope="module")
def smooth(cluster, alone, rows):
    """The same as a job, undisturbed: how long it takes."""
    _, seconds = alone
    rows.append(("on one machine, no cluster", "champion", f"{seconds:.0f}", "-"))
    case = Case(cluster, "smooth")
    case.submit()
    assert case.ended().state == "succeeded", case.log()[-3000:]
    took = time.monotonic() - case.began
    hold(case, alone)
    rows.append(("as a job, on two nodes", "champion; as on one machine", f"{took:.0f}", "-"))
    return took


def hold(case, alone):
    """Its end is that of the run on one machine, to the last bit."""
    other, _ = alone
    assert case.champion()["version"] == "1"
    assert undisturbed.digests(case.data) == undisturbed.digests(other.data)
    undisturbed.hold(undisturbed.files(case.data))
    assert case.order() == other.order()
    assert case.weights() == other.weights()


def tell(rows, case, what, smooth):
    took = time.monotonic() - case.began
    rows.append(
        (case.name, f"{what}; champion, as on one machine", f"{took:.0f}", f"{took - smooth:.0f}")
    )


@pytest.mark.parametrize("phase", ["featurizing", "training"])
def test_a_node_is_killed_and_another_one_added(cluster, alone, smooth, rows, phase):
    case = Case(cluster, f"node-lost-{phase}")
    case.submit()
    getattr(case, phase)()
    lost = cluster.spare(case.job().info.node)
    cluster.kill(lost)
    cluster.add(f"{lost}-again-{phase}")
    assert case.ended().state == "succeeded", case.log()[-3000:]
    hold(case, alone)
    tell(rows, case, "a node killed, another added; the job went on", smooth)


@pytest.mark.parametrize("phase", ["featurizing", "training"])
def test_a_node_is_cut_off_and_another_one_added(cluster, alone, smooth, rows, phase):
    """Nothing on it ends: it is not reached any more, and does not reach the others."""
    if not hasattr(cluster, "cut"):
        pytest.skip(cluster.where)
    case = Case(cluster, f"node-cut-off-{phase}")
    case.submit()
    getattr(case, phase)()
    lost = cluster.spare(case.job().info.node)
    cluster.cut(lost)
    cluster.add(f"instead-{phase}")
    assert case.ended().state == "succeeded", case.log()[-3000:]
    hold(case, alone)
    tell(rows, case, "a node cut off, another added; the job went on", smooth)
    # It knows by itself that it is of no use any more.
    until(lambda: "raylet" not in [each.name() for each in cluster.processes(lost)])
    cluster.network.hosts[lost].kill()


@pytest.mark.parametrize("phase", ["featurizing", "training"])
def test_the_driver_is_killed_and_submitted_again(cluster, alone, smooth, rows, phase):
    case = Case(cluster, f"driver-killed-{phase}")
    case.submit()
    getattr(case, phase)()
    (driver,) = case.drivers()
    driver.kill()
    settled = case.ended()
    assert (settled.state, settled.exit_code) == ("failed", 137)
    assert not case.submit().attached
    assert case.attempts[1] == case.attempts[0].removesuffix("1") + "2"
    assert case.ended().state == "succeeded", case.log()[-3000:]
    hold(case, alone)
    tell(rows, case, "failed with 137; submitted again", smooth)


def test_the_node_of_the_driver_is_killed(cluster, alone, smooth, rows):
    case = Case(cluster, "driver-node-lost")
    case.submit()
    case.training()
    lost = cluster.holder(case.job().info.node)
    cluster.kill(lost)
    cluster.add("third")
    state = case.ended().state
    assert state in {"lost", "failed"}
    case.submit()
    assert case.ended().state == "succeeded", case.log()[-3000:]
    hold(case, alone)
    tell(rows, case, f"{state}; submitted again", smooth)


@pytest.mark.parametrize("phase", ["featurizing", "training"])
def test_it_is_stopped_and_tried_again(cluster, alone, smooth, rows, phase):
    case = Case(cluster, f"stopped-{phase}")
    case.submit()
    getattr(case, phase)()
    asked_at = time.monotonic()
    settled = stop(cluster.server, case.attempts[-1], print).settled
    took = time.monotonic() - asked_at
    assert (settled.state, settled.exit_code) == ("stopped", 143), case.log()[-3000:]
    case.attempts.append(retry(cluster.server, case.attempts[-1]).name)
    assert case.ended().state == "succeeded", case.log()[-3000:]
    hold(case, alone)
    tell(rows, case, f"saved and ended {took:.1f} s after stop; tried again", smooth)


def test_what_never_begins(cluster, smooth, rows):
    case = Case(cluster, "never")
    began = time.monotonic()
    prepared = prepare(Wish(**{**plain(case.wish), "cpus": 64}), COMMANDS)
    with pytest.raises(InputError, match="asks for 64 CPU"):
        submit(cluster.server, prepared, {})
    took = time.monotonic() - began
    rows.append(("64 cores for the driver", "refused before it is sent", f"{took:.1f}", "-"))
    began = time.monotonic()
    stranger = JobServer(cluster.server.url, "the soak", Token("wrong", "the soak"))
    with pytest.raises(InputError, match=r"refuses the token of the soak \(403\)"):
        stranger.jobs()
    took = time.monotonic() - began
    rows.append(("wrong token", "refused, with where it is from", f"{took:.1f}", "-"))


def test_two_clients_at_once(cluster, alone, smooth, rows):
    case = Case(cluster, "two-clients")
    got, ready = [], Barrier(2)

    def client():
        prepared = prepare(case.wish, COMMANDS)
        ready.wait()
        got.append(submit(cluster.server, prepared, {}))

    threads = [Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.attached for each in got) == [False, True]
    (name,) = {each.name for each in got}
    case.attempts.append(name)
    assert case.ended().state == "succeeded", case.log()[-3000:]
    hold(case, alone)
    tell(rows, case, "one job, the second client attached", smooth)


def test_the_head_is_killed_and_made_anew(cluster, alone, smooth, rows):
    case = Case(cluster, "head-killed")
    case.submit()
    case.training()
    cluster.kill_head()
    for name in list(cluster.nodes):
        cluster.kill(name)
    until(lambda: not any(case.drivers()), WAIT_S)
    cluster.start()
    for name in ("fifth", "sixth"):
        cluster.add(name)
    assert not case.submit().attached
    assert case.attempts[1] == case.attempts[0].removesuffix("1") + "2"  # by the records
    assert case.ended().state == "succeeded", case.log()[-3000:]
    hold(case, alone)
    assert len(list(case.data.glob("logs/jobs/*.began.json"))) == 2
    tell(rows, case, "the job was gone; submitted again to a new head", smooth)


def plain(wish):
    return {name: getattr(wish, name) for name in wish.__dataclass_fields__}
