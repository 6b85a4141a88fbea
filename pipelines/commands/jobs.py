"""Commands as jobs of a Ray cluster."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import Json

if TYPE_CHECKING:
    from pipelines.jobs.records import Settled
    from pipelines.jobs.server import JobServer
    from pipelines.jobs.submission import Submission
    from pipelines.jobs.submit import Attempt
    from pipelines.jobs.watch import Job

PANEL = "Cluster"
app = typer.Typer()
job = typer.Typer(no_args_is_help=True, help="Commands as jobs of a Ray cluster.")
app.add_typer(job, name="job", rich_help_panel=PANEL)

Address = Annotated[
    str, typer.Option(help="Of the job server, as in http://127.0.0.1:8265; else RAY_ADDRESS.")
]
Cluster = Annotated[
    Path, typer.Option(help="The launcher's file, by which a tunnel is opened where no address is.")
]
Id = Annotated[str, typer.Argument(help="Of the job, or how it begins: its newest attempt then.")]
Wait = Annotated[
    bool, typer.Option("--wait", "-w", help="Show what it writes; exit code is the job's.")
]
CLUSTER = Path("cluster.yaml")


@job.command("submit", context_settings={"allow_interspersed_args": False})
def submit_command(
    command: Annotated[
        list[str], typer.Argument(help="After --: a command of fuseline, or python and a program.")
    ],
    *,
    address: Address = "",
    cluster: Cluster = CLUSTER,
    working_dir: Annotated[
        Path, typer.Option(help="Where the command runs; a copy goes along, see --shared.")
    ] = Path(),
    shared: Annotated[
        bool,
        typer.Option(
            "--shared", help="All nodes reach the working directory by its path: no copy."
        ),
    ] = False,
    cpus: Annotated[
        float | None, typer.Option(help="Cores for the driver; 0 runs it on the head.", min=0)
    ] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs for the driver.", min=0)] = None,
    memory: Annotated[float | None, typer.Option(help="GiB for the driver.", min=0)] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for driver and workers; repeatable.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(help="A variable of your environment that nobody is to see; repeatable."),
    ] = None,
    records: Annotated[
        str, typer.Option(help="Where its end is recorded; else beside what the command writes.")
    ] = "",
    validate: Annotated[
        bool, typer.Option(help="Ask the nodes first whether it would run there.")
    ] = True,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Run a command on the cluster; an equal submission that is at work is attached to."""
    from pipelines.jobs.beforehand import check_beforehand
    from pipelines.jobs.prepare import Wish, prepare
    from pipelines.jobs.submit import submit

    wish = Wish(
        command=tuple(command),
        working_dir=working_dir,
        shared=shared,
        cpus=cpus,
        gpus=gpus,
        memory_gb=memory,
        env=env or (),
        secret=secret or (),
        records=records,
    )
    prepared = prepare(wish, _commands())
    with _server(address, cluster) as server:
        file = cluster if server.tunnelled else None
        ask = partial(check_beforehand, server, source=prepared.source, file=file, say=_say)
        check = ask if validate else _unchecked
        attempt = submit(server, prepared, os.environ, check, _say)
        _watched(server, attempt, wait=wait, as_json=as_json)


@job.command("list")
def list_command(
    *, address: Address = "", cluster: Cluster = CLUSTER, as_json: Json = False
) -> None:
    """All jobs of fuseline that the cluster knows, the newest last."""
    from pipelines.jobs.watch import all_jobs
    from pipelines.show import Show

    with _server(address, cluster) as server:
        found = all_jobs(server)
    if as_json:
        print(json.dumps([_plain(each) for each in found]))
    else:
        Show().rows("jobs", [_row(each) for each in found])


@job.command("status")
def status_command(
    name: Id,
    *,
    address: Address = "",
    cluster: Cluster = CLUSTER,
    records: Annotated[
        str, typer.Option(help="Where ends are recorded: asks there alone, and no cluster.")
    ] = "",
    as_json: Json = False,
) -> None:
    """How a job is, by Ray and by what its node recorded."""
    from pipelines.jobs.watch import find, recorded

    if records:
        record, settled = recorded(records, name)
        if as_json:
            plain = {"id": record, "state": settled.state, "exit_code": settled.exit_code}
            print(json.dumps({**plain, "why": settled.why}))
        else:
            print(_told(record, settled))
        return
    with _server(address, cluster) as server:
        found = find(server, name)
    if as_json:
        print(json.dumps(_plain(found)))
    else:
        print(_sentence(found))


