"""cluster.yaml against Ray's own schema, and against what we ask of a cluster file."""

import copy
import importlib.metadata
from pathlib import Path

import pytest
import yaml

from pipelines.cluster import launcher
from pipelines.cluster.launcher import read
from pipelines.experiment import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def plain():
    """Our file, filled in."""
    text = (ROOT / "cluster.yaml").read_text()
    disk = text.replace("REPLACE_ME /mnt", "fs-0123.efs.us-west-2.amazonaws.com:/ /mnt")
    return yaml.safe_load(disk.replace("&image REPLACE_ME", "&image ami-0123"))


@pytest.fixture
def changed(plain, tmp_path, monkeypatch):
    """A cluster file like ours but for what a function does to it; the token of it is ours."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    (tmp_path / ".ray" / "auth_token").chmod(0o600)

    def change(how=lambda cluster: None):
        cluster = copy.deepcopy(plain)
        how(cluster)
        file = tmp_path / "other.yaml"
        file.write_text(yaml.safe_dump(cluster))
        return file

    return change


def by_what(findings):
    return {each.what: each for each in findings}


def test_our_own_cluster_file_and_that_of_google_cloud_are_as_they_should_be(changed):
    findings = list(launcher.check(read(changed())))
    assert {each.what for each in findings if each.state != "ok"} == {"runs"}  # on the head alone
    for name in ("cluster.yaml", "deploy/gcp.yaml"):
        as_it_is = launcher.check(read(ROOT / name))
        wrong = {each.what for each in as_it_is if each.state != "ok"}
        assert wrong == {"placeholders", "runs"}


def open_dashboard(cluster):
    cluster["head_start_ray_commands"][-1] += " --dashboard-host=0.0.0.0"


def usual_commands(cluster):
    del cluster["head_start_ray_commands"]


def no_token(cluster):
    cluster["docker"]["run_options"] = []
    cluster["worker_start_ray_commands"] = ["ray start --address=$RAY_HEAD_IP:6379"]


def token_not_sent(cluster):
    del cluster["file_mounts"]["/home/ray/auth_token"]


def working_head(cluster):
    cluster["available_node_types"]["head"]["resources"] = {"CPU": 4}


def idle_nodes(cluster):
    cluster["available_node_types"]["gpu-train"]["min_workers"] = 1


def other_ray(cluster):
    cluster["docker"]["image"] = "rayproject/ray:2.50.0-py311"


def other_python(cluster):
    cluster["docker"]["image"] = f"rayproject/ray:{importlib.metadata.version('ray')}-py39"


def own_image(cluster):
    cluster["docker"]["image"] = "registry.example/fuseline:1"


def misspelt(cluster):
    cluster["available_node_types"]["cpu"]["label"] = {}


def lost_file(cluster):
    cluster["file_mounts"]["/home/ray/x"] = "no-such-file"


@pytest.mark.parametrize(
    ("how", "what", "state", "said"),
    [
        (open_dashboard, "dashboard", "failed", "listens on all addresses"),
        (usual_commands, "dashboard", "failed", "--dashboard-host=127.0.0.1"),
        (no_token, "token", "failed", "workers start Ray without RAY_AUTH_MODE=token"),
        (token_not_sent, "token", "failed", "no node gets a file /home/ray/auth_token"),
        (working_head, "head", "warning", "resources to {CPU: 0}"),
        (idle_nodes, "limits", "warning", "1 x gpu-train run with nothing to do"),
        (other_ray, "image", "failed", "ray:2.50.0-py311, and here is Ray"),
        (other_python, "image", "failed", "name an image of"),
        (own_image, "image", "warning", "does not say which Ray"),
        (lost_file, "files", "failed", "no-such-file"),
    ],
)
def test_what_is_wrong_with_a_cluster_file_is_told(changed, how, what, state, said):
    others = [each for each in launcher.check(read(changed(how))) if each.state != "ok"]
    (found,) = [each for each in others if each.what == what]
    assert found.state == state
    assert said in str(found)


def test_a_misspelt_key_of_a_node_type_is_told_with_its_place(changed):
    with pytest.raises(InputError, match=r"available_node_types\.cpu: .*'label'"):
        read(changed(misspelt))


def test_a_token_that_is_not_there_or_that_others_may_read_is_told(changed, tmp_path):
    file = changed()
    token = tmp_path / ".ray" / "auth_token"
    token.chmod(0o644)
    assert "chmod 600" in by_what(launcher.check(read(file)))["token"].do
    token.unlink()
    found = by_what(launcher.check(read(file)))["token"]
    assert (found.state, "ray get-auth-token" in found.do) == ("failed", True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("a: [", "not YAML"),
        ("kind: RayJob\n", "of Kubernetes"),
        ("7\n", "there is no provider"),
        ("provider: {type: local}\ncluster_name: x\n", "Ray refuses it"),
        (
            "provider: {type: aws, region: us-west-2}\ncluster_name: x\nmax_wokers: 2\n",
            "max_wokers",
        ),
    ],
)
def test_a_file_that_ray_refuses_is_told_in_one_line(tmp_path, content, said, capfd):
    file = tmp_path / "cluster.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=said) as refused:
        read(file)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


# What is stated in ours, and is no law for those of others


@pytest.fixture
def ours(changed):
    return read(changed())


def test_there_are_a_head_and_three_kinds_of_workers(ours):
    assert set(ours.kinds) == {"head", "cpu", "gpu-featurize", "gpu-train"}
    assert {kind.name for kind in ours.room().kinds} == {"cpu", "gpu-featurize", "gpu-train"}
    assert [kind.resources.get("GPU", 0) for kind in ours.room().kinds] == [0, 1, 4]


def test_nothing_runs_that_nobody_asked_for(ours):
    assert all(kind["min_workers"] == 0 for kind in ours.kinds.values())
    assert 0 < ours.plain["idle_timeout_minutes"] <= 15
    assert ours.kinds[ours.head]["max_workers"] == 0


def test_spot_nodes_do_the_work_that_may_be_interrupted_and_no_other(ours):
    assert {kind.name for kind in ours.room().kinds if kind.spot} == {"cpu", "gpu-featurize"}


def test_every_node_is_started_by_the_script_and_the_head_scales_by_the_launchers_file(ours):
    head, worker = (ours.plain[f"{which}_start_ray_commands"][-1] for which in ("head", "worker"))
    scales = 'FUSELINE_RAY_FLAGS="--autoscaling-config=$HOME/ray_bootstrap_config.yaml" '
    assert head == f"{scales}/home/ray/fuseline/deploy/start.sh head"
    assert worker == "/home/ray/fuseline/deploy/start.sh worker"
    # What is called there is looked at too, as it lies here.
    assert all("export RAY_AUTH_MODE=token" in text for text in ours.commands())


def test_nodes_install_this_code_with_the_tested_versions(ours):
    (install,) = ours.plain["setup_commands"]
    assert "--constraint /tmp/fuseline/constraints.txt" in install
    mounted = {Path(remote).name for remote in ours.plain["file_mounts"] if "fuseline" in remote}
    assert mounted >= {"pipelines", "featurizers", "training", "tracking", "pyproject.toml"}


def test_the_state_of_the_head_lies_on_its_machine_and_is_its_users(ours):
    """`ray up` with a new image makes a new container; Docker would make the folder as root."""
    (volume,) = ours.plain["docker"]["head_run_options"]
    here, there = volume.removeprefix("-v ").split(":")
    script = (ROOT / "deploy" / "start.sh").read_text()
    assert "${FUSELINE_STATE:-$HOME/fuseline-state}" in script
    assert there == launcher.HOME_STATE == "/home/ray/fuseline-state"
    *_, made = ours.plain["initialization_commands"]
    assert made == f"sudo install -d -m 700 -o 1000 -g 100 {here}"


def no_volume(cluster):
    del cluster["docker"]["head_run_options"]


def state_elsewhere(cluster):
    *before, start = cluster["head_start_ray_commands"]
    cluster["head_start_ray_commands"] = [*before, f"FUSELINE_STATE=/data/state {start}"]


def state_below_a_volume(cluster):
    state_elsewhere(cluster)
    cluster["docker"]["head_run_options"] = ["--volume=/mnt/disk:/data/"]


def store_elsewhere(cluster):
    *before, start = cluster["head_start_ray_commands"]
    given = f"FUSELINE_MLFLOW_STORE_FILE=/home/ray/mlflow_store {start}"
    cluster["head_start_ray_commands"] = [*before, given]


@pytest.mark.parametrize(
    ("how", "state", "said"),
    [
        (lambda cluster: None, "warning", "lie on the disk of the head"),
        (no_volume, "warning", "lie in the head's container"),
        (state_elsewhere, "warning", "lie in the head's container"),
        (state_below_a_volume, "warning", "lie on the disk of the head"),
        (store_elsewhere, "ok", "outside of the head"),
    ],
)
def test_runs_that_would_go_with_the_head_are_told(changed, how, state, said):
    (found,) = [each for each in launcher.check(read(changed(how))) if each.what == "runs"]
    assert (found.state, said in found.found) == (state, True)
    assert state == "ok" or "FUSELINE_MLFLOW_STORE_FILE" in found.do
