"""What it costs to run a command as a job instead of here, in seconds, and where they go.

A head is started on this machine, with token authentication. A command that reads a small table
(`fuseline plan`) is run here, then as a job, for the first time and, as another attempt, again;
both sides take turns in one run of this script.

    python benchmarks/submit.py [--quick]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

from featurizers.spec import canonical_json
from pipelines.demo import make_corpus
from pipelines.jobs import records
from pipelines.jobs.prepare import Wish, prepare
from pipelines.jobs.server import JobServer
from pipelines.jobs.submit import submit
from pipelines.jobs.tokens import Token
from pipelines.jobs.watch import how
from tracking.provenance import git_commit, versions

HOME = Path(__file__).resolve().parent.parent
COMMAND = ("plan", "experiment.yaml", "--json")
EXPERIMENT = """\
dataset: data
source: {table: corpus/clips.csv, label: sentiment}
features: {text: {featurizer: hashed-words}}
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of one submission, in their order.

    Attributes:
        prepare: The wheel, the working directory, the digest.
        send: Attempts looked for, room checked, packages and request sent.
        begin: Until the driver's process runs: the environment made, a worker started.
        command: The command itself.
        end: From its end until we know of it.
    """

    prepare: float
    send: float
    begin: float
    command: float
    end: float

    @property
    def whole(self) -> float:
        """All of it."""
        return sum(getattr(self, each.name) for each in fields(self))


def here(folder: Path) -> float:
    """Seconds of the command as a process of this machine."""
    began = time.perf_counter()
    words = [sys.executable, "-P", "-m", "pipelines", *COMMAND]
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    subprocess.run(  # noqa: S603 - no shell
        words, cwd=folder, env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - began


def as_job(server: JobServer, folder: Path) -> Parts:
    """One attempt, to its end."""
    marks = [time.time()]
    prepared = prepare(Wish(command=COMMAND, working_dir=folder, shared=True), ["plan"])
    marks.append(time.time())
    name = submit(server, prepared, {}).name
    marks.append(time.time())
    while True:
        info = server.info(name)
        if info is not None and not (job := how(server, info)).settled.live:
            break
        time.sleep(0.05)
    marks.append(time.time())
    if job.settled.state != "succeeded":
        raise SystemExit(f"{job.settled}: {server.logs(name)}")
    record = records.read(job.info.metadata["record"])
    if record is None:
        raise SystemExit("the job was not recorded")
    return Parts(
        marks[1] - marks[0],
        marks[2] - marks[1],
        record.began - marks[2],
        record.ended - record.began,
        marks[3] - record.ended,
    )


def measured(rounds: int) -> tuple[list[float], list[Parts]]:
    """Seconds here, and the parts of each submission, the first one in front."""
    sys.path.insert(0, str(HOME))  # tests are not installed
    from tests.job_cluster import head

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_corpus(folder / "corpus", clips=32)
        (folder / "experiment.yaml").write_text(EXPERIMENT)
        (folder / "ray").mkdir()
        with head(folder, cpus=2) as started:
            server = JobServer(started.url, "the benchmark", Token(started.token, "the benchmark"))
            alone, jobs = [], []
            here(folder)  # what is read for the first time
            for _ in range(rounds):
                alone.append(here(folder))
                jobs.append(as_job(server, folder))
    return alone, jobs


def main() -> None:
    """Print the table and the line for machines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 7")
    alone, jobs = measured(2 if parser.parse_args().quick else 7)
    first, again = jobs[0], jobs[1:]
    usual = Parts(
        *(statistics.median(getattr(each, part.name) for each in again) for part in fields(Parts))
    )
    local = statistics.median(alone)
    print(f"{'seconds':10} {'first job':>10} {'next ones':>10}")
    for part in fields(Parts):
        print(f"{part.name:10} {getattr(first, part.name):10.2f} {getattr(usual, part.name):10.2f}")
    print(f"{'whole':10} {first.whole:10.2f} {usual.whole:10.2f}    here {local:.2f}")
    figures = {
        "local_s": local,
        "first_overhead_s": first.whole - local,
        "overhead_s": usual.whole - local,
        **{f"{part.name}_s": getattr(usual, part.name) for part in fields(Parts)},
    }
    told = {
        "benchmark": "submit",
        "figures": {name: round(value, 3) for name, value in figures.items()},
        "commit": git_commit(HOME),
        "versions": versions(["ray", "aiohttp"]),
    }
    print(canonical_json(told).decode())


if __name__ == "__main__":
    main()
