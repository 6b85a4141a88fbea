"""Ray's Jobs API, as much of it as is needed here.

Ray's own client (2.60.0) waits without end for a server that does not answer, takes a wheel for
another one of the same file name, and tells that an id is taken by the text of an error 500.
Held by test_two_clients_at_once_get_one_job_which_is_stopped_and_tried_again.
"""

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast
from urllib.parse import quote, urlsplit

from pipelines.experiment import FailedError, InputError
from pipelines.jobs.needs import Node
from pipelines.jobs.submission import FORMAT, OURS, SEALED
from pipelines.jobs.tokens import Token
from pipelines.jobs.wheel import Archive

ANSWER_S = 30.0
UPLOAD_S = 600.0
QUIET_S = 15.0

RayStatus: TypeAlias = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]


class ServerError(FailedError):
    """The job server does not answer, or not as it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """What Ray says of a job. Its environment, which holds what is secret, is not kept.

    Attributes:
        node: The id of the driver's node; empty before it has one.
        began_ms: When it was submitted, in milliseconds since 1970.
        ended_ms: When Ray saw its end; 0 before.
        exit_code: Of the driver; None where Ray does not know.
        to_end: Whether somebody asked it to end, by `JobServer.stop`.
    """

    name: str
    status: RayStatus
    message: str = ""
    exit_code: int | None = None
    node: str = ""
    began_ms: int = 0
    ended_ms: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    to_end: bool = False

    @property
    def took_s(self) -> float:
        """From submission to end, in seconds; the clocks of two nodes may make it less than 0."""
        return max(self.ended_ms - self.began_ms, 0) / 1000

    @property
    def mark(self) -> str:
        """The id of the job by which the wish that this one ends is remembered."""
        return f"stop-{self.name}-{self.metadata.get('nonce', '')}"

    @property
    def live(self) -> bool:
        """Whether Ray takes it for one that has not ended."""
        return self.status in {"PENDING", "RUNNING"}


class JobServer:
    """The job server of a cluster.

    Args:
        url: Its address, with http:// or https://.
        how: Where the address is from, for messages.
        token: What it is shown.
        tunnelled: Whether a tunnel leads to it.
    """

    def __init__(self, url: str, how: str, token: Token, *, tunnelled: bool = False) -> None:
        wrong = InputError(f"{how}: {url} is no http:// or https:// address of a job server")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # a port that is no number, half a bracket
            raise wrong from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
            raise wrong
        self.url, self.how, self.token = url.rstrip("/"), how, token
        self.tunnelled = tunnelled
        self._secure, self._host, self._path = (
            parts.scheme == "https",
            parts.netloc.rpartition("@")[2],
            parts.path.rstrip("/"),
        )

    def __str__(self) -> str:
        return f"the job server at {self.url} (from {self.how})"

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {"Authorization": f"Bearer {self.token.value}"} if self.token.value else {}

    def ray_version(self) -> str:
        """The version of the cluster's Ray; also tells whether it is a job server at all."""
        return str(self._json("GET", "/api/version").get("ray_version", ""))

    def info(self, name: str) -> JobInfo | None:
        """What Ray says of a job; None where it does not know it."""
        status, body = self._ask("GET", f"/api/jobs/{quote(name, safe='')}", accept=(404,))
        if status == 404:
            return None
        found = _info(self._plain(body))
        if not (found.live and _ours(found)):
            return found
        status, _ = self._ask("GET", f"/api/jobs/{quote(found.mark, safe='')}", accept=(404,))
        return replace(found, to_end=status == 200)

    def sealed(self, name: str) -> str:
        """A job's secrets as they were sent: sealed."""
        plain = self._json("GET", f"/api/jobs/{quote(name, safe='')}")
        variables = (plain.get("runtime_env") or {}).get("env_vars") or {}
        return str(variables.get(SEALED, ""))

    def jobs(self) -> list[JobInfo]:
        """All jobs of ours, those that began first in front."""
        found = [_info(each) for each in self._json("GET", "/api/jobs/") if each["submission_id"]]
        names = {each.name for each in found}
        ours = [replace(each, to_end=each.mark in names) for each in found if _ours(each)]
        return sorted(ours, key=lambda each: (each.began_ms, each.name))

    def submit(self, request: dict[str, Any]) -> bool:
        """Submit; False where the id is taken. An answer that was lost is asked for again."""
        name = request["submission_id"]
        body = json.dumps(request).encode()
        try:
            status, answer = self._ask("POST", "/api/jobs/", body, accept=(400, 500))
        except ServerError:
            # It may have come all the same; what no other start has tells whose it is.
            taken = self.info(name)
            if taken is None:
                raise
            return taken.metadata.get("nonce") == str(request["metadata"]["nonce"])
        if status == 200:
            return True
        if self.info(name) is not None:
            return False
        raise ServerError(f"{self} refused {name}: {_last_line(answer)}")

    def stop(self, name: str) -> bool:
        """Ask a job to end; False where it is not at work."""
        plain = self._json("POST", f"/api/jobs/{quote(name, safe='')}/stop")
        return bool(plain.get("stopped"))

    def remember_stop(self, info: JobInfo) -> None:
        """Let every client know that a job was asked to end, also before it begins.

        Ray (2.60.0) passes a stop on to the job's supervisor, and keeps nothing of it. So a job of
        its own is the mark, which does nothing: what else a server keeps, it keeps for minutes.
        Held by test_a_job_that_waits_is_stopped_and_the_next_attempt_begins.
        """
        request = {"submission_id": info.mark, "entrypoint": "true"}
        self._ask("POST", "/api/jobs/", json.dumps(request).encode(), accept=(400, 500))

    def delete(self, name: str) -> None:
        """Let the cluster forget a job that has ended, and its log; one at work is left alone."""
        self._ask("DELETE", f"/api/jobs/{quote(name, safe='')}", accept=(404, 500))

    def logs(self, name: str) -> str:
        """What the driver has written so far."""
        status, body = self._ask("GET", f"/api/jobs/{quote(name, safe='')}/logs", accept=(404, 500))
        if status != 200:
            raise ServerError(f"{self} has no log of {name}: {_last_line(body)}")
        return str(self._plain(body).get("logs") or "")

    def follow(self, name: str) -> Iterator[str]:
        """The log from its beginning, as it comes, until the job ends or the connection does.

        Where nothing came for a while it is an empty text: the head holds a connection to a node
        that is gone without a word for one that has nothing to say.
        """
        loop = asyncio.new_event_loop()
        lines = self._follow(name)
        try:
            while True:
                try:
                    yield loop.run_until_complete(anext(lines))
                except StopAsyncIteration:
                    return
        finally:
            waiting = asyncio.all_tasks(loop)  # what Ctrl-C interrupted
            for each in waiting:
                each.cancel()
            if waiting:
                loop.run_until_complete(asyncio.wait(waiting))
            loop.run_until_complete(lines.aclose())
            loop.close()

    async def _follow(self, name: str) -> AsyncGenerator[str, None]:
        import aiohttp

        url = f"{self.url}/api/jobs/{quote(name, safe='')}/logs/tail"
        try:
            async with (
                aiohttp.ClientSession(headers=self.headers) as session,
                session.ws_connect(url, heartbeat=ANSWER_S, max_msg_size=0) as connection,
            ):
                while not connection.closed:
                    try:
                        message = await connection.receive(timeout=QUIET_S)
                    except TimeoutError:
                        yield ""
                    else:
                        if message.type is aiohttp.WSMsgType.TEXT:
                            yield str(message.data)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return  # who follows asks how the job is, and comes back

    def has(self, name: str) -> bool:
        """Whether the cluster has a package; it then keeps it for some minutes at least."""
        status, _ = self._ask("GET", f"/api/packages/gcs/{quote(name)}", accept=(404,))
        return status == 200

    def put(self, package: Archive) -> bool:
        """Send a package, where the cluster does not have it; whether it was sent."""
        if self.has(package.name):
            return False
        self._ask(
            "PUT",
            f"/api/packages/gcs/{quote(package.name)}",
            package.content,
            timeout_s=UPLOAD_S,
        )
        return True

    def nodes(self) -> list[Node]:
        """The nodes that are there."""
        answer = self._json("GET", "/api/v0/nodes?detail=1&limit=10000")
        found = answer.get("data", {}).get("result", {}).get("result", [])
        return [
            Node(each["node_id"], each.get("resources_total") or {})
            for each in found
            if each.get("state") == "ALIVE"
        ]

    def may_grow(self) -> bool:
        """Whether nodes may come by themselves; True where the cluster does not say."""
        answer = self._json("GET", "/api/cluster_status").get("data", {})
        report = (answer.get("clusterStatus") or {}).get("autoscalerReport") or {}
        kinds = report.get("nodeTypeMapping")
        # Of nodes that nobody launches, Ray (2.60.0) makes each a kind of its own.
        # Held by test_what_can_never_run_and_who_may_not_ask_is_told_at_once.
        return kinds is None or any(kind != f"node_{node}" for node, kind in kinds.items())

    def _json(self, method: str, path: str) -> Any:  # noqa: ANN401 - what JSON holds
        return self._plain(self._ask(method, path)[1])

    def _plain(self, body: bytes) -> Any:  # noqa: ANN401 - what JSON holds
        try:
            return json.loads(body)
        except ValueError:
            raise ServerError(f"{self} does not speak as Ray's does") from None

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        accept: tuple[int, ...] = (),
        timeout_s: float = ANSWER_S,
    ) -> tuple[int, bytes]:
        """Status and body; statuses that are not expected are errors."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        headers = {**self.headers, "Content-Type": "application/json"}
        try:
            opened = kind(self._host, timeout=timeout_s)
        except http.client.InvalidURL as error:
            raise InputError(f"{self.how}: {self.url} is no address: {error}") from None
        with contextlib.closing(opened) as connection:
            try:
                connection.request(method, self._path + path, body, headers)
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                why = str(error) or type(error).__name__
                raise ServerError(f"{self} does not answer: {why}") from None
        if status in {401, 403}:
            raise InputError(self._unwelcome(status))
        if status != 200 and status not in accept:
            raise ServerError(f"{self} answers {method} {path} by {status}: {_last_line(content)}")
        return status, content

    def _unwelcome(self, status: int) -> str:
        if self.token.value:
            return (
                f"{self} refuses the token of {self.token.told} ({status}); it is another "
                f"cluster's, or an old one: copy the head's"
            )
        return f"{self} asks for a token ({status}), and none was found: {self.token.told}"


def _info(plain: dict[str, Any]) -> JobInfo:
    code = plain.get("driver_exit_code")
    return JobInfo(
        name=plain["submission_id"],
        status=cast(RayStatus, plain["status"]),  # one of the five of Ray's enumeration
        message=" ".join((plain.get("message") or "").split())[:2000],
        exit_code=None if code is None else _shells(code),
        node=plain.get("driver_node_id") or "",
        began_ms=plain.get("start_time") or 0,
        ended_ms=plain.get("end_time") or 0,
        metadata=plain.get("metadata") or {},
    )


def _ours(info: JobInfo) -> bool:
    return info.metadata.get(OURS) == FORMAT


def _shells(code: int) -> int:
    """An exit code as shells tell it, where a signal was the end."""
    return 128 - code if code < 0 else code


def _last_line(body: bytes) -> str:
    lines = [
        line.strip() for line in body.decode(errors="replace").splitlines() if line.strip(" .")
    ]
    return lines[-1] if lines else "nothing more"
