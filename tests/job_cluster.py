"""A head of a cluster for tests of jobs: token authentication on, dashboard on loopback."""

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

UP_S = 120
IDLE_MINUTES = 0.3
HEAD_ID, HEAD_KIND = "f" * 51 + "00000", "ray.head.default"
# As `ray up` sets it for the autoscaler that it takes; what is fake is told to Ray, too.
GROWS = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_NODE_TYPE_NAME": HEAD_KIND,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


@dataclass(frozen=True)
class Head:
    """What was started.

    Attributes:
        url: Of the job server.
        control: Of the cluster itself, for workers and ray.init.
        token_file: Holds the secret.
        folder: Of Ray's sessions.
        process: `ray start`, which blocks.
    """

    url: str
    control: str
    token_file: Path
    folder: Path
    process: subprocess.Popen

    @property
    def token(self):
        return self.token_file.read_text()


def free_ports(count):
    """Ports that nobody has now; all are held until all are known."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def environment_of(token_file, **more):
    """What processes of the cluster are told; Ray's folder of commands is on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "PATH": path}
    without = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "PYTHONPATH"}
    plain = {name: value for name, value in os.environ.items() if name not in without}
    return {**plain, **told, **more}


@contextlib.contextmanager
def started(words, environment, log):
    """A process of Ray's that blocks, and all that it starts; ended by its group."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "ray.scripts.scripts", *words],
            env=environment,
            stdout=written,
            stderr=written,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=log.parent,
        )
    try:
        yield process
    finally:
        end(process)


def end(process, number=signal.SIGTERM):
    """End a group of processes; twice is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def head(folder, *, cpus=2, grows=None, **more):
    """A head, up as soon as it has a node.

    Args:
        folder: For its token and its log.
        cpus: Of the head.
        grows: Node types by name, which its autoscaler starts on this machine; None for no more
            nodes than are joined to it.
        more: Of its environment.
    """
    token_file = folder / "token"
    token_file.write_text(secrets.token_hex(32))
    token_file.chmod(0o600)
    control, dashboard, agent, client, metrics = free_ports(5)
    words = [
        *("start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={control}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *(f"--metrics-export-port={metrics}", "--min-worker-port=0", "--max-worker-port=0"),
        *(f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=100000000"),
        "--disable-usage-stats",
    ]
    if grows is not None:
        words.append(f"--autoscaling-config={_grows(folder, grows, f'127.0.0.1:{control}')}")
        more = {**GROWS, "PYTHONPATH": str(folder), **more}
    url = f"http://127.0.0.1:{dashboard}"
    log = folder / "head.log"
    # The names of Ray's sockets may have 107 bytes, and pytest's folders take half of them.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        own = environment_of(token_file, **more)
        with started([*words, f"--temp-dir={short}"], own, log) as process:
            _wait(dashboard, token_file.read_text(), process, log)
            yield Head(url, f"127.0.0.1:{control}", token_file, Path(short), process)


# Ray's provider of raylets on this machine takes memory for a resource that somebody made up; it is
# named as a foreign one besides, since Ray's wheels (2.60.0) lack the file of its defaults.
PROVIDER = """
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

class Raylets(FakeMultiNodeProvider):
    def create_node_with_resources_and_labels(self, config, tags, count, resources, labels):
        had = {name: each for name, each in resources.items() if name != "memory"}
        super().create_node_with_resources_and_labels(config, tags, count, had, labels)
"""


def _grows(folder, kinds, control):
    """The file of a cluster whose autoscaler starts raylets on this machine."""
    (folder / "raylets.py").write_text(PROVIDER)
    lists = ["setup", "head_setup", "worker_setup", "initialization"]
    lists += ["head_start_ray", "worker_start_ray"]
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    plain = {
        "cluster_name": "grows",
        "max_workers": max(kind["max_workers"] for kind in kinds.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            "type": "external",
            "module": "raylets.Raylets",
            "gcs_address": control,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "available_node_types": {
            HEAD_KIND: head,
            **{name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in kinds.items()},
        },
        "head_node_type": HEAD_KIND,
        **{f"{each}_commands": [] for each in lists},
        **{each: {} for each in ("auth", "docker", "file_mounts")},
        "cluster_synced_files": [],
    }
    file = folder / "grows.json"
    file.write_text(json.dumps(plain))
    return file


def _wait(port, token, process, log):
    until = time.monotonic() + UP_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            headers = {"Authorization": f"Bearer {token}"}
            connection.request("GET", "/api/v0/nodes?detail=1", headers=headers)
            if b'"ALIVE"' in connection.getresponse().read():
                return
        time.sleep(0.2)


@contextlib.contextmanager
def node(head, name, *, cpus, log, gpus=0, memory=8 << 30, **more):
    """A node of its own resources beside the head; it has a resource of its name, too."""
    agent, metrics = free_ports(2)
    own = json.dumps({name: 1})
    words = [
        *("start", "--block", f"--address={head.control}", "--node-ip-address=127.0.0.1"),
        *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
        *("--min-worker-port=0", "--max-worker-port=0", f"--resources={own}"),
        *(f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--memory={memory}"),
        *("--object-store-memory=100000000", "--disable-usage-stats"),
    ]
    with started(words, environment_of(head.token_file, **more), log) as process:
        yield process


@contextlib.contextmanager
def mlflow_server(folder):
    """An MLflow server as the head of a cluster has one; yields its address."""
    (port,) = free_ports(1)
    state = folder / "mlflow"
    state.mkdir()
    words = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--allowed-hosts", f"127.0.0.1:{port}", "--workers", "1", "--serve-artifacts"),
        *("--artifacts-destination", str(state / "artifacts")),
    ]
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{state}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (state / "log").open("wb") as log:
        process = subprocess.Popen(
            words, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end_s = time.monotonic() + UP_S
        while True:
            assert process.poll() is None, (state / "log").read_text()
            assert time.monotonic() < end_s, (state / "log").read_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)
