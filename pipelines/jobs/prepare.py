"""A submission is made from what the user asked for, and checked before anything is sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.experiment import InputError
from pipelines.jobs import folder as folders
from pipelines.jobs import needed, needs
from pipelines.jobs.submission import Submission, check_open, checked, variables_of
from pipelines.jobs.wheel import Archive, wheel


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
    for word in command:
        check_open(word, "job submit --", "write it into a file that the command reads")
    check_open(str(source), "--working-dir", "give another folder")
    code = wheel()
    packages = [code]
    if wish.shared:
        if not source.is_dir():
            raise InputError(f"--working-dir {source}: no such folder")
        place = str(source)
        inputs = needed.digest_of(
            needed.named(command, source), needed.media(command, source), source
        )
    else:
        found = folders.survey(source)
        needed.check_along(command, found)
        packages.append(folders.packed(found))
        place, inputs = packages[-1].name, ""
    record = _record(wish, command, source)
    option = "--records" if wish.records else "dataset"
    check_open(record, option, "keys of a store are found where its own tools look for them")
    submission = Submission(
        command=command,
        wheel=code.name,
        folder=place,
        inputs=inputs,
        need=needs.need_of(command, wish.cpus, wish.gpus, wish.memory_gb),
        variables=variables_of(wish.env),
        secrets=tuple(sorted({checked(name, "--secret") for name in wish.secret})),
        record=record,
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
