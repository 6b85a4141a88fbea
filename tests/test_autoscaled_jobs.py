"""Jobs on a cluster whose nodes come by themselves, when there is work, and go when there is none.

The autoscaler is Ray's, as `ray up` starts it on the head; the machines that it launches are
raylets on this one.
"""

import time

import pytest

from pipelines.demo import make_corpus
from pipelines.jobs.server import JobServer
from pipelines.jobs.tokens import Token
from tests.job_cluster import IDLE_MINUTES, head
from tests.test_job_soak import EXPERIMENT

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.media, pytest.mark.timeout(1200)]

CPU = {"CPU": 2, "memory": 6 << 30, "object_store_memory": 100_000_000}
KINDS = {
    "cpu": {"resources": CPU, "max_workers": 2, "labels": {"role": "cpu"}},
    "silent": {"resources": {"CPU": 8}, "max_workers": 1},
}
WAIT_S = 180
SILENT_S = 20  # a node that may come is there by then


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The server of a cluster that is a head without cores."""
    folder = tmp_path_factory.mktemp("grows")
    with (
        pytest.MonkeyPatch.context() as patch,
        head(folder, cpus=0, grows=KINDS) as started,
    ):
        patch.setenv("RAY_ADDRESS", started.url)
        patch.setenv("RAY_AUTH_TOKEN", started.token)
        yield JobServer(started.url, "a test", Token(started.token, "a test"))


@pytest.fixture
def shared(tmp_path, told, monkeypatch):
    corpus = tmp_path / "corpus"
    make_corpus(corpus, clips=16)
    text = EXPERIMENT.format(corpus=corpus, name="grown")
    (tmp_path / "experiment.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def working(server):
    return sum(node.resources.get("CPU", 0) > 0 for node in server.nodes())


def test_a_cluster_that_grows_brings_up_a_node_for_a_job_and_refuses_what_none_can_hold(
    told, shared, called
):
    assert working(told) == 0
    began = time.monotonic()
    submit = ("job", "submit", "--shared", "--wait")
    for given, said in (
        (("--cpus", 3), "2 x cpu (2 CPU, 6.0 GiB), 1 x silent (8 CPU, memory not stated)"),
        (("--gpus", 1), "wants 1 CPU, 1 GPU"),
        (("--memory", 7), "7.0 GiB of memory"),
    ):
        code, _, err = called(*submit, *given, "--", "run", "experiment.yaml")
        assert code == 2, err
        assert said in err
    assert time.monotonic() - began < 120  # three drivers and their questions, on a busy machine
    code, out, _ = called("validate", "experiment.yaml", "--address", told.url)
    assert "ok       room      train: 2 worker(s) at once, 1 CPU each, on the cluster" in out
    # Before any node is up, a disk of this machine cannot be known for one that all of them reach.
    wrong = [line.split()[2] for line in out.splitlines() if line.startswith("failed")]
    assert (code, wrong) == (2, ["dataset:", "tracking:"])
    assert working(told) == 0  # nothing was started for a question
    # What Ray makes of a node type that states no memory: it would have the cores.
    waits = ("job", "submit", "--no-validate", "--cpus", 4, "--memory", 1)
    code, name, err = called(*waits, "--", "python", "-c", "1")
    assert code == 0, err
    time.sleep(SILENT_S)
    assert working(told) == 0
    assert called("job", "stop", name.strip())[0] == 0
    for command in ("ingest", "featurize"):
        code, out, err = called(*submit, "--no-validate", "--", command, "experiment.yaml")
        assert code == 0, out + err
    assert "16 clips in 8 jobs" in out
    assert 1 <= working(told) <= 3
    until = time.monotonic() + 60 * IDLE_MINUTES + WAIT_S
    while working(told):
        assert time.monotonic() < until, "an idle node is given back"
        time.sleep(1)
