"""How a job began and ended, on storage that outlives the cluster, and what follows from it.

Ray's own word (2.60.0) can be wrong: a job that ended well has failed when its supervisor died
before it was written down, one whose head was replaced is unknown, and one that was stopped has no
exit code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from featurizers.spec import canonical_json
from featurizers.store import StorageError, store_at
from pipelines.jobs.server import JobInfo, RayStatus

FORMAT = 1
SIGTERM_CODE = 143

State: TypeAlias = Literal["waiting", "running", "succeeded", "failed", "stopped", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the driver's node wrote.

    Attributes:
        exit_code: Of the command; None where it has begun and no end was written.
        began: Seconds since 1970.
        ended: The same; 0 before.
        stopped: Whether it was asked to end.
    """

    name: str
    host: str
    began: float
    ended: float = 0.0
    exit_code: int | None = None
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "format": FORMAT,
            "name": self.name,
            "host": self.host,
            "began": self.began,
            "ended": self.ended,
            "exit_code": self.exit_code,
            "stopped": self.stopped,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Record":
        """The reverse of `to_json`."""
        return cls(**{key: value for key, value in plain.items() if key != "format"})


def write(address: str, record: Record) -> None:
    """Write a beginning or an end; each once, since nobody else has this address.

    Raises:
        StorageError: It could not be written.
    """
    folder, _, name = address.rpartition("/")
    kind = "began" if record.exit_code is None else "ended"
    store_at(folder).replace(f"{name}.{kind}.json", canonical_json(record.to_json()))


def read(address: str) -> Record | None:
    """The end, else the beginning; None where neither is there or it cannot be reached from here.

    An answer of this machine's disk about a folder that only nodes have is no answer.
    """
    folder, _, name = address.rpartition("/")
    if not name:
        return None
    for kind in ("ended", "began"):
        try:
            return Record.from_json(json.loads(store_at(folder).read(f"{name}.{kind}.json")))
        except (OSError, StorageError, ValueError, TypeError):
            continue
    return None


def newest(folder: str, name: str) -> Record | None:
    """What was recorded last of a job, or of the attempts of what begins so; None for nothing.

    Raises:
        StorageError: The place cannot be read.
    """
    stems = {file.rsplit(".", 2)[0] for file in store_at(folder).sizes() if file.startswith(name)}
    found = [record for stem in sorted(stems) if (record := read(f"{folder}/{stem}"))]
    return max(found, key=lambda record: record.began, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How a job is, from both.

    Attributes:
        exit_code: None while it lives, and where nobody knows.
        why: What to tell beside the state; empty where there is nothing.
    """

    state: State
    exit_code: int | None = None
    why: str = ""

    @property
    def live(self) -> bool:
        """Whether an attempt is under way."""
        return self.state in {"waiting", "running"}


def settle(info: JobInfo | None, record: Record | None, alive: frozenset[str]) -> Settled:
    """How a job is, from what Ray says, what its node wrote, and which nodes are there.

    Args:
        info: None where Ray does not know the job.
        record: None where none was found.
        alive: The ids of nodes that are there.
    """
    if record is not None and record.exit_code is not None:
        return _by_record(info, record)
    if info is None:
        why = "the cluster does not know it any more, and its end was not recorded"
        return Settled(state="lost", why=why)
    if info.status == "RUNNING" and info.node and info.node not in alive:
        return Settled(state="lost", why="the node of its driver is gone")
    return _by_ray(info)


def _by_ray(info: JobInfo) -> Settled:
    """Ray's word, where there is no other."""
    settled: dict[RayStatus, Settled] = {
        "PENDING": Settled(state="waiting", why=info.message),
        "RUNNING": Settled(state="running"),
        "SUCCEEDED": Settled(state="succeeded", exit_code=info.exit_code or 0),
        "STOPPED": Settled(state="stopped", exit_code=SIGTERM_CODE),
        "FAILED": Settled(state="failed", exit_code=info.exit_code or 1, why=_said(info)),
    }
    return settled[info.status]


def _by_record(info: JobInfo | None, record: Record) -> Settled:
    """The command has ended, whatever became of those who watched it."""
    if record.exit_code == 0:
        wrong = info is not None and info.status == "FAILED"
        why = f"its end was recorded; Ray says: {info.message}" if info and wrong else ""
        return Settled(state="succeeded", exit_code=0, why=why)
    if record.stopped:
        return Settled(state="stopped", exit_code=record.exit_code)
    return Settled(state="failed", exit_code=record.exit_code)


def _said(info: JobInfo) -> str:
    """Ray's reason; of a command that ended by itself it is the end of its log, shown by `logs`."""
    return "" if info.exit_code is not None else info.message
