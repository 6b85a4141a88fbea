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
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from pipelines.experiment import InputError
from pipelines.jobs.server import ServerError

PORT = 8265
OPEN_S = 30.0
LOOK_S = 120.0
AGAIN_S = 2.0
HOSTS = "UserKnownHostsFile="
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._:-]*[A-Za-z0-9_])?")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
OPTIONS = (
    "BatchMode=yes",  # nobody is there to be asked
    "StrictHostKeyChecking=accept-new",  # a head that was just made is known to nobody
    "ExitOnForwardFailure=yes",
    "ServerAliveInterval=15",
    "ConnectTimeout=20",
)


@contextlib.contextmanager
def tunnel(file: Path) -> Iterator[str]:
    """The address of a cluster's job server on this machine, while the block lasts.

    Raises:
        InputError: The file is no launcher's, its key is not there, or ssh is not installed.
        ServerError: The cluster is not up, or ssh cannot reach its head.
    """
    cluster = read_cluster(file)
    port = _free_port()
    known_hosts(cluster).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = key_of(cluster)
    if key and not Path(key).expanduser().is_file():
        raise InputError(f"{file}: auth.ssh_private_key: there is no {key}; give --address, or it")
    words = ssh_words(cluster, head_of(file), key, port, dashboard_port(cluster))
    program = shutil.which(words[0])
    if program is None:
        raise InputError(f"{file}: a tunnel needs ssh, which is not installed; give --address")
    with _Carrier((program, *words[1:]), port) as carrier:
        carrier.wait(f"{words[-1]} by {key or 'the keys of ssh itself'}")
        carrier.keep()
        yield f"http://127.0.0.1:{port}"


class _Carrier:
    """The process that carries connections, begun anew where it breaks."""

    def __init__(self, words: Sequence[str], port: int) -> None:
        self._words, self._port = words, port
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Self:
        self._said = tempfile.TemporaryFile()
        self._ssh = self._begun()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._keeper.is_alive():
            self._keeper.join()
        self._ssh.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._ssh.wait(5)
        if self._ssh.poll() is None:
            self._ssh.kill()
            self._ssh.wait()
        self._said.close()

    def _begun(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(  # noqa: S603 - no shell; host and user are checked
            self._words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C ends what is at work first
        )

    def keep(self) -> None:
        """Begin it anew whenever it ends, from now on."""
        self._keeper.start()

    def _keep(self) -> None:
        while not self._closed.wait(AGAIN_S):
            if self._ssh.poll() is not None:
                self._ssh = self._begun()

    def wait(self, told: str) -> None:
        """Until the tunnel is open.

        Args:
            told: To whom, for a message.

        Raises:
            ServerError: ssh ended, or did nothing for so long.
        """
        until = time.monotonic() + OPEN_S
        while time.monotonic() < until and self._ssh.poll() is None:
            # Whoever else listens there would be shown the token.
            if _listens(self._ssh.pid, self._port):
                return
            time.sleep(0.05)
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"nothing happened in {OPEN_S:g} s"
        if any("HOST IDENTIFICATION HAS CHANGED" in line for line in lines):
            why = "the head has another key than before; if it was made anew, remove " + next(
                word for each in self._words if (word := each.partition(HOSTS)[2])
            )
        raise ServerError(f"ssh opens no tunnel to {told}: {why}")


def _listens(process: int, port: int) -> bool:
    """Whether this process, and no other one, listens on a port of loopback."""
    import psutil

    with contextlib.suppress(psutil.Error):
        found = psutil.Process(process).net_connections("tcp4")
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found)
    return False


def known_hosts(cluster: Mapping[str, Any]) -> Path:
    """Where the key of a cluster's head is kept, as it was at the first time."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", str(cluster.get("cluster_name", "")))
    return Path.home() / ".ssh" / f"fuseline_known_hosts_{name}"


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
    options = [*OPTIONS, f'{HOSTS}"{known_hosts(cluster)}"']
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
