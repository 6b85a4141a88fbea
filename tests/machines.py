"""A cluster of a head that does no work and of nodes with resources of their own.

Where root may make them, each machine is a host of namespaces, started by `deploy/start.sh`: MLflow
on the head's private address, the dashboard on its own loopback, the token in each one's home. Else
all are on the loopback of this machine, several `ray start` beside each other.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from pipelines.jobs.server import JobServer, ServerError
from pipelines.jobs.tokens import Token
from tests import job_cluster, namespaces

ROOT = Path(__file__).resolve().parent.parent
FUSELINE = (sys.executable, "-P", "-m", "pipelines")
UP_S = 300
STORE = "--object-store-memory=100000000 --disable-usage-stats"


def until(true, seconds=UP_S):
    """What is true at last."""
    limit = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < limit
        time.sleep(0.2)
    return found


@contextlib.contextmanager
def cluster(folder):
    """A head with its MLflow; nodes are added."""
    with contextlib.ExitStack() as held:
        made = (Loopback if namespaces.refused() else Hosts)(folder, held)
        made.start()
        held.callback(made.leave)
        yield made


class Cluster:
    """What both kinds share.

    Attributes:
        nodes: Names of those that are up.
        server: The job server of the head.
        mlflow: Its address for everybody.
        environment: That of a user on the head.
    """

    def __init__(self, folder, held):
        self.folder, self.held = folder, held
        self.nodes, self.server, self.mlflow, self.environment = [], None, "", {}

    def add(self, name, cpus=2):
        """Start a node, which has a resource of its name, too."""
        self._start_node(name, cpus)
        self.nodes.append(name)
        until(lambda: self.id_of(name))

    def kill(self, name):
        """End all processes of a node at once."""
        self.nodes.remove(name)
        self._end_node(name)

    def id_of(self, name):
        """Ray's id of a node; empty while it has none."""
        (found,) = [n.name for n in self.server.nodes() if name in n.resources] or [""]
        return found

    def spare(self, driver):
        """The name of a node that is not the driver's."""
        return next(name for name in self.nodes if self.id_of(name) != driver)

    def holder(self, driver):
        """The name of the driver's node."""
        return next(name for name in self.nodes if self.id_of(name) == driver)

    def leave(self):
        """Be where this process was before."""

    def fuseline(self, *words, cwd, **more):
        """The command as a user on the head runs it."""
        return self._run(
            [*FUSELINE, *map(str, words)],
            cwd=cwd,
            env={**self.environment, "PYTHONPATH": str(ROOT), **more},
        )

    def _serve(self, url, token):
        self.server = JobServer(url, "the soak", Token(token, "the soak"))

        def answers():
            with contextlib.suppress(ServerError):
                return self.server.nodes()

        until(answers)


class Loopback(Cluster):
    """All on the loopback of this machine."""

    where = "several `ray start` on the loopback of one machine"

    def start(self):
        """Start a head, or another one in the place of one that was killed."""
        if not self.mlflow:
            self.mlflow = self.held.enter_context(job_cluster.mlflow_server(self.folder))
            self.processes = {}
        place = self.folder / f"head-{time.time_ns()}"
        place.mkdir()
        told = {"MLFLOW_TRACKING_URI": self.mlflow}
        self.head = self.held.enter_context(job_cluster.head(place, cpus=0, **told))
        self.environment = job_cluster.environment_of(
            self.head.token_file, RAY_ADDRESS=self.head.url
        )
        self._serve(self.head.url, self.head.token)

    def kill_head(self):
        """End the head and its nodes at once; MLflow stays."""
        job_cluster.end(self.head.process, signal.SIGKILL)
        for name in list(self.nodes):
            self.kill(name)

    def alone(self, words, cwd):
        """Run a command without a cluster."""
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "RAY_AUTH_MODE": "disabled",
        }
        environment.pop("RAY_ADDRESS", None)
        return self._run(words, cwd=cwd, env=environment)

    def logs(self):
        """Folders of what Ray wrote, on all machines."""
        return [self.head.folder]

    def stores(self):
        """Folders of what MLflow keeps."""
        return [self.folder / "mlflow"]

    def _start_node(self, name, cpus):
        log = self.folder / f"{name}.log"
        told = {"MLFLOW_TRACKING_URI": self.mlflow}
        self.processes[name] = self.held.enter_context(
            job_cluster.node(self.head, name, cpus=cpus, log=log, **told)
        )

    def _end_node(self, name):
        job_cluster.end(self.processes.pop(name), signal.SIGKILL)

    def _run(self, words, **options):
        return subprocess.run(words, capture_output=True, text=True, check=False, **options)


