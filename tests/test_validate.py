"""What would fail on a cluster is said before anything is spent."""

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipelines.cluster import live, probe, shared
from pipelines.cluster.launcher import read
from pipelines.cluster.live import PACKAGES, Live, Node, Question, UnreachedError
from pipelines.cluster.room import NodeKind
from pipelines.cluster.validate import validate
from pipelines.executors import Need, stop_ray
from pipelines.experiment import outline
from pipelines.jobs.server import JobInfo, JobServer
from pipelines.jobs.tokens import Token
from pipelines.licences import OURS
from tests import job_cluster, test_cluster_yaml, test_command_line
from tests.job_cluster import environment_of, head
from tests.test_cluster_yaml import ROOT
from tests.test_command_line import settings
from tests.test_room import BUCKET, by_what, failed, plan

changed, plain = test_cluster_yaml.changed, test_cluster_yaml.plain


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No cluster and no tracking server but those of a test."""
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


# What is shared


def test_machines_at_hand_do_not_state_what_they_have(changed, tmp_path):
    file = tmp_path / "hand.yaml"
    machines = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    auth = {"ssh_user": "me"}
    file.write_text(yaml.safe_dump({"cluster_name": "x", "provider": machines, "auth": auth}))
    findings = by_what(validate(plan(tmp_path), cluster=file))
    assert findings["head"].state == "warning"
    assert findings["nodes"].state == "warning"
    assert findings["token"].state == "failed"


def test_local_folders_and_a_sqlite_file_are_refused_on_more_than_one_node(changed, tmp_path):
    test_command_line.experiment(tmp_path)
    for number in range(6):
        (tmp_path / f"{number}.mp4").touch()
    findings = list(validate(plan(tmp_path), cluster=changed()))
    assert failed(findings) == {"dataset"}
    assert (by_what(findings)["media"].state, "100 MiB" in str(findings)) == ("warning", True)
    elsewhere = {"workers": {"featurize": 2}, "source": {"table": "../clips.csv", "label": "mood"}}
    (tmp_path / "inside").mkdir()
    inside = outline(settings(**elsewhere), tmp_path / "inside")
    assert failed(validate(inside, cluster=changed())) == {"media", "dataset"}

    def bare(cluster):
        start = "RAY_AUTH_MODE=token ray start"
        cluster["head_start_ray_commands"] = [f"{start} --head"]
        cluster["worker_start_ray_commands"] = [start]

    found = by_what(validate(plan(tmp_path), cluster=changed(bare)))
    assert found["tracking"].state == "failed"
    assert "SQLite" in found["tracking"].found


def test_object_stores_are_fine_but_runs_want_a_disk_that_all_share(changed, tmp_path, monkeypatch):
    (tmp_path / "clips.csv").write_text("id,media,mood\na,s3://bucket/a.mp4,1\n")
    experiment = plan(tmp_path, **BUCKET)
    places = shared.places_of(experiment)
    found = by_what(shared.check_unasked(places, read(changed())))
    assert {name for name, each in found.items() if each.state == "failed"} == {
        "runs and checkpoints"
    }
    monkeypatch.setattr(shared, "_disk", lambda path: "nfs4")
    found = by_what(shared.check_unasked(places, read(changed())))
    assert {name for name, each in found.items() if each.state != "ok"} == {"buckets"}
    assert "cpu, gpu-featurize, gpu-train may have no right" in found["buckets"].found

    def with_profiles(cluster):
        for kind in cluster["available_node_types"].values():
            kind["node_config"]["IamInstanceProfile"] = {"Name": "fuseline-worker"}

    granted = shared.check_unasked(places, read(changed(with_profiles)))
    assert {each.state for each in granted} == {"ok"}


def test_what_is_copied_to_every_node_need_not_be_shared(changed, tmp_path):
    def sends(cluster):
        cluster["file_mounts"][str(tmp_path / "weights")] = str(tmp_path)

    weights = tmp_path / "weights" / "words.txt"
    weights.parent.mkdir()
    weights.write_text("a 1 2\n")
    features = {"text": {"featurizer": "word-vectors", "file": "weights/words.txt"}}
    places = shared.places_of(plan(tmp_path, features=features))
    assert [str(each) for each in by_name(places)["weights"].paths] == [str(weights)]
    assert by_what(shared.check_unasked(places, read(changed())))["weights"].state == "warning"
    assert by_what(shared.check_unasked(places, read(changed(sends))))["weights"].state == "ok"


def by_name(places):
    return {each.what: each for each in places}


@pytest.mark.parametrize(
    ("uri", "state", "said"),
    [
        ("http://10.0.0.1:5000", "ok", "MLFLOW_TRACKING_URI"),
        ("http://me:word@10.0.0.1:5000", "ok", "http://10.0.0.1:5000"),
        ("http://localhost:5000", "failed", "another machine on each node"),
        ("sqlite:////x/mlflow.db", "failed", "SQLite"),
        ("/x/mlruns", "failed", "a local folder"),
        ("postgresql://me:word@db/runs", "failed", "files would lie in a folder"),
    ],
)
def test_the_tracking_store_is_one_for_all(tmp_path, monkeypatch, uri, state, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    found = shared.check_store(tmp_path, None, None)
    assert found.state == state
    assert said in found.found
    assert "word" not in str(found)


# Nodes that answer


def versions():
    return {name: importlib.metadata.version(name) for name in (*PACKAGES, OURS)}


def node(**changes):
    facts = {
        "host": "one",
        "address": "10.0.0.2",
        "resources": {"CPU": 4.0},
        "python": platform.python_version(),
        "versions": versions(),
        "token": "token",
    }
    return Node(**{**facts, **changes})


def test_nodes_that_have_what_we_have_are_fine_and_others_are_named():
    assert {each.state for each in live.check(Live(address="x:1", nodes=[node()]))} == {"ok"}
    other = node(host="two", python="3.9.1", versions={**versions(), "torch": "1.0", "numpy": None})
    found = by_what(live.check(Live(address="x:1", nodes=[node(), other])))
    assert failed(found.values()) == {"python", "torch", "numpy"}
    assert "1.0 on two (10.0.0.2)" in found["torch"].found
    assert "none on two" in found["numpy"].found
    built = node(versions={**versions(), "torch": f"{versions()['torch'].split('+')[0]}+cu130"})
    assert not failed(live.check(Live(address="x:1", nodes=[built])))
    lacking = node(versions={**versions(), OURS: None})
    found = by_what(live.check(Live(address="x:1", nodes=[lacking])))
    assert (found[OURS].state, "job submit" in found[OURS].do) == ("warning", True)


def test_nodes_that_do_not_answer_and_ask_for_no_token_are_told():
    mute = Node(host="two", address="10.0.0.3", resources={"CPU": 1.0}, error="died")
    found = list(live.check(Live(address="x:1", nodes=[node(token=""), mute])))
    assert "two (10.0.0.3): died" in found[0].found
    assert found[0].state == "failed"
    assert by_what(found)["token"].state == "warning"


def test_what_a_node_does_not_reach_is_named_with_the_node(tmp_path):
    film = tmp_path / "a.mp4"
    film.write_bytes(b"film")
    places = [
        shared.Place(what="media", paths=[film], urls=["s3://bucket/b.mp4"]),
        shared.Place(what="dataset", paths=[tmp_path / "data"], written=True),
    ]
    with shared.marked(places) as question:
        (marker,) = [each for each in question.files if shared.MARKER in each]
        assert Path(marker).read_text()
        fine = {path: shared.fingerprint(path) for path in question.files}
        urls = {"s3://bucket/b.mp4": ""}
        whole = Live(address="x:1", nodes=[node(files=fine, urls=urls)])
        assert not failed(shared.check_live(places, question, whole))
        away = node(host="two", files=dict.fromkeys(fine), urls={"s3://bucket/b.mp4": "denied"})
        head = node(host="head", resources={probe.HEAD: 1.0})
        torn = Live(address="x:1", nodes=[*whole.nodes, away, head])
        found = by_what(shared.check_live(places, question, torn))
    assert not Path(marker).exists()
    assert failed(found.values()) == {"media", "dataset"}
    assert f"{film} on two" in found["media"].found
    assert "b.mp4 on two (10.0.0.2): denied" in found["media"].found
    assert "head" not in found["media"].found
    other = node(files={**fine, str(film): "4 of another film"}, urls=urls)
    with shared.marked(places) as question:
        found = shared.check_live(places[:1], question, Live(address="x:1", nodes=[other]))
        assert failed(found) == {"media"}


def test_a_folder_that_is_not_on_this_machine_is_asked_for_and_not_compared():
    places = [shared.Place(what="dataset", paths=[Path("/no-such-mount/data")], written=True)]
    with shared.marked(places) as question:
        assert list(question.files) == ["/no-such-mount"]
        there = Live(address="x:1", nodes=[node(files={"/no-such-mount": "folder"})])
        assert by_what(shared.check_live(places, question, there))["dataset"].state == "warning"
        lacks = Live(address="x:1", nodes=[node(files={"/no-such-mount": None})])
        assert failed(shared.check_live(places, question, lacks)) == {"dataset"}
    assert by_what(shared.check_unasked(places, None))["dataset"].state == "warning"


def test_jobs_take_the_tracking_store_of_the_nodes_and_shells_their_own(tmp_path, monkeypatch):
    served = node(store="http://10.0.0.1:5000", hosts={"10.0.0.1:5000": ""})
    by_job = Live(address="http://localhost:8265", nodes=[served])
    assert shared.check_store(tmp_path, None, by_job).state == "ok"
    assert shared.check_store(tmp_path, None, replace(by_job, address="x:1")).state == "failed"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////x/mlflow.db")  # not the job's
    assert shared.check_store(tmp_path, None, by_job).state == "ok"
    bare = replace(by_job, nodes=[node()])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://10.0.0.1:5000")
    assert "SQLite" in shared.check_store(tmp_path, None, bare, {}).found
    given = {"MLFLOW_TRACKING_URI": "http://10.0.0.2:5000"}
    assert "10.0.0.2" in shared.check_store(tmp_path, None, by_job, given).found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////x/mlflow.db")
    assert "SQLite" in shared.check_store(tmp_path, None, bare).found
    # Only the server that the job will log to counts, whatever else the nodes were asked for.
    elsewhere = replace(served, hosts={"10.0.0.1:5000": "", "10.0.0.2:5000": "refused"})
    both = replace(by_job, nodes=[elsewhere])
    assert shared.check_store(tmp_path, None, both, {}).state == "ok"
    found = shared.check_store(tmp_path, None, both, given)
    assert (found.state, "refused" in found.found) == ("failed", True)
    away = replace(served, hosts={"10.0.0.1:5000": "refused"})
    found = shared.check_store(tmp_path, None, replace(by_job, nodes=[away]))
    assert (found.state, "refused" in found.found) == ("failed", True)
    several = [served, replace(served, store="")]
    assert "several" in shared.check_store(tmp_path, None, replace(by_job, nodes=several)).found


def test_nodes_are_asked_for_the_server_that_a_job_will_log_to(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    hosts = {}
    for name, variables in {"shell": None, "job": {}}.items():
        with shared.marked([], shared.chosen_store(variables)) as question:
            hosts[name] = list(question.hosts)
    given = {"MLFLOW_TRACKING_URI": "https://me:word@runs.example.org"}
    with shared.marked([], shared.chosen_store(given)) as question:
        assert list(question.hosts) == [("runs.example.org", 443)]
    assert hosts == {"shell": [("localhost", 5000)], "job": []}


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        ({"driver": 0, "torch": 13}, "no driver"),
        ({"driver": 13, "torch": 0}, "without CUDA"),
        ({"driver": 12, "torch": 13}, "takes CUDA 12, and its torch wants 13"),
        ({"driver": 13, "torch": 13}, None),
        ({"driver": 13, "torch": 12}, None),
    ],
)
def test_gpus_that_torch_cannot_use_are_told(cuda, said):
    with_gpu = node(resources={"CPU": 8.0, "GPU": 1.0}, cuda=cuda)
    without = node(cuda={"driver": 0, "torch": 0})
    found = by_what(live.check(Live(address="x:1", nodes=[with_gpu, without])))
    assert ("GPU" in found) == (said is not None)
    if said:
        assert (found["GPU"].state, said in found["GPU"].found) == ("warning", True)


def test_the_cuda_that_torch_wants_is_read_from_what_it_brings(monkeypatch):
    for wanted, cuda in (
        (["numpy", "nvidia-cublas-cu12==12.6.4.1; sys_platform == 'linux'"], 12),
        (["cuda-toolkit[cublas,cudart]==13.0.3; sys_platform == 'linux'", "nvidia-cudnn-cu13"], 13),
        (["filelock", "networkx>=2.5"], 0),
        (None, 0),
    ):
        monkeypatch.setattr(probe.importlib.metadata, "requires", lambda _, wanted=wanted: wanted)
        assert probe.cuda_of_torch() == cuda


def test_what_goes_along_is_not_asked_for_and_runs_are_not_left_in_the_copy(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    film = tmp_path / "work" / "0.mp4"
    film.parent.mkdir()
    film.touch()
    (film.parent / "clips.csv").write_text("id,media,mood\na,0.mp4,1\n")
    experiment = plan(film.parent, dataset=str(tmp_path / "data"))
    copy = film.parent
    assert "media" in by_name(shared.places_of(experiment))
    places = by_name(shared.places_of(experiment, copy))
    assert set(places) == {"dataset"}
    url = "http://localhost:8265"
    alone = Live(address=url, nodes=[node()])
    monkeypatch.setattr(live, "ask", lambda address, question: alone)

    def failing(copy, command="run", **given):
        usual = {"address": url, "driver": Need(), "variables": given}
        found = by_what(validate(experiment, copy=copy, command=command, **usual))
        return {name: each.found for name, each in found.items() if each.state == "failed"}

    assert "go with it" in failing(copy)["tracking"]  # also on one node
    assert "tracking" not in failing(None)
    assert "tracking" not in failing(copy, MLFLOW_TRACKING_URI="http://10.0.0.1:5000")
    assert "tracking" not in failing(copy, "featurize")


def test_a_command_is_held_against_what_it_uses_alone(tmp_path, monkeypatch):
    experiment = plan(tmp_path, workers={"featurize": 1, "train": 99})
    (tmp_path / "0.wav").touch()
    (tmp_path / "clips.csv").write_text("id,media,mood\na,0.wav,1\n")
    nodes = [node(), node(host="two")]
    there = Live(address="http://localhost:8265", nodes=nodes)
    monkeypatch.setattr(live, "ask", lambda address, question: there)

    def failing(command):
        usual = {"address": "http://localhost:8265", "driver": Need(), "variables": {}}
        found = validate(experiment, command=command, **usual)
        return {each.what for each in found if each.state != "ok"} - {"dataset"}

    assert failing("run") == {"train", "media", "tracking"}
    assert failing("train") == {"train", "tracking"}
    assert failing("featurize") == failing("ingest") == {"media"}
    assert failing("evaluate") == {"tracking"}
    assert failing("report") == set()


def test_a_cluster_that_grows_has_room_for_what_its_autoscaler_may_start(tmp_path):
    kinds = [
        NodeKind(name="head", resources={"CPU": 0.0}, most=1),
        NodeKind(name="cpu", resources={"CPU": 8.0}, most=3),
        NodeKind(name="gpu", resources={"CPU": 8.0, "GPU": 2.0}, most=2),
    ]
    grows = Live(address="x:1", nodes=[node()], kinds=kinds)
    assert grows.room().count(Need(gpus=1.0)) == 4
    assert grows.room().count(Need()) == 40
    assert (grows.room().gpus, grows.room().gpus_now) == (True, False)
    assert replace(grows, most=2).room().count(Need()) == 16
    up = replace(grows, nodes=[node(), node(resources={"CPU": 8.0, "GPU": 2.0, "memory": 9e9})])
    assert up.room().gpus_now
    assert replace(grows, kinds=None).room().count(Need()) == 4
    # Of machines at hand nobody states what they have, before they are up.
    hand = replace(grows, kinds=[NodeKind(name="hand", resources={}, most=2)], most=2)
    assert (hand.room().count(Need()), hand.room().unknown) == (4, 1)
    assert replace(hand, nodes=[node(), node()]).room().unknown == 0


def test_an_idle_cluster_that_grows_is_judged_as_several_nodes_and_refuses_a_driver(
    monkeypatch, tmp_path
):
    head = node(resources={probe.HEAD: 1.0, "CPU": 0.0})
    kinds = [NodeKind(name="cpu", resources={"CPU": 8.0}, most=3)]
    idle = Live(address="http://localhost:8265", nodes=[head], kinds=kinds)
    monkeypatch.setattr(live, "ask", lambda address, question: idle)
    findings = list(validate(plan(tmp_path), address="http://localhost:8265"))
    assert {"dataset", "tracking"} <= failed(findings)
    for need, wrong in ((Need(99.0), {"driver of a job"}), (Need(8.0), set()), (Need(0.0), set())):
        alone = list(validate(None, address="http://localhost:8265", driver=need))
        assert failed(alone) & {"driver of a job"} == wrong


SIGNED = ("https://me:h@hush@x/b.mp4", "https://x/c.mp4?X-Amz-Signature=hush")
FILM = "s3://bucket/a.mp4"


def answer(**facts):
    """What the probe prints of one node."""
    told = {"host": "one", "address": "10.0.0.2", "resources": {"CPU": 4.0}, **facts}
    return f"{probe.MARK}{json.dumps({'nodes': [told], 'scaling': None})}\n"


def test_addresses_with_secrets_are_asked_by_number_and_travel_sealed(monkeypatch, tmp_path):
    sent = []

    class Server:
        token = Token("a" * 64, "a test")

        def __init__(self, *settings):
            pass

        def submit(self, request):
            sent.append(request)

        def logs(self, name):
            return answer(urls={FILM: ""}, hidden=["", "not there"])

        def __getattr__(self, name):
            return lambda *asked: None

    monkeypatch.setattr(live, "JobServer", Server)
    there = live.ask("http://localhost:8265", Question(urls=[FILM, *SIGNED]))
    assert there.nodes[0].urls == {FILM: "", SIGNED[0]: "", SIGNED[1]: "not there"}
    (request,) = sent
    assert (FILM in str(request), "hush" in str(request)) == (True, False)
    sealed = request["runtime_env"]["env_vars"]["FUSELINE_SEALED"]
    (tmp_path / "token").write_text(f"{Server.token.value}\n")
    there = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert probe.opened(sealed, there, tmp_path) == list(SIGNED)
    assert probe.opened(sealed, {"RAY_AUTH_TOKEN": "b" * 64}, tmp_path) == []
    assert probe.opened(sealed, {}, tmp_path) == []
    Server.token = Token("", "nowhere")
    live.ask("http://localhost:8265", Question(urls=[FILM, *SIGNED]))
    assert "runtime_env" not in sent[-1]
    assert "hush" not in str(sent[-1])


def test_no_secret_of_an_address_is_an_argument_or_in_a_message(monkeypatch):
    called = []

    def ended(command, *settings, given, **more):
        called.append((command, settings, given))
        out = answer(hidden=["", "ValueError"])
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(live, "ended_within", ended)
    there = live.ask("10.0.0.1:6379", Question(urls=SIGNED))
    ((command, settings, given),) = called
    assert ("hush" in f"{command} {settings}", json.loads(given)) == (False, list(SIGNED))
    place = shared.Place(what="media", urls=SIGNED)
    (found,) = shared.check_live([place], Question(urls=SIGNED), there)
    assert (found.state, "***" in found.found, "ValueError" in found.found) == (
        "failed",
        True,
        True,
    )
    assert "hush" not in str(found)
    unasked = Live(address="x:1", nodes=[node()])
    (found,) = shared.check_live([place], Question(urls=SIGNED), unasked)
    assert (found.state, "could not be asked" in found.found) == ("ok", True)
    assert "hush" not in str(found)


def test_what_goes_wrong_with_an_address_of_secrets_is_told_by_its_kind():
    wrong = "nothing-of-the-kind://me:hush@x/b.mp4"
    asked = {"packages": [], "files": [], "urls": [], "hosts": [], "hidden": [wrong]}
    assert probe.look(asked)["hidden"] == ["ValueError"]
    assert "nothing-of-the-kind" in probe.away(wrong)


def test_the_job_that_asked_is_deleted_after_its_end(monkeypatch):
    states, calls = ["RUNNING"] * 2 + ["STOPPED"], []

    class Server:
        def __init__(self, *settings):
            pass

        def info(self, name):
            return JobInfo(name=name, status=states.pop(0))

        def __getattr__(self, name):
            return lambda *asked: calls.append((name, len(states))) or ""

    monkeypatch.setattr(live, "JobServer", Server)
    monkeypatch.setattr(live, "ANSWER_S", 0.0)
    monkeypatch.setattr(live, "LOOK_S", 0.0)
    with pytest.raises(UnreachedError):
        live.ask("http://localhost:8265", Question())
    assert calls[-1] == ("delete", 0)


def test_what_a_node_says_of_itself_holds_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:swordfish@127.0.0.1:1")
    asked = {"packages": ["ray", "no-such"], "files": ["/"], "urls": [], "hosts": [], "hidden": []}
    said = probe.look(asked)
    assert said["store"] == "http://127.0.0.1:1"
    assert said["hosts"]["127.0.0.1:1"] == "Connection refused"
    assert "swordfish" not in str(said)
    assert said["versions"] == {"ray": importlib.metadata.version("ray"), "no-such": None}
    assert said["files"] == {"/": "folder"}


def test_a_cluster_that_does_not_answer_fails_in_one_line_without_its_password(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(live, "_by_driver", lambda *asked: "Traceback\n  x\nOSError: no route\n")
    with pytest.raises(UnreachedError, match=r"no route; token: ") as refused:
        live.ask("10.0.0.1:6379", Question())
    assert "\n" not in str(refused.value)
    found = list(validate(None, address="http://me:word@127.0.0.1:1"))
    assert [each.state for each in found] == ["failed"]
    whole = validate(plan(tmp_path), address="http://127.0.0.1:1")
    assert {each.area for each in whole} == {"cluster", "features", "model"}  # not this machine's
    assert "word" not in str(found[0])


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, one of them a head that does no work."""
    from ray.cluster_utils import Cluster

    stop_ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://me:swordfish@127.0.0.1:9")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
        made.add_node(num_cpus=2, num_gpus=0)
    yield made
    made.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_the_nodes_of_a_live_cluster_are_asked_and_nothing_is_left(cluster, tmp_path, called):
    test_command_line.films(tmp_path)
    file = test_command_line.experiment(tmp_path, workers={"featurize": 3, "train": 3})
    before = sorted(tmp_path.iterdir())
    code, out, _ = called("validate", str(file), "--address", cluster.address, "--json")
    found = {(each["area"], each["what"]): each for each in json.loads(out)}
    assert found["versions", "ray"]["found"].endswith("here and on 2 node(s)")
    assert {each["state"] for (area, _), each in found.items() if area == "versions"} == {"ok"}
    assert found["shared", "media"]["state"] == "ok"
    assert found["shared", "dataset"]["state"] == "ok"
    assert found["room", "featurize logmel, hashed-words"]["found"].startswith("2 of 3 worker(s)")
    failures = {what for (_, what), each in found.items() if each["state"] == "failed"}
    assert failures == {"train", "tracking"}
    assert "swordfish" not in out
    assert code == 2
    assert sorted(tmp_path.iterdir()) == before


