"""Several nodes on this machine: one is killed, one joins late, one alone has what is needed."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from pipelines import crew, elastic
from pipelines.elastic import Size, room_for
from pipelines.executors import (
    HEAD,
    Need,
    NoRoomError,
    OnRay,
    coordinate_on_head,
    start_ray,
    stop_ray,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parent.parent
GPU = Need(cpus=0.0, gpus=1.0)


def node_of(folder):
    """A worker that tells its node, and in a file when it began on which item."""
    import ray

    node = ray.get_runtime_context().get_node_id()

    def work(item):
        (folder / f"{item}-{node}-{os.getpid()}").touch()
        time.sleep(0.15)
        return item, node

    return work


def begun(folder, node):
    return len(list(folder.glob(f"*-{node}-*")))


@pytest.fixture(scope="module")
def head():
    """A head that does no work, as in cluster.yaml."""
    from ray.cluster_utils import Cluster

    stop_ray()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        stop_ray()
    cluster.shutdown()


@pytest.fixture
def cluster(head):
    """It, without the nodes that the test before added."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node)
    head.wait_for_nodes()  # until the head counts them no more


def test_the_items_of_a_node_that_is_killed_are_done_elsewhere(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "DEATHS", 1)  # to lose a node is no death of an item's own
    doomed, other = cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=1)
    answers = OnRay(3).run(partial(node_of, tmp_path), range(60))
    seen = [next(answers)]
    while not begun(tmp_path, doomed.node_id) or not begun(tmp_path, other.node_id):
        seen.append(next(answers))
    cluster.remove_node(doomed, allow_graceful=False)
    seen.extend(answers)
    assert sorted(each.result[0] for each in seen) == list(range(60))
    again = {each.number for each in seen if each.attempts > 1}
    assert 1 <= len(again) <= 2
    assert {each.result[1] for each in seen if each.number in again} == {other.node_id}


