"""The demo as a job of several machines, from the command line: to a champion, its secret kept."""

import hashlib
import json
import time
import urllib.error
import urllib.request

import pytest

from tests import job_table, machines
from tests.test_job_soak import asked

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.media, pytest.mark.timeout(3600)]

HIDDEN = "a value that nobody is to see, 7d1f"
# Tells by a digest what a task on another node than its own finds in its environment.
ASKS = """
import hashlib, json, os, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

@ray.remote
def digest():
    return hashlib.sha256(os.environ["HIDDEN"].encode()).hexdigest()

ray.init(log_to_driver=False)
here = ray.get_runtime_context().get_node_id()
(there,) = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU")
            and node["NodeID"] != here]
on = digest.options(scheduling_strategy=On(there, soft=False))
print(json.dumps({"here": here, "there": there, "digest": ray.get(on.remote())}))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with machines.cluster(tmp_path_factory.mktemp("cluster")) as made:
        made.add("first")
        made.add("second")
        yield made


def holding(folders, text):
    """Files below folders in which a text is."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 20
    return [file for file in files if text.encode() in file.read_bytes()]


def places(cluster, kind):
    """The ids of the nodes on which actors of a class were."""
    answer = cluster.server._json("GET", "/api/v0/actors?detail=1&limit=1000")
    found = answer["data"]["result"]["result"]
    return {each["node_id"] for each in found if kind in each["class_name"]}


def test_the_demo_goes_to_a_champion_across_nodes(cluster, tmp_path):
    began = time.monotonic()
    done = cluster.fuseline(
        *("job", "submit", "--shared", "--wait", "--secret", "HIDDEN"),
        *("--", "demo", "--folder", tmp_path / "demo"),
        cwd=tmp_path,
        HIDDEN=HIDDEN,
    )
    took = time.monotonic() - began
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    query = "registered-models/alias?name=demo-sentiment&alias=champion"
    champion = asked(cluster.mlflow, query)
    assert champion["model_version"]["version"] == "1"
    (job,) = json.loads(cluster.fuseline("job", "list", "--json", cwd=tmp_path).stdout)
    assert (job["state"], job["exit_code"], job["secrets"]) == ("succeeded", 0, ["HIDDEN"])
    if hasattr(cluster, "cut"):  # a machine is known by its name
        assert "(2 workers on 2 hosts)" in done.stdout
    # Both ranks may fit on one node, but not on that of the driver.
    assert places(cluster, "RayTrainWorker") - {cluster.server.info(job["id"]).node}
    raw = json.dumps(cluster.server._json("GET", f"/api/jobs/{job['id']}"))
    assert HIDDEN not in raw + json.dumps(job) + done.stdout + done.stderr
    # Logs of Ray on all machines, the store and the files of MLflow, what the job wrote.
    assert holding([*cluster.logs(), *cluster.stores(), tmp_path], HIDDEN) == []
    with job_table.rows(cluster.where) as rows:
        told = "champion; workers on both nodes, the secret in no file"
        rows.append(("the demo, by the command itself", told, f"{took:.0f}", "-"))


def test_a_secret_reaches_a_worker_on_another_node(cluster, tmp_path):
    (tmp_path / "asks.py").write_text(ASKS)
    done = cluster.fuseline(
        *("job", "submit", "--wait", "--secret", "HIDDEN", "--", "python", "asks.py"),
        cwd=tmp_path,
        HIDDEN=HIDDEN,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    (said,) = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    nodes = {cluster.id_of("first"), cluster.id_of("second")}
    assert {said["here"], said["there"]} == nodes
    assert said["digest"] == hashlib.sha256(HIDDEN.encode()).hexdigest()
    assert holding(cluster.logs(), HIDDEN) == []


def test_other_machines_reach_what_asks_for_the_token(cluster):
    """And MLflow, by the names that it was told."""
    if not hasattr(cluster, "cut"):
        pytest.skip(cluster.where)
    head, other = cluster.head.address, cluster.network.hosts["first"]

    def code(url, *more):
        words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *more, url]
        return other.run(words, capture_output=True, text=True, check=False).stdout

    assert code(f"http://{head}:8265/api/version") == "000"  # the dashboard: loopback alone
    assert code(f"http://{head}:52365/api/version") == "401"  # its agent
    assert code(f"http://{head}:44217/metrics") == "200"  # of Ray, for anybody: see operations.md
    assert code(f"http://{head}:5000/health") == "200"
    assert code(f"http://{head}:5000/", "-H", "Host: elsewhere.example") == "403"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen("http://127.0.0.1:8265/api/jobs/")
