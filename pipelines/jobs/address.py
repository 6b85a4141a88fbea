"""Where the cluster's job server is: told, known from RAY_ADDRESS, or behind a tunnel."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.experiment import InputError
from pipelines.jobs.server import JobServer, ServerError
from pipelines.jobs.tokens import find_token
from pipelines.jobs.tunnel import tunnel

SCHEMES = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which cluster is meant.

    Attributes:
        address: As given by --address; empty where it was not.
        cluster: The file of Ray's cluster launcher.
    """

    address: str
    cluster: Path


@contextlib.contextmanager
def job_server(asked: Asked, environment: Mapping[str, str]) -> Iterator[JobServer]:
    """The job server, for as long as it is needed.

    Raises:
        InputError: No cluster is named anywhere, or it wants another token.
        ServerError: The one that is named does not answer.
    """
    token = find_token(environment, Path.home())
    for given, how in (
        (asked.address, "--address"),
        (environment.get("RAY_ADDRESS"), "RAY_ADDRESS"),
    ):
        if given:
            yield _answering(JobServer(_url(given, how, environment), how, token))
            return
    if not asked.cluster.is_file():
        raise InputError(
            f"no cluster is named: --address is not given, RAY_ADDRESS is not set, and there is no "
            f"{asked.cluster.absolute()} to open a tunnel by (token: {token.told}); without a "
            f"cluster, the same command without `job submit --` runs here"
        )
    with tunnel(asked.cluster) as url:
        yield _answering(JobServer(url, f"a tunnel by {asked.cluster}", token, tunnelled=True))


def _answering(server: JobServer) -> JobServer:
    server.ray_version()
    return server


def _url(given: str, how: str, environment: Mapping[str, str]) -> str:
    """The job server's URL for an address, which may be that of the cluster's control instead."""
    if given.startswith(SCHEMES):
        return given
    if given != "auto" and "://" not in given:
        direct = JobServer(f"http://{given}", how, find_token(environment, Path.home()))
        # A control server closes the connection; it may as well be the dashboard without http://.
        with contextlib.suppress(ServerError, InputError):
            direct.ray_version()
            return direct.url
    url = _told_by_control(given, how)
    _check_reachable(url, given, how)
    return url


def _told_by_control(given: str, how: str) -> str:
    from ray.dashboard.utils import get_address_for_submission_client

    try:
        url: str = get_address_for_submission_client(given)
    except Exception as error:  # noqa: BLE001 - Ray raises whatever its parts raise
        why = " ".join(str(error).split())[:300]
        raise ServerError(
            f"{how}: no cluster was found at {given}: {why}; give the job server itself, as in "
            f"http://127.0.0.1:8265 through a tunnel"
        ) from None
    return url if url.startswith(SCHEMES) else f"http://{url}"


def _check_reachable(url: str, given: str, how: str) -> None:
    """A dashboard on loopback is another machine's, where the cluster is not on this one."""
    host, there = urlsplit(url).hostname or "", urlsplit(f"//{given}").hostname or ""
    if not _loopback(host) or given == "auto" or _loopback(there) or _ours(there):
        return
    port = urlsplit(url).port or 8265
    raise InputError(
        f"{how}: the job server of {given} listens on that machine alone ({url}): open a tunnel, "
        f"as in `ssh -N -L {port}:127.0.0.1:{port} {there}`, and give --address "
        f"http://127.0.0.1:{port}"
    )


def _loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _ours(host: str) -> bool:
    """Whether an address is one of this machine's: it can be listened on."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.bind(found[0][4])
    except OSError:
        return False
    return True
