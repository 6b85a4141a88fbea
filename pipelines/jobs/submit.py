"""Jobs begin: an attempt of a submission, or the one that is at work is attached to.

A submission is named by the digest of all that decides what it does, and its attempts are counted.
The name of an attempt is an id of Ray's, which gives each once: of two clients that begin the same
attempt one wins, and the other one, as after an answer that was lost, finds what it wanted.
"""

import json
import re
import secrets as randomness
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines import HOME
from pipelines.experiment import InputError
from pipelines.jobs import folder as folders
from pipelines.jobs import needs, records, sealing
from pipelines.jobs.prepare import Prepared
from pipelines.jobs.server import JobInfo, JobServer, ServerError
from pipelines.jobs.submission import Origin, Submission, number_of, request
from pipelines.jobs.watch import Say, find, lasting
from pipelines.jobs.wheel import wheel
from tracking.provenance import git_commit

TRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt, and whether it was at work before."""

    name: str
    attached: bool


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
        InputError: No node can ever hold the driver; a secret is not there; it is too long.
    """
    submission = prepared.submission
    for _ in range(TRIES):
        mine = attempts(server, submission)
        if mine and (live := lasting(server, mine[-1], say)).attachable:
            return Attempt(name=live.name, attached=True)
        check_room(server, submission)
        check(submission)
        values = sealing.secrets_of(submission.secrets, environment)
        told = (*submission.command, *submission.variables.values(), submission.record)
        sealing.check_unseen(values, told)
        sealed = sealing.seal(values, server.token) if values else ""
        number = _next(submission, mine)
        origin = Origin(source=str(prepared.source), commit=git_commit(HOME), sealed=sealed)
        asked = request(submission, number, origin, randomness.token_hex(4))
        for package in prepared.packages:
            server.put(package)
        if server.submit(asked):
            return Attempt(name=submission.attempt(number), attached=False)
    raise ServerError(f"{server} says of {TRIES} attempts that others began them")


def _next(submission: Submission, mine: Sequence[JobInfo]) -> int:
    """The number of the next attempt: those before it may be of a cluster that is gone."""
    known = number_of(mine[-1].name) if mine else 0
    return 1 + max(known, records.attempts(submission.record, _begins(submission)))


def _begins(submission: Submission) -> str:
    return submission.attempt(0).removesuffix("0")


def check_room(server: JobServer, submission: Submission) -> None:
    """Raise InputError where no node can ever hold the driver."""
    needs.check_room(submission.need, server.nodes(), None if server.may_grow() else ())


def attempts(server: JobServer, submission: Submission) -> list[JobInfo]:
    """All attempts of a submission that the cluster knows, the first one in front."""
    first = re.escape(_begins(submission))
    mine = [each for each in server.jobs() if re.fullmatch(rf"{first}\d+", each.name)]
    return sorted(mine, key=lambda each: number_of(each.name))


def retry(server: JobServer, text: str, say: Say = lambda line: None) -> Attempt:
    """The next attempt of exactly what was submitted.

    Raises:
        InputError: It is at work, or what was submitted can be had nowhere any more.
    """
    job = lasting(server, find(server, text).info, say)
    if job.attachable:
        raise InputError(f"{job.name} is {job.settled.state}; `fuseline job stop {job.name}` first")
    submission = Submission.from_json(json.loads(job.info.metadata["submission"]))
    mine = attempts(server, submission)
    if mine and (live := lasting(server, mine[-1], say)).attachable:
        return Attempt(name=live.name, attached=True)
    check_room(server, submission)
    sealed = _sealed(server, job.name, submission)
    source = job.info.metadata["source"]
    _send_again(server, submission, source)
    commit = job.info.metadata.get("commit", "")
    origin = Origin(source=source, commit=commit, sealed=sealed)
    number = _next(submission, mine or [job.info])
    if not server.submit(request(submission, number, origin, randomness.token_hex(4))):
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