def slow_to_start(folder):
    """A worker that is not up before another node than its own is lost."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (folder / f"starts-{node}").touch()
    while not (folder / "lost").exists() or (folder / "lost").read_text() == node:
        time.sleep(0.1)
    return lambda item: (item, node)


def test_a_worker_that_is_lost_with_its_node_before_it_is_up_is_no_failed_start(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(crew, "STARTS", 1)
    nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=1) for _ in range(2))}

    def lose_it():
        while not (starting := list(tmp_path.glob("starts-*"))):
            time.sleep(0.05)
        node = starting[0].name.removeprefix("starts-")
        (tmp_path / "lost").write_text(node)
        cluster.remove_node(nodes[node], allow_graceful=False)

    thread = Thread(target=lose_it)
    thread.start()
    answers = list(OnRay(1).run(partial(slow_to_start, tmp_path), range(3)))
    thread.join()
    (other,) = set(nodes) - {(tmp_path / "lost").read_text()}
    assert sorted(each.result for each in answers) == [(item, other) for item in range(3)]


def node_in_company(folder):
    """The same, but from the sixth item on it waits until another node has begun on one."""
    work = node_of(folder)

    def wait(item):
        result = work(item)
        deadline = time.monotonic() + 90
        while item > 5 and time.monotonic() < deadline:
            if len({path.name.split("-")[1] for path in folder.iterdir()}) > 1:
                break
            time.sleep(0.05)
        return result

    return wait


@pytest.mark.soak
def test_a_node_that_joins_late_gets_work(cluster, tmp_path):
    first = cluster.add_node(num_cpus=1)
    answers = OnRay(4).run(partial(node_in_company, tmp_path), range(80))
    seen = [next(answers) for _ in range(3)]
    assert {each.result[1] for each in seen} == {first.node_id}
    late = cluster.add_node(num_cpus=1)
    seen.extend(answers)
    assert sorted(each.result[0] for each in seen) == list(range(80))
    assert begun(tmp_path, late.node_id) >= 10


def test_work_for_a_gpu_goes_to_the_node_that_has_one_when_it_comes(cluster, tmp_path):
    plain, told = cluster.add_node(num_cpus=1), []
    executor = OnRay(1, told=told.append)
    answers = executor.run(
        partial(node_of, tmp_path), range(20), lambda item: GPU if item % 2 else Need()
    )
    seen = [next(answers) for _ in range(10)]  # no item for a GPU stands in another's way
    assert {each.result for each in seen} == {(item, plain.node_id) for item in range(0, 20, 2)}
    rich = cluster.add_node(num_cpus=1, num_gpus=1)
    seen.extend(answers)
    nodes = dict(each.result for each in seen)
    assert {nodes[item] for item in range(1, 20, 2)} == {rich.node_id}


def test_waiting_for_a_node_is_told_and_ends(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "FIRST_TOLD_S", 1.0)
    cluster.add_node(num_cpus=1)
    told = []
    with pytest.raises(NoRoomError, match=r"the work needs 0 CPU, 1 GPU on one node, found after"):
        list(OnRay(1, patience_s=3, told=told.append).run(partial(node_of, tmp_path), [0], gpu))
    assert len(told) == 2
    assert told[1].startswith("waiting for 0 CPU, 1 GPU on one node; there are 2 node(s) with at")


def gpu(item):
    return GPU


class Holder:
    """Holds a core."""


def test_room_that_others_hold_is_no_room_for_ranks(cluster):
    import ray

    cluster.add_node(num_cpus=2)
    start_ray(1)
    each = {"CPU": 1.0}
    until = time.monotonic() + 30
    while room_for(each) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    holder = ray.remote(num_cpus=1)(Holder).remote()
    ray.get(holder.__ray_ready__.remote())
    while room_for(each) == 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert Size([1, 2], each, lambda sentence: None).now() == 1
    assert (room_for(each), room_for({"GPU": 1.0})) == (1, 0)
    ray.kill(holder)


def test_room_for_more_ranks_is_asked_for_and_given_back(cluster, monkeypatch):
    monkeypatch.setattr(elastic, "MORE_S", 0.0)
    start_ray(1)
    each, until = {"CPU": 1.0}, time.monotonic() + 60
    with Size([1, 2], each, lambda sentence: None).more(1) as more:
        assert not more.there(training=False)
        assert not more.there(training=True)
        cluster.add_node(num_cpus=1)
        while not more.there(training=True):
            assert time.monotonic() < until
            time.sleep(0.05)
    while not room_for(each):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_node_on_which_a_driver_trained_is_idle_again(cluster):
    """Ray Train's coordinator stays where it is made, and keeps that node."""
    import ray
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as its

    cluster.add_node(num_cpus=1)
    start_ray(1)

    def trains():
        coordinate_on_head()
        held = its.get_or_create_autoscaling_coordinator()  # as Ray Train does
        ray.get(held.__ray_ready__.remote())
        return ray.get_runtime_context().get_node_id()

    node = ray.get(ray.remote(num_cpus=1)(trains).remote(), timeout=60)
    (head,) = [each["NodeID"] for each in ray.nodes() if HEAD in each["Resources"]]
    name = "AutoscalingCoordinator"
    held = ray.get_actor(name, namespace=name)
    (its_node,) = [
        each["Address"]["NodeID"]
        for key, each in ray._private.state.actors().items()
        if key == held._actor_id.hex()
    ]
    ray.kill(held)
    assert its_node == head != node


STRANGER = """
from pipelines import crew
from pipelines.executors import resources, start_ray, stop_ray
start_ray(1)
print(resources()["CPU"])
stop_ray()
"""


def test_a_cluster_of_somebody_else_on_this_machine_is_not_joined(cluster, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    del environment["RAY_ADDRESS"]
    script = [sys.executable, "-W", "ignore", "-c", STRANGER]
    done = subprocess.run(
        script, capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert float(done.stdout) == (os.cpu_count() or 1)
