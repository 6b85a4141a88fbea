"""A tunnel to the job server of a cluster that Ray's launcher started.

The dashboard listens on the head's loopback, so ssh has to carry the connection. Every word is an
argument of its own, and none of them passes a shell.
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.experiment import InputError
from pipelines.jobs.server import ServerError

PORT = 8265
OPEN_S = 30.0
LOOK_S = 120.0
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._:-]*[A-Za-z0-9_])?")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
OPTIONS = (
    "BatchMode=yes",  # nobody is there to be asked
    "ExitOnForwardFailure=yes",
    "ServerAliveInterval=15",
    "ConnectTimeout=20",
)


@contextlib.contextmanager
def tunnel(file: Path) -> Iterator[str]:
    """The address of a cluster's job server on this machine, while the block lasts.

    Raises:
        InputError: The file is no launcher's, or ssh is not installed.
        ServerError: The cluster is not up, or ssh cannot reach its head.
    """
    cluster = read_cluster(file)
    port = _free_port()
    words = ssh_words(cluster, head_of(file), key_of(cluster), port, dashboard_port(cluster))
    program = shutil.which(words[0])
    if program is None:
        raise InputError(f"{file}: a tunnel needs ssh, which is not installed; give --address")
    with tempfile.TemporaryFile() as said:
        ssh = subprocess.Popen(  # noqa: S603 - no shell; host and user are checked
            [program, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # Ctrl-C ends what is at work first
        )
        try:
            _wait(ssh, port, words[-1], said)
            yield f"http://127.0.0.1:{port}"
        finally:
            ssh.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                ssh.wait(5)
            if ssh.poll() is None:
                ssh.kill()
                ssh.wait()


def read_cluster(file: Path) -> dict[str, Any]:
    """The launcher's file as plain data. Raises InputError."""
    try:
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(plain, dict) or not {"provider", "auth"} <= set(plain):
        raise InputError(f"{file}: no file of Ray's cluster launcher: it has no provider and auth")
    return plain


def ssh_words(
    cluster: Mapping[str, Any], host: str, key: str, port: int, there: int
) -> tuple[str, ...]:
    """The program and its arguments.

    Args:
        cluster: The launcher's file.
        host: The head's address.
        key: A file with a private key; empty for ssh's own.
        port: To listen on here.
        there: Where the dashboard listens on the head.

    Raises:
        InputError: Host or user could be taken for something else.
    """
    auth = cluster["auth"] or {}
    user = str(auth.get("ssh_user", ""))
    if not HOST.fullmatch(host):
        raise InputError(f"the head's address {host!r} is no address")
    if user and not USER.fullmatch(user):
        raise InputError(f"auth.ssh_user: {user!r} is no name of a user")
    options = [*OPTIONS]
    if proxy := auth.get("ssh_proxy_command"):
        options.append(f"ProxyCommand={proxy}")
    words = ["ssh", "-N", "-T", *(word for each in options for word in ("-o", each))]
    if key:
        words += ["-i", str(Path(key).expanduser())]
    words += ["-L", f"127.0.0.1:{port}:127.0.0.1:{there}", "--"]
    return (*words, f"{user}@{host}" if user else host)


def dashboard_port(cluster: Mapping[str, Any]) -> int:
    """Where the head's dashboard listens, by the commands that start it."""
    commands = " ".join(map(str, cluster.get("head_start_ray_commands") or ()))
    found = re.search(r"--dashboard-port[= ](\d+)", commands)
    return int(found[1]) if found else PORT


def key_of(cluster: Mapping[str, Any]) -> str:
    """The file of the private key: the cluster file's, else the one that the launcher made.

    The launcher keeps what it added to a cluster file in `ray-config-...` of the temporary folder.
    """
    if key := (cluster["auth"] or {}).get("ssh_private_key"):
        return str(key)
    kept = Path(tempfile.gettempdir()).glob("ray-config-*")
    for file in sorted(kept, key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            config = json.loads(file.read_bytes())["config"]
            if config["cluster_name"] == cluster.get("cluster_name"):
                return str(config["auth"].get("ssh_private_key") or "")
    return ""


def head_of(file: Path) -> str:
    """The head's address, as the launcher knows it.

    Raises:
        ServerError: It knows of none.
    """
    # A process of its own: it writes to standard output, and imports the provider's libraries.
    words = (sys.executable, "-W", "ignore", "-m", "ray.scripts.scripts", "get-head-ip", str(file))
    try:
        asked = subprocess.run(  # noqa: S603 - no shell; the file is an argument
            words, capture_output=True, text=True, timeout=LOOK_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ServerError(
            f"{file}: Ray's launcher does not find the head in {LOOK_S:g} s"
        ) from None
    lines = [line.strip() for line in (asked.stdout or asked.stderr).splitlines() if line.strip()]
    if asked.returncode != 0 or not lines:
        told = [line.strip() for line in asked.stderr.splitlines() if line.strip()] or lines
        why = told[-1] if told else f"exit code {asked.returncode}"
        raise ServerError(
            f"{file}: Ray's launcher knows of no head: {why}; `ray up {file}` starts the cluster, "
            f"--address or RAY_ADDRESS names another"
        )
    return lines[-1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(ssh: "subprocess.Popen[bytes]", port: int, host: str, said: Any) -> None:  # noqa: ANN401 - a file
    """Until the tunnel is open. Raises ServerError."""
    until = time.monotonic() + OPEN_S
    while time.monotonic() < until and ssh.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    why = lines[-1] if lines else f"nothing happened in {OPEN_S:g} s"
    raise ServerError(f"ssh opens no tunnel to {host}: {why}")
