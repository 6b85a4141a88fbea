"""Jobs: submit one and attach to one that is at work; watch it; end it; try it again.

A submission is named by the digest of all that decides what it does, and its attempts are counted.
The name of an attempt is an id of Ray's, which gives each once: of two clients that begin the same
attempt one wins, and the other one, as after an answer that was lost, finds what it wanted.
"""

import contextlib
import json
import re
import secrets as randomness
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines import HOME
from pipelines.experiment import InputError
from pipelines.jobs import folder as folders
from pipelines.jobs import needed, needs, records, sealing
from pipelines.jobs.records import Settled
from pipelines.jobs.server import JobInfo, JobServer, ServerError
from pipelines.jobs.submission import (
    STOP_WAIT_S,
    Origin,
    Submission,
    checked,
    request,
    variables_of,
)
from pipelines.jobs.wheel import Archive, wheel
from tracking.provenance import git_commit

LOOK_S = 0.5
LOST_S = 120.0
PENDING_S = 10.0
TOLD_S = 5.0
TRIES = 8

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asked for; what is None is decided by the command."""

    command: tuple[str, ...]
    working_dir: Path
    shared: bool = False
    cpus: float | None = None
    gpus: float | None = None
    memory_gb: float | None = None
    env: Sequence[str] = ()
    secret: Sequence[str] = ()
    records: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A submission with what has to be sent for it."""

    submission: Submission
    packages: tuple[Archive, ...]
    source: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt, and whether it was at work before."""

    name: str
    attached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as Ray sees it, and how it is."""

    info: JobInfo
    settled: Settled

    @property
    def name(self) -> str:
        """Its id."""
        return self.info.name


def prepare(wish: Wish, commands: Sequence[str]) -> Prepared:
    """Check all that can be checked before anything is sent.

    Args:
        wish: What to do.
        commands: The names of our commands.

    Raises:
        InputError: No such command; something needed stays behind, or would be lost.
    """
    command = _known(wish.command, commands)
    source = wish.working_dir.resolve()
    code = wheel()
    packages = [code]
    if wish.shared:
        if not source.is_dir():
            raise InputError(f"--working-dir {source}: no such folder")
        place, inputs = str(source), needed.digest_of(needed.named(command, source), source)
    else:
        found = folders.survey(source)
        needed.check_along(command, found)
        packages.append(folders.packed(found))
        place, inputs = packages[-1].name, ""
    submission = Submission(
        command=command,
        wheel=code.name,
        folder=place,
        inputs=inputs,
        need=needs.need_of(command, wish.cpus, wish.gpus, wish.memory_gb),
        variables=variables_of(wish.env),
        secrets=tuple(sorted({checked(name, "--secret") for name in wish.secret})),
        record=_record(wish, command, source),
    )
    if both := set(submission.variables) & set(submission.secrets):
        raise InputError(f"{min(both)} is given by --env and by --secret; wanted one of them")
    return Prepared(submission=submission, packages=tuple(packages), source=source)