class Hosts(Cluster):
    """Each machine in namespaces of its own, as `deploy/start.sh` starts it.

    The calling thread is on the head's network.
    """

    where = "each machine in namespaces of its own, started by `deploy/start.sh`"

    def __init__(self, folder, held):
        super().__init__(folder, held)
        place = folder / "machines"
        place.mkdir()
        self.network = held.enter_context(namespaces.network(place))
        self.token, self.head = secrets.token_hex(32), None
        self.there = contextlib.ExitStack()

    def start(self):
        """Start the head, or the same machine again after it was killed."""
        address = self.head.address if self.head else ""
        self.head = self._host("head", address)
        self.mlflow = f"http://{self.head.address}:5000"
        self._start(self.head, "head", f"--num-cpus=0 --num-gpus=0 --labels=role=head {STORE}")
        self.there.enter_context(self.head.inside())
        url = "http://127.0.0.1:8265"
        self.environment = {**self._environment(self.head), "RAY_ADDRESS": url}
        self._serve(url, self.token)

        def serves():
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"{self.mlflow}/health", timeout=10).status == 200  # noqa: S310 - of this machine

        until(serves)

    def kill_head(self):
        """End all processes of the head's machine at once, MLflow with it. Nodes stay."""
        self.leave()
        self.head.kill()

    def cut(self, name):
        """Take a node's wire off; its processes go on."""
        self.nodes.remove(name)
        self.network.hosts[name].cut()

    def leave(self):
        """Be on the network that this process was on before."""
        self.there.close()

    def alone(self, words, cwd):
        """Run a command on a machine that is of no cluster."""
        host = self._host("alone")
        told = {**self._environment(host), "PYTHONPATH": str(ROOT)}
        told["MLFLOW_TRACKING_URI"] = self.mlflow
        try:
            return host.run(words, cwd=cwd, env=told, capture_output=True, text=True, check=False)
        finally:
            host.kill()

    def logs(self):
        """Folders of what Ray wrote, on all machines, those that are gone as well."""
        return [*(self.folder / "machines").glob("*/tmp-ray")]

    def stores(self):
        """Folders of what MLflow keeps."""
        return [self.head.home / "fuseline-state"]

    def processes(self, name):
        """All of a machine."""
        space = Path(f"/proc/{self.network.hosts[name].pid}/ns/pid").readlink()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == space:
                    yield process

    def _start_node(self, name, cpus):
        has = f'--num-cpus={cpus} --num-gpus=0 --memory={8 << 30} --resources={{"{name}":1}}'
        told = {"RAY_HEAD_IP": self.head.address}
        self._start(self._host(name), "worker", f"{has} {STORE}", **told)

    def _end_node(self, name):
        self.network.hosts[name].kill()

    def _host(self, name, address=""):
        host = self.network.host(name, address=address)
        file = host.home / ".ray" / "auth_token"
        file.parent.mkdir(exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(self.token)
        return host

    def _environment(self, host):
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
        return {
            "PATH": path,
            "HOME": str(host.home),
            "LANG": "C.UTF-8",
            "RAY_AUTH_MODE": "token",
            # Hosts have one memory together, of which each would take what others use for its own.
            "RAY_memory_monitor_refresh_ms": "0",
        }

    def _start(self, host, kind, flags, **more):
        log = self.folder / "machines" / host.name / "log"
        environment = {**self._environment(host), "FUSELINE_RAY_FLAGS": flags, **more}
        with log.open("ab") as written:
            done = host.run(
                [ROOT / "deploy" / "start.sh", kind],
                env=environment,
                stdout=written,
                stderr=written,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        assert done.returncode == 0, log.read_text()

    def _run(self, words, **options):
        return self.head.run(words, check=False, capture_output=True, text=True, **options)