@job.command("logs")
def logs_command(
    name: Id,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    address: Address = "",
    cluster: Cluster = CLUSTER,
) -> None:
    """What a job's driver has written."""
    from pipelines.jobs.watch import find, wait

    with _server(address, cluster) as server:
        found = find(server, name)
        if follow:
            with _goes_on(found.name):
                found = wait(server, found.name, _write, _say)
            _say(_sentence(found))
        elif found.info.status == "PENDING":
            _say(f"{_sentence(found)}; there is no log yet")
        else:
            _write(server.logs(found.name))


@job.command("stop")
def stop_command(
    name: Id, *, address: Address = "", cluster: Cluster = CLUSTER, as_json: Json = False
) -> None:
    """End a job: it saves first, and goes on from there when it is tried again."""
    from pipelines.jobs.watch import stop

    with _server(address, cluster) as server:
        try:
            found = stop(server, name, _say)
        except KeyboardInterrupt:
            _say(f"{name} is to end all the same, if it was asked; `fuseline job status {name}`")
            raise
    print(json.dumps(_plain(found)) if as_json else _sentence(found))


@job.command("retry")
def retry_command(
    name: Id,
    *,
    address: Address = "",
    cluster: Cluster = CLUSTER,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """The next attempt of exactly what was submitted; what is finished is taken as it is."""
    from pipelines.jobs.submit import retry

    with _server(address, cluster) as server:
        _watched(server, retry(server, name, _say), wait=wait, as_json=as_json)


def _unchecked(submission: "Submission") -> None:
    """As with --no-validate."""


def _watched(server: "JobServer", attempt: "Attempt", *, wait: bool, as_json: bool) -> None:
    """Tell the id; with --wait also what the job writes, and exit with its code."""
    from pipelines.jobs.watch import wait as watch

    _say(f"{attempt.name} {'is at work already' if attempt.attached else 'is submitted'}")
    if not wait:
        plain = {"id": attempt.name, "attached": attempt.attached}
        print(json.dumps(plain) if as_json else attempt.name)
        return
    with _goes_on(attempt.name):
        ended = watch(server, attempt.name, _say_raw if as_json else _write, _say)
    if as_json:
        print(json.dumps({**_plain(ended), "attached": attempt.attached}))
    _say(_sentence(ended))
    code = ended.settled.exit_code
    raise typer.Exit(1 if code is None else code)


@contextlib.contextmanager
def _goes_on(name: str) -> Iterator[None]:
    """Tell that Ctrl-C ended the looking on alone."""
    try:
        yield
    except KeyboardInterrupt:
        _say(
            f"{name} goes on without; `fuseline job logs -f {name}` shows more of it, "
            f"`fuseline job stop {name}` ends it"
        )
        raise


@contextlib.contextmanager
def _server(address: str, cluster: Path) -> Iterator["JobServer"]:
    from pipelines.jobs.address import Asked, job_server

    with job_server(Asked(address, cluster), os.environ) as server:
        yield server


def _commands() -> list[str]:
    """The names of all commands."""
    from typer.main import get_command

    from pipelines.__main__ import app as whole

    return sorted(getattr(get_command(whole), "commands", {}))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say_raw(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plain(each: "Job") -> dict[str, Any]:
    info, settled = each.info, each.settled
    submission = json.loads(info.metadata["submission"])
    return {
        "id": each.name,
        "state": settled.state,
        "exit_code": settled.exit_code,
        "why": settled.why,
        "command": submission["command"],
        "attempt": int(info.metadata["attempt"]),
        "submitted": _when(info.began_ms),
        "seconds": round(info.took_s, 1) if info.ended_ms else None,
        "ray_status": info.status,
        "cpus": submission["cpus"],
        "gpus": submission["gpus"],
        "memory_bytes": submission["memory_bytes"],
        "variables": submission["variables"],
        "secrets": submission["secrets"],
        "record": info.metadata.get("record", ""),
    }


def _row(each: "Job") -> dict[str, object]:
    plain = _plain(each)
    seconds = plain["seconds"]
    return {
        "id": plain["id"],
        "state": plain["state"],
        "exit code": "" if plain["exit_code"] is None else plain["exit_code"],
        "submitted": plain["submitted"],
        "took": "" if seconds is None else f"{seconds:.0f} s",
        "command": _line(plain["command"]),
    }


def _sentence(each: "Job") -> str:
    info = each.info
    return _told(each.name, each.settled, f"after {info.took_s:.0f} s" if info.ended_ms else "")


def _line(command: Sequence[str]) -> str:
    """A command as a shell takes it, on one line, without what a terminal would obey."""
    told = shlex.join(command)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in told)


def _told(name: str, settled: "Settled", more: str = "") -> str:
    code = "" if settled.exit_code is None else f"exit code {settled.exit_code}"
    told = ", ".join(part for part in (f"{name}: {settled.state}", code, more) if part)
    return f"{told}; {settled.why}" if settled.why else told


def _when(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
