"""How jobs are: found by their ids, watched until they end, asked to end.

What a job's node recorded comes before Ray's word. A server that is away for a moment is asked
again: the job goes on without it.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipelines.experiment import InputError
from pipelines.jobs import records
from pipelines.jobs.records import Settled
from pipelines.jobs.server import JobInfo, JobServer, ServerError
from pipelines.jobs.submission import STOP_WAIT_S, meant

LOOK_S = 0.5
LOST_S = 120.0
PENDING_S = 10.0
TOLD_S = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as Ray sees it, and how it is."""

    info: JobInfo
    settled: Settled

    @property
    def name(self) -> str:
        """Its id."""
        return self.info.name

    @property
    def attachable(self) -> bool:
        """Whether it is under way, and nobody asked it to end."""
        return self.settled.state in {"waiting", "running"}


def how(
    server: JobServer,
    info: JobInfo,
    alive: frozenset[str] | None = None,
    unreached: set[str] | None = None,
) -> Job:
    """How a job is.

    Args:
        server: Of the cluster.
        info: What Ray says of it.
        alive: The ids of nodes that are there; asked for where it is None.
        unreached: See `records.read`.
    """
    if alive is None:
        alive = _alive(server) if info.status == "RUNNING" else frozenset()
    record = records.read(info.metadata.get("record", ""), unreached)
    return Job(info=info, settled=records.settle(info, record, alive, time.time()))


def _alive(server: JobServer) -> frozenset[str]:
    return frozenset(node.name for node in server.nodes())


def all_jobs(server: JobServer) -> list[Job]:
    """All jobs of ours that the cluster knows."""
    alive, unreached = _alive(server), set[str]()
    return [how(server, info, alive, unreached) for info in server.jobs()]


def find(server: JobServer, text: str) -> Job:
    """The job of an id, or the newest attempt of what begins so.

    Raises:
        InputError: None, or several submissions.
    """
    jobs = {each.name: each for each in server.jobs()}
    name = meant(jobs, text)
    if name is None:
        known = ", ".join([*jobs][-3:]) or "none"
        raise InputError(
            f"{server} knows no job {text}; the newest: {known}; of one of an earlier head tells "
            f"`fuseline job status {text} --records DATASET/logs/jobs`"
        )
    return how(server, jobs[name])


def recorded(place: str, text: str) -> tuple[str, Settled]:
    """The id and the end of a job by its records alone, also when its cluster is gone.

    Raises:
        InputError: Nothing is recorded there of such an id.
    """
    record = records.newest(place.rstrip("/"), text)
    if record is None:
        raise InputError(f"--records {place}: nothing is recorded there of a job {text}")
    return record.name, records.by_record_alone(record)


def wait(server: JobServer, name: str, write: Say, say: Say) -> Job:
    """Write what a job writes, until it has ended; returns how it ended.

    A connection that breaks is made again for a while; the job goes on without. Where the head is
    made anew meanwhile, and knows of no job, what the job's node recorded tells the end.
    """
    written, patience = 0, _Patience(say)
    job = patience.ask(lambda: how(server, _info(server, name)))
    while True:
        job = _started(server, job.info, patience, say)
        seen = 0
        # Of one that has ended, the log alone: the head may wait for a node that is gone.
        for text in server.follow(name) if job.settled.live else ():
            fresh = text[max(written - seen, 0) :]
            seen += len(text)
            if fresh:
                write(fresh)
            elif not text and not patience.ask(partial(now, server, job.info)).settled.live:
                break
        written = max(written, seen)
        job = patience.ask(partial(now, server, job.info))
        if not job.settled.live:
            try:
                if rest := server.logs(name)[written:]:
                    write(rest)
            except ServerError as error:  # a log goes with its node
                say(f"{'the end of ' * bool(written)}the log of {name} cannot be had: {error}")
            return job
        time.sleep(LOOK_S)


def now(server: JobServer, last: JobInfo) -> Job:
    """How a job is; by its record alone where the cluster does not know it any more.

    Raises:
        ServerError: The server does not answer, and no end was recorded.
    """
    address = last.metadata.get("record", "")
    try:
        found = server.info(last.name)
    except ServerError:
        record = records.read(address)
        if record is None or record.exit_code is None:
            raise
        found = None
    # On a head made anew somebody else may have begun an attempt of the same number.
    if found is not None and found.metadata.get("nonce") == last.metadata.get("nonce"):
        return how(server, found)
    return Job(info=last, settled=records.settle(None, records.read(address), frozenset()))


def lasting(server: JobServer, info: JobInfo, say: Say) -> Job:
    """How a job is, after its end where it was asked to end: nobody attaches to that.

    One that was asked before it began does nothing when it begins: it is not waited for.

    Raises:
        ServerError: It does not end.
    """
    job, until = how(server, info), time.monotonic() + STOP_WAIT_S
    if job.settled.state == "stopping" and job.info.status != "PENDING":
        say(f"{job.name} was asked to end, and saves; the next attempt begins after it")
    while job.settled.state == "stopping" and job.info.status != "PENDING":
        if time.monotonic() > until:
            raise ServerError(f"{job.name} was asked to end, and has not after {STOP_WAIT_S} s")
        time.sleep(LOOK_S)
        job = now(server, job.info)
    return job


class _Patience:
    """Asks again while the server does not answer, for a while."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def ask(self, call: Callable[[], Job]) -> Job:
        until, told = time.monotonic() + LOST_S, False
        while True:
            try:
                return call()
            except ServerError as error:
                if time.monotonic() > until:
                    raise ServerError(
                        f"{error}; the job goes on without, and the same command attaches to it"
                    ) from None
                if not told:
                    self._say(f"{error}; trying again for {LOST_S:g} s")
                told = True
            time.sleep(1.0)


def _info(server: JobServer, name: str) -> JobInfo:
    found = server.info(name)
    if found is None:
        raise ServerError(f"{server} does not know {name} any more: it may have been made anew")
    return found


def _started(server: JobServer, last: JobInfo, patience: _Patience, say: Say) -> Job:
    """How a job is as soon as it has a node, or ended; says what it waits for."""
    began, told = time.monotonic(), False
    while True:
        job = patience.ask(partial(now, server, last))
        if not job.settled.live or job.info.status != "PENDING":
            return job
        if not told and time.monotonic() - began > TOLD_S:
            say(f"{last.name} waits: {job.settled.why}")
            told = True
        time.sleep(LOOK_S)


def stop(server: JobServer, text: str, say: Say) -> Job:
    """Ask a job to end, and wait until it has saved and ended."""
    job = find(server, text)
    if not job.settled.live:
        return job
    server.stop(job.name)
    with contextlib.suppress(ServerError):  # it ends all the same
        server.remember_stop(job.info)
    say(f"{job.name} is to end; it saves first")
    until, patience = time.monotonic() + PENDING_S, _Patience(say)
    while True:
        time.sleep(LOOK_S)
        job = patience.ask(partial(now, server, job.info))
        if not job.settled.live:
            return job
        if job.info.status == "PENDING" and time.monotonic() > until:
            say(f"{job.name} has not begun; it ends as soon as it would begin")
            return job
