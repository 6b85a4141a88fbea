"""Asks every node of a cluster what it has; prints one line of JSON after MARK.

A program by itself, that is sent as text: it wants Ray and nothing of this project, which may be
missing on the nodes, or another one. It writes nothing, and takes no CPU of the cluster.
"""

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


def look(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What one node has; runs there.

    Args:
        asked: "packages", names; "files", paths; "urls", of objects or prefixes; "hosts", pairs of
            host and port.
    """
    # Names and passwords stay where they are.
    store = re.sub(r"://[^/\s]*@", "://", os.environ.get("MLFLOW_TRACKING_URI", ""))
    parts = urllib.parse.urlsplit(store)
    own = [(parts.hostname, parts.port or 80)] if parts.scheme == "http" else []
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in asked["packages"]},
        "files": {path: fingerprint(path) for path in asked["files"]},
        "urls": {url: away(url) for url in asked["urls"]},
        "hosts": {f"{host}:{port}": silent(host, port) for host, port in [*asked["hosts"], *own]},
        "store": store,
        "token": os.environ.get("RAY_AUTH_MODE", ""),
    }


def version(package: str) -> str | None:
    """Of a package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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


def away(url: str) -> str:
    """Why an object is not reached; empty where it is, and "not there" for none."""
    try:
        import fsspec

        system, name = fsspec.core.url_to_fs(url)
        return "" if system.exists(name) else "not there"
    except Exception as error:  # noqa: BLE001 - each store has its own
        return " ".join(str(error).split())[:200] or type(error).__name__


def silent(host: str, port: int) -> str:
    """Why nobody listens there; empty where somebody does."""
    try:
        socket.create_connection((host, port), timeout=HOST_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def groups() -> list[dict[str, Any]] | None:
    """The node types of the cluster's autoscaler; None where it has none, or does not say."""
    try:
        # There is no public way (2.60.0).
        # Held by test_the_node_types_of_an_autoscaler_are_read.
        from ray._private.state import state

        config = state.get_cluster_config()
        told = [] if config is None else config.node_group_configs
        found = [
            {
                "name": each.name,
                "resources": dict(each.resources),
                "least": each.min_count,
                "most": each.max_count if each.max_count >= 0 else 1000,
            }
            for each in told
        ]
    except Exception:  # noqa: BLE001 - private, so of no promise
        return None
    return found or None


def main() -> None:
    """Ask all nodes at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = json.loads(sys.argv[1])
    ray.init(log_to_driver=False, logging_level=40)
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call] # Ray's
    there = {node["NodeID"]: node for node in nodes if node["Alive"]}
    task: Any = ray.remote(num_cpus=0, max_retries=0)(look)
    calls = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            asked
        ): node
        for node in there
    }
    ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=asked["patience_s"])
    told = []
    for call, node in calls.items():
        facts = {"error": "does not answer"}
        if call in ended:
            try:
                facts = ray.get(call)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is that node's
                facts = {"error": (str(error).strip().splitlines() or ["died"])[-1]}
        about = there[node]
        told.append(
            {
                "host": about["NodeManagerHostname"],
                "address": about["NodeManagerAddress"],
                "resources": about["Resources"],
                **facts,
            }
        )
    sys.stdout.write(f"{MARK}{json.dumps({'nodes': told, 'groups': groups()})}\n")
    sys.stdout.flush()
    ray.shutdown()


if __name__ == "__main__":
    main()