# This machine


def test_without_a_cluster_this_machine_is_looked_at(tmp_path, called, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = test_command_line.experiment(tmp_path, workers={"featurize": 2, "train": 999})
    code, out, _ = called("validate", str(file))
    assert code == 2
    assert f"this machine has room for {os.cpu_count()}" in out
    assert "tracking" not in out
    assert called("validate", str(file), "--set", "workers.train=1")[0] == 0


# With the token, from outside of the cluster


@pytest.fixture
def folder():
    """A short one: Ray's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="v-") as made:
        yield Path(made)


@pytest.mark.ray
@pytest.mark.soak
def test_a_job_server_is_asked_with_the_token_and_keeps_no_job(folder, tmp_path):
    test_command_line.films(tmp_path)
    file = test_command_line.experiment(tmp_path, workers={"featurize": 1, "train": 1})
    store = {"MLFLOW_TRACKING_URI": "http://me:swordfish@127.0.0.1:9"}
    with head(folder, cpus=0, **store) as up, node_beside(up, folder, **store):
        told = environment_of(up.token_file, PYTHONPATH=str(ROOT))

        def asked(**changes):
            command = ["validate", str(file), "--address", up.url, "--json"]
            return subprocess.run(
                [sys.executable, "-m", "pipelines", *command],
                env={**told, **changes},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        for _ in range(20):  # a head takes jobs some seconds after it answers
            done = asked()
            if "No available agent" not in done.stdout:
                break
            time.sleep(1)
        found = {each["what"]: each for each in json.loads(done.stdout)}
        assert found["ray"]["found"].endswith("here and on 2 node(s)"), done.stdout
        assert found["dataset"]["state"] == "ok"
        # What jobs would be given: the nodes' own, and it is another machine on each of them.
        assert "http://127.0.0.1:9 is another machine" in found["tracking"]["found"]
        assert {what for what, each in found.items() if each["state"] == "failed"} == {"tracking"}
        assert (done.returncode, "swordfish" in done.stdout + done.stderr) == (2, False)
        server = JobServer(up.url, "test", Token(up.token, "test"))
        assert server._json("GET", "/api/jobs/") == []
        refused = asked(RAY_AUTH_TOKEN="b" * 64)
        assert refused.returncode == 2
        assert "refuses the token of RAY_AUTH_TOKEN" in refused.stdout


@contextlib.contextmanager
def node_beside(up, folder, **more):
    # One core is the driver's.
    with job_cluster.node(up, "beside", cpus=3, log=folder / "node.log", **more) as process:
        yield process
