"""Asks every node of a cluster what it has; prints one line of JSON after MARK.

A program by itself, that is sent as text: it wants Ray and nothing of this project, which may be
missing on the nodes, or another one. It writes nothing, and takes no CPU of the cluster.

Addresses that hold a password or a signature come sealed or by the standard input, never by an
argument; they are answered by their number, and what goes wrong with one by its kind alone.
"""

import base64
import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARK = "fuseline-probe "
START_BYTES = 65_536
HOST_S = 3
HEAD = "node:__internal_head__"
UNTOLD = 1000


def look(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What one node has; runs there.

    Args:
        asked: "packages", names; "files", paths; "urls", of objects or prefixes; "hosts", pairs of
            host and port; "hidden", URLs that hold secrets.
    """
    # Names and passwords stay where they are.
    store = re.sub(r"://[^/\s]*@", "://", os.environ.get("MLFLOW_TRACKING_URI", ""))
    parts = urllib.parse.urlsplit(store)
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    own = [] if usual is None else [(parts.hostname, parts.port or usual)]
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in asked["packages"]},
        "files": {path: fingerprint(path) for path in asked["files"]},
        "urls": {url: away(url) for url in asked["urls"]},
        "hidden": [away(url, hidden=True) for url in asked["hidden"]],
        "hosts": {f"{host}:{port}": silent(host, port) for host, port in [*asked["hosts"], *own]},
        "store": store,
        "token": os.environ.get("RAY_AUTH_MODE", ""),
        "cuda": {"driver": cuda_of_driver(), "torch": cuda_of_torch()},
    }


def version(package: str) -> str | None:
    """Of a package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cuda_of_driver() -> int:
    """The newest major CUDA that the driver takes; 0 for no driver."""
    try:
        version = ctypes.c_int(0)
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else version.value // 1000


def cuda_of_torch() -> int:
    """The major CUDA that torch was built for, by what it wants installed; 0 for none."""
    try:
        wanted = importlib.metadata.requires("torch") or []
    except importlib.metadata.PackageNotFoundError:
        return 0
    # As in nvidia-cublas-cu12==12.6.4.1, nvidia-cudnn-cu13==9.20, cuda-toolkit[...]==13.0.3.
    found = [re.match(r"(?:nvidia-\w+-cu|cuda-toolkit\S*?==)(\d+)", each) for each in wanted]
    return max((int(each[1]) for each in found if each), default=0)


def fingerprint(path: str) -> str | None:
    """What a file is known by: its size and a digest of its beginning; None for no file."""
    place = Path(path)
    try:
        if place.is_dir():
            return "folder"
        with place.open("rb") as file:
            start = hashlib.sha256(file.read(START_BYTES)).hexdigest()
        return f"{place.stat().st_size} {start}"
    except OSError:
        return None


def away(url: str, *, hidden: bool = False) -> str:
    """Why an object is not reached; empty where it is, and "not there" for none.

    Args:
        url: Of the object.
        hidden: Whether it holds what nobody is to see: messages of errors may repeat it.
    """
    try:
        import fsspec

        system, name = fsspec.core.url_to_fs(url)
        return "" if system.exists(name) else "not there"
    except Exception as error:  # noqa: BLE001 - each store has its own
        told = "" if hidden else " ".join(str(error).split())[:200]
        return told or type(error).__name__


def silent(host: str, port: int) -> str:
    """Why nobody listens there; empty where somebody does."""
    try:
        socket.create_connection((host, port), timeout=HOST_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def scaling(control: str) -> dict[str, Any] | None:
    """What the cluster's autoscaler may start, asked on the head; None where there is none.

    Ray tells it nowhere: the autoscaler is a process that is given a file.

    Args:
        control: The address of the cluster, since other ones may be on this machine.

    Returns:
        "most", how many nodes beside the head, and "kinds" of them: name, resources and most;
        the resources are empty where nobody states them, and memory is 0 where it alone is not.
    """
    # Named so by Ray (2.60.0), for both of its autoscalers.
    # Held by test_a_cluster_that_grows_brings_up_a_node_for_a_job_and_refuses_what_none_can_hold.
    import psutil
    import yaml

    own, config = f"--gcs-address={control}", "--autoscaling-config="
    watched = False
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if own not in words:
                continue
            watched = watched or any(word.endswith("/monitor.py") for word in words)
            given = [word.removeprefix(config) for word in words if word.startswith(config)]
            if given:
                file = Path(process.cwd(), given[0])
                return kinds_of(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (psutil.Error, OSError):
            continue
    if watched or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    # The autoscaler of KubeRay is in a container of its own, beside the head's.
    return {"most": UNTOLD, "kinds": [{"name": "unknown", "resources": {}, "most": UNTOLD}]}


def kinds_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The node types of a launcher's file, as `scaling` gives them."""
    limit, kinds = plain.get("max_workers", 0), []
    for name, kind in plain["available_node_types"].items():
        has = {key: float(each) for key, each in (kind.get("resources") or {}).items()}
        # By what is not stated the autoscaler starts no node.
        resources = {"memory": 0.0, **has} if has else {}
        most = min(limit, kind.get("max_workers", limit))
        kinds.append({"name": name, "resources": resources, "most": most})
    return {"most": limit, "kinds": [each for each in kinds if each["most"]]}


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What one node has, and what its autoscaler may start; runs there."""
    import ray

    return {**look(asked), "scaling": scaling(ray.get_runtime_context().gcs_address)}


def opened(sealed: str, environment: Mapping[str, str], home: Path) -> list[str]:
    """What was sealed with the cluster's token; nothing where this node cannot open it.

    Args:
        sealed: As `pipelines.jobs.sealing` does it.
        environment: Which names the token, or a file with it.
        home: Where that file is otherwise.
    """
    try:
        from cryptography.fernet import Fernet, InvalidToken
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        return []
    salt, _, content = sealed.partition(".")
    try:
        file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
        token = environment.get("RAY_AUTH_TOKEN", "").strip() or file.expanduser().read_text()
        about = b"fuseline: secrets of a job"
        key = HKDF(SHA256(), 32, base64.urlsafe_b64decode(salt), about)
        derived = base64.urlsafe_b64encode(key.derive(token.strip().encode()))
        plain: dict[str, str] = json.loads(Fernet(derived).decrypt(content.encode()))
    except (OSError, ValueError, InvalidToken):
        return []
    return list(plain.values())


def hidden(how: str) -> list[str]:
    """The URLs that hold secrets, by the way that they come: "sealed", "input", or none."""
    if how == "sealed":
        return opened(os.environ["FUSELINE_SEALED"], os.environ, Path.home())
    found: list[str] = json.load(sys.stdin) if how == "input" else []
    return found


def main() -> None:
    """Ask all nodes at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = json.loads(sys.argv[1])
    asked["hidden"] = hidden(asked["hidden"])
    ray.init(log_to_driver=False, logging_level=40)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call] # Ray's
    there = {node["NodeID"]: node for node in nodes if node["Alive"]}
    task: Any = ray.remote(num_cpus=0, max_retries=0)(answer)
    calls = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            asked
        ): node
        for node in there
    }
    ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=asked["patience_s"])
    told, grows = [], None
    for call, node in calls.items():
        facts: dict[str, Any] = {"error": "does not answer"}
        if call in ended:
            try:
                facts = ray.get(call)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is that node's
                facts = {"error": (str(error).strip().splitlines() or ["died"])[-1]}
        about = there[node]
        may = facts.pop("scaling", None)
        grows = may if HEAD in about["Resources"] else grows
        told.append(
            {
                "host": about["NodeManagerHostname"],
                "address": about["NodeManagerAddress"],
                "resources": about["Resources"],
                **facts,
            }
        )
    sys.stdout.write(f"{MARK}{json.dumps({'nodes': told, 'scaling': grows})}\n")
    sys.stdout.flush()
    ray.shutdown()


if __name__ == "__main__":
    main()
