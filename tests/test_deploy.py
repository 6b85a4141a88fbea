"""The ways to deploy state the same (node types, limits, token, versions), and do what they say."""

import contextlib
import copy
import os
import re
import stat
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.cluster.launcher import check
from pipelines.cluster.launcher import read as read_cluster

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
START = DEPLOY / "start.sh"

# Writes what it was called with, and what it was told by the environment, one line a call.
STUB = """#!/usr/bin/env bash
line=$(basename "$0")$(printf ' %q' "$@")
told="${RAY_AUTH_MODE:-} ${MLFLOW_TRACKING_URI:-} ${MLFLOW_BACKEND_STORE_URI:-}"
[[ $RAY_JOB_START_TIMEOUT_SECONDS == 604800 || $line != ray* ]] || told="a job does not wait"
echo "$line | $told ${FUSELINE_MLFLOW_STORE:-}" >> "$CALLS"
"""


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def kinds_of(cluster):
    """Node types of a launcher's file: CPUs, GPUs, the most of them, labels, whether on spot."""
    return {
        name: (
            kind["resources"].get("CPU", 0),
            kind["resources"].get("GPU", 0),
            kind["max_workers"],
            kind.get("labels", {}),
            "spot" in str(kind["node_config"]).lower(),
        )
        for name, kind in cluster["available_node_types"].items()
        if name != cluster["head_node_type"]
    }


@pytest.fixture(scope="module")
def aws():
    return read("cluster.yaml")


@pytest.fixture(scope="module")
def gcp():
    return read("deploy/gcp.yaml")


@pytest.fixture(scope="module")
def kuberay():
    return next(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))["spec"]


def test_google_cloud_differs_from_aws_in_what_the_provider_decides_alone(aws, gcp):
    def without_provider(cluster):
        left = {key: value for key, value in cluster.items() if key != "provider"}
        left["available_node_types"] = {
            name: {key: value for key, value in kind.items() if key != "node_config"}
            for name, kind in cluster["available_node_types"].items()
        }
        return left

    assert without_provider(gcp) == without_provider(aws)
    assert kinds_of(gcp) == kinds_of(aws)


def test_ray_accepts_the_file_of_google_cloud(gcp):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(gcp)
    validate_config(prepared)
    assert prepared["provider"]["type"] == "gcp"


def test_nodes_have_a_driver_for_the_torch_of_the_constraints(aws, gcp):
    """PyTorch's ordinary build wants a CUDA, and each major CUDA a driver of NVIDIA."""
    pins = (ROOT / "constraints.txt").read_text()
    (torch,) = re.findall(r"^torch==(\d+\.\d+)", pins, re.M)
    wanted = {"2.13": 580}[torch]  # CUDA 13.0; another torch wants a look at its requirements
    images = [
        kind["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
        for name, kind in gcp["available_node_types"].items()
        if name.startswith("gpu")
    ]
    assert len(images) == 2
    assert all(int(each.rpartition("-nvidia-")[2]) >= wanted for each in images)
    # Where none is named Ray takes one of 2023.
    assert all("ImageId" in kind["node_config"] for kind in aws["available_node_types"].values())


def test_kuberay_has_the_node_types_of_the_launcher(aws, kuberay):
    groups = kuberay["rayClusterSpec"]["workerGroupSpecs"]
    found = {}
    for group in groups:
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        limits = container["resources"]["limits"]
        assert container["resources"]["requests"] == limits
        found[group["groupName"]] = (
            int(limits["cpu"]),
            int(limits.get("nvidia.com/gpu", 0)),
            group["maxReplicas"],
            group["labels"],
            bool(spec.get("tolerations")),
        )
        assert group["minReplicas"] == 0
    assert found == kinds_of(aws)
    head = kuberay["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    idle = kuberay["rayClusterSpec"]["autoscalerOptions"]["idleTimeoutSeconds"]
    assert idle == aws["idle_timeout_minutes"] * 60


def test_rays_autoscaler_reads_from_kuberay_what_it_reads_from_the_launcher(aws, kuberay):
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr as derived,
    )

    cluster = {"metadata": {"name": "x", "namespace": "y"}, "spec": kuberay["rayClusterSpec"]}
    read = derived(cluster)
    assert read["idle_timeout_minutes"] == aws["idle_timeout_minutes"]
    kinds = read["available_node_types"]
    assert kinds.pop(read["head_node_type"])["resources"]["CPU"] == 0
    stated = copy.deepcopy(aws["available_node_types"])
    del stated[aws["head_node_type"]]
    assert set(kinds) == set(stated)
    for name, kind in kinds.items():
        memory = kind["resources"].pop("memory")  # a launcher's file states Ray's part of it
        told = stated[name]["resources"].pop("memory")
        assert 0.68 < told / memory <= 0.7
        kind.pop("node_config")
        assert kind == {key: value for key, value in stated[name].items() if key in kind}, name
        assert ("idle_timeout_s" in kind) == ("idle_timeout_s" in stated[name])


def test_pods_share_a_disk_run_as_the_images_user_and_may_not_become_root(aws, kuberay):
    """Trainings need a folder that all ranks reach; the image's user may become root by sudo."""
    cluster = kuberay["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    (folder,) = {
        (mount["name"], mount["mountPath"])
        for group in groups
        for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]
    }
    assert kuberay["entrypoint"] == f"fuseline run {folder[1]}/experiment.yaml"
    assert f"-v {folder[1]}:{folder[1]}" in aws["docker"]["run_options"]
    for group in groups:
        pod = group["template"]["spec"]
        assert [volume["name"] for volume in pod["volumes"]] == [folder[0]]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"] == cluster["autoscalerOptions"]["securityContext"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
    # A driver scores clips, and the head does no work.
    assert kuberay["entrypointNumCpus"] == 1


