"""A live cluster: its nodes, what each says of itself, and whether they have what we have."""

import importlib.metadata
import json
import os
import platform
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featurizers.store import shown
from pipelines.cluster import probe
from pipelines.cluster.room import NodeKind, Room
from pipelines.executors import HEAD, Need
from pipelines.experiment import FailedError, InputError
from pipelines.findings import Finding, finding
from pipelines.jobs.sealing import seal
from pipelines.jobs.server import JobServer, ServerError
from pipelines.jobs.submission import SEALED
from pipelines.jobs.tokens import find_token
from pipelines.licences import OURS
from tracking.mlflow_store import public

AREA = "versions"
PACKAGES = ("ray", "torch", "deepspeed", "mlflow", "numpy", "pyarrow", "webdataset", "transformers")
TOKEN = "token"  # noqa: S105 - a mode, not a secret
PATIENCE_S = 10.0
ANSWER_S = 40.0  # a driver or a job that starts, asks and ends
LOOK_S = 0.3


class UnreachedError(FailedError):
    """A cluster does not answer, or refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What each node is asked: paths and URLs that it shall reach, and hosts with ports."""

    files: Sequence[str] = ()
    urls: Sequence[str] = ()
    hosts: Sequence[tuple[str, int]] = ()

    def to_json(self, hidden: str) -> str:
        """As the probe wants it; `hidden` tells how it gets the URLs that hold secrets."""
        packages = [*PACKAGES, OURS]
        return json.dumps(
            {
                "packages": packages,
                "files": list(self.files),
                "urls": list(self.urls),
                "hosts": list(self.hosts),
                "hidden": hidden,
                "patience_s": PATIENCE_S,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node.

    Attributes:
        resources: By Ray's names.
        error: Why it could not be asked; the rest is empty then.
        versions: Of packages; None for those that are not there.
        files: What lies at each path, as size and digest of its beginning; None for nothing.
        urls: Of each URL, why it is not reached; empty where it is.
        hosts: The same by "host:port".
        store: MLFLOW_TRACKING_URI of Ray's workers there, without name and password.
        token: RAY_AUTH_MODE of them.
        cuda: The major CUDA that its driver takes, and that its torch wants; 0 for none.
    """

    host: str
    address: str
    resources: Mapping[str, float]
    error: str = ""
    python: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    files: Mapping[str, str | None] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    token: str = ""
    cuda: Mapping[str, int] = field(default_factory=dict)

    @property
    def head(self) -> bool:
        """Whether it is the cluster's head."""
        return HEAD in self.resources

    @property
    def works(self) -> bool:
        """Whether anything of ours can land on it."""
        return any(self.resources.get(name, 0.0) >= 1 for name in ("CPU", "GPU"))

    def __str__(self) -> str:
        return f"{self.host} ({self.address})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A live cluster.

    Attributes:
        kinds: What its autoscaler may start, without resources where nobody states them; None
            where it has none.
        most: How many nodes of all kinds it may start; None for no limit but theirs.
    """

    address: str
    nodes: Sequence[Node]
    kinds: Sequence[NodeKind] | None = None
    most: int | None = None

    @property
    def by_job(self) -> bool:
        """Whether it is reached through its job server, and not by joining it."""
        return is_job_server(self.address)

    def room(self) -> Room:
        """The nodes that it can ever have: what its autoscaler may start, else what there is."""
        now = [each for each in self.nodes if each.works]
        stated = [kind for kind in self.kinds or () if kind.resources]
        untold = sum(kind.most for kind in self.kinds or () if not kind.resources)
        kinds = [replace(kind, least=_like(kind, now)) for kind in stated]
        # Beside them stand a head that works, and machines that nobody launches.
        stay = [each for each in now if each.head or not stated]
        kinds += [NodeKind(name=str(n), resources=n.resources, most=1, least=1) for n in stay]
        kinds = [kind for kind in kinds if kind.holds(Need()) or kind.holds(_GPU)]
        most = sum(kind.most for kind in kinds)
        if self.most is not None and stated:
            most = min(most, self.most + len(stay))
        return Room(
            kinds=kinds,
            most=most,
            source=f"the cluster at {public(self.address)}",
            unknown=max(0, untold - len(now)),
        )


_GPU = Need(cpus=0.0, gpus=1.0)


def _like(kind: NodeKind, nodes: Sequence[Node]) -> int:
    """How many nodes have the cores and GPUs of a kind."""
    wanted = [kind.resources.get(name, 0.0) for name in ("CPU", "GPU")]
    return sum([n.resources.get(name, 0.0) for name in ("CPU", "GPU")] == wanted for n in nodes)


def ask(address: str, question: Question) -> Live:
    """Ask all nodes of a cluster; takes seconds, starts no node and writes nothing.

    Args:
        address: Of its job server, as http://HOST:8265, or of Ray itself, as HOST:6379.
        question: What else than versions.

    Raises:
        UnreachedError: Nobody answers there, or the token is refused.
    """
    # What is asked stands in a job's entrypoint, and in arguments that everybody may read.
    hidden = [url for url in question.urls if shown(url) != url]
    question = replace(question, urls=[url for url in question.urls if shown(url) == url])
    program = Path(probe.__file__).read_text(encoding="utf-8")
    by = _by_job if is_job_server(address) else _by_driver
    told = by(address, program, question, hidden)
    found = next((each for each in told.splitlines() if each.startswith(probe.MARK)), None)
    if found is None:
        raise UnreachedError(_unreached(address, (told.strip().splitlines() or ["nothing"])[-1]))
    plain = json.loads(found.removeprefix(probe.MARK))
    scaling = plain["scaling"] or {"kinds": None, "most": None}
    kinds = None if scaling["kinds"] is None else [NodeKind(**each) for each in scaling["kinds"]]
    nodes = [_node(each, hidden) for each in plain["nodes"]]
    return Live(address=address, nodes=nodes, kinds=kinds, most=scaling["most"])


def _node(plain: dict[str, Any], hidden: Sequence[str]) -> Node:
    """A node by its answer, in which URLs that hold secrets have their numbers alone."""
    answers = plain.pop("hidden", [])
    urls = {**plain.pop("urls", {}), **dict(zip(hidden, answers, strict=False))}
    return Node(**plain, urls=urls)


def is_job_server(address: str) -> bool:
    """Whether an address is one of Ray's job server."""
    return address.startswith(("http://", "https://"))


def _unreached(address: str, why: str) -> str:
    told = find_token(os.environ, Path.home()).told
    return f"the cluster at {public(address)} does not answer: {public(why)[:300]}; token: {told}"


def _by_driver(address: str, program: str, question: Question, hidden: Sequence[str]) -> str:
    # Ray looks for modules where it is started: at the root nothing is in the way.
    ended = ended_within(
        [sys.executable, "-c", program, question.to_json("input")],
        ANSWER_S,
        {"RAY_ADDRESS": address},
        folder=Path("/"),
        given=json.dumps(hidden),
    )
    if ended is None:
        raise UnreachedError(_unreached(address, f"nothing within {ANSWER_S:g} s"))
    return ended.stdout or ended.stderr


def ended_within(
    command: Sequence[str],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    *,
    folder: Path,
    given: str = "",
) -> "subprocess.CompletedProcess[str] | None":
    """Run a program of ours in a process that is ended after some seconds; None if it was."""
    with subprocess.Popen(  # noqa: S603 - our own program text, no shell
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(given, timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _by_job(address: str, program: str, question: Question, hidden: Sequence[str]) -> str:
    """Through the job server, from where Ray itself cannot be joined; the job is deleted again."""
    name = f"fuseline-validate-{secrets.token_hex(6)}"
    until = time.monotonic() + ANSWER_S
    try:
        server = JobServer(address, "--address", find_token(os.environ, Path.home()))
        # Without a token nothing can be sealed: those addresses are not asked then.
        sealed = hidden and server.token.value
        asked = question.to_json("sealed" if sealed else "")
        request: dict[str, Any] = {
            "submission_id": name,
            "entrypoint": shlex.join(["python", "-c", program, asked]),
            "metadata": {"nonce": name},
        }
        if sealed:
            values = {str(number): url for number, url in enumerate(hidden)}
            request["runtime_env"] = {"env_vars": {SEALED: seal(values, server.token)}}
        server.submit(request)
        try:
            while (info := server.info(name)) and info.live and time.monotonic() < until:
                time.sleep(LOOK_S)
            return server.logs(name)
        finally:
            server.stop(name)
            # The server deletes no job that has not ended yet.
            until = time.monotonic() + PATIENCE_S
            while (info := server.info(name)) and info.live and time.monotonic() < until:
                time.sleep(LOOK_S)
            server.delete(name)
    except (ServerError, InputError) as error:
        raise UnreachedError(_unreached(address, str(error))) from None


def check(live: Live) -> Iterator[Finding]:
    """Who answered, and whether every node has our versions."""
    where = f"{len(live.nodes)} node(s) at {public(live.address)}"
    mute = [f"{each}: {each.error}" for each in live.nodes if each.error]
    if mute:
        do = "look at those nodes with `ray status`"
        yield finding("cluster", where, "failed", f"not all can be asked: {'; '.join(mute)}", do)
    else:
        yield finding("cluster", where, "ok", "all of them answer")
    nodes = [each for each in live.nodes if not each.error]
    if any(each.token != TOKEN for each in nodes):
        do = "set RAY_AUTH_MODE=token where each node is started, as deploy/start.sh does"
        found = "not asked for by RAY_AUTH_MODE: whoever reaches a port of the cluster runs code"
        yield finding("cluster", "token", "warning", found, do)
    yield _compared("python", platform.python_version(), [(n, n.python) for n in nodes])
    for name in PACKAGES:
        there = [(node, node.versions.get(name) or "none") for node in nodes]
        yield _compared(name, importlib.metadata.version(name), there)
    yield _own(nodes)
    yield from _gpus(nodes)


def _gpus(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Whether torch can use the GPUs of each node; others than NVIDIA's are not looked at."""
    having = [each for each in nodes if each.resources.get("GPU", 0.0) >= 1 and each.cuda]
    for node in having:
        driver, wanted = node.cuda["driver"], node.cuda["torch"]
        if not driver:
            found, do = "no driver of NVIDIA is found", "start the node from an image that has one"
        elif not wanted:
            found, do = "its torch was built without CUDA", "install the ordinary build there"
        elif driver < wanted:
            found = f"its driver takes CUDA {driver}, and its torch wants {wanted}"
            do = "start the node from an image with a newer driver; CUDA 13 wants 580"
        else:
            continue
        yield finding("cluster", "GPU", "warning", f"{node}: {found}", do)


def _compared(name: str, ours: str, there: Sequence[tuple[Node, str]]) -> Finding:
    """One version by node; what comes after a + tells how it was built, which may differ."""
    other = [
        f"{each} on {node}" for node, each in there if _public_part(each) != _public_part(ours)
    ]
    if other:
        do = "install there with constraints.txt, or the same here"
        return finding(AREA, name, "failed", f"{ours} here, {', '.join(other)}", do)
    return finding(AREA, name, "ok", f"{ours} here and on {len(there)} node(s)")


def _own(nodes: Sequence[Node]) -> Finding:
    """This project on the nodes: a job brings it along, `run` from a node's own shell does not."""
    try:
        ours = importlib.metadata.version(OURS)
    except importlib.metadata.PackageNotFoundError:
        ours = "not installed"
    found = [(node, node.versions.get(OURS)) for node in nodes]
    other = [f"{each} on {node}" for node, each in found if each and each != ours]
    if other:
        do = "install the same there"
        return finding(AREA, OURS, "failed", f"{ours} here, {', '.join(other)}", do)
    lacking = [str(node) for node, each in found if not each]
    if lacking:
        do = "nothing for `job submit`, which brings it; else install it"
        return finding(AREA, OURS, "warning", f"not installed on {', '.join(lacking)}", do)
    return finding(AREA, OURS, "ok", f"{ours} here and on {len(nodes)} node(s)")


def _public_part(version: str) -> str:
    return version.partition("+")[0]
