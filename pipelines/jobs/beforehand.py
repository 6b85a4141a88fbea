"""What `validate` says of a submission, before anything is spent."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from pipelines.cluster.validate import validate
from pipelines.experiment import Experiment, InputError
from pipelines.findings import Finding
from pipelines.jobs import needed, needs
from pipelines.jobs.server import JobServer
from pipelines.jobs.submission import Submission
from pipelines.licences import OURS


def check_beforehand(
    server: JobServer,
    submission: Submission,
    source: Path,
    file: Path | None,
    say: Callable[[str], None],
) -> None:
    """Ask the nodes of a cluster whether the command would run there.

    Nodes are not asked for what goes along with a copy of the working directory; what would be
    missing of it was looked for when it was packed.

    Args:
        server: Of the cluster.
        submission: What is to run.
        source: The working directory, here.
        file: The launcher's file, where a tunnel was opened by it.
        say: Told each warning and failure.

    Raises:
        InputError: Something would fail.
    """
    usual = needs.KINDS.get(submission.command[0], needs.READS)
    if usual == submission.need == needs.READS:
        return
    experiments: list[Experiment | None] = [*needed.outlines(submission.command, source)]
    given = {
        **submission.variables,
        **{name: os.environ.get(name, "") for name in submission.secrets},
    }
    for experiment in experiments or [None]:
        findings = validate(
            experiment,
            cluster=file,
            address=server.url,
            driver=submission.need,
            variables=given,
            copy=None if submission.shared else source,
            command=submission.command[0],
        )
        refuse(findings, say)


def refuse(findings: Iterable[Finding], say: Callable[[str], None]) -> None:
    """Tell what is not as it should be; raise InputError where something would fail."""
    failed = []
    for each in findings:
        if each.state == "ok" or each.what == OURS:  # a job brings our code along
            continue
        say(str(each))
        if each.state == "failed":
            failed.append(f"{each.what}: {each.found}")
    if failed:
        more = f"; {len(failed) - 1} more would fail" if len(failed) > 1 else ""
        raise InputError(f"{failed[0]}{more}; mend it, or submit with --no-validate")