def _known(command: Sequence[str], commands: Sequence[str]) -> tuple[str, ...]:
    import difflib

    words = tuple(command[1:] if command[0] == "fuseline" else command)
    if not words or words[0] not in {*commands, "python"}:
        found = words[0] if words else ""
        near = difflib.get_close_matches(found, commands, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see `fuseline --help`"
        raise InputError(
            f"job submit -- {found}: wanted a command of fuseline, or python for a program of your "
            f"own; {hint}"
        )
    if words[0] == "job":
        raise InputError("job submit -- job: a job submits no jobs")
    return words


def _record(wish: Wish, command: Sequence[str], source: Path) -> str:
    """Where the job's end is recorded: as told, else beside what the command writes."""
    if wish.records:
        if not wish.records.startswith("/") and "://" not in wish.records:
            raise InputError(
                f"--records {wish.records}: wanted an absolute path or an address like s3://, "
                f"which all nodes reach"
            )
        return wish.records.rstrip("/")
    for experiment in needed.outlines(command, source):
        return f"{experiment.root}/logs/jobs"
    return f"{source}/.fuseline/jobs" if wish.shared else ""


def submit(
    server: JobServer,
    prepared: Prepared,
    environment: Mapping[str, str],
    check: Callable[[Submission], None] = lambda submission: None,
    say: Say = lambda line: None,
) -> Attempt:
    """Begin the next attempt, or attach to the one that is at work.

    Args:
        server: Of the cluster.
        prepared: What to do.
        environment: The submitter's, which has the values of secrets.
        check: Called before an attempt begins; what it raises is passed on.
        say: Told of an attempt that was asked to end, whose end is waited for.

    Raises:
        InputError: No node can ever hold the driver; a secret is not there.
    """
    submission = prepared.submission
    for _ in range(TRIES):
        mine = attempts(server, submission)
        if mine and (live := _lasting(server, mine[-1], say)).settled.live:
            return Attempt(name=live.name, attached=True)
        check_room(server, submission)
        check(submission)
        values = sealing.secrets_of(submission.secrets, environment)
        sealed = sealing.seal(values, server.token) if values else ""
        for package in prepared.packages:
            server.put(package)
        number = _next(submission, mine)
        origin = Origin(source=str(prepared.source), commit=git_commit(HOME), sealed=sealed)
        if _begun(server, submission, number, origin):
            return Attempt(name=submission.attempt(number), attached=False)
    raise ServerError(f"{server} says of {TRIES} attempts that others began them")


def _next(submission: Submission, mine: Sequence[JobInfo]) -> int:
    """The number of the next attempt: those before it may be of a cluster that is gone."""
    known = _number(mine[-1].name) if mine else 0
    return 1 + max(known, records.attempts(submission.record, _begins(submission)))


def _begins(submission: Submission) -> str:
    return submission.attempt(0).removesuffix("0")


def _begun(server: JobServer, submission: Submission, number: int, origin: Origin) -> bool:
    return server.submit(request(submission, number, origin, randomness.token_hex(4)))


def check_room(server: JobServer, submission: Submission) -> None:
    """Raise InputError where no node can ever hold the driver."""
    needs.check_room(submission.need, server.nodes(), None if server.may_grow() else ())


def attempts(server: JobServer, submission: Submission) -> list[JobInfo]:
    """All attempts of a submission that the cluster knows, the first one in front."""
    first = re.escape(_begins(submission))
    mine = [each for each in server.jobs() if re.fullmatch(rf"{first}\d+", each.name)]
    return sorted(mine, key=lambda each: _number(each.name))


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


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
    return Job(info=info, settled=records.settle(info, record, alive))


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
    jobs = server.jobs()
    exact = [each for each in jobs if each.name == text]
    begun = exact or [each for each in jobs if each.name.startswith(text)]
    if not begun:
        known = ", ".join(each.name for each in jobs[-3:]) or "none"
        raise InputError(
            f"{server} knows no job {text}; the newest: {known}; of one of an earlier head tells "
            f"`fuseline job status {text} --records DATASET/logs/jobs`"
        )
    submissions = sorted({each.name.rpartition("-")[0] for each in begun})
    if len(submissions) > 1:
        raise InputError(f"{text} begins {', '.join(submissions[:5])}; wanted more of the id")
    return how(server, max(begun, key=lambda each: _number(each.name)))


def recorded(place: str, text: str) -> tuple[str, Settled]:
    """The id and the end of a job by its records alone, also when its cluster is gone.

    Raises:
        InputError: Nothing is recorded there of such an id.
    """
    record = records.newest(place.rstrip("/"), text)
    if record is None:
        raise InputError(f"--records {place}: nothing is recorded there of a job {text}")
    return record.name, records.settle(None, record, frozenset())


def wait(server: JobServer, name: str, write: Say, say: Say) -> Job:
    """Write what a job writes, until it has ended; returns how it ended.

    A connection that breaks is made again for a while; the job goes on without. Where the head is
    made anew meanwhile, and knows of no job, what the job's node recorded tells the end.
    """
    written, patience = 0, _Patience(say)
    job = patience.ask(lambda: how(server, _info(server, name)))
    while True:
        job = patience.ask(partial(_started, server, job.info, say))
        seen = 0
        for text in server.follow(name):
            fresh = text[max(written - seen, 0) :]
            seen += len(text)
            if fresh:
                write(fresh)
        written = max(written, seen)
        job = patience.ask(partial(_now, server, job.info))
        if not job.settled.live:
            with contextlib.suppress(ServerError):  # a log goes with its node
                if rest := server.logs(name)[written:]:
                    write(rest)
            return job
        time.sleep(LOOK_S)


def _now(server: JobServer, last: JobInfo) -> Job:
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


def _lasting(server: JobServer, info: JobInfo, say: Say) -> Job:
    """How a job is, after its end where it was asked to end: nobody attaches to that."""
    job = how(server, info)
    if job.settled.state == "stopping":
        say(f"{job.name} was asked to end, and saves; the next attempt begins after it")
    until = time.monotonic() + STOP_WAIT_S
    while job.settled.state == "stopping" and time.monotonic() < until:
        time.sleep(LOOK_S)
        job = _now(server, job.info)
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


def _started(server: JobServer, last: JobInfo, say: Say) -> Job:
    """How a job is as soon as it has a node, or ended; says what it waits for."""
    began, told = time.monotonic(), False
    while True:
        job = _now(server, last)
        if job.settled.state != "waiting":
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
    say(f"{job.name} is to end; it saves first")
    until, patience = time.monotonic() + PENDING_S, _Patience(say)
    while True:
        time.sleep(LOOK_S)
        job = patience.ask(partial(_now, server, job.info))
        if not job.settled.live:
            return job
        if job.settled.state == "waiting" and time.monotonic() > until:
            say(f"{job.name} has not begun; it ends as soon as it would begin")
            return job


def retry(server: JobServer, text: str, say: Say = lambda line: None) -> Attempt:
    """The next attempt of exactly what was submitted.

    Raises:
        InputError: It is at work, or what was submitted can be had nowhere any more.
    """
    job = _lasting(server, find(server, text).info, say)
    if job.settled.live:
        raise InputError(f"{job.name} is {job.settled.state}; `fuseline job stop {job.name}` first")
    submission = Submission.from_json(json.loads(job.info.metadata["submission"]))
    mine = attempts(server, submission)
    if mine and (live := _lasting(server, mine[-1], say)).settled.live:
        return Attempt(name=live.name, attached=True)
    check_room(server, submission)
    sealed = _sealed(server, job.name, submission)
    source = job.info.metadata["source"]
    _send_again(server, submission, source)
    commit = job.info.metadata.get("commit", "")
    origin = Origin(source=source, commit=commit, sealed=sealed)
    number = _next(submission, mine or [job.info])
    if not _begun(server, submission, number, origin):
        return Attempt(name=submission.attempt(number), attached=True)
    return Attempt(name=submission.attempt(number), attached=False)


def _sealed(server: JobServer, name: str, submission: Submission) -> str:
    """The secrets of an attempt for the next one, still sealed. Raises InputError."""
    sealed = server.sealed(name)
    if submission.secrets:
        try:
            sealing.unseal(sealed, server.token)
        except InputError:
            raise InputError(
                f"the secrets of {name} ({', '.join(submission.secrets)}) cannot be had from the "
                f"cluster with this token; `fuseline job submit` it again"
            ) from None
    return sealed


def _send_again(server: JobServer, submission: Submission, source: str) -> None:
    """What a cluster no longer keeps is made anew, if it comes out the same."""
    wanted = [submission.wheel, *([] if submission.shared else [submission.folder])]
    gone = [name for name in wanted if not server.has(name)]
    if not gone:
        return
    made = {}
    if submission.wheel in gone:
        made[submission.wheel] = wheel()
    if submission.folder in gone and Path(source).is_dir():
        made[submission.folder] = folders.packed(folders.survey(Path(source)))
    for name in gone:
        if name not in made or made[name].name != name:
            what = "the code" if name == submission.wheel else f"the working directory {source}"
            raise InputError(
                f"{what} is no longer what was submitted, and the cluster does not keep it any "
                f"more; `fuseline job submit` it as it is now"
            )
        server.put(made[name])