def test_no_way_leaves_a_core_dump(aws, gcp, kuberay):
    assert "\nulimit -c 0\n" in START.read_text()
    for cluster in (aws, gcp):
        assert "--ulimit core=0" in cluster["docker"]["run_options"]
    cluster = kuberay["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["spec"]["containers"][0]["args"] == ["ulimit -c 0"]


def test_machines_at_hand_are_started_as_those_of_a_cloud(aws, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.touch(0o600)
    text = (DEPLOY / "local.yaml").read_text()
    file = tmp_path / "local.yaml"
    file.write_text(text)
    assert [each.what for each in check(read_cluster(file)) if each.state != "ok"] == [
        "placeholders"
    ]
    file.write_text(text.replace("REPLACE_ME", "/opt/fuseline"))
    assert {each.state for each in check(read_cluster(file))} == {"ok"}
    cluster = yaml.safe_load(file.read_text())
    for which in ("head", "worker"):
        theirs, ours = (each[f"{which}_start_ray_commands"][-1] for each in (aws, cluster))
        assert ours.split()[-2:] == ["/opt/fuseline/deploy/start.sh", which]
        assert theirs.split()[-2:] == ["/home/ray/fuseline/deploy/start.sh", which]
    config = "--autoscaling-config=$HOME/ray_bootstrap_config.yaml"
    for each in (aws, cluster):
        assert config in each["head_start_ray_commands"][-1]


def test_every_way_has_the_token_and_the_tested_ray(aws, gcp, kuberay):
    assert kuberay["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert kuberay["rayClusterSpec"]["rayVersion"] == version("ray")
    docker = (DEPLOY / "Dockerfile").read_text()
    assert f"ARG RAY={version('ray')}\n" in docker
    assert "ENV RAY_AUTH_MODE=token" in docker
    assert "--constraint /home/ray/fuseline/constraints.txt" in docker
    for name in ("start.sh", "slurm.sbatch"):
        assert "export RAY_AUTH_MODE=token" in (DEPLOY / name).read_text()
    for cluster in (aws, gcp):
        assert cluster["docker"]["image"] == f"rayproject/ray:{version('ray')}-py311"
        assert "start.sh head" in cluster["head_start_ray_commands"][-1]
        assert cluster["worker_start_ray_commands"][-1].endswith("start.sh worker")


def test_nodes_have_what_their_stores_need(aws, gcp):
    """MLflow on PostgreSQL and buckets wants drivers, and an address that names the one we have."""
    installs = [*aws["setup_commands"], *gcp["setup_commands"]]
    for each in (*installs, (DEPLOY / "Dockerfile").read_text()):
        assert "fuseline[faces,s3,server]" in each
        assert "--constraint" in each
    told = [ROOT / "cluster.yaml", *DEPLOY.iterdir(), *(ROOT / "docs").glob("*.md")]
    texts = [file.read_text() for file in told if file.is_file()]
    assert {each for text in texts for each in re.findall(r"postgresql[\w+]*://", text)} == {
        "postgresql+psycopg://"
    }
    pins = (ROOT / "constraints.txt").read_text()
    assert all(f"\n{name}==" in pins for name in ("s3fs", "boto3", "psycopg", "ray", "torch"))


def test_a_job_may_wait_for_a_node_wherever_ray_is_started(kuberay):
    head = kuberay["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    told = {each["name"]: each["value"] for each in head["env"]}
    assert told["RAY_JOB_START_TIMEOUT_SECONDS"] == "604800"
    assert "RAY_JOB_START_TIMEOUT_SECONDS:-604800" in START.read_text()


def test_the_image_has_the_packages_and_what_the_wheel_is_made_of(aws):
    copied = re.findall(r"/home/ray/fuseline/(\w+)$", (DEPLOY / "Dockerfile").read_text(), re.M)
    mounted = {Path(remote).name for remote in aws["file_mounts"] if "fuseline" in remote}
    assert set(copied) == {each for each in mounted if (ROOT / each).is_dir()}


def test_a_change_of_the_code_leaves_the_images_layer_of_dependencies_as_it_is():
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    before, _, after = text.partition('"/home/ray/fuseline[faces,s3,server]"\n')
    assert re.findall(r"^COPY \S+ (.*) \S+$", before, re.M) == ["pyproject.toml constraints.txt"]
    (install,) = re.findall(r"^RUN (.*)$", after, re.M)
    assert "--no-deps" in install
    assert "COPY" not in after.partition(install)[2]


@pytest.mark.parametrize("name", ["start.sh", "slurm.sbatch"])
def test_scripts_parse_and_may_be_run(name):
    subprocess.run(["/bin/bash", "-n", DEPLOY / name], check=True)
    assert (DEPLOY / name).stat().st_mode & stat.S_IXUSR


@pytest.fixture
def stubs(tmp_path):
    """A PATH on which ray, mlflow and others only write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("ray", "mlflow", "fuseline"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(os.path.realpath(ROOT / ".venv" / "bin" / "python"))
    return folder


def run(stubs, *arguments, script=START, **environment):
    calls = stubs.parent / "calls"
    calls.touch()
    done = subprocess.run(
        [script, *arguments],
        env={
            "PATH": f"{stubs}:/usr/local/bin:/usr/bin:/bin:/usr/sbin",
            "HOME": str(stubs.parent),
            "CALLS": str(calls),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done, calls


def lines_of(calls, count):
    """What was called; MLflow is started beside the rest, so that it may come late."""
    import time

    for _ in range(100):
        lines = calls.read_text().splitlines()
        if len(lines) >= count:
            return sorted(lines)
        time.sleep(0.05)
    raise AssertionError(calls.read_text())


def test_a_head_binds_ray_and_mlflow_to_the_private_address_and_the_dashboard_to_loopback(stubs):
    done, calls = run(
        stubs,
        "head",
        FUSELINE_NODE_IP="127.0.0.9",
        FUSELINE_MLFLOW_STORE="postgresql://me:secret@db/runs",
        FUSELINE_ARTIFACTS="s3://bucket/mlflow",
        FUSELINE_RAY_FLAGS="--num-cpus=0 --labels=role=head",
    )
    assert done.returncode == 0, done.stderr
    mlflow, ray = lines_of(calls, 2)
    assert "--host 127.0.0.9 --port 5000" in mlflow
    # A worker of it that starts slowly is waited for.
    assert "--timeout-worker-healthcheck\\ 120" in mlflow
    assert "--allowed-hosts 127.0.0.9:5000\\,localhost:5000" in mlflow
    assert "--artifacts-destination s3://bucket/mlflow" in mlflow
    said, _, told = mlflow.partition(" | ")
    assert "secret" not in said  # an argument can be read by everybody on the machine
    assert told.strip().endswith("postgresql://me:secret@db/runs")
    assert "--dashboard-host=127.0.0.1 --num-cpus=0 --labels=role=head" in ray
    assert ray.partition(" | ")[2].strip() == "token http://127.0.0.9:5000"


def test_the_address_of_the_store_may_lie_in_a_file(stubs):
    file = stubs.parent / "store"
    usual = {"FUSELINE_NODE_IP": "127.0.0.9", "FUSELINE_MLFLOW_STORE_FILE": str(file)}
    done, calls = run(stubs, "head", **usual)
    assert (done.returncode, "store cannot be read" in done.stderr) == (2, True)
    assert not calls.read_text()
    file.write_text("postgresql://me:secret@db/runs\n")
    file.chmod(0o644)
    done, calls = run(stubs, "head", **usual)
    assert "others may read" in done.stderr
    mlflow, ray = lines_of(calls, 2)
    assert mlflow.strip().endswith("postgresql://me:secret@db/runs")
    assert "secret" not in ray


def test_a_head_does_not_start_without_a_place_for_what_must_outlive_it(stubs):
    """MLflow, started beside the rest, would fail unseen."""
    (stubs.parent / "taken").touch()
    usual = {"FUSELINE_NODE_IP": "127.0.0.9", "FUSELINE_STATE": f"{stubs.parent}/taken"}
    done, calls = run(stubs, "head", **usual)
    assert (done.returncode, f"cannot write to {stubs.parent}/taken" in done.stderr) == (2, True)
    assert not calls.read_text()


def test_a_worker_beside_the_head_has_ports_of_its_own(stubs):
    """Ray's agent, which hands out logs, would not begin on a port that is taken, and not tell."""
    for own, second in (("10.9.0.1", True), ("10.9.0.2", False)):
        run(stubs, "worker", FUSELINE_NODE_IP=own, RAY_HEAD_IP="10.9.0.1")
        *_, line = (stubs.parent / "calls").read_text().splitlines()
        found = re.findall(r"--([\w-]+)-port=(\d+)", line)
        ports = [("object-manager", "8077"), ("dashboard-agent-listen", "52366")]
        assert found == (ports if second else [("object-manager", "8076")])


def flags(line):
    """The names of options, and those values that are no address or file."""
    found = re.findall(r"(--[\w-]+)[ =](\S+)", line)
    return {(name, "" if re.search(r"[/.]", value) else value) for name, value in found}


def test_plain_commands_of_the_papers_are_those_of_the_script(stubs):
    """The quick start on two machines: what somebody types there listens where the script's do."""
    paper = (ROOT / "docs" / "operations.md").read_text()
    typed = re.findall(r"^ {4}((?:ray start|mlflow server) .*)$", paper, re.M)
    head, mlflow, worker = sorted(typed, key=lambda line: ("--address" in line, line[0] == "m"))
    usual = {"FUSELINE_NODE_IP": "127.0.0.9", "RAY_HEAD_IP": "127.0.0.9"}
    run(stubs, "head", FUSELINE_RAY_FLAGS="--num-cpus=0 --num-gpus=0", **usual)
    _, calls = run(stubs, "worker", FUSELINE_NODE_IP="10.9.0.2", RAY_HEAD_IP="10.9.0.1")
    lines = lines_of(calls, 3)
    for mine, start in ((head, "ray start --head"), (worker, "ray start --address")):
        (ours,) = [each for each in lines if each.startswith(start)]
        assert flags(mine.partition("#")[0]) == flags(ours)
    (ours,) = [each for each in lines if each.startswith("mlflow")]
    wanted = {name for name, _ in flags(ours)} - {"--workers"}
    assert {name for name, _ in flags(mlflow)} == wanted | {"--backend-store-uri"}
    assert "--dashboard-host=127.0.0.1" in head
    # Ray hands what it was started with on to jobs, also where MLflow is.
    (exported,) = re.findall(r"^ {4}export (.*?) *#.*on both", paper, re.M)
    given = dict(each.split("=") for each in exported.split())
    waits = {"RAY_JOB_START_TIMEOUT_SECONDS": "604800"}
    usual = {"RAY_AUTH_MODE": "token", "MLFLOW_TRACKING_URI": "http://10.0.0.1:5000"}
    assert given == {**usual, **waits}
    assert " | token http://127.0.0.9:5000" in lines[-1]


def test_a_worker_joins_the_head_and_logs_to_its_mlflow(stubs):
    done, calls = run(stubs, "worker", RAY_HEAD_IP="127.0.0.8", FUSELINE_NODE_IP="127.0.0.9")
    assert done.returncode == 0, done.stderr
    (ray,) = lines_of(calls, 1)
    assert ray.startswith("ray start --address=127.0.0.8:6379 --node-ip-address=127.0.0.9 ")
    assert ray.partition(" | ")[2].strip() == "token http://127.0.0.8:5000"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("worker",), "RAY_HEAD_IP is not set"),
        (("haed",), "head or worker, not 'haed'"),
        ((), "head or worker, not ''"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(stubs, arguments, said):
    done, calls = run(stubs, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not calls.read_text()


# Runs what it is given here, as Slurm would on the node; nodes of the allocation are two.
SRUN = """#!/usr/bin/env bash
for each; do [[ $each == --* ]] || break; given+=" $each"; done
while [[ $1 == --* ]]; do shift; done
printf '%s\\n' "srun$given: $*" >> $CALLS
case $1 in hostname) echo 127.0.0.7 ;; *) "$@" ;; esac
"""


# Answers who asks for its health, once.
SERVES = """
import http.server as h, os, pathlib

with pathlib.Path(__file__).with_suffix(".pids").open("a") as pids:
    pids.write(f"{os.getpid()}\\n")

class Health(h.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

server = h.HTTPServer(("127.0.0.7", 5000), Health)
server.timeout = 30
server.handle_request()
"""


@pytest.fixture
def slurm(stubs):
    (stubs / "serves.py").write_text(SERVES)
    (stubs / "mlflow").write_text(f"{STUB}exec python {stubs}/serves.py &> /dev/null\n")
    (stubs / "srun").write_text(SRUN)
    (stubs / "scontrol").write_text("#!/usr/bin/env bash\nprintf 'node1\\nnode2\\n'\n")
    for name in ("srun", "scontrol"):
        (stubs / name).chmod(0o755)
    # The cluster ends with the command: it must not, before the nodes have begun.
    waits = "for _ in {1..200}; do grep -q 'ray start --address' $CALLS && break; sleep 0.05; done"
    (stubs / "fuseline").write_text(f"{STUB}{waits}\n")
    home = stubs.parent / "home"
    (home / ".venv").mkdir(parents=True)
    (home / "deploy").symlink_to(DEPLOY)
    (home / ".venv" / "bin").symlink_to(stubs)
    about = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "6"}
    yield {"SLURM_SUBMIT_DIR": str(home), **about}
    # Nobody asks it where the script ends before.
    pids = stubs / "serves.pids"
    for each in pids.read_text().split() if pids.is_file() else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(each))
            if str(stubs / "serves.py") in process.cmdline():
                process.kill()


def test_slurm_starts_head_and_workers_runs_the_command_and_leaves_no_secret(stubs, slurm):
    done, calls = run(stubs, "run", "my file.yaml", script=DEPLOY / "slurm.sbatch", **slurm)
    assert done.returncode == 0, done.stderr
    lines = lines_of(calls, 8)
    steps = [each for each in lines if each.startswith("srun") and "start.sh" in each]
    assert ["--cpus-per-task=6 " in each for each in steps] == ["worker" in each for each in steps]
    (head,) = [each for each in lines if each.startswith("ray start --head")]
    (worker,) = [each for each in lines if each.startswith("ray start --address")]
    (command,) = [each for each in lines if each.startswith("fuseline")]
    assert "--num-cpus=0 --num-gpus=0 --labels=role=head" in head
    assert worker.startswith("ray start --address=127.0.0.7:6379")
    assert "--object-manager-port=8077 --dashboard-agent-listen-port=52366" in worker
    assert command.startswith("fuseline run my\\ file.yaml | token http://127.0.0.7:5000")
    assert not list(Path(slurm["SLURM_SUBMIT_DIR"]).glob(".fuseline-*"))


def test_two_allocations_do_not_write_one_store(stubs, slurm):
    # Job 8 is at work, and 6 is gone.
    (stubs / "squeue").write_text("#!/usr/bin/env bash\n[[ $2 == --jobs=8 ]] && echo 8 RUNNING\n")
    (stubs / "squeue").chmod(0o755)
    state = Path(slurm["SLURM_SUBMIT_DIR"]) / "fuseline-state"
    state.mkdir()
    held, script = state / "served-by", DEPLOY / "slurm.sbatch"
    held.symlink_to("8")
    done, calls = run(stubs, "run", "x", script=script, **slurm)
    assert (done.returncode, calls.read_text()) == (2, "")
    assert done.stderr.startswith(f"slurm.sbatch: job 8 serves MLflow from {state}: wait for")
    assert held.readlink() == Path("8")
    own = {**slurm, "FUSELINE_MLFLOW_STORE": "postgresql+psycopg://db/runs"}
    assert run(stubs, "run", "x", script=script, **own)[0].returncode == 0
    held.unlink()
    held.symlink_to("6")
    assert run(stubs, "run", "x", script=script, **slurm)[0].returncode == 0
    assert not held.is_symlink()


def test_slurm_ends_with_the_code_of_a_command_that_saves_when_it_is_told_to_end(stubs, slurm):
    # The signal ends bash's waiting at once; the command takes its time, and ends as it likes.
    saves = "trap 'sleep 0.3; exit $CODE' TERM; kill -TERM $PPID; while :; do sleep 0.05; done"
    (stubs / "fuseline").write_text(f"#!/usr/bin/env bash\n{saves}\n")
    for code in ("0", "5"):
        done, _ = run(stubs, "run", "x", script=DEPLOY / "slurm.sbatch", CODE=code, **slurm)
        assert done.returncode == int(code), done.stderr


def test_slurm_does_not_go_on_without_a_head_that_answers(stubs, slurm):
    # One that stays, and does not answer; srun's end is its.
    (stubs / "srun").write_text(SRUN.replace('*) "$@"', '*) exec "$@"'))
    (stubs / "ray").write_text(
        "#!/usr/bin/env bash\n[[ $1 == start ]] && exec /bin/sleep 30 &> /dev/null\nexit 1\n"
    )
    (stubs / "sleep").write_text("#!/usr/bin/env bash\n")
    (stubs / "sleep").chmod(0o755)
    done, calls = run(stubs, "run", "x", script=DEPLOY / "slurm.sbatch", **slurm)
    assert done.returncode == 1
    assert "the head at 127.0.0.7:6379 did not answer" in done.stderr
    assert not [line for line in calls.read_text().splitlines() if line.startswith("fuseline")]


def test_slurm_begins_no_command_before_mlflow_answers(stubs, slurm):
    # An address of its own: a server of another test may still wait to be asked.
    srun = (stubs / "srun").read_text()
    (stubs / "srun").write_text(srun.replace("127.0.0.7", "127.0.0.6"))
    for name, does in (("mlflow", "exit 1"), ("sleep", "exit 0")):
        (stubs / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (stubs / name).chmod(0o755)
    short = stubs.parent / "short.sbatch"
    short.write_text((DEPLOY / "slurm.sbatch").read_text().replace("seq 120", "seq 2"))
    short.chmod(0o755)
    done, calls = run(stubs, "run", "x", script=short, **slurm)
    assert done.returncode == 1
    assert "MLflow at 127.0.0.6:5000 did not answer" in done.stderr
    assert not [line for line in calls.read_text().splitlines() if line.startswith("fuseline")]


def test_slurm_ends_with_the_code_of_the_command(stubs, slurm):
    (stubs / "fuseline").write_text("#!/usr/bin/env bash\nexit 3\n")
    done, _ = run(stubs, "run", "x.yaml", script=DEPLOY / "slurm.sbatch", **slurm)
    assert done.returncode == 3
    done, _ = run(stubs, script=DEPLOY / "slurm.sbatch", **slurm)
    assert (done.returncode, "which command?" in done.stderr) == (2, True)
