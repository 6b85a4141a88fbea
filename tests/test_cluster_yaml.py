"""cluster.yaml against Ray's own schema, and against what we ask of it."""

import copy
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def checked(cluster):
    """What `ray up` makes of it, after the check that `ray up` does; needs no cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def start_commands(cluster):
    """Of the head and of workers, what starts Ray."""
    return [cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]]


def test_ray_accepts_the_cluster_file(cluster):
    prepared = checked(cluster)
    assert set(prepared["available_node_types"]) == {"head", "cpu", "gpu-featurize", "gpu-train"}


def test_a_misspelt_key_is_refused(cluster):
    cluster = {**cluster, "idle_timeout_minuets": 5}
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuets"):
        checked(cluster)


def test_a_misspelt_key_of_a_node_type_is_refused(cluster):
    cluster = copy.deepcopy(cluster)
    cluster["available_node_types"]["cpu"]["label"] = {}
    with pytest.raises(jsonschema.ValidationError, match="label"):
        checked(cluster)


def test_no_work_can_land_on_the_head(cluster):
    head = checked(cluster)["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0


def test_nothing_runs_that_nobody_asked_for(cluster):
    assert all(kind["min_workers"] == 0 for kind in cluster["available_node_types"].values())
    assert 0 < cluster["idle_timeout_minutes"] <= 15


def test_spot_nodes_do_the_work_that_may_be_interrupted_and_no_other(cluster):
    spot = {
        name
        for name, kind in cluster["available_node_types"].items()
        if kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    }
    assert spot == {"cpu", "gpu-featurize"}


def test_every_node_starts_with_token_authentication(cluster):
    """start.sh exports it, which tests/test_deploy.py holds, and the image has it for shells."""
    head, worker = start_commands(checked(cluster))
    assert head.endswith("/home/ray/fuseline/deploy/start.sh head")
    assert worker.endswith("/home/ray/fuseline/deploy/start.sh worker")
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]


def test_the_head_scales_the_cluster_by_the_file_that_the_launcher_leaves(cluster):
    head = start_commands(checked(cluster))[0]
    assert head.startswith(
        'FUSELINE_RAY_FLAGS="--autoscaling-config=$HOME/ray_bootstrap_config.yaml" '
    )


def test_every_node_gets_the_token_where_ray_looks_for_it(cluster):
    (option,) = [text for text in cluster["docker"]["run_options"] if "TOKEN_PATH" in text]
    path = option.partition("=")[2]
    assert cluster["file_mounts"][path] == "~/.ray/auth_token"


def test_nothing_listens_on_all_addresses(cluster):
    said = (ROOT / "deploy" / "start.sh").read_text() + " ".join(start_commands(checked(cluster)))
    assert "--dashboard-host=127.0.0.1" in said
    assert "0.0.0.0" not in said  # noqa: S104 - looked for, not bound


def test_images_carry_the_ray_that_is_installed_here(cluster):
    images = [cluster["docker"]["image"]]
    images += [
        kind["docker"]["worker_image"]
        for kind in cluster["available_node_types"].values()
        if "docker" in kind
    ]
    wanted = f"rayproject/ray:{version('ray')}-py311"
    assert {image.removesuffix("-gpu") for image in images} == {wanted}


def test_nodes_install_this_code_with_the_tested_versions(cluster):
    (install,) = checked(cluster)["setup_commands"]
    assert "--constraint /tmp/fuseline/constraints.txt" in install
    mounted = {Path(remote).name for remote in cluster["file_mounts"] if "fuseline" in remote}
    assert mounted >= {"pipelines", "featurizers", "training", "tracking", "pyproject.toml"}


def test_every_file_that_is_sent_to_the_nodes_exists(cluster):
    local = [path for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in local if not (ROOT / path).exists()] == []
