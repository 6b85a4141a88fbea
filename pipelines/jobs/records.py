"""How a job began and ended, on storage that outlives the cluster, and what follows from it.

Ray's own word (2.60.0) can be wrong: a job that ended well has failed when its supervisor died
before it was written down, one whose head was replaced is unknown, and one that was stopped has no
exit code. Held by
test_the_end_that_the_node_wrote_settles_what_ray_gets_wrong.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from featurizers.spec import canonical_json
from featurizers.store import store_at
from pipelines.jobs.server import JobInfo, RayStatus
from pipelines.jobs.submission import meant

FORMAT = 1
_ID = re.compile(r".+-\d+")
SIGTERM_CODE = 143
SEEN_S = 60.0
"""Within which a network's disk shows here what was written elsewhere: by default NFS remembers for
at most so long that a file was not there."""

State: TypeAlias = Literal[
    "waiting", "running", "stopping", "succeeded", "failed", "stopped", "lost", "begun"
]


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
        names = {each.name for each in fields(cls)}  # a later version may add some
        return cls(**{key: value for key, value in plain.items() if key in names})


def write(address: str, record: Record) -> None:
    """Write a beginning, a wish to end, or an end; each once: nobody else has this address.

    Raises:
        StorageError: It could not be written.
    """
    folder, _, name = address.rpartition("/")
    kind = "ended" if record.exit_code is not None else "stopping" if record.stopped else "began"
    store_at(folder).replace(f"{name}.{kind}.json", canonical_json(record.to_json()))


def read(address: str, unreached: set[str] | None = None) -> Record | None:
    """The last of what was written; None where nothing is there or it cannot be reached from here.

    An answer of this machine's disk about a folder that only nodes have is no answer.

    Args:
        address: Of the attempt's records, without their ends.
        unreached: Folders that are not asked again; one that fails is added.
    """
    folder, _, name = address.rpartition("/")
    if not name or (unreached is not None and folder in unreached):
        return None
    for kind in ("ended", "stopping", "began"):
        try:
            return Record.from_json(json.loads(store_at(folder).read(f"{name}.{kind}.json")))
        except (FileNotFoundError, ValueError, TypeError):
            continue
        except Exception:  # noqa: BLE001 - each store's library has errors of its own
            if unreached is not None:
                unreached.add(folder)
            return None
    return None


def newest(folder: str, text: str) -> Record | None:
    """What was recorded of a job, or of the newest attempt of what begins so; None for nothing.

    Of attempts the number tells which is the newest, since clocks of nodes differ; of several heads
    that each began an attempt of one number, the clock.

    Raises:
        StorageError: The place cannot be read.
        InputError: See `submission.meant`.
    """
    stems = {file.rsplit(".", 2)[0] for file in store_at(folder).sizes() if file.count(".") > 2}
    named = {stem: stem.partition(".")[0] for stem in stems}
    name = meant((each for each in named.values() if _ID.fullmatch(each)), text)
    mine = sorted(stem for stem in stems if named[stem] == name)
    found = [record for stem in mine if (record := read(f"{folder}/{stem}"))]
    return max(found, key=lambda record: record.began, default=None)


def attempts(folder: str, begins: str) -> int:
    """The highest attempt that was recorded, also on a cluster that is gone; 0 for none.

    Args:
        folder: Where records lie; it may be out of reach.
        begins: What comes before the number in an attempt's id.
    """
    if not folder:
        return 0
    try:
        names = store_at(folder).sizes()
    except Exception:  # noqa: BLE001 - each store's library has errors of its own
        return 0
    found = (re.fullmatch(rf"{re.escape(begins)}(\d+)\.[^/]*", name) for name in names)
    return max((int(each[1]) for each in found if each), default=0)


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
        return self.state in {"waiting", "running", "stopping"}


def settle(
    info: JobInfo | None,
    record: Record | None,
    alive: frozenset[str],
    at_s: float = math.inf,
) -> Settled:
    """How a job is, from what Ray says, what its node wrote, and which nodes are there.

    Args:
        info: None where Ray does not know the job.
        record: None where none was found.
        alive: The ids of nodes that are there.
        at_s: When the record was read, in seconds since 1970; later than all by default.
    """
    if record is not None and record.exit_code is not None:
        return _by_record(info, record)
    if info is None:
        why = "the cluster does not know it any more, and its end was not recorded"
        return Settled(state="lost", why=why)
    if info.status == "RUNNING" and info.node and info.node not in alive:
        return Settled(state="lost", why="the node of its driver is gone")
    if info.live and (info.to_end or (record is not None and record.stopped)):
        return _TO_END[info.status]
    return _by_ray(info) if record is None else _unended(info, at_s)


_TO_END: Mapping[RayStatus, Settled] = {
    "PENDING": Settled(state="stopping", why="it was asked to end, which it does when it begins"),
    "RUNNING": Settled(state="stopping", why="it was asked to end, and saves"),
}
"""Jobs that were asked to end, and have not."""


def _unended(info: JobInfo, at_s: float) -> Settled:
    """How a job is that began, and whose end its node has not written."""
    if info.status != "STOPPED":
        return _by_ray(info)
    # The entrypoint writes the end before it ends.
    if at_s < info.ended_ms / 1000 + SEEN_S:
        return Settled(state="stopping", why="it has ended; how is not to be seen yet")
    why = (
        "it was asked to end, and its end was not written: it may have been killed before it saved"
    )
    return Settled(state="failed", why=why)


def by_record_alone(record: Record) -> Settled:
    """How a job is where no cluster was asked."""
    if record.exit_code is not None:
        return _by_record(None, record)
    why = "no end is recorded; whether it lives, the cluster tells: ask without --records"
    return Settled(state="begun", why=why)


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
    if record.stopped and record.exit_code == SIGTERM_CODE:
        return Settled(state="stopped", exit_code=record.exit_code)
    if record.stopped:
        why = "it was asked to end, and did not end well"
        return Settled(state="failed", exit_code=record.exit_code, why=why)
    return Settled(state="failed", exit_code=record.exit_code)


def _said(info: JobInfo) -> str:
    """Ray's reason; of a command that ended by itself it is the end of its log, shown by `logs`."""
    return "" if info.exit_code is not None else info.message
